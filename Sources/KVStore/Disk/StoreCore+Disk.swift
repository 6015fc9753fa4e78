internal import KVArena
package import KVDisk
internal import KVIdentity
internal import KVTier

// The disk tier of the core: what is on its way to and from disks.
//
// A chunk's bytes are in memory, on one disk, or both. What a disk is told and what it answers
// meets in `settle`, which whoever drives the core calls after each event.

/// What the core knows of its disks.
struct DiskState {
    struct Volume {
        var log: DiskLog
        let segmentBytes: Int
        let budgetBytes: Int
        /// Its content is not all known yet.
        var isRecovering = true
    }

    var volumes: [Volume] = []
    /// Chunks to be written, in the order in which they came; those that are not `waiting` any
    /// more are passed over.
    var queue: [(chunk: UInt32, serial: UInt64)] = []
    var queueHead = 0
    /// Those of them that still wait, and under which serial.
    private(set) var waiting: [UInt32: UInt64] = [:]
    /// Bytes of their extents.
    private(set) var waitingBytes = 0
    /// Counts the chunks that came into the queue.
    var lastSerial: UInt64 = 0
    var writes: [UInt32: DiskWrite] = [:]
    /// Of chunks that were saved again before they were found: by shard, the checksums of what the
    /// disk has, while the memory may have other bytes.
    var checksums: [UInt32: [UInt64]] = [:]
    /// Bytes of the extents that are being written.
    var bytesUnderWay = 0
    /// The volume that gets what comes next, and how much of its turn is used.
    var nextVolume = 0
    var turnBytes = 0
    var loads: [UInt32: DiskLoad] = [:]
    /// Of those that wait, the ones that should have been evicted, and stay until they are written.
    var passedOver: Set<UInt32> = []
    /// Whether what waits to be written is passed over; not from when nothing else was left to be
    /// evicted until a write has ended.
    var isSparing = true
    /// A sync has begun since ``passedOver`` was last released.
    var hasBegunSync = false
    var syncs: [UInt64: DiskSync] = [:]
    var reclaims: [DiskReclaim] = []
    var writtenCount = 0
    var absentCount = 0
    /// What was dropped while a disk was not wholly read: it must not come back from there.
    var recentDrops: Set<TierDrop> = []
    /// When chunks expire of which that was told meanwhile, in milliseconds since 1970.
    var recentExpiries: [Digest: UInt64] = [:]
    /// Spaces found on disk whose chunks have no place in this arena.
    var refusedSpaces: Set<Digest> = []

    mutating func nextSerial() -> UInt64 {
        lastSerial += 1
        return lastSerial
    }

    mutating func beginsToWait(_ chunk: UInt32, serial: UInt64, bytes: Int) {
        waiting[chunk] = serial
        waitingBytes += bytes
    }

    mutating func waitsNoMore(_ chunk: UInt32, bytes: Int) {
        waiting[chunk] = nil
        waitingBytes -= bytes
    }
}

/// A chunk whose shards are on their way to a disk. It is pinned.
struct DiskWrite {
    var serial: UInt64
    /// Shards that are neither written nor given up.
    var shardsMissing: Int
    /// Shards that the disk has.
    var placedShards: [Int] = []
    var fault: TierFault?
    /// It is written again to keep it.
    var isMove: Bool
    /// A copy that was found meanwhile: durable, so it is the one to keep.
    var older: DiskCopy?
}

/// Where a disk has a chunk since before this start.
struct DiskCopy {
    var volume: Int
    var shards: [RecoveredShard]
}

/// A chunk whose shards are on their way from a disk. It is pinned.
struct DiskLoad {
    var shardsMissing: Int
    /// Why the chunk can't be had.
    var problem: String?
    /// It can't be had now, but is still on the disk.
    var isPutOff = false
    /// Read leases that wait for it, and the place in each.
    var waiting: [(lease: UInt64, place: Int)] = []
}

