internal import CKvasir
internal import Glibc
internal import KVThreads

/// Where the bytes of a chunk's shard lie in the arena.
public struct Extent: Hashable, Sendable, BitwiseCopyable {
    /// From the start of the arena, in bytes.
    public let offset: UInt64
    /// In bytes.
    public let length: UInt64

    /// On its way to memory: ``Client/wait(for:timeoutMs:)`` gives it.
    public var isPending: Bool { offset == .max }
    /// It failed its check or its tier: a miss, and so is every chunk after it.
    public var isGone: Bool { offset == .max - 1 }
    /// Whether there are bytes to read or write.
    public var isThere: Bool { offset < .max - 1 }

    /// Packed extents as a reply has them; nil if `bytes` is not that.
    static func unpack(_ bytes: [UInt8]) -> [Extent]? {
        if bytes.count % 16 != 0 { return nil }
        return bytes.withUnsafeBytes { raw in
            (0..<(raw.count / 16)).map {
                Extent(
                    offset: UInt64(
                        littleEndian: raw.loadUnaligned(fromByteOffset: $0 * 16, as: UInt64.self)),
                    length: UInt64(
                        littleEndian: raw.loadUnaligned(
                            fromByteOffset: $0 * 16 + 8, as: UInt64.self)))
            }
        }
    }
}

/// The server's shared memory, mapped into this process.
///
/// It stays mapped while the client is connected to the server it came from, or while anybody else keeps this object (a
/// lease does). A forked child doesn't inherit it. Which bytes may be touched when is said by leases.
public final class Arena: Sendable {
    /// Bytes of the arena.
    public let byteCount: Int
    /// Tells this arena from any other.
    public let id: [UInt8]
    /// Whether it can only be read.
    public let isReadOnly: Bool

    private static let pieceBytes = 2 << 20
    private static let populateRead: Int32 = 22

    // SAFETY: set once in init, unmapped in deinit; concurrent use of the bytes is governed by leases.
    private nonisolated(unsafe) let base: UnsafeMutableRawPointer
    /// A set bit is a piece whose page table entries are there.
    private let populated: Locked<[UInt64]>

    /// Maps the memory behind a descriptor, which the mapping outlives.
    init(_ descriptor: borrowing Descriptor, byteCount: Int, id: [UInt8], isReadOnly: Bool)
        throws(ClientError)
    {
        var status = stat()
        // Touching what lies behind the end of the file would kill the process.
        guard fstat(descriptor.number, &status) == 0, byteCount > 0, status.st_size >= byteCount
        else {
            throw ClientError.badReply(
                to: "KV.ARENA", "came with a descriptor that is not its memory")
        }
        let protection = isReadOnly ? PROT_READ : PROT_READ | PROT_WRITE
        let mapped = mmap(nil, byteCount, protection, MAP_SHARED, descriptor.number, 0)
        guard let mapped, mapped != MAP_FAILED else {
            throw ClientError(
                .arena,
                "can't map the arena's \(byteCount >> 20) MiB (\(String(cString: strerror(errno)))); raise the "
                    + "limit of address space (ulimit -v) or start the server with less --memory")
        }
        // Failure costs memory in forked children only.
        _ = kv_dont_fork(mapped, byteCount)
        base = mapped
        self.byteCount = byteCount
        self.id = id
        self.isReadOnly = isReadOnly
        populated = Locked(Array(repeating: 0, count: byteCount / Self.pieceBytes / 64 + 1))
    }

    deinit { munmap(base, byteCount) }

    /// Whether the extent lies in the arena.
    func contains(_ extent: Extent) -> Bool {
        let size = UInt64(byteCount)
        return extent.offset <= size && extent.length <= size - extent.offset
    }

    /// Shows the bytes of an extent to `body`. The caller has a lease on it.
    ///
    /// - Precondition: the extent is there and lies in the arena.
    public func withBytes<Result>(
        of extent: Extent, _ body: (UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        precondition(extent.isThere && contains(extent), "outside the arena")
        // SAFETY: inside the mapping, which lives as long as this object, and so through the call.
        return try body(
            UnsafeRawBufferPointer(start: base + Int(extent.offset), count: Int(extent.length)))
    }

    /// Shows the bytes of an extent to `body` for writing. The caller has a write lease on it.
    ///
    /// - Precondition: the extent is there and lies in the arena, which is not read-only.
    public func withMutableBytes<Result>(
        of extent: Extent, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        precondition(!isReadOnly, "the arena was mapped read-only")
        precondition(extent.isThere && contains(extent), "outside the arena")
        // SAFETY: as above.
        return try body(
            UnsafeMutableRawBufferPointer(
                start: base + Int(extent.offset), count: Int(extent.length)))
    }

    /// Makes the page table entries of the first `byteCount` bytes, so that no copy pays for them (about 0.1 s a GiB).
    ///
    /// Give it what the server has faulted in; beyond that it would take memory that the server has not asked for yet.
    func populate(first byteCount: Int) {
        populate(pieces: 0..<(min(byteCount, self.byteCount) / Self.pieceBytes))
    }

    /// The same for extents; what is done already costs next to nothing.
    func populate(_ extents: [Extent]) {
        populated.withLock { bits in
            for extent in extents where extent.isThere && extent.length > 0 {
                let first = Int(extent.offset) / Self.pieceBytes
                let last = Int(extent.offset + extent.length - 1) / Self.pieceBytes
                for piece in first...last { populate(piece, &bits) }
            }
        }
    }

    private func populate(pieces: Range<Int>) {
        // Piece by piece, so that a lease that was just given need not wait for all.
        for piece in pieces { populated.withLock { populate(piece, &$0) } }
    }

    private func populate(_ piece: Int, _ bits: inout [UInt64]) {
        let bit: UInt64 = 1 << UInt64(piece % 64)
        if bits[piece / 64] & bit != 0 { return }
        bits[piece / 64] |= bit
        let start = base + piece * Self.pieceBytes
        let count = min(Self.pieceBytes, byteCount - piece * Self.pieceBytes)
        // An error (an old kernel) means that touching the pages makes the entries, as ever.
        if isReadOnly {
            _ = madvise(start, count, Self.populateRead)
        } else {
            _ = kv_populate_write(start, count)
        }
    }
}
