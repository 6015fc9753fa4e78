internal import KVArena
package import KVIdentity
package import KVPolicy

/// A writer's claim on the extents of chunks that are not sealed yet.
struct WriteClaim {
    var session: StoreCore.SessionID
    var space: UInt32
    var deadline: UInt64
    /// By position in the keys of the reservation: the chunk if it was granted and is still this
    /// lease's to fill.
    var chunks: [UInt32]
    /// By position: whether it was granted, whatever became of it.
    var wasGranted: [Bool]
    /// Shards of each position not committed yet.
    var shardsMissing: [UInt16]
    /// By position × shard: committed.
    var isCommitted: [Bool]
    /// By shard: its writer has committed everything, or is done.
    var isShardDone: [Bool]
    /// Chunks that were there already, kept until the lease ends.
    var kept: [UInt32]
    /// First pages of extents that stay out of use until the writer is surely done with them.
    var quarantine: [UInt32] = []
    /// What the client called it, to find it again if the reply is lost.
    var tag: UInt64?
    /// Until when what is sealed under it is pinned.
    var pinsUntil: UInt64?
    /// Its deadline has passed, or its session ended: nothing can be committed any more.
    var hasExpired = false

    var grantedCount: Int { wasGranted.count { $0 } }
}

extension StoreCore {
    /// What a reservation answers for a key.
    package enum ReservedState: UInt8, Sendable {
        case granted = 0
        case present = 1
        case busy = 2
        case refused = 3
    }

    /// What a reservation gives.
    package struct Reservation: Sendable, Equatable {
        /// 0 if nothing was granted.
        package var lease: UInt64
        package var states: [ReservedState]
        /// For each granted chunk in order, one for each shard in order.
        package var extents: [Extent]
        /// Why chunks were refused; empty if none was.
        package var reason: String
    }

    /// Claims memory for the chunks of a prompt that are not here yet, for all shards, evicting
    /// what is worth least.
    ///
    /// `keys` are consecutive. They start at chunk 0, or follow `parent`. What is refused for want
    /// of room says so in the reservation; keys that can't be (a gap, a broken chain) are errors,
    /// and change nothing. For `pin` from now on what is sealed under the lease is kept from
    /// eviction, as far as half the arena goes.
    package mutating func reserve(
        space handle: UInt32, root: Digest, keys: [Digest], parent: Digest? = nil,
        timeToLiveMs: UInt64, tag: UInt64? = nil, hint: ReuseHint = .none,
        pin duration: PinDuration? = nil,
        session: SessionID, now: UInt64
    ) throws(StoreError) -> Reservation {
        advance(to: now)
        try requireKeys(keys)
        if let duration { try require(duration) }
        try requireLeaseTime(timeToLiveMs)
        try requireRoomForLease(session)
        let space = try requireSpace(handle, session: session)
        let known: [UInt32]
        let parentChunk: UInt32
        do throws(StoreError) {
            if let slot = rootSlots[root], roots[Int(slot)].space != handle {
                throw StoreError(
                    .chain, "this root is known in another space; compute it from this space's id")
            }
            if let tag, writeLease(tag: tag, session: session) != nil {
                throw StoreError(
                    .argument, "a write lease of this session has the tag \(tag) already")
            }
            parentChunk = try findParent(parent, space: handle, root: root)
            known = try findKnown(keys, after: parentChunk, space: handle, root: root)
        } catch {
            counters.reservationsRefused += 1
            throw error
        }
        let shardCount = space.shardPages.count
        if keys.count * shardCount > StoreLimits.extentsPerReservation {
            throw StoreError(
                .limit,
                "\(keys.count) keys of \(shardCount) shards; a reservation takes "
                    + "\(StoreLimits.extentsPerReservation) extents, so split it")
        }
        let id = nextID()
        var lease = WriteClaim(
            session: session, space: handle, deadline: now + timeToLiveMs * 1_000_000,
            chunks: Array(repeating: Chunk.none, count: keys.count),
            wasGranted: Array(repeating: false, count: keys.count),
            shardsMissing: Array(repeating: UInt16(shardCount), count: keys.count),
            isCommitted: Array(repeating: false, count: keys.count * shardCount),
            isShardDone: Array(repeating: false, count: shardCount),
            kept: known.filter { $0 != Chunk.none && chunks[$0].state == .sealed })
        // A parent that is still being written is kept by the pins of the chunks granted after it.
        if parentChunk != Chunk.none, chunks[parentChunk].state == .sealed {
            lease.kept.insert(parentChunk, at: 0)
        }
        for chunk in lease.kept.reversed() { pin(chunk) }
        let before = parentChunk == Chunk.none ? 0 : Int(chunks[parentChunk].number) + 1
        policy.begin(
            PolicyRequest(
                now: currentTime, hint: hint, length: before + keys.count, isRefresh: true))
        touch(lease.kept)
        if let last = lease.kept.last { admitUsed(last) }

        var result = Reservation(lease: id, states: [], extents: [], reason: "")
        result.states.reserveCapacity(keys.count)
        var previous = parentChunk
        let slot = rootSlot(root, space: handle)
        // The root must outlive evictions on the way, even before it has a chunk.
        roots[Int(slot)].chunkCount += 1
        for (position, key) in keys.enumerated() {
            if known[position] != Chunk.none {
                previous = known[position]
                let isSealed = chunks[previous].state == .sealed
                result.states.append(isSealed ? .present : .busy)
                continue
            }
            guard let chunk = makeChunk(key, parent: previous, root: slot, space: space) else {
                result.reason = refusalReason()
                break
            }
            previous = chunk
            lease.chunks[position] = chunk
            lease.wasGranted[position] = true
            writers[chunk] = (id, position)
            pin(chunk)
            result.states.append(.granted)
            for shard in 0..<shardCount { result.extents.append(extent(of: chunk, shard: shard)) }
        }
        roots[Int(slot)].chunkCount -= 1
        let refused = keys.count - result.states.count
        result.states += Array(repeating: .refused, count: refused)
        count(result, refused: refused)
        if lease.grantedCount == 0 {
            for chunk in lease.kept { unpin(chunk) }
            forgetRootIfUnused(slot)
            result.lease = 0
            return result
        }
        lease.tag = tag
        lease.pinsUntil = duration.map { end(of: $0) }
        writeLeases[id] = lease
        sessions[session]!.writeLeases.insert(id)
        deadlines.add(.writeLease(id), due: lease.deadline)
        return result
    }

