/// The header of a group: what one write request carries into a segment.
///
/// On disk a group is 64 bytes of header, its entries, zeros up to a multiple of
/// ``DiskFormat/alignment``, then the bodies of the entries that have one, in their order, each
/// padded likewise. What pads a body may be anything.
package struct GroupHeader: Hashable, Sendable {
    /// Where in the segment the group starts.
    package let offset: Int
    /// Its entries: 1 to ``DiskFormat/mostEntriesInGroup``.
    package let count: Int
    /// Everything: header, entries, padding and bodies.
    package let groupBytes: Int
    /// The segment's life.
    package let life: UInt64
    /// The sequence of the first entry; the others count on from it.
    package let firstSequence: UInt64

    /// Header, entries and padding: where the bodies start, counted from ``offset``.
    package var headerBytes: Int { DiskFormat.groupHeaderBytes(entries: count) }
    /// Where in the segment the group ends.
    package var end: Int { offset + groupBytes }
    /// The sequence of what follows the last entry.
    package var nextSequence: UInt64 { firstSequence + UInt64(count) }

    private enum Place {
        static let count = 8
        static let headerBytes = 12
        static let groupBytes = 16
        static let life = 24
        static let offset = 32
        static let firstSequence = 40
        static let entriesChecksum = 48
        static let checksum = 56
    }

    /// Lays a group out: gives the entries their sequences, their bodies their places, and drops
    /// without a bound the one of their sequence.
    ///
    /// - Precondition: 1 to ``DiskFormat/mostEntriesInGroup`` entries; `firstSequence` is at least 1
    ///   if one is a drop; `offset` is aligned and behind the segment's header; the group ends
    ///   before ``SegmentHeader/groupsLimit(entries:)``.
    package init(
        placing entries: inout [DiskEntry], at offset: Int, in segment: SegmentHeader,
        firstSequence: UInt64
    ) {
        precondition(
            (1...DiskFormat.mostEntriesInGroup).contains(entries.count),
            "no group has \(entries.count) entries")
        precondition(
            offset >= DiskFormat.segmentHeaderBytes && offset % DiskFormat.alignment == 0,
            "no group starts at \(offset)")
        precondition(firstSequence >= segment.firstSequence, "sequences of a segment only grow")
        precondition(
            UInt64.max - firstSequence >= UInt64(entries.count), "there are no more sequences")
        var end = offset + DiskFormat.groupHeaderBytes(entries: entries.count)
        for index in entries.indices {
            entries[index].sequence = firstSequence + UInt64(index)
            if entries[index].kind.isDrop, entries[index].bound == 0 {
                entries[index].bound = entries[index].sequence
            }
            entries[index].bodyOffset = entries[index].kind.hasBody ? end : 0
            end += entries[index].paddedBodyBytes
        }
        precondition(
            end <= segment.groupsLimit(entries: entries.count), "the group does not fit")
        self.offset = offset
        count = entries.count
        groupBytes = end - offset
        life = segment.life
        self.firstSequence = firstSequence
    }

    /// Writes header, entries and padding: ``headerBytes`` bytes. The bodies follow them.
    ///
    /// - Precondition: `entries` are those that were laid out; `destination` has room.
    package func encode(
        _ entries: [DiskEntry], into destination: UnsafeMutableRawBufferPointer
    ) {
        precondition(entries.count == count, "these are not the entries of the group")
        let writer = unsafe FieldWriter(destination, byteCount: headerBytes)
        for (index, entry) in entries.enumerated() {
            precondition(
                entry.sequence == firstSequence + UInt64(index), "an entry was not laid out")
            entry.encode(
                with: writer, at: DiskFormat.entriesOffset + index * DiskFormat.entryBytes)
        }
        writer.store(DiskMagic.group.word, at: 0)
        writer.store(count: count, at: Place.count)
        writer.store(count: headerBytes, at: Place.headerBytes)
        writer.store(size: groupBytes, at: Place.groupBytes)
        writer.store(life, at: Place.life)
        writer.store(size: offset, at: Place.offset)
        writer.store(firstSequence, at: Place.firstSequence)
        writer.storeChecksum(
            of: DiskFormat.entriesOffset..<headerBytes, at: Place.entriesChecksum)
        writer.storeChecksum(of: 0..<Place.checksum, at: Place.checksum)
    }

    /// The same as bytes.
    package func encoded(_ entries: [DiskEntry]) -> [UInt8] {
        unsafe DiskFormat.bytes(headerBytes) { unsafe encode(entries, into: $0) }
    }

    /// Reads the 64 bytes at `offset` of a segment. They have a checksum of their own, so
    /// ``headerBytes`` can be trusted before the entries are there.
    ///
    /// - Throws: `foreign` if no group starts here, `staleLife` if one of an earlier life does.
    package init(
        decoding bytes: UnsafeRawBufferPointer, in segment: SegmentHeader, at offset: Int
    ) throws(DiskFormatError) {
        let reader = try unsafe FieldReader(
            bytes, "group", at: offset, byteCount: DiskFormat.entriesOffset)
        try reader.require(magic: .group)
        try reader.require(checksum: Place.checksum, "checksum", of: 0..<Place.checksum)
        try reader.require(life: segment.life, at: Place.life)
        count = try reader.count(
            at: Place.count, "count of entries", from: 1, to: DiskFormat.mostEntriesInGroup)
        self.offset = try reader.alignedSize(
            at: Place.offset, "offset", from: DiskFormat.segmentHeaderBytes,
            to: segment.trailerOffset)
        guard self.offset == offset else {
            throw reader.damaged(Place.offset, "offset", "is \(self.offset), not \(offset)")
        }
        let headerBytes = DiskFormat.groupHeaderBytes(entries: count)
        _ = try reader.count(
            at: Place.headerBytes, "header bytes", from: headerBytes, to: headerBytes)
        groupBytes = try reader.alignedSize(
            at: Place.groupBytes, "group bytes", from: headerBytes,
            to: segment.groupsLimit(entries: count) - offset)
        life = segment.life
        firstSequence = reader.u64(at: Place.firstSequence)
        let (_, overflow) = firstSequence.addingReportingOverflow(UInt64(count))
        guard firstSequence >= segment.firstSequence, !overflow else {
            throw reader.damaged(
                Place.firstSequence, "first sequence",
                "is \(firstSequence), the segment's is \(segment.firstSequence)")
        }
    }

    /// Reads the entries of this group from all of its header's bytes, and checks that the bodies
    /// fill the rest of the group.
    ///
    /// The bodies themselves are not looked at: compare ``DiskEntry/bodyChecksum`` when one is read.
    package func entries(
        decoding bytes: UnsafeRawBufferPointer
    ) throws(DiskFormatError) -> [DiskEntry] {
        let reader = try unsafe FieldReader(bytes, "group", at: offset, byteCount: headerBytes)
        try reader.require(
            checksum: Place.entriesChecksum, "checksum of the entries",
            of: DiskFormat.entriesOffset..<headerBytes)
        let entriesEnd = DiskFormat.entriesOffset + count * DiskFormat.entryBytes
        try reader.requireZeros(entriesEnd..<headerBytes, "padding")
        var entries: [DiskEntry] = []
        entries.reserveCapacity(count)
        var bodyEnd = offset + headerBytes
        for index in 0..<count {
            let place = DiskFormat.entriesOffset + index * DiskFormat.entryBytes
            let entry = try DiskEntry(with: reader, at: place)
            try entry.require(sequence: firstSequence + UInt64(index), reader, at: place)
            bodyEnd = try entry.requireBody(
                from: bodyEnd, to: end, isNext: true, reader, at: place)
            entries.append(entry)
        }
        guard bodyEnd == end else {
            throw reader.damaged(
                Place.groupBytes, "group bytes",
                "is \(groupBytes), but the bodies end after \(bodyEnd - offset)")
        }
        return entries
    }
}
