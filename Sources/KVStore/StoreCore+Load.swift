internal import KVArena
package import KVIdentity
package import KVPolicy

/// What a match leaves behind.
struct Hold {
    var session: StoreCore.SessionID
    var chunks: [UInt32]
    var deadline: UInt64
    /// Read leases that may still be taken on it, and those that must still be released.
    var readersToCome: Int
    var readersToFinish: Int
    var leases: Set<UInt64> = []
}

/// A reader's claim on one shard of held chunks.
struct ReadClaim {
    var session: StoreCore.SessionID
    var hold: UInt64
    var shard: Int
    var chunks: [UInt32]
    /// Places in `chunks` that wait for a check, and those that failed.
    var pending: Set<Int> = []
    var gone: Set<Int> = []
}

/// Where a chunk's shard lies.
package struct Extent: Sendable, Equatable {
    /// From the start of the arena, in bytes.
    package var offset: UInt64
    /// In bytes; what the space says, not rounded up.
    package var length: UInt64

    package init(offset: UInt64, length: UInt64) {
        self.offset = offset
        self.length = length
    }

    /// Not there yet: wait for the lease.
    package static let pending = Extent(offset: .max, length: 0)
    /// Not there any more: a miss.
    package static let gone = Extent(offset: .max - 1, length: 0)
}

extension StoreCore {
    /// Where the bytes of a chunk that can be loaded are; the number on the wire.
    package enum Tier: UInt8, Sendable {
        case memory = 1
        /// On a disk only, or on their way from there.
        case disk = 2
    }

    /// How many leading keys can be loaded, and the hold on them if one was asked for.
    package struct Match: Sendable, Equatable {
        package var count: Int
        /// 0 without a hold.
        package var hold: UInt64
        /// Where each chunk that was found is.
        package var tiers: [Tier] = []
        /// How many chunks stand in front of the first that was found; 0 if none was.
        package var before = 0
    }

    /// Finds the longest run of leading keys that are sealed, and marks them as used.
    ///
    /// `keys` may start anywhere in the chain. With `holdMs` the chunks found stay until `readers`
    /// read leases on them have been released, the time has passed, the hold is released or the
    /// session ends. `hint` is what the request says of the time after it, for the policy; for
    /// `pin` they are kept from eviction, as far as half the arena goes.
    package mutating func match(
        space handle: UInt32, root: Digest, keys: [Digest], holdMs: UInt64? = nil, readers: Int = 1,
        hint: ReuseHint = .none, pin duration: PinDuration? = nil, session: SessionID, now: UInt64
    ) throws(StoreError) -> Match {
        advance(to: now)
        try requireKeys(keys)
        _ = try requireSpace(handle, session: session)
        if let duration { try require(duration) }
        if let holdMs {
            try requireRoomForLease(session)
            try requireLeaseTime(holdMs)
            if readers < 1 || readers > 65_536 {
                throw StoreError(.argument, "READERS is \(readers); give 1 to 65,536")
            }
        }
        let found = visiblePrefix(space: handle, root: root, keys: keys)
        counters.matches += 1
        counters.matchedKeysAsked += keys.count
        counters.matchedKeysHit += found.count
        let before = found.first.map { Int(chunks[$0].number) } ?? 0
        policy.begin(PolicyRequest(now: currentTime, hint: hint, length: before + keys.count))
        touch(found)
        markUsed(found)
        if let duration { pinAsHinted(found, until: end(of: duration)) }
        let tiers = found.map { chunks[$0].memory == .resident ? Tier.memory : .disk }
        counters.matchedKeysOnDisk += tiers.count { $0 == .disk }
        guard let holdMs, !found.isEmpty else {
            return Match(count: found.count, hold: 0, tiers: tiers, before: before)
        }
        try requireRoomForChunks(found.count, session)
        for chunk in found.reversed() { pin(chunk) }
        sessions[session]!.heldChunks += found.count
        let id = nextID()
        let deadline = now + holdMs * 1_000_000
        holds[id] = Hold(
            session: session, chunks: found, deadline: deadline, readersToCome: readers,
            readersToFinish: readers)
        sessions[session]!.holds.insert(id)
        deadlines.add(.hold(id), due: deadline)
        return Match(count: found.count, hold: id, tiers: tiers, before: before)
    }

    /// The leading keys that can be loaded, in order.
    func visiblePrefix(space handle: UInt32, root: Digest, keys: [Digest]) -> [UInt32] {
        guard let slot = rootSlots[root] else { return [] }
        var found: [UInt32] = []
        found.reserveCapacity(keys.count)
        for key in keys {
            guard let chunk = index.find(key, chunks) else { break }
            let entry = chunks[chunk]
            guard entry.isVisible, entry.root == slot, entry.space == handle else { break }
            if let parent = found.last, entry.parent != parent { break }
            found.append(chunk)
        }
        return found
    }