    private mutating func count(_ result: Reservation, refused: Int) {
        for state in result.states {
            switch state {
            case .granted: counters.chunksGranted += 1
            case .present: counters.chunksPresent += 1
            case .busy: counters.chunksBusy += 1
            case .refused: break
            }
        }
        if allocator.readySlabs < allocator.slabCount {
            counters.chunksRefusedNotReady += refused
        } else {
            counters.chunksRefusedFull += refused
        }
    }

    private func refusalReason() -> String {
        if allocator.readySlabs < allocator.slabCount {
            return
                "KVFULL only \(allocator.readySlabs * 100 / allocator.slabCount) % of the arena is "
                + "faulted in yet and that part is in use; save again later"
        }
        return
            "\(StoreError.Code.full) every chunk in the arena is held, pinned, being written or quarantined "
            + "(\(holds.count) holds, \(writeLeases.count) write leases, \(pinnedBytes >> 20) MiB pinned); "
            + "release some, or start the server with more --memory"
    }

    private func findParent(_ key: Digest?, space: UInt32, root: Digest) throws(StoreError)
        -> UInt32
    {
        guard let key else { return Chunk.none }
        guard let chunk = index.find(key, chunks) else {
            throw StoreError(
                .gap,
                "the chunk given as PARENT is not here (evicted?); reserve from an earlier one")
        }
        try requireKin(chunk, space: space, root: root)
        return chunk
    }

    private func requireKin(_ chunk: UInt32, space: UInt32, root: Digest) throws(StoreError) {
        let entry = chunks[chunk]
        if entry.space != space || roots[Int(entry.root)].digest != root {
            throw StoreError(
                .chain, "a key is known under another space or root; compute keys from this root")
        }
    }

    /// The chunk of each key that is in the index, `none` for the others.
    private func findKnown(_ keys: [Digest], after parent: UInt32, space: UInt32, root: Digest)
        throws(StoreError) -> [UInt32]
    {
        var known: [UInt32] = []
        known.reserveCapacity(keys.count)
        var previous = parent
        var isMissing = false
        var seen: Set<Digest> = []
        for (position, key) in keys.enumerated() {
            guard let chunk = index.find(key, chunks) else {
                isMissing = true
                if !seen.insert(key).inserted {
                    throw StoreError(.chain, "key \(position) stands twice among the keys")
                }
                known.append(Chunk.none)
                continue
            }
            try requireKin(chunk, space: space, root: root)
            if isMissing || chunks[chunk].parent != previous {
                throw StoreError(
                    .chain,
                    "key \(position) is known as the child of another chunk; give consecutive keys of one "
                        + "chain, from chunk 0 or with their PARENT")
            }
            previous = chunk
            known.append(chunk)
        }
        return known
    }

