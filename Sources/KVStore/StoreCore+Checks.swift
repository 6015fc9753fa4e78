internal import KVArena

/// Bytes that are being hashed outside the core.
struct Check {
    var chunk: UInt32
    var shard: Int
    /// The read lease that waits for it, and the place in it.
    var lease: UInt64?
    var place = 0
    var purpose = Purpose.sample

    /// What the checksum is for.
    enum Purpose {
        /// To see whether a client changed sealed bytes.
        case sample
        /// To go to a disk with the bytes; the chunk is pinned.
        case write
        /// To see whether a disk gave back what it got; the chunk is pinned.
        case load
    }
}

// Checksums: made the first time an extent is sampled, compared every time after that.

extension StoreCore {
    /// Whether this acquire or seal is one of those that are checked.
    mutating func isSampled() -> Bool {
        switch configuration.checkOneIn {
        case 0: return false
        case 1: return true
        default:
            // xorshift64: pseudo-random is enough, and repeatable from the seed.
            sampler ^= sampler << 13
            sampler ^= sampler >> 7
            sampler ^= sampler << 17
            return sampler % UInt64(configuration.checkOneIn) == 0
        }
    }

    /// Has the chunk's bytes hashed. A reader has to wait for it only if there is a checksum to
    /// compare with.
    mutating func startCheck(
        _ chunk: UInt32, shard: Int, lease id: UInt64, place: Int, _ lease: inout ReadClaim
    ) {
        let record = shards[chunks[chunk].firstShard + UInt32(shard)]
        if !record.hasChecksum {
            startCheck(chunk, shard: shard)
            return
        }
        lease.pending.insert(place)
        start(Check(chunk: chunk, shard: shard, lease: id, place: place))
    }

    /// Has the chunk's bytes hashed, for later.
    mutating func startCheck(_ chunk: UInt32, shard: Int) {
        if checks.count >= StoreLimits.waitingChecks {
            counters.checksSkipped += 1
            return
        }
        start(Check(chunk: chunk, shard: shard))
    }

    mutating func start(_ check: Check) {
        // A sample does not keep the chunk: a check that nobody waits for must not stand in the way
        // of an eviction. A reader's lease does keep it, and so do writes and loads.
        let job = nextID()
        checks[job] = check
        checksOfChunk[check.chunk, default: []].append(job)
        let extent = extent(of: check.chunk, shard: check.shard)
        if check.purpose == .write {
            effects.append(.prepare(job: job, offset: extent.offset, length: extent.length))
        } else {
            effects.append(.check(job: job, offset: extent.offset, length: extent.length))
        }
    }

    /// Whether the result of a `.check` effect still means something.
    package func wantsCheck(_ job: UInt64) -> Bool { checks[job] != nil }

    /// The bytes of a `.check` or `.prepare` effect have this checksum (XXH3-64).
    package mutating func checkCompleted(job: UInt64, checksum: UInt64, now: UInt64) {
        advance(to: now)
        guard let check = checks.removeValue(forKey: job) else { return }
        forget(job, of: check.chunk)
        switch check.purpose {
        case .sample: sampleCompleted(check, checksum: checksum)
        case .write: prepared(check, checksum: checksum)
        case .load: verified(check, checksum: checksum)
        }
    }

    private mutating func sampleCompleted(_ check: Check, checksum: UInt64) {
        var isGood = chunks[check.chunk].state == .sealed
        if hasChanged(check, checksum), isGood {
            reportDamage(check.chunk)
            removeSubtree(check.chunk, fate: .damaged)
            isGood = false
        }
        if let lease = check.lease { settle(lease: lease, place: check.place, isGone: !isGood) }
    }

    /// Compares with the checksum that the shard has; it gets this one if it has none.
    mutating func hasChanged(_ check: Check, _ checksum: UInt64) -> Bool {
        let record = chunks[check.chunk].firstShard + UInt32(check.shard)
        if shards[record].hasChecksum {
            counters.checksumsCompared += 1
            return shards[record].checksum != checksum
        }
        counters.checksumsMade += 1
        shards[record].hasChecksum = true
        shards[record].checksum = checksum
        return false
    }

    /// A place of a read lease is not pending any more. - Returns: false if it was not before.
    @discardableResult
    mutating func settle(lease id: UInt64, place: Int, isGone: Bool) -> Bool {
        guard var lease = readLeases[id], lease.pending.remove(place) != nil else { return false }
        if isGone { lease.gone.insert(place) }
        readLeases[id] = lease
        if lease.pending.isEmpty { effects.append(.leaseReady(id)) }
        return true
    }

    private mutating func forget(_ job: UInt64, of chunk: UInt32) {
        checksOfChunk[chunk]?.removeAll { $0 == job }
        if checksOfChunk[chunk]?.isEmpty ?? false { checksOfChunk[chunk] = nil }
    }

    /// Nobody waits for the checks of an ended read lease any more.
    mutating func cancelChecks(ofLease id: UInt64, _ lease: ReadClaim) {
        for place in lease.pending {
            let chunk = lease.chunks[place]
            for job in checksOfChunk[chunk] ?? [] where checks[job]?.lease == id {
                checks[job] = nil
                forget(job, of: chunk)
            }
        }
    }

    /// The chunk's memory goes to others: what is hashed there now means nothing.
    mutating func cancelChecks(of chunk: UInt32) {
        for job in checksOfChunk.removeValue(forKey: chunk) ?? [] { checks[job] = nil }
    }

    mutating func reportDamage(_ chunk: UInt32) {
        let entry = chunks[chunk]
        let open = sessions.values.filter { !$0.hasEnded }.map(\.name).sorted().joined(
            separator: ", ")
        effects.append(
            .warning(
                "chunk \(entry.key) of space \(entry.space) had changed since it was sealed, so it was "
                    + "dropped with all that follow it. Engine '\(writerNames[Int(entry.writerName)])' sealed "
                    + "it; engines that can write to the arena now: \(open). Look for a writer that "
                    + "touches extents after KV.COMMIT"))
    }

    mutating func writerName(_ name: String) -> UInt32 {
        if let slot = writerNameSlots[name] { return slot }
        if writerNames.count >= StoreLimits.rememberedFates { return 0 }
        writerNames.append(name)
        writerNameSlots[name] = UInt32(writerNames.count - 1)
        return UInt32(writerNames.count - 1)
    }
}
