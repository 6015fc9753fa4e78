/// The last 4,096 bytes of a full segment: where its footer is.
package struct SegmentTrailer: Hashable, Sendable {
    /// The segment's life.
    package let life: UInt64
    /// Where in the segment the footer starts.
    package let footerOffset: Int
    /// Entries of the segment, and of the footer.
    package let count: Int

    /// Bytes of the footer, with padding.
    package var footerBytes: Int { DiskFormat.footerBytes(entries: count) }

    private enum Place {
        static let zero = 12
        static let life = 16
        static let footerOffset = 24
        static let footerBytes = 32
        static let count = 40
        static let rest = 48
    }

    /// The trailer of a segment whose footer stands at `offset`: behind the groups, and best at
    /// ``SegmentHeader/groupsLimit(entries:)``, so that one request writes or reads both.
    ///
    /// - Precondition: the footer lies between the groups and the trailer.
    package init(of footer: SegmentFooter, at offset: Int, in segment: SegmentHeader) {
        precondition(
            offset >= footer.groupsEnd && offset % DiskFormat.alignment == 0
                && offset <= segment.groupsLimit(entries: footer.entries.count),
            "no footer starts at \(offset)")
        life = footer.life
        footerOffset = offset
        count = footer.entries.count
    }

    /// The 4,096 bytes.
    package var encoded: [UInt8] {
        unsafe DiskFormat.bytes(DiskFormat.trailerBytes) { unsafe encode(into: $0) }
    }

    /// Writes the 4,096 bytes.
    ///
    /// - Precondition: `destination` has room for them.
    package func encode(into destination: UnsafeMutableRawBufferPointer) {
        let writer = unsafe FieldWriter(destination, byteCount: DiskFormat.trailerBytes)
        writer.store(DiskMagic.trailer.word, at: 0)
        writer.store(DiskFormat.version, at: 8)
        writer.store(life, at: Place.life)
        writer.store(size: footerOffset, at: Place.footerOffset)
        writer.store(size: footerBytes, at: Place.footerBytes)
        writer.store(size: count, at: Place.count)
        writer.storeBlockChecksum()
    }

    /// Reads the last 4,096 bytes of a segment.
    ///
    /// - Throws: `blank` or `foreign` if the segment was not completed, `staleLife` if it was so
    ///   in an earlier life.
    package init(
        decoding bytes: UnsafeRawBufferPointer, in segment: SegmentHeader
    ) throws(DiskFormatError) {
        let reader = try unsafe FieldReader(
            bytes, "trailer", at: segment.trailerOffset, byteCount: DiskFormat.trailerBytes)
        try reader.requireBlock(.trailer)
        try reader.require(life: segment.life, at: Place.life)
        try reader.requireZeros(Place.zero..<Place.life, "reserved")
        count = try reader.size(
            at: Place.count, "count of entries", from: 1, to: DiskFormat.mostEntriesInSegment)
        let footerBytes = DiskFormat.footerBytes(entries: count)
        _ = try reader.size(
            at: Place.footerBytes, "footer bytes", from: footerBytes, to: footerBytes)
        footerOffset = try reader.alignedSize(
            at: Place.footerOffset, "footer offset", from: SegmentFooter.smallestGroupsEnd,
            to: segment.groupsLimit(entries: count))
        try reader.requireZeros(Place.rest..<FieldReader.blockChecksumOffset, "reserved")
        life = segment.life
    }
}