    /// A writer of `shard` has filled the extents of these positions (nil: all that were granted).
    ///
    /// - Returns: how many chunks this completed.
    package mutating func commit(
        lease id: UInt64, shard: Int, positions: [Int]?, session: SessionID, now: UInt64
    ) throws(StoreError) -> Int {
        advance(to: now)
        guard var lease = writeLeases[id], lease.session == session else {
            throw wasIssued(id) && writeLeases[id] == nil
                ? StoreError(.expired, "write lease \(id) has ended; reserve again")
                : StoreError(.unknownLease, "no write lease of this session has the id \(id)")
        }
        if lease.hasExpired {
            throw StoreError(
                .expired,
                "the deadline of write lease \(id) has passed and its chunks were given up; release it, "
                    + "and reserve with a longer TTL")
        }
        let shardCount = lease.isShardDone.count
        guard shard >= 0, shard < shardCount else {
            throw StoreError(.argument, "shard \(shard) of \(shardCount); shards count from 0")
        }
        if lease.isShardDone[shard] {
            throw StoreError(
                .argument, "shard \(shard) of lease \(id) was committed or released already")
        }
        let all = lease.wasGranted.indices.filter { lease.wasGranted[$0] }
        var seen: Set<Int> = []
        for position in positions ?? [] {
            let isGranted =
                lease.wasGranted.indices.contains(position) && lease.wasGranted[position]
            if !isGranted || !seen.insert(position).inserted
                || lease.isCommitted[position * shardCount + shard]
            {
                throw StoreError(
                    .argument,
                    "position \(position) was not granted by lease \(id), or is committed already")
            }
        }
        var sealed = 0
        for position in positions ?? all where !lease.isCommitted[position * shardCount + shard] {
            lease.isCommitted[position * shardCount + shard] = true
            lease.shardsMissing[position] -= 1
            let chunk = lease.chunks[position]
            if lease.shardsMissing[position] > 0 || chunk == Chunk.none { continue }
            lease.chunks[position] = Chunk.none
            seal(chunk, writer: session)
            if let until = lease.pinsUntil, until > currentTime {
                pinAsHinted([chunk], until: until)
            }
            sealed += 1
        }
        lease.isShardDone[shard] = all.allSatisfy { lease.isCommitted[$0 * shardCount + shard] }
        writeLeases[id] = lease
        if lease.isShardDone.allSatisfy({ $0 }) { endWriteLease(id) }
        return sealed
    }

    private mutating func seal(_ chunk: UInt32, writer: SessionID) {
        writers[chunk] = nil
        chunks[chunk].state = .sealed
        chunks[chunk].usedSeconds = currentSeconds
        chunks[chunk].writerName = writerName(sessions[writer]!.name)
        beginLife(of: chunk)
        let entry = chunks[chunk]
        let space = spaces[entry.space]!
        counters.chunksSealed += 1
        counters.bytesSealed += space.space.shardBytes.reduce(0, +)
        for shard in space.shardPages.indices where isSampled() { startCheck(chunk, shard: shard) }
        unpin(chunk)
        makeVisible(chunk)
        settleMark(of: chunk, isNew: true)
        admitSealed(chunk)
    }

    /// A chunk that is sealed can be matched from now on if the one before it can, and so can sealed
    /// descendants that waited for it.
    mutating func makeVisible(_ chunk: UInt32) {
        let parent = chunks[chunk].parent
        guard parent == Chunk.none || chunks[parent].isVisible else { return }
        var work = [chunk]
        while let next = work.popLast() {
            chunks[next].isVisible = true
            var child = chunks[next].firstChild
            while child != Chunk.none {
                if chunks[child].state == .sealed { work.append(child) }
                child = chunks[child].nextSibling
            }
        }
    }

    mutating func releaseWriteLease(_ id: UInt64, shard: Int?) throws(StoreError) -> Bool {
        let isInTime = !writeLeases[id]!.hasExpired
        if let shard {
            let shardCount = writeLeases[id]!.isShardDone.count
            guard shard >= 0, shard < shardCount else {
                throw StoreError(.argument, "shard \(shard) of \(shardCount); shards count from 0")
            }
            writeLeases[id]!.isShardDone[shard] = true
            if writeLeases[id]!.isShardDone.contains(false) { return isInTime }
        }
        endWriteLease(id)
        return isInTime
    }

    /// The session's write lease that was reserved with this tag.
    package func writeLease(tag: UInt64, session: SessionID) -> UInt64? {
        sessions[session]?.writeLeases.first { writeLeases[$0]?.tag == tag }
    }

    /// Nobody writes under this lease any more: what is not sealed is freed.
    mutating func endWriteLease(_ id: UInt64) {
        giveUpUnsealed(id)
        guard let lease = writeLeases.removeValue(forKey: id) else { return }
        for page in lease.quarantine { freeQuarantined(page) }
        if var session = sessions[lease.session] {
            session.writeLeases.remove(id)
            let isOver = session.hasEnded && session.writeLeases.isEmpty
            sessions[lease.session] = isOver ? nil : session
        }
    }

    /// Nothing can be committed under this lease any more, but its writer may still be writing.
    mutating func expireWriteLease(_ id: UInt64) {
        guard let lease = writeLeases[id], !lease.hasExpired else { return }
        writeLeases[id]!.hasExpired = true
        giveUpUnsealed(id)
    }

    /// Takes the lease's unsealed chunks out of the index; their extents go into its quarantine.
    private mutating func giveUpUnsealed(_ id: UInt64) {
        guard let lease = writeLeases[id] else { return }
        for chunk in lease.chunks where chunk != Chunk.none && writers[chunk]?.lease == id {
            removeSubtree(chunk, fate: .writerGaveUp)
        }
        writeLeases[id]?.kept = []
        for chunk in lease.kept { unpin(chunk) }
    }

    private mutating func freeQuarantined(_ page: UInt32) {
        let before = allocator.usedPages
        allocator.free(page: page)
        quarantinedPages -= before - allocator.usedPages
    }
}
