package import KVIdentity

/// Where a tier keeps the bytes of one shard.
package struct TierPlace: Hashable, Sendable, BitwiseCopyable {
    /// The segment: the unit in which the tier gives room back.
    package var segment: UInt32
    /// Where in it, in pages of ``TierExtent/pageBytes``.
    package var page: UInt32

    /// Names a place.
    package init(segment: UInt32, page: UInt32) {
        self.segment = segment
        self.page = page
    }
}

/// A part of the arena: whole pages.
package struct TierExtent: Hashable, Sendable, BitwiseCopyable {
    /// What offset and length are multiples of, in bytes.
    package static let pageBytes = 4096

    /// From the start of the arena, in bytes.
    package var offset: UInt64
    /// In bytes.
    package var length: UInt64

    /// Names memory; it owns nothing.
    package init(offset: UInt64, length: UInt64) {
        self.offset = offset
        self.length = length
    }
}

/// What a tier keeps of one shard of a chunk, beside its bytes.
package struct TierRecord: Hashable, Sendable {
    /// The chunk's key.
    package var key: Digest
    /// The key before it; nil at chunk 0.
    package var parent: Digest?
    /// The id of the space.
    package var space: Digest
    /// The root.
    package var root: Digest
    /// Which shard.
    package var shard: UInt32
    /// The chunk's place in its prompt, from 0.
    package var chunkIndex: UInt32
    /// Bytes of the shard, without padding.
    package var byteCount: Int
    /// XXH3-64 of those bytes.
    package var checksum: UInt64
    /// When it expires, in milliseconds since 1970; 0 for never.
    package var expiresMs: UInt64

    /// Makes a record.
    package init(
        key: Digest, parent: Digest?, space: Digest, root: Digest, shard: UInt32,
        chunkIndex: UInt32, byteCount: Int, checksum: UInt64, expiresMs: UInt64
    ) {
        self.key = key
        self.parent = parent
        self.space = space
        self.root = root
        self.shard = shard
        self.chunkIndex = chunkIndex
        self.byteCount = byteCount
        self.checksum = checksum
        self.expiresMs = expiresMs
    }
}

/// What is to be forgotten for good.
package enum TierDrop: Hashable, Sendable {
    /// A key and all that follows it.
    case key(Digest, root: Digest, space: Digest)
    /// All of a root.
    case root(Digest, space: Digest)
    /// All of a space.
    case space(Digest)
    /// A key and all that follows it, at a time in milliseconds since 1970, 0 for never. Of several
    /// times the last one that was told counts; chunks that are written later have their own.
    case keyLater(Digest, root: Digest, space: Digest, atMs: UInt64)
}

/// Why a tier could not do something.
package struct TierFault: Error, Hashable, Sendable, CustomStringConvertible {
    /// The code of a fault that comes from want of room, where none of the other records can go.
    package static let noRoom = "no-room"
    /// The code of a fault that says nothing of what was asked for: the tier does not answer.
    package static let stalled = "stalled"

    /// One word for it.
    package var code: String
    /// What went wrong, where, and how to mend it.
    package var message: String

    /// Makes a fault.
    package init(code: String, message: String) {
        self.code = code
        self.message = message
    }

    package var description: String { message }
}
