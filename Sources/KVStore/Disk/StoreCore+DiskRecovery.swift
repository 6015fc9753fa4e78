internal import KVArena
package import KVDisk
package import KVIdentity
internal import KVPolicy
internal import KVTier

// What a disk still has from earlier comes in batches, while the store already serves. What was saved
// again meanwhile may be lost until it is durable, and with it what follows it, of which all was: so
// the place on the disk is kept for it.

extension StoreCore {
    /// A disk may be written to from now on: sequences of this start are higher than all before.
    ///
    /// - Parameter files: numbers and lengths of all its segment files.
    package mutating func diskMayBegin(
        volume: Int, epoch: UInt64, files: [(number: UInt64, byteCount: Int)] = [], now: UInt64
    ) {
        advance(to: now)
        disk.volumes[volume].log.begin(epoch: epoch, files: files, now: currentTime)
    }

    /// A file was found on a disk; before the chunks in it are told.
    package mutating func found(volume: Int, _ segment: RecoveredSegment, now: UInt64) {
        advance(to: now)
        disk.volumes[volume].log.adopt(segment: segment)
    }

    /// Chunks were found on disks, each on its volume; those that others follow come before these.
    ///
    /// - Parameter spaces: what the chunks' numbers of spaces mean.
    package mutating func found(_ batch: RecoveredBatch, spaces: [CacheSpace], now: UInt64) {
        advance(to: now)
        policy.begin(PolicyRequest(now: currentTime, isRefresh: true))
        for (index, chunk) in batch.chunks.enumerated() {
            var chunk = chunk
            chunk.expiresMs = disk.recentExpiries[chunk.key] ?? chunk.expiresMs
            take(chunk, batch.shards(of: index), space: spaces[chunk.space])
        }
    }

    /// All that was found on a disk has been told. To be called when that is so of all disks: the
    /// chunks that follow those of one may be on another.
    package mutating func recovered(volume: Int, now: UInt64) {
        advance(to: now)
        disk.volumes[volume].isRecovering = false
        disk.volumes[volume].log.recovered(now: currentTime)
        if isRecovering { return }
        (disk.recentDrops, disk.recentExpiries) = ([], [:])
        if !statics.marks.isEmpty { wantStatics(in: 0) }
    }

    private mutating func take(
        _ found: RecoveredChunk, _ kept: ArraySlice<RecoveredShard>, space: CacheSpace
    ) {
        if wasDropped(found, space) {
            // What follows it is dropped, too, even if it has been stored anew meanwhile.
            disk.recentDrops.insert(.key(found.key, root: found.root, space: space.id))
            endMarks(ofMissing: [found.key], root: found.root, space: space.id)
            return
        }
        if let known = index.find(found.key, chunks) {
            keepPlace(of: known, found, kept, space)
            return
        }
        guard let handle = handle(ofRecovered: space) else { return }
        var parent = Chunk.none
        if let key = found.parent {
            guard let chunk = index.find(key, chunks), chunks[chunk].space == handle,
                roots[Int(chunks[chunk].root)].digest == found.root,
                chunks[chunk].number + 1 == found.chunkIndex
            else {
                forgetSpaceIfUnused(handle)
                return
            }
            parent = chunk
        }
        if let slot = rootSlots[found.root], roots[Int(slot)].space != handle {
            forgetSpaceIfUnused(handle)
            return
        }
        let root = rootSlot(found.root, space: handle)
        insert(found, kept, parent: parent, root: root, spaces[handle]!)
    }

    private mutating func insert(
        _ found: RecoveredChunk, _ kept: ArraySlice<RecoveredShard>, parent: UInt32, root: UInt32,
        _ space: SpaceState
    ) {
        let count = kept.count
        let first =
            vacantShards[count]?.popLast() ?? shards.append(ShardRecord(page: 0), copies: count)
        let chunk =
            vacantChunks.popLast()
            ?? chunks.append(Chunk(key: found.key, root: 0, space: 0, firstShard: 0))
        for (shard, kept) in kept.enumerated() {
            var record = ShardRecord(page: 0)
            record.place = kept.place
            record.hasChecksum = true
            record.checksum = kept.checksum
            shards[first + UInt32(shard)] = record
            disk.volumes[found.volume].log.adopt(
                kept.place, length: space.shardPages[shard] * ExtentAllocator.pageBytes,
                owner: Self.owner(chunk, shard: shard))
        }
        var entry = Chunk(
            key: found.key, parent: parent, root: root, space: space.handle, firstShard: first)
        entry.state = .sealed
        entry.memory = .absent
        entry.disk = .written
        entry.volume = UInt8(found.volume)
        entry.usedSeconds = currentSeconds
        entry.isVisible = parent == Chunk.none || chunks[parent].isVisible
        chunks[chunk] = entry
        enter(chunk, space)
        disk.writtenCount += 1
        disk.absentCount += 1
        counters.chunksRecovered += 1
        if found.expiresMs > 0 { limitLife(of: chunk, untilMs: found.expiresMs) }
        settleMark(of: chunk, isNew: false)
    }

