/// Where a chunk is.
public enum Location: UInt8, Sendable, CaseIterable {
    /// Nowhere.
    case absent = 0
    /// In the arena, and on no disk (yet).
    case memory = 1
    /// On a disk only.
    case disk = 2
    /// In the arena and on a disk.
    case memoryAndDisk = 3
    /// On its way from a disk to the arena.
    case loading = 4
    /// A writer has not committed it yet.
    case writing = 255
}

/// Where a matched chunk would be read from.
public enum Tier: UInt8, Sendable, CaseIterable {
    /// The arena: it can be read at once.
    case memory = 1
    /// A disk, or it is on its way from there: ``Client/acquire(_:shard:from:count:timeoutMs:)``
    /// has it brought to the arena, and ``Client/wait(for:timeoutMs:)`` says when it is there.
    case disk = 2
}

/// How much of a prompt is stored.
public struct Match: Sendable {
    /// Leading keys that are sealed.
    public let count: Int
    /// For each of them, where it would be read from. A tier that this client doesn't know counts
    /// as ``Tier/disk``.
    public let tiers: [Tier]
    /// Keeps them until read; nil unless asked for and something matched.
    public let hold: Hold?

    /// How many leading chunks are in memory.
    public var inMemoryCount: Int { tiers.firstIndex { $0 != .memory } ?? count }
}

/// Matched chunks that stay until they are read, the deadline, or the release.
public struct Hold: Sendable, Hashable {
    /// The server's number for it.
    public let id: Int
    /// How many chunks it holds.
    public let count: Int
    let incarnation: Int
}

/// A claim to read one shard of held chunks.
///
/// What was copied counts only once ``Client/release(_:)-(ReadLease)`` has returned true.
public struct ReadLease: Sendable {
    /// The server's number for it.
    public let id: Int
    /// Which shard.
    public let shard: Int
    /// One for each chunk.
    public let extents: [Extent]
    /// The memory in which they lie.
    public let arena: Arena
    let incarnation: Int

    /// Whether some chunk is still on its way to memory.
    public var isPending: Bool { extents.contains { $0.isPending } }
    /// How many leading chunks can be read now.
    public var readyCount: Int { extents.firstIndex { !$0.isThere } ?? extents.count }

    /// Shows the bytes of one chunk to `body`, without a copy.
    ///
    /// - Throws: `no-extent` when the chunk is pending or gone; what `body` throws.
    public func withBytes<Result>(
        of position: Int, _ body: (UnsafeRawBufferPointer) throws -> Result
    ) throws -> Result {
        let extent = extents[position]
        if extent.isThere { return try arena.withBytes(of: extent, body) }
        throw ClientError(
            .noExtent,
            extent.isPending
                ? "chunk \(position) is on its way to memory; wait for the lease first"
                : "chunk \(position) failed its check or its tier; treat it and all after it as a miss"
        )
    }
}

/// What became of a key in a reservation.
public enum Reserved: UInt8, Sendable {
    /// Its extents are this lease's to fill.
    case granted = 0
    /// It is stored already.
    case present = 1
    /// Another lease fills it.
    case busy = 2
    /// There was no room.
    case refused = 3
}

/// A claim to write the chunks that were granted.
public struct WriteLease: Sendable {
    /// The server's number for it; 0 if nothing was granted, and then there is nothing to commit or release.
    public let id: Int
    /// One for each key.
    public let states: [Reserved]
    /// Positions of the granted chunks in the keys.
    public let granted: [Int]
    /// For each granted chunk in order, one for each shard in order.
    public let extents: [Extent]
    /// Shards of a chunk.
    public let shardCount: Int
    /// Why chunks were refused: a code and a sentence; empty if none was.
    public let reason: String
    /// The memory in which they lie.
    public let arena: Arena
    let incarnation: Int

    /// Shows the bytes of one shard of a granted chunk to `body`, for writing. What it held before is unspecified.
    ///
    /// - Parameter position: in the keys of the reservation.
    /// - Throws: `no-extent` when the chunk was not granted; what `body` throws.
    public func withMutableBytes<Result>(
        of position: Int, shard: Int = 0, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
    ) throws -> Result {
        precondition((0..<shardCount).contains(shard), "no such shard")
        var place = position
        if granted.count != states.count {
            guard let found = granted.firstIndex(of: position) else {
                throw ClientError(
                    .noExtent,
                    "chunk \(position) was not granted; write only the positions in 'granted'")
            }
            place = found
        }
        return try arena.withMutableBytes(of: extents[place * shardCount + shard], body)
    }
}

/// Why the first key that doesn't match doesn't.
public struct Explanation: Sendable, Hashable {
    /// Leading keys that match.
    public let matched: Int
    /// `hit`, `never-stored`, `evicted`… (`docs/protocol.md`).
    public let code: String
    /// The same for a person.
    public let sentence: String
}

/// A space as this connection knows it.
public struct OpenSpace: Sendable, Hashable {
    /// The server's number for it, on this connection.
    public let handle: Int
    /// Bytes of an extent, by shard.
    public let shardBytes: [Int]
}

/// What a server is.
public struct ServerVersion: Sendable, Hashable {
    /// Its version.
    public let server: String
    /// The version of its commands.
    public let protocolVersion: Int
    /// Its process.
    public let processID: Int
    /// Since when it runs.
    public let uptimeMs: Int
}

/// One of the server's gauges or counters.
public struct Statistic: Sendable, Hashable {
    /// In snake case, as `KV.STATS` has it.
    public let name: String
    /// Its value.
    public let value: Int
}
