internal import KVArena
internal import KVDisk

// The agreements that hold between events. Tests ask after every few events; it looks at
// everything, so it is slow.

extension StoreCore {
    /// What is wrong inside, or nil.
    package func brokenInvariant() -> String? {
        if let broken = allocator.brokenInvariant() { return "allocator: \(broken)" }
        var expectedPins: [UInt32: UInt32] = [:]
        for hold in holds.values {
            for chunk in hold.chunks { expectedPins[chunk, default: 0] += 1 }
        }
        for lease in readLeases.values {
            for chunk in lease.chunks { expectedPins[chunk, default: 0] += 1 }
        }
        for lease in writeLeases.values {
            for chunk in lease.kept { expectedPins[chunk, default: 0] += 1 }
        }
        for chunk in writers.keys { expectedPins[chunk, default: 0] += 1 }
        for chunk in pinsUntil.keys { expectedPins[chunk, default: 0] += 1 }
        for chunk in disk.writes.keys { expectedPins[chunk, default: 0] += 1 }
        for reclaim in disk.reclaims {
            for chunk in reclaim.pinned.keys { expectedPins[chunk, default: 0] += 1 }
        }
        for chunk in disk.loads.keys { expectedPins[chunk, default: 0] += 1 }
        for (job, check) in checks where !(checksOfChunk[check.chunk]?.contains(job) ?? false) {
            return "check \(job) is not known to its chunk"
        }

        var live = 0
        var doomed = 0
        var pages = quarantinedPages
        var perSpace: [UInt32: Int] = [:]
        var perRoot: [UInt32: Int] = [:]
        for chunk in 0..<UInt32(chunks.count) {
            let entry = chunks[chunk]
            if entry.state == .vacant { continue }
            guard let space = spaces[entry.space] else {
                return "chunk \(chunk): its space is forgotten"
            }
            perSpace[entry.space, default: 0] += 1
            if entry.memory != .absent { pages += space.shardPages.reduce(0, +) }
            if let broken = brokenDiskInvariant(of: chunk) { return "chunk \(chunk): \(broken)" }
            if entry.state == .doomed {
                doomed += 1
                if entry.pins == 0 { return "chunk \(chunk): doomed, but nobody reads it" }
                if entry.pins != expectedPins[chunk] ?? 0 {
                    return "chunk \(chunk): pins of the doomed"
                }
                continue
            }
            live += 1
            perRoot[entry.root, default: 0] += 1
            if index.find(entry.key, chunks) != chunk { return "chunk \(chunk): not in the index" }
            if (entry.state == .writing) != (writers[chunk] != nil) {
                return "chunk \(chunk): writer"
            }
            if entry.hasTimeToLive != (lives[chunk] != nil) {
                return "chunk \(chunk): time to live"
            }
            if entry.isPinnedUntil != (pinsUntil[chunk] != nil) {
                return "chunk \(chunk): timed pin"
            }
            if entry.parent != Chunk.none {
                let parent = chunks[entry.parent]
                if parent.state != .sealed && parent.state != .writing {
                    return "chunk \(chunk): its parent is gone (invariant 6)"
                }
                if parent.root != entry.root || parent.space != entry.space {
                    return "chunk \(chunk): kin"
                }
            }
            let parentIsVisible = entry.parent == Chunk.none || chunks[entry.parent].isVisible
            if entry.isVisible != (entry.state == .sealed && parentIsVisible) {
                return "chunk \(chunk): visible"
            }
            var pins = expectedPins[chunk] ?? 0
            var child = entry.firstChild
            var previous = Chunk.none
            var residentChildren: UInt32 = 0
            while child != Chunk.none {
                if chunks[child].parent != chunk {
                    return "chunk \(chunk): child \(child) has another parent"
                }
                if chunks[child].previousSibling != previous {
                    return "chunk \(child): sibling link"
                }
                if chunks[child].pins > 0 { pins += 1 }
                if chunks[child].memory != .absent { residentChildren += 1 }
                previous = child
                child = chunks[child].nextSibling
            }
            if entry.residentChildren != residentChildren {
                return
                    "chunk \(chunk): \(entry.residentChildren) children in memory, not \(residentChildren)"
            }
            if entry.pins != pins { return "chunk \(chunk): \(entry.pins) pins, expected \(pins)" }
        }
        if live != index.count { return "\(live) chunks live, \(index.count) in the index" }
        if doomed != doomedCount { return "\(doomed) doomed, counted \(doomedCount)" }
        if pages != allocator.usedPages {
            return "\(pages) pages owned, \(allocator.usedPages) used"
        }
        if let broken = brokenDiskCounts() { return broken }
        if let broken = brokenPins() { return broken }
        for (handle, space) in spaces where space.chunkCount != perSpace[handle] ?? 0 {
            return "space \(handle): chunk count"
        }
        for slot in rootSlots.values where roots[Int(slot)].chunkCount != perRoot[slot] ?? 0 {
            return "root \(slot): chunk count"
        }
        return nil
    }
}