    // MARK: What was saved again meanwhile

    /// A chunk that the store knows by now keeps the place that it has on a disk, too.
    private mutating func keepPlace(
        of chunk: UInt32, _ found: RecoveredChunk, _ kept: ArraySlice<RecoveredShard>,
        _ space: CacheSpace
    ) {
        let entry = chunks[chunk]
        let parent = entry.parent == Chunk.none ? nil : chunks[entry.parent].key
        // What this start has written is newer.
        guard entry.disk != .written, spaces[entry.space]!.id == space.id, parent == found.parent,
            roots[Int(entry.root)].digest == found.root,
            kept.allSatisfy({ disk.volumes[found.volume].log.canRead($0.place) })
        else { return }
        if entry.state == .writing, found.expiresMs > 0, found.expiresMs <= wallMs { return }
        for (shard, kept) in kept.enumerated() {
            disk.volumes[found.volume].log.adopt(
                kept.place,
                length: spaces[entry.space]!.shardPages[shard] * ExtentAllocator.pageBytes,
                owner: Self.owner(chunk, shard: shard))
        }
        counters.chunksRecovered += 1
        let copy = DiskCopy(volume: found.volume, shards: Array(kept))
        if entry.disk == .writing {
            disk.writes[chunk]!.older = copy
        } else {
            use(copy, of: chunk)
        }
        if entry.state == .writing {
            takeFromWriter(chunk)
            if found.expiresMs > 0 { limitLife(of: chunk, untilMs: found.expiresMs) }
        } else if expiryMs(of: chunk) != found.expiresMs {
            tellDisksOfExpiry(chunk)
        }
    }

    /// A chunk in memory that no disk has had until now has this copy.
    mutating func use(_ copy: DiskCopy, of chunk: UInt32) {
        leaveDiskQueue(chunk)
        chunks[chunk].disk = .written
        chunks[chunk].volume = UInt8(copy.volume)
        disk.writtenCount += 1
        // It was saved just now, and its place may be the next that is wanted back.
        chunks[chunk].isHot = true
        // An engine that computes a chunk twice may get other bytes.
        disk.checksums[chunk] = copy.shards.map(\.checksum)
        for (shard, kept) in copy.shards.enumerated() {
            shards[chunks[chunk].firstShard + UInt32(shard)].place = kept.place
        }
        updateEvictable(chunk)
    }

    /// What a disk has need not be written: the chunk is there for all, whatever its writer does.
    private mutating func takeFromWriter(_ chunk: UInt32) {
        abandon(chunk, writers[chunk]!)
        chunks[chunk].state = .sealed
        chunks[chunk].usedSeconds = currentSeconds
        becameAbsent(chunk)
        unpin(chunk)
        makeVisible(chunk)
        settleMark(of: chunk, isNew: false)
    }

    private func wasDropped(_ found: RecoveredChunk, _ space: CacheSpace) -> Bool {
        if disk.recentDrops.isEmpty { return false }
        return disk.recentDrops.contains(.space(space.id))
            || disk.recentDrops.contains(.root(found.root, space: space.id))
            || disk.recentDrops.contains(.key(found.key, root: found.root, space: space.id))
            || found.parent.map {
                disk.recentDrops.contains(.key($0, root: found.root, space: space.id))
            } ?? false
    }

    /// The handle of a space that a disk knows; nil, and a warning, if its chunks don't fit.
    private mutating func handle(ofRecovered space: CacheSpace) -> UInt32? {
        if let handle = spaceHandles[space.id] { return handle }
        if disk.refusedSpaces.contains(space.id) { return nil }
        do throws(StoreError) {
            return try enter(space)
        } catch {
            disk.refusedSpaces.insert(space.id)
            effects.append(
                .warning(
                    "chunks on disk of model '\(space.modelName ?? "unnamed")' can't be used: "
                        + error.message))
            return nil
        }
    }
}
