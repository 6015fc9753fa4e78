internal import KVArena
internal import KVDisk
internal import KVIdentity
internal import KVTier

// Write-behind: sealed chunks wait in a queue, and so many of them as a share of the arena allows
// are on their way to disks. Those that wait can be evicted, so saves never wait for a disk; what
// memory loses before a disk has it is counted.

extension StoreCore {
    private var mayStartWrite: Bool {
        disk.bytesUnderWay < configuration.arenaBytes / Self.writingShareOfArena
            && disk.writes.count < Self.writesUnderWay
    }

    // MARK: Admission

    /// A chunk was sealed.
    mutating func admitSealed(_ chunk: UInt32) {
        if configuration.admission == .all { enqueueForDisk(chunk) }
    }

    /// A sealed chunk, and so all that it follows, was used once more.
    ///
    /// With `all`, too: what failed, or lost its place on the disk, is written again.
    mutating func admitUsed(_ chunk: UInt32) {
        if !admitsUsed { return }
        var next = chunk
        while next != Chunk.none {
            if chunks[next].disk == .none { enqueueForDisk(next) }
            next = chunks[next].parent
        }
    }

    /// Whether use brings a chunk to a disk.
    var admitsUsed: Bool { hasDisks && configuration.admission != .eviction }

    /// What is to be done with a chunk that is about to lose its memory.
    enum BeforeEviction {
        case mayGo
        /// It is on its way to a disk now; another one may go meanwhile.
        case isWritten
        /// It waits to be written.
        case isPassedOver
    }

    mutating func prepareEviction(_ chunk: UInt32) -> BeforeEviction {
        if !hasDisks || chunks[chunk].disk == .written { return .mayGo }
        let isAwaited = isAwaitedOnDisk(chunk)
        if !isAwaited, isSpared(chunk) { return .isPassedOver }
        let isAdmitted = configuration.admission == .eviction && isAcceptedByDisks(chunk)
        if !isAwaited && !isAdmitted { return .mayGo }
        guard mayStartWrite, let volume = volumeThatTakesWrites() else {
            return isAwaited ? .isPassedOver : .mayGo
        }
        let serial = disk.waiting[chunk] ?? disk.nextSerial()
        leaveDiskQueue(chunk)
        startWrite(chunk, volume: volume, serial: serial, isMove: false)
        return .isWritten
    }

    /// Whether somebody waits for it to be durable, or it is static, so that it must not get lost
    /// meanwhile.
    func isAwaitedOnDisk(_ chunk: UInt32) -> Bool {
        chunks[chunk].disk == .waiting && (!disk.syncs.isEmpty || isStatic(chunk))
    }

    /// Whether something else is evicted first, because a disk will soon have the chunk: what is evicted
    /// before that is lost. A disk that is slower than what is saved gets no more memory than a share.
    func isSpared(_ chunk: UInt32) -> Bool {
        chunks[chunk].disk == .waiting && disk.isSparing
            && disk.waitingBytes <= configuration.arenaBytes / Self.sparedShareOfArena
            && disk.volumes.contains { $0.log.suspensionFault == nil }
    }

    /// What was passed over can be evicted again, except what a sync waits for.
    ///
    /// - Returns: whether there was any.
    @discardableResult
    mutating func releasePassedOver() -> Bool {
        if disk.passedOver.isEmpty || !disk.syncs.isEmpty { return false }
        let released = disk.passedOver.sorted()
        disk.passedOver = []
        for chunk in released { updateEvictable(chunk) }
        return true
    }

    /// Puts a chunk, and what it follows, into the queue, unless a disk has it or gets it.
    mutating func enqueueForDisk(_ chunk: UInt32) {
        if !hasDisks { return }
        var run: [UInt32] = []
        var next = chunk
        // What comes first in a prompt goes first: without it the rest can't be found.
        while next != Chunk.none, chunks[next].disk == .none, chunks[next].state == .sealed,
            chunks[next].memory == .resident, isAcceptedByDisks(next)
        {
            run.append(next)
            next = chunks[next].parent
        }
        for chunk in run.reversed() {
            chunks[chunk].disk = .waiting
            let serial = disk.nextSerial()
            disk.beginsToWait(chunk, serial: serial, bytes: chunkBytes(of: chunk))
            disk.queue.append((chunk, serial))
        }
        compactDiskQueue()
    }