extension StoreCore {
    /// Of the arena, what may be on its way to disks at a time: one part in this many.
    static var writingShareOfArena: Int { 8 }

    /// Of the arena, what may wait to be written and is not evicted: one part in this many.
    static var sparedShareOfArena: Int { 4 }

    /// Chunks on their way to disks at a time.
    static var writesUnderWay: Int { 4096 }

    var hasDisks: Bool { !disk.volumes.isEmpty }
    var isRecovering: Bool { disk.volumes.contains { $0.isRecovering } }

    /// Adds a disk of which nothing is known yet. - Returns: its number.
    package mutating func add(_ log: LogConfiguration) -> Int {
        precondition(disk.volumes.count < StoreLimits.disks, "at most \(StoreLimits.disks) disks")
        disk.volumes.append(
            .init(
                log: DiskLog(log), segmentBytes: log.segmentBytes, budgetBytes: log.budgetBytes))
        for space in spaces.values { tellDisks(of: space.space) }
        return disk.volumes.count - 1
    }

    mutating func tellDisks(of space: CacheSpace) {
        if !hasDisks { return }
        let json = Array(space.json.utf8)
        for volume in disk.volumes.indices {
            disk.volumes[volume].log.know(space: space.id, json: json)
        }
        if isAcceptedByDisks(space) { return }
        effects.append(
            .warning(
                "chunks of model '\(space.modelName ?? "unnamed")' have shards of \(space.longestShardBytes) bytes, longer than the "
                    + "disk's segments take, so they stay in memory only; give --disk-size more"))
    }

    /// Whether every disk has segments that its shards fit into.
    func isAcceptedByDisks(_ space: CacheSpace) -> Bool {
        let longest = space.longestShardBytes
        return disk.volumes.allSatisfy { $0.log.accepts(byteCount: longest) }
    }

    /// Has disks give room back that nothing uses, see ``DiskLog/compact(below:now:)``.
    package mutating func compactDisks(below share: Double, now: UInt64) {
        advance(to: now)
        for volume in disk.volumes.indices {
            disk.volumes[volume].log.compact(below: share, now: currentTime)
        }
    }

    /// Whether a disk is still at it.
    package var isCompactingDisks: Bool { disk.volumes.contains { $0.log.isCompacting } }

    /// Whether chunks were found on disk that this arena has no place for.
    package var hasRefusedChunks: Bool { !disk.refusedSpaces.isEmpty }

    /// A request of an `.io` effect has ended.
    package mutating func diskCompleted(
        volume: Int, _ request: UInt64, _ outcome: DiskOutcome, now: UInt64
    ) {
        advance(to: now)
        disk.volumes[volume].log.completed(request, outcome, now: currentTime)
    }

    /// Lets disks and core tell each other what there is, until nobody has anything to say, and
    /// leaves what disks have to do in ``effects``. To be called after each event.
    package mutating func settle(now: UInt64) {
        if !hasDisks { return continueStatics() }
        advance(to: now)
        repeat {
            continueStatics()
            pumpWrites()
            continueReclaims()
            settleSyncs()
        } while takeDiskEvents()
        for volume in disk.volumes.indices {
            for request in disk.volumes[volume].log.requests {
                effects.append(.io(volume: volume, request))
            }
            disk.volumes[volume].log.requests.removeAll(keepingCapacity: true)
        }
    }

    /// - Returns: whether there was any.
    private mutating func takeDiskEvents() -> Bool {
        var isAny = false
        for volume in disk.volumes.indices {
            if disk.volumes[volume].log.events.isEmpty { continue }
            isAny = true
            var events: [TierEvent] = []
            swap(&events, &disk.volumes[volume].log.events)
            for event in events { handle(event, of: volume) }
        }
        return isAny
    }

