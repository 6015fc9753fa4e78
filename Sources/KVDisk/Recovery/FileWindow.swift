internal import KVDiskFormat

/// A piece of a file in memory of bounded size, moved along the file as it is asked for.
///
/// What it shows is valid until it is asked again.
struct FileWindow {
    /// The most that it shows at once, in bytes: more than the longest header of a group.
    static let mostBytes = 8 << 20
    /// The first read of a file; every next one is twice as long.
    private static let firstBytes = 256 << 10

    private let calls: DiskCalls
    /// Made when the first file is entered: mostly there are footers.
    private var memory: DiskMemory?
    private var file: UInt64 = 0
    private var fileBytes = 0
    private var start = 0
    private var end = 0
    private var ahead = firstBytes

    init(_ calls: DiskCalls) {
        self.calls = calls
    }

    /// Goes to the start of an open file.
    ///
    /// - Parameter byteCount: of the file, a multiple of 4096.
    mutating func enter(file: UInt64, byteCount: Int) {
        self.file = file
        fileBytes = byteCount
        if memory == nil { memory = DiskMemory(byteCount: Self.mostBytes) }
        (start, end, ahead) = (0, 0, Self.firstBytes)
    }

    /// At least `count` bytes from `offset` on, or those up to the end of the file.
    ///
    /// - Precondition: `offset` is a multiple of 4096 inside the file, `count` at most
    ///   ``mostBytes``.
    mutating func bytes(
        at offset: Int, count: Int
    ) throws(DiskFault) -> UnsafeRawBufferPointer {
        precondition(offset >= 0 && offset < fileBytes && count <= Self.mostBytes)
        let needed = min(offset + count, fileBytes)
        if offset < start || needed > end { try read(at: offset, atLeast: count) }
        let skipped = offset - start
        return UnsafeRawBufferPointer(
            start: memory!.buffer.address + skipped, count: end - offset)
    }

    /// The checksum of `count` bytes from `offset` on, however many.
    ///
    /// - Precondition: they are inside the file, and `offset` is a multiple of 4096.
    mutating func checksum(at offset: Int, count: Int) throws(DiskFault) -> UInt64 {
        precondition(offset >= 0 && count >= 0 && count <= fileBytes - offset)
        if offset >= start, offset + count <= end {
            return DiskFormat.checksum(
                UnsafeRawBufferPointer(
                    start: memory!.buffer.address + (offset - start), count: count))
        }
        var checksum = StreamedChecksum()
        var position = offset
        while position < offset + count {
            let bytes = try bytes(at: position, count: 1)
            let part = min(bytes.count, offset + count - position)
            checksum.add(UnsafeRawBufferPointer(rebasing: bytes[..<part]))
            // The window ends at a multiple of 4096, so the next part starts at one.
            position += part
        }
        return checksum.value
    }

    private mutating func read(at offset: Int, atLeast count: Int) throws(DiskFault) {
        let needed = min(DiskFormat.aligned(count), fileBytes - offset)
        let wanted = min(max(needed, ahead), Self.mostBytes, fileBytes - offset)
        (start, end) = (0, 0)
        do throws(DiskFault) {
            try perform(at: offset, wanted)
            ahead = min(ahead * 2, Self.mostBytes)
        } catch {
            if wanted == needed { throw error }
            // A bad place may be behind what is asked for.
            ahead = DiskFormat.alignment
            try perform(at: offset, needed)
        }
    }

    private mutating func perform(at offset: Int, _ byteCount: Int) throws(DiskFault) {
        let buffer = DiskBuffer(address: memory!.buffer.address, count: byteCount)
        try calls.perform(.read(file: file, offset: offset, into: [buffer]))
        (start, end) = (offset, offset + byteCount)
    }
}
