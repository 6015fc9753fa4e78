internal import KVDisk
internal import KVPolicy
internal import KVTier

// When a disk wants a segment back: what is static, and what was matched since it was written, is
// written again, up to half of the segment, the most recently used first; the rest loses its place. That is a second
// chance for each record, in the order in which records came (FIFO with reinsertion).

/// A segment that a disk wants back.
struct DiskReclaim {
    var volume: Int
    var segment: UInt32
    /// Nothing may be given up that can be read.
    var keepsAll: Bool
    /// Chunks to be looked at, in their order; nil before the first look.
    var chunks: [UInt32]?
    var next = 0
    /// Those among them that are to be kept.
    var kept: Set<UInt32> = []
    /// Chunks on their way out of it.
    var open: [UInt32] = []
    /// Until when nothing is tried, because no memory was to be had, and how often that was so.
    var retryAt: UInt64 = 0
    var refusals = 0
    /// Those among them that must have another place first, and are pinned until then, and how
    /// often that was tried.
    var pinned: [UInt32: Int] = [:]
}

extension StoreCore {
    /// Of a segment, what may be written again when it is wanted back: one part in this many.
    static var movedShareOfSegment: Int { 2 }

    /// Chunks on their way out of a segment at a time.
    static var chunksMovedAtOnce: Int { 64 }

    /// How long a segment waits for memory before it is tried again.
    static var retryNanoseconds: UInt64 { 20_000_000 }

    /// How often memory is asked for before a chunk that should stay is given up.
    static var refusedLoads: Int { 50 }

    /// How often it is tried to write a chunk that must be kept.
    static var attemptsToMove: Int { 8 }

    /// Whether the move of a segment is tried again soon, because there was no memory.
    package var waitsForMemory: Bool { disk.reclaims.contains { $0.retryAt > currentTime } }

    /// Goes on with every segment that is wanted back.
    mutating func continueReclaims() {
        var index = 0
        while index < disk.reclaims.count {
            if proceed(index) {
                let reclaim = disk.reclaims.remove(at: index)
                disk.volumes[reclaim.volume].log.reclaimed(reclaim.segment, now: currentTime)
            } else {
                index += 1
            }
        }
    }

    /// - Returns: whether nothing of the segment is used any more.
    private mutating func proceed(_ index: Int) -> Bool {
        if isWaiting(index) { return false }
        if disk.reclaims[index].chunks == nil { plan(index) }
        let chunks = disk.reclaims[index].chunks!
        var open: [UInt32] = []
        for chunk in disk.reclaims[index].open {
            if isWaiting(index) || !leaves(chunk, index) { open.append(chunk) }
        }
        var next = disk.reclaims[index].next
        while next < chunks.count, open.count < Self.chunksMovedAtOnce, !isWaiting(index) {
            if !leaves(chunks[next], index) { open.append(chunks[next]) }
            next += 1
        }
        disk.reclaims[index].open = open
        disk.reclaims[index].next = next
        return open.isEmpty && next == chunks.count
    }

    private func isWaiting(_ index: Int) -> Bool {
        let reclaim = disk.reclaims[index]
        return reclaim.retryAt > currentTime || disk.volumes[reclaim.volume].log.isStalled
    }

    /// Brings a chunk one step further out of the segment. - Returns: whether it is out.
    private mutating func leaves(_ chunk: UInt32, _ index: Int) -> Bool {
        let reclaim = disk.reclaims[index]
        if !reclaim.keepsAll, let older = disk.writes[chunk]?.older, isIn(older, reclaim) {
            // What is being written again may wait for this very segment.
            forget(older, of: chunk)
            disk.writes[chunk]!.older = nil
            counters.chunksLeftToMemory += 1
            return true
        }
        // On its way into memory, or to another place.
        if disk.loads[chunk] != nil || isBeingMoved(chunk, reclaim) { return false }
        if reclaim.pinned[chunk] != nil { return hasOtherPlace(chunk, index) }
        if !isIn(chunk, reclaim) { return true }
        // Where there is no room to move to, only what must be kept is moved.
        let hasRoom =
            reclaim.keepsAll
            || disk.volumes[reclaim.volume].log.takesMove(
                bytes: chunkBytes(of: chunk), records: shardCount(of: chunk),
                now: currentTime)
        let isKept = reclaim.kept.contains(chunk) && hasRoom
        if chunks[chunk].memory == .absent {
            // What somebody holds must stay, and what is in memory needs what it follows.
            let mustStay =
                chunks[chunk].pins > 0 || reclaim.keepsAll || isKeptStatic(chunk)
                || isFollowedInMemory(chunk)
            if isKept || mustStay {
                if load(chunk) {
                    disk.reclaims[index].refusals = 0
                    return false
                }
                // There is no memory to be had; it is tried again in a while, but not for ever: what
                // holds the memory may wait for this segment.
                disk.reclaims[index].retryAt = currentTime + Self.retryNanoseconds
                disk.reclaims[index].refusals += 1
                if mustStay, reclaim.refusals < Self.refusedLoads { return false }
            }
            removeSubtree(chunk, fate: .evictedFromDisk)
            return true
        }
        // Not whatever memory has: where that is more than fits the disk, it would be written for ever.
        let isWanted = chunks[chunk].isHot || isKeptStatic(chunk)
        forgetPlaces(of: chunk)
        if !isKept {
            counters.chunksLeftToMemory += 1
            if isWanted { enqueueForDisk(chunk) }
            return true
        }
        if reclaim.keepsAll {
            disk.reclaims[index].pinned[chunk] = 1
            pin(chunk)
        }
        // The bound of the queue is not for this: what waits there waits for the segment. It stays on
        // its disk, which uses the segment again only when what left it is durable there.
        startWrite(chunk, volume: reclaim.volume, serial: disk.nextSerial(), isMove: true)
        return false
    }