    private mutating func handle(_ event: TierEvent, of volume: Int) {
        switch event {
        case .written(let owner, let place): written(owner, place)
        case .writeFailed(let owner, let fault): writeFailed(owner, fault)
        case .read(let owner, let fault): shardRead(owner, fault)
        case .synced(let ticket, let fault): volumeSynced(ticket, fault)
        case .reclaim(let segment, let keepAll):
            disk.reclaims.append(
                DiskReclaim(volume: volume, segment: segment, keepsAll: keepAll))
        case .stalled: endWaits(for: volume)
        case .trouble(let message): effects.append(.warning(message))
        }
    }

    // MARK: Shards and their numbers

    /// What a disk calls a shard.
    static func owner(_ chunk: UInt32, shard: Int) -> UInt64 {
        UInt64(chunk) << 16 | UInt64(shard)
    }

    static func chunk(ofOwner owner: UInt64) -> (chunk: UInt32, shard: Int) {
        (UInt32(owner >> 16), Int(owner & 0xFFFF))
    }

    func shardCount(of chunk: UInt32) -> Int { spaces[chunks[chunk].space]!.shardPages.count }

    /// The whole pages of a shard's extent.
    func tierExtent(of chunk: UInt32, shard: Int) -> TierExtent {
        let entry = chunks[chunk]
        let page = UInt64(shards[entry.firstShard + UInt32(shard)].page)
        let pages = UInt64(spaces[entry.space]!.shardPages[shard])
        let pageBytes = UInt64(ExtentAllocator.pageBytes)
        return TierExtent(offset: page * pageBytes, length: pages * pageBytes)
    }

    /// The chunk's disk need not keep it any more.
    mutating func forgetPlaces(of chunk: UInt32) {
        let entry = chunks[chunk]
        precondition(entry.disk == .written, "no disk has it")
        disk.checksums[chunk] = nil
        for shard in spaces[entry.space]!.shardPages.indices {
            let place = shards[entry.firstShard + UInt32(shard)].place
            forget(place, of: chunk, shard: shard, volume: Int(entry.volume))
        }
        chunks[chunk].disk = .none
        chunks[chunk].isHot = false
        disk.writtenCount -= 1
    }

    /// A disk need not keep this copy of a shard any more.
    mutating func forget(_ place: TierPlace, of chunk: UInt32, shard: Int, volume: Int) {
        let pages = spaces[chunks[chunk].space]!.shardPages[shard]
        disk.volumes[volume].log.forget(place, length: pages * ExtentAllocator.pageBytes)
    }

    mutating func forget(_ copy: DiskCopy, of chunk: UInt32) {
        for (shard, kept) in copy.shards.enumerated() {
            forget(kept.place, of: chunk, shard: shard, volume: copy.volume)
        }
    }

    /// The chunk's bytes are on a disk only.
    mutating func useChecksumsOfDisk(_ chunk: UInt32) {
        guard let checksums = disk.checksums.removeValue(forKey: chunk) else { return }
        for (shard, checksum) in checksums.enumerated() {
            let record = chunks[chunk].firstShard + UInt32(shard)
            shards[record].hasChecksum = true
            shards[record].checksum = checksum
        }
    }

    /// What disks hold now.
    var diskGauges: DiskGauges {
        var gauges = DiskGauges()
        gauges.disks = disk.volumes.count
        gauges.chunksOnDisk = disk.writtenCount
        gauges.chunksOnDiskOnly = disk.absentCount
        gauges.chunksWaiting = disk.waiting.count
        gauges.chunksBeingWritten = disk.writes.count
        gauges.chunksLoading = disk.loads.count
        for volume in disk.volumes {
            if volume.isRecovering { gauges.disksRecovering += 1 }
            let log = volume.log.gauges
            if log.isSuspended { gauges.disksSuspended += 1 }
            gauges.diskBytes += log.fileBytes
            gauges.unsafeReuses += volume.log.counters.unsafeReuses
            gauges.diskStalls += volume.log.counters.stalls
            gauges.diskLiveBytes += log.liveBytes
            gauges.diskLimitBytes += volume.budgetBytes
        }
        return gauges
    }
}

extension CacheSpace {
    var longestShardBytes: Int { shardBytes.max() ?? 0 }
}
