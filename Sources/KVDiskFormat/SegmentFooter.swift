/// All entries of a full segment once more, so that a start reads one piece and not every group.
package struct SegmentFooter: Hashable, Sendable {
    /// The segment's life.
    package let life: UInt64
    /// Where the last group ends.
    package let groupsEnd: Int
    /// The entries of all groups, in their order: 1 to ``DiskFormat/mostEntriesInSegment``.
    package let entries: [DiskEntry]

    /// Header, entries and padding.
    package var byteCount: Int { DiskFormat.footerBytes(entries: entries.count) }

    /// Groups end behind the segment's header and the shortest group.
    static let smallestGroupsEnd =
        DiskFormat.segmentHeaderBytes + DiskFormat.groupHeaderBytes(entries: 1)

    private enum Place {
        static let count = 8
        static let version = 12
        static let life = 16
        static let firstSequence = 24
        static let lastSequence = 32
        static let groupsEnd = 40
        static let entriesChecksum = 48
        static let checksum = 56
    }

    /// The footer of a segment with `entries`, whose last group ends at `groupsEnd`.
    ///
    /// - Precondition: the entries are within the limit and have consecutive sequences.
    package init(_ entries: [DiskEntry], groupsEnd: Int, in segment: SegmentHeader) {
        precondition(
            (1...DiskFormat.mostEntriesInSegment).contains(entries.count),
            "no footer has \(entries.count) entries")
        precondition(
            groupsEnd >= Self.smallestGroupsEnd && groupsEnd % DiskFormat.alignment == 0
                && groupsEnd <= segment.groupsLimit(entries: entries.count),
            "no room was left for the footer")
        life = segment.life
        self.groupsEnd = groupsEnd
        self.entries = entries
    }

    /// The bytes: ``byteCount`` of them.
    package var encoded: [UInt8] {
        unsafe DiskFormat.bytes(byteCount) { unsafe encode(into: $0) }
    }

    /// Writes ``byteCount`` bytes.
    ///
    /// - Precondition: `destination` has room for them.
    package func encode(into destination: UnsafeMutableRawBufferPointer) {
        let writer = unsafe FieldWriter(destination, byteCount: byteCount)
        let firstSequence = entries[0].sequence
        for (index, entry) in entries.enumerated() {
            precondition(
                entry.sequence == firstSequence + UInt64(index), "sequences are consecutive")
            entry.encode(
                with: writer, at: DiskFormat.entriesOffset + index * DiskFormat.entryBytes)
        }
        writer.store(DiskMagic.footer.word, at: 0)
        writer.store(count: entries.count, at: Place.count)
        writer.store(DiskFormat.version, at: Place.version)
        writer.store(life, at: Place.life)
        writer.store(firstSequence, at: Place.firstSequence)
        writer.store(firstSequence + UInt64(entries.count - 1), at: Place.lastSequence)
        writer.store(size: groupsEnd, at: Place.groupsEnd)
        writer.storeChecksum(
            of: DiskFormat.entriesOffset..<byteCount, at: Place.entriesChecksum)
        writer.storeChecksum(of: 0..<Place.checksum, at: Place.checksum)
    }

    /// Reads the footer that `trailer` tells of: ``SegmentTrailer/footerBytes`` bytes from
    /// ``SegmentTrailer/footerOffset`` on.
    package init(
        decoding bytes: UnsafeRawBufferPointer, in segment: SegmentHeader, trailer: SegmentTrailer
    ) throws(DiskFormatError) {
        let reader = try unsafe Self.reader(
            bytes, in: segment, at: trailer.footerOffset, byteCount: trailer.footerBytes)
        let count = try reader.count(
            at: Place.count, "count of entries", from: trailer.count, to: trailer.count)
        groupsEnd = try reader.alignedSize(
            at: Place.groupsEnd, "end of groups", from: Self.smallestGroupsEnd,
            to: trailer.footerOffset)
        let first = reader.u64(at: Place.firstSequence)
        let (next, overflow) = first.addingReportingOverflow(UInt64(count))
        guard first >= segment.firstSequence, !overflow else {
            throw reader.damaged(
                Place.firstSequence, "first sequence",
                "is \(first), the segment's is \(segment.firstSequence)")
        }
        let last = reader.u64(at: Place.lastSequence)
        guard last == next - 1 else {
            throw reader.damaged(
                Place.lastSequence, "last sequence", "is \(last), not \(next - 1)")
        }
        try reader.require(
            checksum: Place.entriesChecksum, "checksum of the entries",
            of: DiskFormat.entriesOffset..<trailer.footerBytes)
        let entriesEnd = DiskFormat.entriesOffset + count * DiskFormat.entryBytes
        try reader.requireZeros(entriesEnd..<trailer.footerBytes, "padding")
        life = segment.life
        entries = try Self.entries(reader, count: count, from: first, groupsEnd: groupsEnd)
    }

    /// Checks that a footer of this life stands at `offset`; its entries are not looked at.
    static func requireFooter(
        in bytes: UnsafeRawBufferPointer, of segment: SegmentHeader, at offset: Int
    ) throws(DiskFormatError) {
        _ = try unsafe reader(
            bytes, in: segment, at: offset, byteCount: DiskFormat.entriesOffset)
    }

    private static func reader(
        _ bytes: UnsafeRawBufferPointer, in segment: SegmentHeader, at offset: Int, byteCount: Int
    ) throws(DiskFormatError) -> FieldReader {
        let reader = try unsafe FieldReader(bytes, "footer", at: offset, byteCount: byteCount)
        try reader.require(magic: .footer)
        try reader.require(checksum: Place.checksum, "checksum", of: 0..<Place.checksum)
        try reader.requireVersion(at: Place.version)
        try reader.require(life: segment.life, at: Place.life)
        return reader
    }

    private static func entries(
        _ reader: FieldReader, count: Int, from firstSequence: UInt64, groupsEnd: Int
    ) throws(DiskFormatError) -> [DiskEntry] {
        var entries: [DiskEntry] = []
        entries.reserveCapacity(count)
        var bodyEnd = smallestGroupsEnd
        for index in 0..<count {
            let place = DiskFormat.entriesOffset + index * DiskFormat.entryBytes
            let entry = try DiskEntry(with: reader, at: place)
            try entry.require(sequence: firstSequence + UInt64(index), reader, at: place)
            // Headers of groups lie between, so a body may start anywhere behind the one before.
            bodyEnd = try entry.requireBody(
                from: bodyEnd, to: groupsEnd, isNext: false, reader, at: place)
            entries.append(entry)
        }
        return entries
    }
}
