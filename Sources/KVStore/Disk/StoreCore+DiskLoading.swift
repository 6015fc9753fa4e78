internal import KVArena
internal import KVDisk
package import KVIdentity
internal import KVPolicy
internal import KVTier

// From disk to memory: whoever wants a chunk first has it read, everybody else waits for the same
// read. Bytes count once their checksum is the one they were written with.

extension StoreCore {
    /// Has an absent chunk read, if memory can be had. - Returns: false if it can't.
    mutating func load(_ chunk: UInt32) -> Bool {
        precondition(
            chunks[chunk].memory == .absent && chunks[chunk].disk == .written,
            "only a disk has what is loaded")
        // Room is made by letting others go; not for what does not come.
        if disk.volumes[Int(chunks[chunk].volume)].log.isStalled {
            counters.chunksRefusedLoad += 1
            return false
        }
        // Pinned before room is made, so that it isn't the chunk itself, or one before it, that goes.
        pin(chunk)
        guard makeResident(chunk) else {
            unpin(chunk)
            counters.chunksRefusedLoad += 1
            return false
        }
        disk.absentCount -= 1
        let entry = chunks[chunk]
        let count = shardCount(of: chunk)
        disk.loads[chunk] = DiskLoad(shardsMissing: count)
        for shard in 0..<count {
            disk.volumes[Int(entry.volume)].log.read(
                shards[entry.firstShard + UInt32(shard)].place,
                into: tierExtent(of: chunk, shard: shard),
                owner: Self.owner(chunk, shard: shard), now: currentTime)
        }
        return true
    }

    /// Starts to move the leading keys that are only on a disk into memory, and marks them as used.
    ///
    /// - Returns: how many leading keys are in memory or on their way there now.
    package mutating func prefetch(
        space handle: UInt32, root: Digest, keys: [Digest], session: SessionID, now: UInt64
    ) throws(StoreError) -> Int {
        advance(to: now)
        try requireKeys(keys)
        _ = try requireSpace(handle, session: session)
        let found = visiblePrefix(space: handle, root: root, keys: keys)
        // Somebody says that a request will come; that one is the use.
        policy.begin(PolicyRequest(now: currentTime, isRefresh: true))
        touch(found)
        // The whole run stays while room is made for its parts.
        for chunk in found.reversed() { pin(chunk) }
        var count = 0
        for chunk in found {
            if chunks[chunk].memory == .absent, !load(chunk) { break }
            count += 1
        }
        for chunk in found { unpin(chunk) }
        return count
    }

    /// Has a read lease wait for a chunk that is on its way, or puts it on its way.
    mutating func awaitLoad(
        of chunk: UInt32, lease id: UInt64, place: Int, _ lease: inout ReadClaim
    ) {
        let isStalled = disk.volumes[Int(chunks[chunk].volume)].log.isStalled
        if isStalled || (chunks[chunk].memory == .absent && !load(chunk)) {
            lease.gone.insert(place)
            return
        }
        lease.pending.insert(place)
        disk.loads[chunk]!.waiting.append((id, place))
    }

    /// Nobody waits any longer for what a disk does not give. What it gives later is kept.
    mutating func endWaits(for volume: Int) {
        for chunk in disk.loads.keys.sorted() where Int(chunks[chunk].volume) == volume {
            for (id, place) in disk.loads[chunk]!.waiting {
                settle(lease: id, place: place, isGone: true)
            }
            disk.loads[chunk]!.waiting = []
        }
    }

    mutating func shardRead(_ owner: UInt64, _ fault: TierFault?) {
        let (chunk, shard) = Self.chunk(ofOwner: owner)
        if let fault {
            if fault.code == TierFault.stalled { disk.loads[chunk]!.isPutOff = true }
            shardLoaded(chunk, problem: fault.message)
        } else {
            start(Check(chunk: chunk, shard: shard, purpose: .load))
        }
    }

    /// The checksum of what a disk gave back is there.
    mutating func verified(_ check: Check, checksum: UInt64) {
        counters.checksumsCompared += 1
        let record = shards[chunks[check.chunk].firstShard + UInt32(check.shard)]
        let isGood = record.hasChecksum && record.checksum == checksum
        shardLoaded(
            check.chunk, problem: isGood ? nil : "its bytes are not those that were written")
    }

    private mutating func shardLoaded(_ chunk: UInt32, problem: String?) {
        disk.loads[chunk]!.shardsMissing -= 1
        if let problem { disk.loads[chunk]!.problem = problem }
        if disk.loads[chunk]!.shardsMissing == 0 { loadEnded(chunk) }
    }

    private mutating func loadEnded(_ chunk: UInt32) {
        let load = disk.loads.removeValue(forKey: chunk)!
        let entry = chunks[chunk]
        let space = spaces[entry.space]!.space
        if load.problem == nil {
            chunks[chunk].memory = .resident
            counters.chunksLoaded += 1
            counters.bytesLoaded += space.chunkBytes
            if !load.waiting.isEmpty { counters.chunksLoadedWaitedFor += 1 }
        } else {
            freeExtents(of: chunk)
            becameAbsent(chunk)
        }
        if load.isPutOff {
            counters.chunksRefusedLoad += 1
            if entry.state == .sealed, isStatic(chunk) { wantStatics(in: Self.secondNs) }
        } else if let problem = load.problem, entry.state == .sealed {
            effects.append(
                .warning(
                    "chunk \(entry.key) of space \(entry.space) can't be read from disk: \(problem); "
                        + "it and what follows it count as missing from now on"))
            removeSubtree(chunk, fate: .unreadable)
        }
        let isGone = load.problem != nil || entry.state != .sealed
        for (id, place) in load.waiting {
            if settle(lease: id, place: place, isGone: isGone), !isGone {
                counters.bytesAcquired += space.shardBytes[readLeases[id]!.shard]
            }
        }
        unpin(chunk)
    }
}