    /// Marks consecutive chunks and all their ancestors as used, tail first, so that a parent is
    /// never older than its children.
    mutating func touch(_ run: [UInt32]) {
        guard var chunk = run.last else { return }
        while chunk != Chunk.none {
            let worth = policy.touch(chunk)
            let entry = chunks[chunk]
            chunk = entry.parent
            if entry.memory == .absent { continue }
            let count = spaces[entry.space]!.shardPages.count
            for shard in 0..<UInt32(count) {
                allocator.touch(page: shards[entry.firstShard + shard].page, worth: worth)
            }
        }
    }

    /// A run was matched, and so all that it follows: worth a disk, and worth to be kept there.
    private mutating func markUsed(_ run: [UInt32]) {
        guard var chunk = run.last else { return }
        let seconds = currentSeconds
        let admits = admitsUsed
        while chunk != Chunk.none {
            if admits, chunks[chunk].disk == .none { enqueueForDisk(chunk) }
            chunks[chunk].isHot = true
            chunks[chunk].usedSeconds = seconds
            chunk = chunks[chunk].parent
        }
    }

    /// Gives a reader the extents of one shard of held chunks; at once, some perhaps pending.
    ///
    /// - Parameters:
    ///   - first: of the hold's chunks.
    ///   - count: nil for all from `first` on.
    ///   - verifies: has all of them checked, sampled or not. A chunk of which nobody made a
    ///     checksum so far gets one, and can't be found wrong.
    package mutating func acquire(
        hold id: UInt64, shard: Int, first: Int = 0, count: Int? = nil, verifies: Bool = false,
        session: SessionID, now: UInt64
    ) throws(StoreError) -> (lease: UInt64, extents: [Extent]) {
        advance(to: now)
        try requireRoomForLease(session)
        guard let hold = holds[id], !hold.chunks.isEmpty || hold.session != session else {
            throw wasIssued(id)
                ? StoreError(.expired, "hold \(id) has ended; match again")
                : StoreError(.unknownLease, "no hold has the id \(id); KV.MATCH … HOLD gives one")
        }
        if hold.session != session {
            throw StoreError(.unknownLease, "hold \(id) belongs to another session")
        }
        let number = count ?? (hold.chunks.count - first)
        guard first >= 0, number > 0, number <= hold.chunks.count,
            first <= hold.chunks.count - number
        else {
            throw StoreError(
                .argument, "the hold has \(hold.chunks.count) chunks; ask for some of them")
        }
        let shardCount = spaces[chunks[hold.chunks[0]].space]!.shardPages.count
        guard shard >= 0, shard < shardCount else {
            throw StoreError(.argument, "shard \(shard) of \(shardCount); shards count from 0")
        }
        guard hold.readersToCome > 0 else {
            throw StoreError(
                .limit, "all readers of hold \(id) have acquired; give KV.MATCH more READERS")
        }
        try requireRoomForChunks(number, session)
        sessions[session]!.heldChunks += number
        let leaseID = nextID()
        var lease = ReadClaim(
            session: session, hold: id, shard: shard,
            chunks: Array(hold.chunks[first..<(first + number)]))
        for chunk in lease.chunks.reversed() { pin(chunk) }
        for (place, chunk) in lease.chunks.enumerated() {
            if chunks[chunk].state != .sealed {
                lease.gone.insert(place)
            } else if chunks[chunk].memory != .resident {
                awaitLoad(of: chunk, lease: leaseID, place: place, &lease)
            } else if verifies || isSampled() {
                startCheck(chunk, shard: shard, lease: leaseID, place: place, &lease)
            }
        }
        readLeases[leaseID] = lease
        holds[id]!.readersToCome -= 1
        holds[id]!.leases.insert(leaseID)
        sessions[session]!.readLeases.insert(leaseID)
        let extents = extents(of: lease)
        for extent in extents where extent != .gone && extent != .pending {
            counters.bytesAcquired += Int(extent.length)
        }
        return (leaseID, extents)
    }

    /// The extents of a read lease as they are now.
    package mutating func extents(lease id: UInt64, session: SessionID, now: UInt64)
        throws(StoreError) -> [Extent]
    {
        advance(to: now)
        guard let lease = readLeases[id], lease.session == session else {
            throw wasIssued(id) && readLeases[id] == nil
                ? StoreError(.expired, "lease \(id) has ended; discard what was copied")
                : StoreError(.unknownLease, "no read lease has the id \(id)")
        }
        return extents(of: lease)
    }

