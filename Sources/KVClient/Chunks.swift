public import KVIdentity

/// Which chunks a listing is to have. An empty one has all that can be matched.
public struct ChunkFilter: Sendable, Hashable {
    /// What a chunk has to have a copy in.
    public enum Place: String, Sendable, CaseIterable {
        /// The arena.
        case memory
        /// A disk, whether the arena has it too or not.
        case disk
        /// Nowhere yet: it is being written. Such chunks are in no other listing.
        case writing
    }

    /// Of the space with this handle only (``OpenSpace/handle``, or `handle` of ``Client/spaces(timeoutMs:)``).
    public var space: Int?
    /// Under this root only.
    public var root: Root?
    /// With a copy there only.
    public var place: Place?
    /// Not sealed, found on disk or matched for at least so many milliseconds.
    public var idleMs: Int

    /// A filter; without arguments everything passes it.
    public init(space: Int? = nil, root: Root? = nil, place: Place? = nil, idleMs: Int = 0) {
        self.space = space
        self.root = root
        self.place = place
        self.idleMs = idleMs
    }
}

/// A chunk as a listing has it.
public struct ListedChunk: Sendable, Hashable {
    /// Its key.
    public let key: Digest
    /// The key of the chunk before it; nil for the first under its root.
    public let parent: Digest?
    /// The root that its keys are chained from.
    public let root: Root
    /// The handle of its space.
    public let space: Int
    /// Its place in the prompt, from 0.
    public let number: Int
    /// Where it is.
    public let location: Location
    /// Bytes of all its shards.
    public let byteCount: Int
    /// Since it was sealed, found on disk or matched last, in milliseconds; the server counts in seconds.
    public let idleMs: Int
    /// Whether something holds, reads or pins it, or a chunk that follows it.
    public let isPinned: Bool
    /// Whether it is pinned for good; false of a server that has no such pins.
    public let isStatic: Bool
}

/// Some chunks of a listing.
public struct ChunkPage: Sendable {
    /// Those among the places looked at that passed the filter; perhaps none.
    public let chunks: [ListedChunk]
    /// Where to go on; nil when that was all.
    public let next: Int?
}

/// What looking at the bytes of a chunk found.
public enum Verification: Sendable, Hashable {
    /// The bytes of every shard are those that were stored.
    case good
    /// They are not, or a disk could not read them. The server gives the chunk up, and all that follow it.
    case bad(String)
    /// It is not there any more: evicted, expired, or dropped meanwhile.
    case absent(String)
    /// It is there, but could not be looked at: there was no memory to read it into.
    case unchecked(String)
}
