internal import KVIdentity
internal import KVTier

/// What the core knows of a chunk: 88 bytes, and one ``ShardRecord`` for each shard.
struct Chunk: BitwiseCopyable {
    static let none = UInt32.max

    enum State: UInt8 {
        /// A slot that nobody uses.
        case vacant
        /// A write lease fills it; nobody can match it.
        case writing
        /// All shards are committed; immutable.
        case sealed
        /// Out of the index for good, but somebody still reads it.
        case doomed
    }

    /// Whether its bytes are in the arena.
    enum Memory: UInt8 {
        case resident
        /// They have extents, and are on their way there from a disk.
        case loading
        /// They have no extents.
        case absent
    }

    /// Whether its bytes are on a disk.
    enum Disk: UInt8 {
        case none
        /// It stands in the queue of what is to be written.
        case waiting
        /// Its shards are being hashed and written.
        case writing
        /// All its shards can be read.
        case written
    }

    var key: Digest
    /// The chunk before this one, or `none` for the first of its root.
    var parent: UInt32 = none
    var firstChild: UInt32 = none
    var nextSibling: UInt32 = none
    var previousSibling: UInt32 = none
    /// Slot of the root, of the space, and the first of the shard records.
    var root: UInt32
    var space: UInt32
    var firstShard: UInt32
    /// Reasons to stay: one for each hold, read lease, write lease and pin on it, and one
    /// for each child that has any. So a chunk without pins has no pinned descendant.
    var pins: UInt32 = 0
    /// Which session sealed it; a place among the core's writer names.
    var writerName: UInt32 = 0
    var state: State = .writing
    /// Sealed, and so are all its ancestors: it can be matched.
    var isVisible = false
    /// It has a time to live, or is pinned until a time (side tables of the core).
    var hasTimeToLive = false
    var isPinnedUntil = false
    var memory: Memory = .resident
    var disk: Disk = .none
    /// Which disk has it, or is getting it.
    var volume: UInt8 = 0
    /// It was matched since it was written to the disk.
    var isHot = false
    /// Its place in the prompt, from 0.
    var number: UInt32 = 0
    /// When it was sealed, found or matched last: seconds of the core's clock.
    var usedSeconds: UInt32 = 0
    /// Children that have extents in the arena.
    var residentChildren: UInt32 = 0
}

/// One shard of a chunk: where it lies, and the checksum of its bytes once somebody made it.
struct ShardRecord: BitwiseCopyable {
    /// First page of the extent, if the chunk has extents.
    var page: UInt32
    /// Where the disk has it, if the chunk is written.
    var place = TierPlace(segment: 0, page: 0)
    var hasChecksum = false
    var checksum: UInt64 = 0
}

/// A space as the store knows it while it is open or has chunks.
struct SpaceState {
    /// The number that clients use.
    var handle: UInt32
    var space: CacheSpace
    var id: Digest
    /// Pages of each shard's extent.
    var shardPages: [Int]
    /// Chunks of the same `shardPages`, whatever their space, are one group for eviction.
    var group: UInt32
    var chunkCount = 0
    /// Of chunks that are sealed.
    var life: TimeToLive?
    /// Slots of its roots.
    var roots: Set<UInt32> = []
    var openSessions: Set<UInt64> = []

    var chunkBytes: Int { shardPages.reduce(0, +) * 4096 }
}

/// A root that has chunks, or is about to.
struct RootState {
    var digest: Digest
    var space: UInt32
    var firstChild = Chunk.none
    var chunkCount = 0
}

/// Why a chunk is not there any more; what `explain` tells.
package enum Fate: UInt8, Sendable {
    case evicted = 1
    case dropped
    case expired
    case damaged
    case writerGaveUp
    case evictedFromDisk
    case unreadable
}
