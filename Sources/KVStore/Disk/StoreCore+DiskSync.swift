internal import KVDisk
internal import KVIdentity
internal import KVTier

/// Somebody waits until all that was sealed or dropped is durable.
struct DiskSync {
    /// Of the chunks that came into the queue, those up to this one count.
    var serial: UInt64
    /// Volumes whose answer is missing; nil before they were asked.
    var volumesMissing: Int?
    var fault: TierFault?
}

extension StoreCore {
    /// Has all that is sealed written, and all that is written or dropped made durable; the answer
    /// is a `.synced` effect.
    ///
    /// - Returns: the ticket that the effect will name.
    package mutating func sync(now: UInt64) throws(StoreError) -> UInt64 {
        advance(to: now)
        guard hasDisks else {
            throw StoreError(
                .noTier, "nothing can be made durable: this server has only the memory tier")
        }
        if disk.syncs.count >= StoreLimits.waitingSyncs {
            throw StoreError(
                .limit, "\(StoreLimits.waitingSyncs) syncs are under way; wait for one of them")
        }
        try requireRoomForAllOnDisk()
        // Mostly there is none, so that nobody waits for a walk over all chunks.
        let onTheWay =
            disk.waiting.count + disk.writes.keys.count { chunks[$0].state == .sealed }
        if index.count - writers.count != disk.writtenCount + onTheWay { enqueueAllForDisk() }
        disk.hasBegunSync = true
        let ticket = nextID()
        disk.syncs[ticket] = DiskSync(serial: disk.lastSerial)
        return ticket
    }

    /// A chunk that no segment takes can't be made durable.
    private func requireRoomForAllOnDisk() throws(StoreError) {
        for space in spaces.values where space.chunkCount > 0 {
            if isAcceptedByDisks(space.space) { continue }
            throw StoreError(
                .disk,
                "chunks of space \(space.handle) have shards of \(space.space.longestShardBytes) bytes, longer than the disk's "
                    + "segments take, and are in memory only; give --disk-size more")
        }
    }

    private mutating func enqueueAllForDisk() {
        for chunk in 0..<UInt32(chunks.count)
        where chunks[chunk].state == .sealed && chunks[chunk].disk == .none {
            enqueueForDisk(chunk)
        }
    }

    /// Nobody waits for it any more.
    package mutating func cancelSync(_ ticket: UInt64) { disk.syncs[ticket] = nil }

    /// Asks the disks for their part of each sync whose chunks are all written, or given up.
    mutating func settleSyncs() {
        if disk.syncs.isEmpty {
            if disk.hasBegunSync { releasePassedOver() }
            disk.hasBegunSync = false
            return
        }
        let waiting = firstInQueue()?.serial ?? .max
        let earliest = min(waiting, disk.writes.values.map(\.serial).min() ?? .max)
        for ticket in disk.syncs.keys.sorted() {
            let sync = disk.syncs[ticket]!
            if sync.volumesMissing != nil { continue }
            if let fault = sync.fault ?? faultThatHoldsUp(sync, waiting: waiting) {
                disk.syncs[ticket] = nil
                effects.append(.synced(ticket: ticket, fault: fault))
            } else if earliest > sync.serial {
                disk.syncs[ticket]!.volumesMissing = disk.volumes.count
                for volume in disk.volumes.indices {
                    disk.volumes[volume].log.sync(ticket: ticket, now: currentTime)
                }
            }
        }
    }

    /// Why what a sync waits for is not written before a suspension ends; nil if it may be.
    private func faultThatHoldsUp(_ sync: DiskSync, waiting: UInt64) -> TierFault? {
        let faults = disk.volumes.map(\.log.suspensionFault)
        if faults.allSatisfy({ $0 == nil }) { return nil }
        if waiting <= sync.serial, faults.allSatisfy({ $0 != nil }) { return faults[0] }
        for (chunk, write) in disk.writes where write.serial <= sync.serial {
            if let fault = faults[Int(chunks[chunk].volume)] { return fault }
        }
        return nil
    }

    mutating func volumeSynced(_ ticket: UInt64, _ fault: TierFault?) {
        guard var sync = disk.syncs[ticket] else { return }
        sync.volumesMissing! -= 1
        sync.fault = sync.fault ?? fault
        disk.syncs[ticket] = sync
        if sync.volumesMissing! > 0 { return }
        disk.syncs[ticket] = nil
        effects.append(.synced(ticket: ticket, fault: sync.fault))
    }
}