    /// Forgets those in the queue that don't wait any more, if they are most of it.
    private mutating func compactDiskQueue() {
        if disk.queue.count - disk.queueHead <= 2 * disk.waiting.count + 1024 { return }
        disk.queue = disk.queue[disk.queueHead...].filter { disk.waiting[$0.chunk] == $0.serial }
        disk.queueHead = 0
    }

    private func isAcceptedByDisks(_ chunk: UInt32) -> Bool {
        isAcceptedByDisks(spaces[chunks[chunk].space]!.space)
    }

    /// It stands in the queue no more, if it did.
    mutating func leaveDiskQueue(_ chunk: UInt32) {
        guard chunks[chunk].disk == .waiting else { return }
        chunks[chunk].disk = .none
        disk.waitsNoMore(chunk, bytes: chunkBytes(of: chunk))
        if disk.passedOver.remove(chunk) != nil { updateEvictable(chunk) }
    }

    // MARK: Writing

    /// Starts as many writes as may be under way.
    mutating func pumpWrites() {
        while mayStartWrite {
            guard let next = firstInQueue(), let volume = volumeThatTakesWrites() else { return }
            popQueue()
            leaveDiskQueue(next.chunk)
            startWrite(next.chunk, volume: volume, serial: next.serial, isMove: false)
        }
    }

    /// The first in the queue that is still to be written.
    mutating func firstInQueue() -> (chunk: UInt32, serial: UInt64)? {
        while disk.queueHead < disk.queue.count {
            let next = disk.queue[disk.queueHead]
            if disk.waiting[next.chunk] == next.serial { return next }
            popQueue()
        }
        return nil
    }

    private mutating func popQueue() {
        disk.queueHead += 1
        if disk.queueHead == disk.queue.count
            || (disk.queueHead >= 1024 && disk.queueHead * 2 >= disk.queue.count)
        {
            disk.queue.removeFirst(disk.queueHead)
            disk.queueHead = 0
        }
    }

    /// Whose turn it is: disks take turns of ``Configuration/diskTurnBytes``, so that neighbours
    /// mostly stay neighbours; those that take no writes are passed over.
    mutating func volumeThatTakesWrites() -> Int? {
        let count = disk.volumes.count
        if disk.turnBytes >= configuration.diskTurnBytes {
            disk.nextVolume = (disk.nextVolume + 1) % count
            disk.turnBytes = 0
        }
        for step in 0..<count {
            let volume = (disk.nextVolume + step) % count
            if disk.volumes[volume].log.takesWrites(now: currentTime) { return volume }
        }
        return nil
    }

    /// Has a resident chunk hashed and written.
    mutating func startWrite(
        _ chunk: UInt32, volume: Int, serial: UInt64, isMove: Bool
    ) {
        let space = spaces[chunks[chunk].space]!
        chunks[chunk].disk = .writing
        chunks[chunk].volume = UInt8(volume)
        pin(chunk)
        disk.writes[chunk] = DiskWrite(
            serial: serial, shardsMissing: space.shardPages.count, isMove: isMove)
        disk.bytesUnderWay += space.chunkBytes
        disk.turnBytes += space.chunkBytes
        promise(
            volume: volume, isMove, bytes: space.chunkBytes, records: space.shardPages.count)
        for shard in space.shardPages.indices {
            start(Check(chunk: chunk, shard: shard, purpose: .write))
        }
    }

    /// Tells a disk what is being prepared for it, or no longer is.
    private mutating func promise(
        volume: Int, _ isMove: Bool, bytes: Int, records: Int
    ) {
        if isMove {
            disk.volumes[volume].log.promisedMoves.bytes += bytes
            disk.volumes[volume].log.promisedMoves.records += records
        } else {
            disk.volumes[volume].log.promisedSaves.bytes += bytes
            disk.volumes[volume].log.promisedSaves.records += records
        }
    }

