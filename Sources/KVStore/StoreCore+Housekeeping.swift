internal import KVArena
internal import KVDisk
package import KVIdentity
internal import KVTier

// Looking and dropping.

extension StoreCore {
    /// Where a chunk is.
    package enum Location: UInt8, Sendable {
        case absent = 0
        case memory = 1
        case disk = 2
        case memoryAndDisk = 3
        /// On its way from a disk to memory.
        case loading = 4
        case beingWritten = 255
    }

    /// Where each key is. Changes nothing.
    package mutating func locate(
        space handle: UInt32, root: Digest, keys: [Digest], session: SessionID, now: UInt64
    ) throws(StoreError) -> [Location] {
        advance(to: now)
        try requireKeys(keys)
        _ = try requireSpace(handle, session: session)
        let slot = rootSlots[root]
        var result: [Location] = []
        for key in keys {
            let chunk = find(key, space: handle, rootSlot: slot)
            result.append(chunk.map { location(of: $0) } ?? .absent)
        }
        return result
    }

    /// The chunk of a key, if it is in this space and under this root.
    func find(_ key: Digest, space handle: UInt32, rootSlot: UInt32?) -> UInt32? {
        guard let chunk = index.find(key, chunks), chunks[chunk].space == handle,
            chunks[chunk].root == rootSlot
        else { return nil }
        return chunk
    }

    func location(of chunk: UInt32) -> Location {
        let entry = chunks[chunk]
        if !entry.isVisible { return .beingWritten }
        switch entry.memory {
        case .absent: return .disk
        case .loading: return .loading
        case .resident: return entry.disk == .written ? .memoryAndDisk : .memory
        }
    }

    /// How many leading keys match, and why the next one does not. Changes nothing.
    package mutating func explain(
        space handle: UInt32, root: Digest, keys: [Digest], session: SessionID, now: UInt64
    ) throws(StoreError) -> (matched: Int, code: String, sentence: String) {
        advance(to: now)
        try requireKeys(keys)
        let space = try requireSpace(handle, session: session)
        let found = visiblePrefix(space: handle, root: root, keys: keys)
        let matched = found.count
        if matched == keys.count { return (matched, "hit", whereabouts(of: found)) }
        let key = keys[matched]
        let name = "chunk \(matched) (key \(String(key.description.prefix(12)))…)"
        if let chunk = index.find(key, chunks) {
            if chunks[chunk].space != handle || rootSlots[root] != chunks[chunk].root {
                return (
                    matched, "never-stored",
                    "\(name) is known, but in another space or under another root"
                )
            }
            if chunks[chunk].state == .writing {
                return (matched, "being-written", "\(name) is being written and not sealed yet")
            }
            return (matched, "parent-missing", "\(name) is sealed, but not the chunks before it")
        }
        if let (fate, timeMs) = fates.fate(of: key) {
            let ago = (currentTime / 1_000_000 - timeMs) / 1000
            switch fate {
            case .evicted:
                return (matched, "evicted", "\(name) was evicted \(ago) s ago to make room")
            case .dropped:
                return (matched, "dropped", "\(name) was dropped \(ago) s ago on request")
            case .expired:
                return (matched, "expired", "\(name) reached its time to live \(ago) s ago")
            case .evictedFromDisk:
                return (
                    matched, "evicted",
                    "\(name) was given up \(ago) s ago to make room on disk, by then it was not in memory"
                )
            case .unreadable:
                return (
                    matched, "unreadable",
                    "\(name) could not be read from disk \(ago) s ago; see the server's log"
                )
            case .damaged:
                return (
                    matched, "damaged",
                    "\(name) failed its check \(ago) s ago; see the server's log"
                )
            case .writerGaveUp:
                return (
                    matched, "writer-gave-up",
                    "\(name) was reserved, but its writer gave up, died or was late, \(ago) s ago"
                )
            }
        }
        return (
            matched, "never-stored",
            "\(name) was never stored here under this root, or so long ago that it is forgotten; space "
                + "\(handle) has \(space.chunkCount) chunks under \(space.roots.count) roots"
        )
    }

    private func whereabouts(of found: [UInt32]) -> String {
        let onDisk = found.count { chunks[$0].memory != .resident }
        if onDisk == 0 { return "all \(found.count) chunks are in memory" }
        return "all \(found.count) chunks are here, \(onDisk) of them on disk only"
    }

    /// Drops the given keys and all chunks that follow any of them. - Returns: how many went.
    package mutating func drop(
        space handle: UInt32, root: Digest, keys: [Digest], session: SessionID, now: UInt64
    ) throws(StoreError) -> Int {
        advance(to: now)
        try requireKeys(keys)
        let space = try requireSpace(handle, session: session)
        let slot = rootSlots[root]
        let known = Set(keys.filter { find($0, space: handle, rootSlot: slot) != nil })
        var count = 0
        for key in keys {
            let chunk = find(key, space: handle, rootSlot: slot)
            // What went with an earlier key needs no word of its own.
            if chunk == nil, known.contains(key) { continue }
            dropOnDisks(.key(key, root: root, space: space.id))
            if let chunk { count += removeSubtree(chunk, fate: .dropped) }
        }
        endMarks(ofMissing: keys, root: root, space: space.id)
        return count
    }

    /// Drops all chunks of a root. - Returns: how many went.
    package mutating func drop(space handle: UInt32, root: Digest, session: SessionID, now: UInt64)
        throws(StoreError) -> Int
    {
        advance(to: now)
        let space = try requireSpace(handle, session: session)
        dropOnDisks(.root(root, space: space.id))
        endMarksOfMissing { $0.root == root && $0.space == space.id }
        guard let slot = rootSlots[root], roots[Int(slot)].space == handle else { return 0 }
        return dropRoot(slot)
    }

    /// Drops all chunks of a space, whoever opened it. - Returns: how many went.
    package mutating func drop(space handle: UInt32, now: UInt64) throws(StoreError) -> Int {
        advance(to: now)
        guard let space = spaces[handle] else {
            throw StoreError(
                .unknownSpace, "no space has the handle \(handle); KV.SPACES lists them")
        }
        dropOnDisks(.space(space.id))
        endMarksOfMissing { $0.space == space.id }
        return space.roots.sorted().reduce(0) { $0 + dropRoot($1) }
    }

    /// Nothing of it comes back from a disk, whether the index has it now or not.
    mutating func dropOnDisks(_ drop: TierDrop) {
        for volume in disk.volumes.indices { disk.volumes[volume].log.drop(drop, now: currentTime) }
        if isRecovering { disk.recentDrops.insert(drop) }
    }

    private mutating func dropRoot(_ slot: UInt32) -> Int {
        var count = 0
        while roots[Int(slot)].chunkCount > 0, roots[Int(slot)].firstChild != Chunk.none {
            count += removeSubtree(roots[Int(slot)].firstChild, fate: .dropped)
        }
        return count
    }

    func requireLifetime(_ ms: UInt64, smallest: UInt64) throws(StoreError) {
        if ms < smallest || ms > StoreLimits.lifetimeMs {
            throw StoreError(.argument, "\(ms) ms; give \(smallest) to \(StoreLimits.lifetimeMs)")
        }
    }
}
