internal import KVArena
internal import KVIdentity
internal import KVPolicy
internal import KVTier

// Pins, links between chunks, and the ways out of the store.

extension StoreCore {
    /// One more reason for the chunk, and so for its ancestors, to stay.
    ///
    /// - Complexity: O(ancestors without pins); pinning a run tail first costs O(run) altogether.
    mutating func pin(_ chunk: UInt32) {
        var next = chunk
        while next != Chunk.none {
            chunks[next].pins += 1
            if chunks[next].pins > 1 { return }
            policy.setEvictable(next, false)
            next = chunks[next].parent
        }
    }

    /// One reason less. A doomed chunk without reasons is freed.
    mutating func unpin(_ chunk: UInt32) {
        var next = chunk
        while next != Chunk.none {
            precondition(chunks[next].pins > 0, "unpinned more often than pinned")
            chunks[next].pins -= 1
            if chunks[next].pins > 0 { return }
            let parent = chunks[next].parent
            if chunks[next].state == .doomed {
                doomedCount -= 1
                freeExtents(of: next)
                vacate(next)
            } else {
                updateEvictable(next)
            }
            next = parent
        }
    }

    /// What nobody holds and no chunk in memory follows may be evicted, and nothing else.
    func isEvictable(_ chunk: UInt32) -> Bool {
        let entry = chunks[chunk]
        return entry.state == .sealed && entry.pins == 0 && entry.memory == .resident
            && entry.residentChildren == 0
    }

    mutating func updateEvictable(_ chunk: UInt32) {
        policy.setEvictable(chunk, isEvictable(chunk))
    }

    // MARK: Links

    mutating func link(_ chunk: UInt32) {
        let entry = chunks[chunk]
        let head =
            entry.parent == Chunk.none
            ? roots[Int(entry.root)].firstChild : chunks[entry.parent].firstChild
        chunks[chunk].nextSibling = head
        if head != Chunk.none { chunks[head].previousSibling = chunk }
        if entry.parent == Chunk.none {
            roots[Int(entry.root)].firstChild = chunk
        } else {
            chunks[entry.parent].firstChild = chunk
            if entry.memory != .absent { chunks[entry.parent].residentChildren += 1 }
            updateEvictable(entry.parent)
        }
    }

    /// Takes a chunk out of its parent's children, and its pins off its parent.
    private mutating func unlink(_ chunk: UInt32) {
        let entry = chunks[chunk]
        if entry.previousSibling != Chunk.none {
            chunks[entry.previousSibling].nextSibling = entry.nextSibling
        } else if entry.parent != Chunk.none {
            chunks[entry.parent].firstChild = entry.nextSibling
        } else {
            roots[Int(entry.root)].firstChild = entry.nextSibling
        }
        if entry.nextSibling != Chunk.none {
            chunks[entry.nextSibling].previousSibling = entry.previousSibling
        }
        chunks[chunk].parent = Chunk.none
        chunks[chunk].nextSibling = Chunk.none
        chunks[chunk].previousSibling = Chunk.none
        if entry.parent == Chunk.none { return }
        if entry.memory != .absent { chunks[entry.parent].residentChildren -= 1 }
        if entry.pins > 0 { unpin(entry.parent) } else { updateEvictable(entry.parent) }
    }

    // MARK: Removal

    /// Takes a chunk and all its descendants out of the store: they can't be matched from now on.
    /// What somebody still reads is freed when they are done; what somebody still writes goes into
    /// the quarantine of their lease.
    ///
    /// - Returns: how many chunks that were.
    @discardableResult
    mutating func removeSubtree(_ top: UInt32, fate: Fate) -> Int {
        var order = [top]
        var place = 0
        while place < order.count {
            var child = chunks[order[place]].firstChild
            while child != Chunk.none {
                order.append(child)
                child = chunks[child].nextSibling
            }
            place += 1
        }
        // Of what is dropped or has expired, nothing that followed comes back as static.
        let isForGood = (fate == .dropped || fate == .expired) && statics.missingCount > 0
        let keys = isForGood ? order.map { chunks[$0].key } : []
        let root = roots[Int(chunks[top].root)].digest
        for chunk in order.reversed() { remove(chunk, fate: fate) }
        if isForGood { endMarks(following: keys, root: root) }
        return order.count
    }

