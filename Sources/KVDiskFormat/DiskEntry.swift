package import KVIdentity

/// What a group or a footer says of one thing that was written: 256 bytes on disk.
///
/// Make one with ``chunk(key:parent:space:root:shard:chunkIndex:bodyBytes:checksum:writtenMs:expiresMs:)``
/// and its siblings; ``GroupHeader/init(placing:at:in:firstSequence:)`` gives it its sequence and
/// its place.
package struct DiskEntry: Hashable, Sendable {
    /// What was written.
    package enum Kind: UInt8, Sendable, CaseIterable {
        /// A shard of a chunk; the body is its bytes.
        case chunk = 1
        /// A key is dropped, with all that follows it.
        case dropKey = 2
        /// A root is dropped, with all of its chunks.
        case dropRoot = 3
        /// A space is dropped, with all of its chunks.
        case dropSpace = 4
        /// The description of a space; the body is its canonical JSON.
        case space = 5
        /// A key is dropped, with all that follows it, at a time; what was said of it before about
        /// that counts no more.
        case expireKey = 6

        /// Whether a body follows in the group.
        package var hasBody: Bool { self == .chunk || self == .space }
        /// Whether it says that something is dropped, at once or at a time.
        package var isDrop: Bool { !hasBody }
    }

    /// What was written.
    package var kind: Kind
    /// The chunk's key, or the key that is dropped; else zeros.
    package var key: Digest
    /// The key before the chunk's; zeros at chunk 0.
    package var parent: Digest
    /// The id of the space.
    package var space: Digest
    /// The root; zeros if a whole space is meant.
    package var root: Digest
    /// Which shard of the chunk.
    package var shard: UInt32
    /// The chunk's place in its prompt, from 0.
    package var chunkIndex: UInt32
    /// Of the whole log: every entry has a sequence of its own, and a later one a higher one.
    package var sequence: UInt64
    /// The body's length as stored, without padding; 0 without one.
    package var bodyBytes: Int
    /// The body's length once decoded: the same, as there is no codec in this version.
    package var decodedBytes: Int
    /// Where in the segment the body starts; 0 without one.
    package var bodyOffset: Int
    /// XXH3-64 of the stored body without padding; 0 without one.
    package var bodyChecksum: UInt64
    /// When it was written, in milliseconds since 1970.
    package var writtenMs: UInt64
    /// When the chunk, or the key, expires, in milliseconds since 1970; 0 for never.
    package var expiresMs: UInt64
    /// What is dropped are entries with a sequence below this one: the sequence that the drop had
    /// when it was first written, also where it is written again later. 0 for other kinds, and for
    /// a drop that has no sequence yet.
    package var bound: UInt64

    /// What a body takes on disk, with padding; 0 without one.
    package var paddedBodyBytes: Int { DiskFormat.aligned(bodyBytes) }

    /// An entry for a shard of a chunk.
    package static func chunk(
        key: Digest, parent: Digest?, space: Digest, root: Digest, shard: UInt32,
        chunkIndex: UInt32, bodyBytes: Int, checksum: UInt64, writtenMs: UInt64,
        expiresMs: UInt64
    ) -> DiskEntry {
        var entry = DiskEntry(.chunk, writtenMs: writtenMs)
        entry.key = key
        entry.parent = parent ?? .zeros
        entry.space = space
        entry.root = root
        entry.shard = shard
        entry.chunkIndex = chunkIndex
        entry.setBody(bodyBytes, checksum)
        entry.expiresMs = expiresMs
        return entry
    }

    /// An entry for the description of a space.
    package static func space(
        _ space: Digest, bodyBytes: Int, checksum: UInt64, writtenMs: UInt64
    ) -> DiskEntry {
        var entry = DiskEntry(.space, writtenMs: writtenMs)
        entry.space = space
        entry.setBody(bodyBytes, checksum)
        return entry
    }

    /// An entry that drops a key and all that follows it.
    package static func dropKey(
        _ key: Digest, space: Digest, root: Digest, writtenMs: UInt64
    ) -> DiskEntry {
        var entry = DiskEntry(.dropKey, writtenMs: writtenMs)
        entry.key = key
        entry.space = space
        entry.root = root
        return entry
    }

    /// An entry that drops a key and all that follows it at a time, 0 for never.
    package static func expireKey(
        _ key: Digest, space: Digest, root: Digest, expiresMs: UInt64, writtenMs: UInt64
    ) -> DiskEntry {
        var entry = dropKey(key, space: space, root: root, writtenMs: writtenMs)
        entry.kind = .expireKey
        entry.expiresMs = expiresMs
        return entry
    }

    /// An entry that drops a root.
    package static func dropRoot(
        _ root: Digest, space: Digest, writtenMs: UInt64
    ) -> DiskEntry {
        var entry = DiskEntry(.dropRoot, writtenMs: writtenMs)
        entry.space = space
        entry.root = root
        return entry
    }

    /// An entry that drops a space.
    package static func dropSpace(_ space: Digest, writtenMs: UInt64) -> DiskEntry {
        var entry = DiskEntry(.dropSpace, writtenMs: writtenMs)
        entry.space = space
        return entry
    }

    private init(_ kind: Kind, writtenMs: UInt64) {
        self.kind = kind
        key = .zeros
        parent = .zeros
        space = .zeros
        root = .zeros
        shard = 0
        chunkIndex = 0
        sequence = 0
        bodyBytes = 0
        decodedBytes = 0
        bodyOffset = 0
        bodyChecksum = 0
        self.writtenMs = writtenMs
        expiresMs = 0
        bound = 0
    }

    private mutating func setBody(_ byteCount: Int, _ checksum: UInt64) {
        bodyBytes = byteCount
        decodedBytes = byteCount
        bodyChecksum = checksum
    }
}

extension Digest {
    /// What stands where a digest has no meaning.
    static let zeros = Digest(words: (0, 0, 0, 0))
}
