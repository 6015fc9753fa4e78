package import KVTier

/// Something that a log wants done on its disk. The answer goes to
/// ``DiskLog/completed(_:_:now:)``.
package struct LogRequest: Sendable, Hashable {
    /// A part of what is written.
    package enum Piece: Sendable, Hashable {
        /// Bytes of the log: a multiple of 4,096 of them.
        case bytes([UInt8])
        /// A part of the arena, which belongs to the request until its completion.
        case arena(TierExtent)
    }

    /// As in ``DiskRequest/Operation``, but for the memory. Files have the numbers of segments.
    package enum Operation: Sendable, Hashable {
        case read(file: UInt64, offset: Int, into: [TierExtent])
        case write(file: UInt64, offset: Int, from: [Piece])
        case sync(file: UInt64)
        case create(file: UInt64, name: String, byteCount: Int)
        case open(file: UInt64, name: String)
        case close(file: UInt64)
        case remove(name: String)
    }

    /// The log's own number for it.
    package let id: UInt64
    /// What to do.
    package let operation: Operation
}
