/// The first 4,096 bytes of a segment: what everything else in it is checked against.
package struct SegmentHeader: Hashable, Sendable {
    /// The disk that the segment belongs to.
    package var disk: DiskID
    /// The segment's number, also in its name: 1 to ``DiskFormat/largestSegmentNumber``.
    package var number: UInt64
    /// Random, and new each time a file is used: groups, footer and trailer repeat it, so that
    /// what an earlier life left is never taken for this one's.
    package var life: UInt64
    /// The segment's length, a multiple of ``DiskFormat/alignment``.
    package var segmentBytes: Int
    /// No entry has a lower sequence.
    package var firstSequence: UInt64
    /// When this life began, in milliseconds since 1970.
    package var createdMs: UInt64

    /// A header.
    package init(
        disk: DiskID, number: UInt64, life: UInt64, segmentBytes: Int, firstSequence: UInt64,
        createdMs: UInt64
    ) {
        self.disk = disk
        self.number = number
        self.life = life
        self.segmentBytes = segmentBytes
        self.firstSequence = firstSequence
        self.createdMs = createdMs
    }

    /// Where the trailer starts.
    package var trailerOffset: Int { segmentBytes - DiskFormat.trailerBytes }

    /// Where the groups of a segment with `count` entries must end, so that its footer and trailer
    /// have room. Below ``DiskFormat/segmentHeaderBytes`` if that many entries never fit.
    package func groupsLimit(entries count: Int) -> Int {
        trailerOffset - DiskFormat.footerBytes(entries: count)
    }

    /// The 4,096 bytes.
    package var encoded: [UInt8] {
        unsafe DiskFormat.bytes(DiskFormat.segmentHeaderBytes) { unsafe encode(into: $0) }
    }

    /// Writes the 4,096 bytes.
    ///
    /// - Precondition: the values are within their limits, and `destination` has room.
    package func encode(into destination: UnsafeMutableRawBufferPointer) {
        precondition(
            (1...DiskFormat.largestSegmentNumber).contains(number), "a segment has ten digits")
        precondition(
            (DiskFormat.smallestSegmentBytes...DiskFormat.largestSegmentBytes)
                .contains(segmentBytes) && segmentBytes % DiskFormat.alignment == 0,
            "no segment has \(segmentBytes) bytes")
        let writer = unsafe FieldWriter(destination, byteCount: DiskFormat.segmentHeaderBytes)
        writer.store(DiskMagic.segment.word, at: 0)
        writer.store(DiskFormat.version, at: 8)
        writer.store(count: DiskFormat.segmentHeaderBytes, at: 12)
        writer.store(disk.words.0, at: 16)
        writer.store(disk.words.1, at: 24)
        writer.store(number, at: 32)
        writer.store(life, at: 40)
        writer.store(size: segmentBytes, at: 48)
        writer.store(firstSequence, at: 56)
        writer.store(createdMs, at: 64)
        writer.storeBlockChecksum()
    }

    /// Reads the first 4,096 bytes of a segment. What follows is not looked at.
    package init(decoding bytes: UnsafeRawBufferPointer) throws(DiskFormatError) {
        let headerBytes = DiskFormat.segmentHeaderBytes
        let reader = try unsafe FieldReader(bytes, "segment header", at: 0, byteCount: headerBytes)
        try reader.requireBlock(.segment)
        _ = try reader.count(at: 12, "header bytes", from: headerBytes, to: headerBytes)
        disk = DiskID(words: (reader.u64(at: 16), reader.u64(at: 24)))
        number = UInt64(
            try reader.size(
                at: 32, "segment number", from: 1, to: Int(DiskFormat.largestSegmentNumber)))
        life = reader.u64(at: 40)
        segmentBytes = try reader.alignedSize(
            at: 48, "segment bytes", from: DiskFormat.smallestSegmentBytes,
            to: DiskFormat.largestSegmentBytes)
        firstSequence = reader.u64(at: 56)
        createdMs = reader.u64(at: 64)
        try reader.requireZeros(72..<FieldReader.blockChecksumOffset, "reserved")
    }

    /// Checks what the header says against where it was found.
    ///
    /// - Throws: `foreign` if the segment belongs to another disk, `damaged` if the file has
    ///   another number or length than its header says.
    package func check(
        disk: DiskID, number: UInt64, fileBytes: Int
    ) throws(DiskFormatError) {
        guard self.disk == disk else {
            throw DiskFormatError(
                .foreign, "segment header", at: 0,
                "belongs to disk \(self.disk), and this is disk \(disk)")
        }
        guard self.number == number else {
            throw DiskFormatError(
                .damaged, "segment header", at: 0,
                "segment number (byte 32) is \(self.number), the file's name says \(number)")
        }
        guard segmentBytes == fileBytes else {
            throw DiskFormatError(
                .damaged, "segment header", at: 0,
                "segment bytes (byte 48) is \(segmentBytes), the file has \(fileBytes)")
        }
    }
}
