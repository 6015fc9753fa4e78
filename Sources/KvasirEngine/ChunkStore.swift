public import KVIdentity
public import KVPolicy

/// Where an engine keeps its chunks: a daemon on this host, or a store in this process.
public protocol ChunkStore: Sendable {
    /// Shows the bytes of leading chunks that are stored, from `first` on, to `copy`.
    ///
    /// - Parameters:
    ///   - keys: of the whole prompt, from chunk 0 on.
    ///   - first: the first chunk that is wanted.
    ///   - hint: what the request says of the time after it, for eviction.
    ///   - room: called once with how many leading chunks are there, before any is shown.
    ///   - copy: gets a position in `keys` and the chunk's bytes, which it must not keep.
    /// - Returns: how many leading chunks of `keys` are there and were shown; **what was copied counts only if it is returned**. At
    ///   most `first` where nothing was.
    func load(
        _ space: CacheSpace, root: Root, keys: [Digest], from first: Int, hint: ReuseHint,
        room: (Int) throws -> Void, copy: (Int, UnsafeRawBufferPointer) -> Void
    ) throws -> Int

    /// Has the chunks that are not stored yet filled by `fill`, and seals them.
    ///
    /// - Parameters:
    ///   - keys: of consecutive chunks, from chunk 0 or, if there is one, from the one after `parent`.
    ///   - hint: what the request says of the time after it.
    ///   - fill: gets a position in `keys` and the memory to be filled.
    func save(
        _ space: CacheSpace, root: Root, keys: [Digest], parent: Digest?, hint: ReuseHint,
        fill: (Int, UnsafeMutableRawBufferPointer) -> Void
    ) throws -> SaveResult

    /// Whether `error` says that the chunk in front of the keys is gone, so that it must be saved again.
    func isGap(_ error: any Error) -> Bool
}

/// What became of chunks that were to be saved.
public struct SaveResult: Sendable, Hashable {
    /// Chunks that were written.
    public var sealed: Int
    /// Leading chunks that are stored now, or are being written by another engine.
    public var covered: Int
    /// Why the others were refused; empty if none was.
    public var refusal: String
}