    func extents(of lease: ReadClaim) -> [Extent] {
        var result: [Extent] = []
        result.reserveCapacity(lease.chunks.count)
        for (place, chunk) in lease.chunks.enumerated() {
            if lease.gone.contains(place) {
                result.append(.gone)
            } else if lease.pending.contains(place) {
                result.append(.pending)
            } else {
                result.append(extent(of: chunk, shard: lease.shard))
            }
        }
        return result
    }

    func extent(of chunk: UInt32, shard: Int) -> Extent {
        let entry = chunks[chunk]
        let page = shards[entry.firstShard + UInt32(shard)].page
        return Extent(
            offset: UInt64(page) * UInt64(ExtentAllocator.pageBytes),
            length: UInt64(spaces[entry.space]!.space.shardBytes[shard]))
    }

    /// Ends a hold, a read lease or a write lease (of the latter, only the part of one shard if
    /// `shard` is given).
    ///
    /// - Returns: false when its deadline had passed: what a reader copied has to be discarded,
    ///   what a writer wrote is lost.
    package mutating func release(_ id: UInt64, shard: Int? = nil, session: SessionID, now: UInt64)
        throws(StoreError) -> Bool
    {
        advance(to: now)
        if let lease = readLeases[id], lease.session == session {
            endReadLease(id, countsForHold: true)
            return true
        }
        if let hold = holds[id], hold.session == session, !hold.chunks.isEmpty {
            endHold(id)
            return true
        }
        if let lease = writeLeases[id], lease.session == session {
            return try releaseWriteLease(id, shard: shard)
        }
        let isOfAnother =
            holds[id].map { $0.session != session } ?? false || readLeases[id] != nil
            || writeLeases[id] != nil
        if !wasIssued(id) || isOfAnother {
            throw StoreError(.unknownLease, "no hold or lease of this session has the id \(id)")
        }
        return false
    }

    /// Whether a read lease still waits for checks.
    func isPending(_ lease: UInt64) -> Bool { !(readLeases[lease]?.pending.isEmpty ?? true) }

    /// Whether a session has this hold or lease.
    package func hasLease(_ id: UInt64, session: SessionID) -> Bool {
        holds[id]?.session == session || readLeases[id]?.session == session
            || writeLeases[id]?.session == session
    }

    mutating func endReadLease(_ id: UInt64, countsForHold: Bool) {
        guard let lease = readLeases.removeValue(forKey: id) else { return }
        sessions[lease.session]?.readLeases.remove(id)
        sessions[lease.session]?.heldChunks -= lease.chunks.count
        if !lease.pending.isEmpty {
            cancelChecks(ofLease: id, lease)
            effects.append(.leaseReady(id))
        }
        for chunk in lease.chunks { unpin(chunk) }
        guard var hold = holds[lease.hold] else { return }
        hold.leases.remove(id)
        if countsForHold { hold.readersToFinish -= 1 }
        holds[lease.hold] = hold
        let isOver = hold.readersToFinish <= 0 || (hold.chunks.isEmpty && hold.leases.isEmpty)
        if isOver { endHold(lease.hold) }
    }

    /// Ends a hold. Read leases on it go on until their release or the hold's deadline.
    mutating func endHold(_ id: UInt64) {
        guard let hold = holds[id] else { return }
        sessions[hold.session]?.holds.remove(id)
        sessions[hold.session]?.heldChunks -= hold.chunks.count
        if hold.leases.isEmpty {
            holds[id] = nil
        } else {
            // Kept, out of the session's sight, for the deadline of its read leases.
            holds[id]!.readersToCome = 0
            holds[id]!.readersToFinish = hold.leases.count
            holds[id]!.chunks = []
        }
        for chunk in hold.chunks { unpin(chunk) }
    }

    mutating func expireHold(_ id: UInt64) {
        guard let hold = holds[id] else { return }
        counters.holdsExpired += 1
        for lease in hold.leases.sorted() {
            counters.readLeasesExpired += 1
            endReadLease(lease, countsForHold: false)
        }
        endHold(id)
    }

    func requireKeys(_ keys: [Digest]) throws(StoreError) {
        if keys.isEmpty { throw StoreError(.argument, "no keys given; give one for each chunk") }
        if keys.count > StoreLimits.keys {
            throw StoreError(
                .limit, "\(keys.count) keys; a command takes \(StoreLimits.keys), so split it")
        }
    }

    func requireLeaseTime(_ ms: UInt64) throws(StoreError) {
        if ms == 0 || ms > StoreLimits.leaseMs {
            throw StoreError(.argument, "\(ms) ms; give 1 to \(StoreLimits.leaseMs)")
        }
    }
}