    /// Takes one chunk without children out of the store.
    private mutating func remove(_ chunk: UInt32, fate: Fate) {
        precondition(chunks[chunk].firstChild == Chunk.none, "children go first")
        leaveStatics(chunk, fate: fate)
        if chunks[chunk].hasTimeToLive { lives[chunk] = nil }
        if chunks[chunk].isPinnedUntil { endTimedPin(chunk) }
        let entry = chunks[chunk]
        if isRecovering, fate == .dropped || fate == .expired {
            // What follows it on a disk may still be found, and what was dropped be saved again before.
            disk.recentDrops.insert(
                .key(
                    entry.key, root: roots[Int(entry.root)].digest, space: spaces[entry.space]!.id))
        }
        index.remove(chunk, key: entry.key, chunks)
        fates.record(entry.key, fate, nowMs: currentTime / 1_000_000)
        count(fate, of: entry)
        unlink(chunk)
        leaveDiskQueue(chunk)
        policy.remove(chunk, wasEvicted: fate == .evicted)
        if entry.disk == .written { forgetPlaces(of: chunk) }
        if entry.memory == .absent { disk.absentCount -= 1 }
        let space = entry.space
        let root = entry.root
        spaces[space]!.chunkCount -= 1
        roots[Int(root)].chunkCount -= 1
        chunks[chunk].isVisible = false
        if let writer = writers[chunk] {
            abandon(chunk, writer)
            vacate(chunk)
        } else if entry.pins > 0 {
            chunks[chunk].state = .doomed
            doomedCount += 1
            // The doomed still need their space for their extents' lengths; it outlives them
            // through this count.
            spaces[space]!.chunkCount += 1
        } else {
            freeExtents(of: chunk)
            vacate(chunk)
        }
        forgetRootIfUnused(root)
        forgetSpaceIfUnused(space)
    }

    private mutating func count(_ fate: Fate, of entry: Chunk) {
        switch fate {
        case .evicted: counters.chunksEvicted += 1
        case .dropped: counters.chunksDropped += 1
        case .expired: counters.chunksExpired += 1
        case .damaged: counters.chunksDamaged += 1
        case .writerGaveUp: counters.chunksAbandoned += 1
        case .evictedFromDisk: counters.chunksEvictedFromDisk += 1
        case .unreadable: counters.chunksUnreadable += 1
        }
    }

    /// The chunk is its writer's no more; the extents are, until the lease ends.
    mutating func abandon(_ chunk: UInt32, _ writer: (lease: UInt64, position: Int)) {
        writers[chunk] = nil
        quarantineExtents(of: chunk, lease: writer.lease)
        writeLeases[writer.lease]!.chunks[writer.position] = Chunk.none
    }

    private mutating func quarantineExtents(of chunk: UInt32, lease: UInt64) {
        let entry = chunks[chunk]
        for (shard, pages) in spaces[entry.space]!.shardPages.enumerated() {
            let page = shards[entry.firstShard + UInt32(shard)].page
            allocator.setOwner(ofPage: page, ExtentAllocator.noOwner)
            writeLeases[lease]!.quarantine.append(page)
            quarantinedPages += pages
        }
    }

    /// Frees the extents that the chunk has, if any.
    mutating func freeExtents(of chunk: UInt32) {
        let entry = chunks[chunk]
        if entry.memory == .absent { return }
        for shard in 0..<UInt32(spaces[entry.space]!.shardPages.count) {
            allocator.free(page: shards[entry.firstShard + shard].page)
        }
    }

    /// Gives the chunk's slot and shard records back.
    private mutating func vacate(_ chunk: UInt32) {
        cancelChecks(of: chunk)
        let entry = chunks[chunk]
        if entry.state == .doomed { spaces[entry.space]!.chunkCount -= 1 }
        let count = spaces[entry.space]!.shardPages.count
        vacantShards[count, default: []].append(entry.firstShard)
        chunks[chunk].state = .vacant
        chunks[chunk].pins = 0
        vacantChunks.append(chunk)
        if entry.state == .doomed { forgetSpaceIfUnused(entry.space) }
    }
}
