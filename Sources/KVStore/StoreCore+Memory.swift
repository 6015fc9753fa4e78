internal import KVArena
internal import KVIdentity
internal import KVPolicy

// Memory for new chunks: a free extent, else the place of what is worth least.

extension StoreCore {
    /// A chunk in state `writing` with an extent for each shard, in the index; nil, and nothing
    /// changed but evictions, when there is no room.
    mutating func makeChunk(_ key: Digest, parent: UInt32, root: UInt32, space: SpaceState)
        -> UInt32?
    {
        let chunk =
            vacantChunks.popLast()
            ?? chunks.append(Chunk(key: key, root: 0, space: 0, firstShard: 0))
        var pages: [UInt32] = []
        pages.reserveCapacity(space.shardPages.count)
        for length in space.shardPages {
            guard let page = allocate(length, owner: chunk) else {
                for page in pages { allocator.free(page: page) }
                chunks[chunk].state = .vacant
                vacantChunks.append(chunk)
                return nil
            }
            pages.append(page)
        }
        let first =
            vacantShards[pages.count]?.popLast()
            ?? shards.append(ShardRecord(page: 0), copies: pages.count)
        for (shard, page) in pages.enumerated() {
            shards[first + UInt32(shard)] = ShardRecord(page: page)
        }
        chunks[chunk] = Chunk(
            key: key, parent: parent, root: root, space: space.handle, firstShard: first)
        enter(chunk, space)
        return chunk
    }

    /// Puts a new chunk into the index, among its parent's children, and under its root and space.
    mutating func enter(_ chunk: UInt32, _ space: SpaceState) {
        let entry = chunks[chunk]
        if entry.parent != Chunk.none { chunks[chunk].number = chunks[entry.parent].number + 1 }
        index.insert(chunk, key: entry.key, chunks)
        policy.insert(
            chunk,
            NewChunk(
                group: space.group, parent: entry.parent == Chunk.none ? nil : entry.parent,
                fingerprint: entry.key.words.0, isResident: entry.memory != .absent))
        spaces[space.handle]!.chunkCount += 1
        roots[Int(entry.root)].chunkCount += 1
        link(chunk)
    }

    mutating func allocate(_ length: Int, owner: UInt32) -> UInt32? {
        while true {
            if let page = allocator.allocate(pages: length, owner: owner, worth: policy.worthNow) {
                return page
            }
            if makeRoom(for: length) { continue }
            // What waits to be written goes only when nothing else can.
            if !disk.isSparing || !releasePassedOver() { return nil }
            disk.isSparing = false
        }
    }

    /// Evicts so that an extent of `length` pages may be had: the leaf of this length that is worth
    /// least, or, where every chunk in some region of another length is worth less than that leaf,
    /// the whole region.
    ///
    /// - Returns: false if nothing can go.
    private mutating func makeRoom(for length: Int) -> Bool {
        var poorest: (group: UInt32, worth: UInt64)?
        for group in groupsByLength[length] ?? [] {
            guard let worth = policy.leastWorth(in: group) else { continue }
            if let poorest, poorest.worth <= worth { continue }
            poorest = (group, worth)
        }
        let victim = poorest.flatMap { policy.victim(in: $0.group) }
        if victim == nil, disk.syncs.isEmpty, !disk.passedOver.isEmpty { return false }
        if allocator.lengthCount > (victim == nil ? 0 : 1) {
            let place = cheapestPlace(for: length, below: poorest?.worth ?? .max)
            if let place, !place.isEmpty {
                // A shard's extent stands for its chunk, which may stand there several times, or be
                // gone with an ancestor.
                for owner in place where isMovable(owner) {
                    counters.chunksEvictedForOtherLength += evict(owner)
                }
                return true
            }
        }
        guard let poorest, var victim else { return false }
        while true {
            switch prepareEviction(victim) {
            case .mayGo:
                evict(victim)
                return true
            case .isWritten: return true
            case .isPassedOver:
                // Others may go meanwhile.
                policy.setEvictable(victim, false)
                disk.passedOver.insert(victim)
            }
            guard let next = policy.victim(in: poorest.group) else {
                return makeRoom(for: length)
            }
            victim = next
        }
    }

    /// Takes a chunk's memory; what no disk has is gone, with all that follows it.
    ///
    /// - Returns: how many chunks lost their memory or are gone.
    @discardableResult
    private mutating func evict(_ chunk: UInt32) -> Int {
        guard chunks[chunk].disk == .written else {
            if hasDisks { counters.chunksEvictedUnwritten += 1 }
            return removeSubtree(chunk, fate: .evicted)
        }
        releaseMemory(of: chunk)
        counters.chunksEvicted += 1
        return 1
    }

    /// Frees the extents of a chunk that a disk has and nobody reads.
    mutating func releaseMemory(of chunk: UInt32) {
        precondition(chunks[chunk].pins == 0, "somebody reads what is evicted")
        cancelChecks(of: chunk)
        freeExtents(of: chunk)
        becameAbsent(chunk)
        updateEvictable(chunk)
    }

    /// The chunk's extents are free.
    mutating func becameAbsent(_ chunk: UInt32) {
        chunks[chunk].memory = .absent
        useChecksumsOfDisk(chunk)
        if chunks[chunk].state != .doomed { policy.setResident(chunk, false) }
        if chunks[chunk].state == .sealed { disk.absentCount += 1 }
        let parent = chunks[chunk].parent
        if parent == Chunk.none { return }
        chunks[parent].residentChildren -= 1
        updateEvictable(parent)
    }

    /// Gives an absent chunk extents; false, and nothing changed but evictions, when there is no
    /// room. The chunk must be pinned, so that it is not among what is evicted.
    mutating func makeResident(_ chunk: UInt32) -> Bool {
        let entry = chunks[chunk]
        precondition(entry.memory == .absent && entry.pins > 0, "absent and pinned")
        var pages: [UInt32] = []
        for length in spaces[entry.space]!.shardPages {
            guard let page = allocate(length, owner: chunk) else {
                for page in pages { allocator.free(page: page) }
                return false
            }
            pages.append(page)
        }
        for (shard, page) in pages.enumerated() {
            shards[entry.firstShard + UInt32(shard)].page = page
        }
        chunks[chunk].memory = .loading
        policy.setResident(chunk, true)
        if entry.parent != Chunk.none {
            chunks[entry.parent].residentChildren += 1
            updateEvictable(entry.parent)
        }
        return true
    }

    private func cheapestPlace(for length: Int, below bound: UInt64) -> [UInt32]? {
        allocator.cheapestPlace(extentPages: length, below: bound) { isMovable($0) }
    }

    /// Whether a chunk, and so all its descendants, may go.
    func isMovable(_ chunk: UInt32) -> Bool {
        let entry = chunks[chunk]
        return entry.state == .sealed && entry.pins == 0 && entry.memory == .resident
            && !isAwaitedOnDisk(chunk) && !isSpared(chunk)
    }
}