    /// A shard's checksum is there: it goes to the disk now.
    mutating func prepared(_ check: Check, checksum: UInt64) {
        let entry = chunks[check.chunk]
        let space = spaces[entry.space]!
        let length = space.shardPages[check.shard] * ExtentAllocator.pageBytes
        promise(
            volume: Int(entry.volume), disk.writes[check.chunk]!.isMove, bytes: -length, records: -1
        )
        var isGood = entry.state == .sealed && disk.writes[check.chunk]!.fault == nil
        if hasChanged(check, checksum), isGood {
            reportDamage(check.chunk)
            removeSubtree(check.chunk, fate: .damaged)
            isGood = false
        }
        guard isGood else {
            shardEnded(check.chunk, fault: nil)
            return
        }
        disk.volumes[Int(entry.volume)].log.write(
            TierRecord(
                key: entry.key,
                parent: entry.parent == Chunk.none ? nil : chunks[entry.parent].key,
                space: space.id, root: roots[Int(entry.root)].digest,
                shard: UInt32(check.shard), chunkIndex: entry.number,
                byteCount: space.space.shardBytes[check.shard], checksum: checksum,
                expiresMs: expiryMs(of: check.chunk)),
            from: tierExtent(of: check.chunk, shard: check.shard),
            owner: Self.owner(check.chunk, shard: check.shard),
            isMove: disk.writes[check.chunk]!.isMove, now: currentTime)
    }

    mutating func written(_ owner: UInt64, _ place: TierPlace) {
        let (chunk, shard) = Self.chunk(ofOwner: owner)
        shards[chunks[chunk].firstShard + UInt32(shard)].place = place
        disk.writes[chunk]!.placedShards.append(shard)
        shardEnded(chunk, fault: nil)
    }

    mutating func writeFailed(_ owner: UInt64, _ fault: TierFault) {
        shardEnded(Self.chunk(ofOwner: owner).chunk, fault: fault)
    }

    private mutating func shardEnded(_ chunk: UInt32, fault: TierFault?) {
        disk.writes[chunk]!.shardsMissing -= 1
        if let fault { disk.writes[chunk]!.fault = fault }
        if disk.writes[chunk]!.shardsMissing == 0 { writeEnded(chunk) }
    }

    private mutating func writeEnded(_ chunk: UInt32) {
        let write = disk.writes.removeValue(forKey: chunk)!
        disk.isSparing = true
        let entry = chunks[chunk]
        let space = spaces[entry.space]!
        disk.bytesUnderWay -= space.chunkBytes
        let isWhole = write.placedShards.count == space.shardPages.count && write.older == nil
        if isWhole, entry.state == .sealed {
            chunks[chunk].disk = .written
            chunks[chunk].isHot = false
            disk.writtenCount += 1
            counters.chunksWritten += 1
            counters.bytesWritten += space.space.chunkBytes
            if write.isMove {
                counters.chunksMoved += 1
                counters.bytesMoved += space.space.chunkBytes
            }
        } else {
            // What arrived of it is of no use.
            for shard in write.placedShards {
                let place = shards[entry.firstShard + UInt32(shard)].place
                forget(place, of: chunk, shard: shard, volume: Int(entry.volume))
            }
            chunks[chunk].disk = .none
            if let older = write.older { keep(older, of: chunk) }
        }
        if let fault = write.fault, write.older == nil { writeFailed(chunk, write, fault) }
        unpin(chunk)
    }

    /// A copy that was found while the chunk was being written again.
    private mutating func keep(_ older: DiskCopy, of chunk: UInt32) {
        if chunks[chunk].state == .sealed {
            use(older, of: chunk)
        } else {
            forget(older, of: chunk)
        }
    }

    private mutating func writeFailed(_ chunk: UInt32, _ write: DiskWrite, _ fault: TierFault) {
        counters.chunkWritesFailed += 1
        for ticket in disk.syncs.keys where disk.syncs[ticket]!.serial >= write.serial {
            disk.syncs[ticket]!.fault = fault
        }
        // Tried again when the disk takes writes again; by who moves it, if somebody does.
        let mover = disk.reclaims.firstIndex { $0.pinned[chunk] != nil }
        if let mover {
            // Room does not come by waiting: what is moved may be what takes it.
            if fault.code == TierFault.noRoom {
                disk.reclaims[mover].pinned[chunk] = Self.attemptsToMove
            }
        } else if chunks[chunk].state == .sealed {
            enqueueForDisk(chunk)
        }
    }
}