extension StoreCore {
    private func brokenPins() -> String? {
        let pinned = pinsUntil.keys.reduce(0) { $0 + chunkBytes(of: $1) }
        if pinned != pinnedBytes { return "\(pinned) bytes pinned, \(pinnedBytes) counted" }
        if pinnableBytes < 0 { return "more than half the arena is pinned" }
        for (chunk, until) in pinsUntil where until == Self.never && !isStatic(chunk) {
            return "chunk \(chunk): pinned without end, and not static"
        }
        if statics.marks.count > StoreLimits.staticChunks { return "too many static chunks" }
        let present = statics.marks.values.filter { $0.bytes > 0 }
        if present.count != statics.presentCount { return "static chunks that are here" }
        if present.reduce(0, { $0 + $1.bytes }) != statics.bytes { return "static bytes" }
        for (key, mark) in statics.marks {
            let chunk = index.find(key, chunks).flatMap { isStatic($0) ? $0 : nil }
            guard let chunk else {
                if mark.bytes > 0 { return "\(key): static, and not here" }
                continue
            }
            if chunks[chunk].state == .sealed, mark.bytes != chunkBytes(of: chunk) {
                return "chunk \(chunk): static, but counted as missing"
            }
            let parent = chunks[chunk].parent
            if chunks[chunk].state == .sealed, parent != Chunk.none, !isStatic(parent) {
                return "chunk \(chunk): static, but not what it follows"
            }
        }
        return nil
    }

    private func brokenDiskInvariant(of chunk: UInt32) -> String? {
        let entry = chunks[chunk]
        if (entry.memory == .loading) != (disk.loads[chunk] != nil) { return "loading" }
        if (entry.disk == .writing) != (disk.writes[chunk] != nil) {
            return "being written to disk"
        }
        if entry.state == .writing, entry.memory != .resident || entry.disk != .none {
            return "a disk knows what is not sealed"
        }
        if entry.state == .sealed, entry.memory != .resident, entry.disk != .written {
            return "its bytes are nowhere"
        }
        if entry.state == .doomed, entry.disk == .written || entry.disk == .waiting {
            return "a disk keeps what is gone"
        }
        return nil
    }

    private func brokenDiskCounts() -> String? {
        let all = 0..<UInt32(chunks.count)
        let sealed = all.filter { chunks[$0].state == .sealed }
        let written = sealed.count { chunks[$0].disk == .written }
        if written != disk.writtenCount {
            return "\(written) chunks on disk, \(disk.writtenCount) counted"
        }
        let absent = sealed.count { chunks[$0].memory == .absent }
        if absent != disk.absentCount {
            return "\(absent) chunks absent, \(disk.absentCount) counted"
        }
        let waiting = sealed.count { chunks[$0].disk == .waiting }
        if waiting != disk.waiting.count {
            return "\(waiting) chunks wait, \(disk.waiting.count) counted"
        }
        let waitingBytes = disk.waiting.keys.reduce(0) {
            $0 + spaces[chunks[$1].space]!.chunkBytes
        }
        if waitingBytes != disk.waitingBytes {
            return "\(waitingBytes) bytes wait, \(disk.waitingBytes) counted"
        }
        if let stray = disk.passedOver.first(where: { disk.waiting[$0] == nil }) {
            return "chunk \(stray) is passed over and waits for nothing"
        }
        let bytes = disk.writes.keys.reduce(0) { $0 + spaces[chunks[$1].space]!.chunkBytes }
        if bytes != disk.bytesUnderWay { return "bytes under way to disks" }
        var promised: [Bool: [Int]] = [true: disk.volumes.map { _ in 0 }]
        promised[false] = promised[true]
        for check in checks.values where check.purpose == .write {
            guard let write = disk.writes[check.chunk] else { continue }
            let space = spaces[chunks[check.chunk].space]!
            promised[write.isMove]![Int(chunks[check.chunk].volume)] +=
                space.shardPages[check.shard] * ExtentAllocator.pageBytes
        }
        if promised[true] != disk.volumes.map(\.log.promisedMoves.bytes)
            || promised[false] != disk.volumes.map(\.log.promisedSaves.bytes)
        {
            return "bytes promised to disks"
        }
        for chunk in disk.checksums.keys {
            let entry = chunks[chunk]
            if entry.state != .sealed || entry.disk != .written || entry.memory != .resident {
                return "chunk \(chunk): checksums of another copy"
            }
        }
        // What a disk counts as used is what chunks have there, and what has just arrived.
        var live = disk.volumes.map { _ in 0 }
        for chunk in sealed where chunks[chunk].disk == .written {
            live[Int(chunks[chunk].volume)] += spaces[chunks[chunk].space]!.chunkBytes
        }
        for (chunk, write) in disk.writes {
            if let older = write.older {
                live[older.volume] += spaces[chunks[chunk].space]!.chunkBytes
            }
            for shard in write.placedShards {
                live[Int(chunks[chunk].volume)] +=
                    spaces[chunks[chunk].space]!.shardPages[shard] * ExtentAllocator.pageBytes
            }
        }
        for (volume, bytes) in live.enumerated() {
            let counted = disk.volumes[volume].log.gauges.liveBytes
            if bytes != counted { return "disk \(volume): \(bytes) bytes used, \(counted) counted" }
        }
        return nil
    }
}