    /// Whether something that follows the chunk is in memory, or on its way to a disk.
    private func isFollowedInMemory(_ chunk: UInt32) -> Bool {
        var work = [chunk]
        while let next = work.popLast() {
            if chunks[next].residentChildren > 0 { return true }
            var child = chunks[next].firstChild
            while child != Chunk.none {
                work.append(child)
                child = chunks[child].nextSibling
            }
        }
        return false
    }

    /// Whether a chunk that must not be lost has been written to another place, or dropped. If
    /// that has failed it is tried again.
    private mutating func hasOtherPlace(_ chunk: UInt32, _ index: Int) -> Bool {
        let reclaim = disk.reclaims[index]
        let attempts = reclaim.pinned[chunk]!
        // A disk that is full as well as failing would never let go of the segment.
        if chunks[chunk].state == .sealed, chunks[chunk].disk != .written,
            attempts < Self.attemptsToMove
        {
            if disk.volumes[reclaim.volume].log.isSuspended { return false }
            leaveDiskQueue(chunk)
            disk.reclaims[index].pinned[chunk] = attempts + 1
            startWrite(chunk, volume: reclaim.volume, serial: disk.nextSerial(), isMove: true)
            return false
        }
        disk.reclaims[index].pinned[chunk] = nil
        if chunks[chunk].state == .sealed, chunks[chunk].disk != .written {
            counters.chunksLeftToMemory += 1
            enqueueForDisk(chunk)
        }
        unpin(chunk)
        return true
    }

    /// Whether some shard of the chunk is in the segment.
    private func isIn(_ chunk: UInt32, _ reclaim: DiskReclaim) -> Bool {
        let entry = chunks[chunk]
        guard entry.state == .sealed, entry.disk == .written, Int(entry.volume) == reclaim.volume
        else { return false }
        return (0..<UInt32(shardCount(of: chunk))).contains {
            shards[entry.firstShard + $0].place.segment == reclaim.segment
        }
    }

    /// Whether the chunk is being written, and the segment has to wait for that.
    ///
    /// Not for one that has nothing in the segment: it is another chunk by now, or has lost its place
    /// there, and may wait for this very segment.
    private func isBeingMoved(_ chunk: UInt32, _ reclaim: DiskReclaim) -> Bool {
        guard let write = disk.writes[chunk] else { return false }
        if write.isMove || reclaim.pinned[chunk] != nil { return true }
        if let older = write.older, isIn(older, reclaim) { return true }
        return Int(chunks[chunk].volume) == reclaim.volume
            && write.placedShards.contains {
                shards[chunks[chunk].firstShard + UInt32($0)].place.segment == reclaim.segment
            }
    }

    private func isIn(_ copy: DiskCopy, _ reclaim: DiskReclaim) -> Bool {
        copy.volume == reclaim.volume
            && copy.shards.contains { $0.place.segment == reclaim.segment }
    }

    /// Whether the record is of use: as the place of a chunk in the segment, or of one that is still
    /// being written, there or once more.
    private func isUsed(_ place: TierPlace, of chunk: UInt32, shard: Int, _ reclaim: DiskReclaim)
        -> Bool
    {
        guard Int(chunk) < chunks.count, chunks[chunk].state != .vacant,
            shard < shardCount(of: chunk)
        else { return false }
        let write = disk.writes[chunk]
        if let older = write?.older, older.volume == reclaim.volume {
            if older.shards[shard].place == place { return true }
        }
        let isWritten =
            isIn(chunk, reclaim)
            || write?.placedShards.contains(shard) == true
                && Int(chunks[chunk].volume) == reclaim.volume
        return isWritten && shards[chunks[chunk].firstShard + UInt32(shard)].place == place
    }

    /// Lists the segment's chunks and decides which are kept.
    private mutating func plan(_ index: Int) {
        let reclaim = disk.reclaims[index]
        let records = disk.volumes[reclaim.volume].log.records(of: reclaim.segment)
        var order: [UInt32] = []
        var seen: Set<UInt32> = []
        for record in records {
            let (chunk, shard) = Self.chunk(ofOwner: record.owner)
            guard isUsed(record.place, of: chunk, shard: shard, reclaim),
                seen.insert(chunk).inserted
            else { continue }
            order.append(chunk)
        }
        disk.reclaims[index].chunks = order
        if reclaim.keepsAll {
            disk.reclaims[index].kept = Set(order)
            return
        }
        // What is static is moved as far as there is room; the rest is written anew as what was saved
        // is.
        let isFirst = Set(order.filter { isKeptStatic($0) })
        let hot = order.filter { chunks[$0].isHot && !isFirst.contains($0) }.sorted {
            policy.worth(of: $0) > policy.worth(of: $1)
        }
        var room = disk.volumes[reclaim.volume].segmentBytes / Self.movedShareOfSegment
        room -= isFirst.reduce(0) { $0 + chunkBytes(of: $1) }
        var kept = isFirst
        for chunk in hot {
            room -= chunkBytes(of: chunk)
            if room < 0 { break }
            kept.insert(chunk)
        }
        disk.reclaims[index].kept = kept
    }
}
