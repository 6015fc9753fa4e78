/// Decides which chunk goes when memory runs short.
///
/// A policy is pure bookkeeping: it does no I/O, reads no clock and gives the same answers for the
/// same calls. Chunks are small integers (slots of the store's table, reused after ``remove(_:)``).
/// Chunks of different layouts can't use each other's memory, so they live in *groups*, and a
/// victim is asked for in one group.
///
/// Leaves go before parents: the store tells with ``setEvictable(_:_:)`` which chunks are leaves
/// that nobody holds, and only those may be named as victims.
public protocol EvictionPolicy: Sendable {
    /// A chunk became known. It is the most recent of its group and not evictable yet.
    mutating func insert(_ chunk: UInt32, group: UInt32)
    /// A chunk was used. O(1) for chunks that aren't evictable, else O(log n).
    mutating func touch(_ chunk: UInt32)
    /// The chunk may, or may no longer, be named as a victim. O(log n).
    mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool)
    /// The chunk is gone; its number may come back. O(log n).
    mutating func remove(_ chunk: UInt32)
    /// The evictable chunk of the group that is worth least, or nil when there is none. O(1).
    func victim(in group: UInt32) -> UInt32?
    /// What the chunk is worth now: of two chunks, of any groups, the one with the smaller worth
    /// should go first.
    func worth(of chunk: UInt32) -> UInt64
    /// What a chunk is worth that would be used now.
    var worthNow: UInt64 { get }
}
