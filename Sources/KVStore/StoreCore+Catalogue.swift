package import KVIdentity

// What is here, chunk by chunk: for people and their tools.

extension StoreCore {
    /// Which chunks a listing is to have.
    package struct ChunkFilter: Sendable {
        /// Of this space only.
        package var space: UInt32?
        /// Of this root only.
        package var root: Digest?
        /// With memory's copy, or a disk's, only.
        package var tier: Tier?
        /// Not sealed, found on disk or matched for so long, in milliseconds.
        package var idleMs: UInt64 = 0
        /// Instead of the chunks that can be matched, those that are being written.
        package var isBeingWritten = false

        package init() {}
    }

    /// What a listing says of a chunk.
    package struct ChunkDescription: Sendable {
        package var key: Digest
        package var root: Digest
        /// The chunk before it; nil for the first of its root.
        package var parent: Digest?
        package var space: UInt32
        /// Its place in the prompt, from 0.
        package var number: UInt32
        package var location: Location
        /// Of all its shards.
        package var bytes: Int
        /// Since it was sealed, found on disk or matched, in milliseconds.
        package var idleMs: UInt64
        /// Whether somebody holds, reads or has pinned it, or something that follows it.
        package var isPinned: Bool
        /// Whether it is pinned for good.
        package var isStatic: Bool
    }

    /// Lists chunks that can be matched, or those that are being written, some at a time. A chunk
    /// that is here during the whole listing comes exactly once.
    ///
    /// - Parameters:
    ///   - cursor: 0, then what the call before gave.
    ///   - count: places to look at; so many chunks come at most.
    /// - Returns: the chunks, and where to go on; 0 when that was all.
    package mutating func list(cursor: UInt32, count: Int, filter: ChunkFilter, now: UInt64)
        -> (chunks: [ChunkDescription], cursor: UInt32)
    {
        advance(to: now)
        let end = min(chunks.count, Int(cursor) + count)
        if Int(cursor) >= end { return ([], 0) }
        let found = (cursor..<UInt32(end)).compactMap { chunk in
            isListed(chunk, filter) ? describe(chunk, filter) : nil
        }
        return (found, end == chunks.count ? 0 : UInt32(end))
    }

    private func isListed(_ chunk: UInt32, _ filter: ChunkFilter) -> Bool {
        switch chunks[chunk].state {
        case .vacant, .doomed: false
        case .writing, .sealed: chunks[chunk].isVisible != filter.isBeingWritten
        }
    }

    private func describe(_ chunk: UInt32, _ filter: ChunkFilter) -> ChunkDescription? {
        let entry = chunks[chunk]
        if let space = filter.space, space != entry.space { return nil }
        let root = roots[Int(entry.root)].digest
        if let wanted = filter.root, wanted != root { return nil }
        switch filter.tier {
        case .memory: if entry.memory != .resident { return nil }
        case .disk: if entry.disk != .written { return nil }
        case nil: break
        }
        let seconds = entry.isVisible ? UInt64(currentSeconds &- entry.usedSeconds) : 0
        if seconds * 1000 < filter.idleMs { return nil }
        return ChunkDescription(
            key: entry.key, root: root,
            parent: entry.parent == Chunk.none ? nil : chunks[entry.parent].key,
            space: entry.space, number: entry.number,
            location: location(of: chunk), bytes: spaces[entry.space]!.space.chunkBytes,
            idleMs: seconds * 1000, isPinned: entry.pins > 0, isStatic: isStatic(chunk))
    }

    /// Seconds of the core's clock, as chunks keep them.
    var currentSeconds: UInt32 { UInt32(truncatingIfNeeded: currentTime / 1_000_000_000) }
}
