package import KVIdentity

/// Says that a chunk is static: kept for good, whether it is here now or not.
///
/// Keys stand for their root and space, but clients choose them, so a mark has all of them.
package struct TierMark: Hashable, Sendable {
    /// The key of the chunk.
    package var key: Digest
    /// The chunk before it; nil for the first of its root.
    package var parent: Digest?
    /// Its root and its space.
    package var root: Digest
    package var space: Digest

    /// A mark.
    package init(key: Digest, parent: Digest?, root: Digest, space: Digest) {
        self.key = key
        self.parent = parent
        self.root = root
        self.space = space
    }
}
