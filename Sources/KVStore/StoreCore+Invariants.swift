internal import KVArena

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
            pages += space.shardPages.reduce(0, +)
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
            if entry.hasTimeToLive != (timesToLive[chunk] != nil) {
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
            while child != Chunk.none {
                if chunks[child].parent != chunk {
                    return "chunk \(chunk): child \(child) has another parent"
                }
                if chunks[child].previousSibling != previous {
                    return "chunk \(child): sibling link"
                }
                if chunks[child].pins > 0 { pins += 1 }
                previous = child
                child = chunks[child].nextSibling
            }
            if entry.pins != pins { return "chunk \(chunk): \(entry.pins) pins, expected \(pins)" }
        }
        if live != index.count { return "\(live) chunks live, \(index.count) in the index" }
        if doomed != doomedCount { return "\(doomed) doomed, counted \(doomedCount)" }
        if pages != allocator.usedPages {
            return "\(pages) pages owned, \(allocator.usedPages) used"
        }
        for (handle, space) in spaces where space.chunkCount != perSpace[handle] ?? 0 {
            return "space \(handle): chunk count"
        }
        for slot in rootSlots.values where roots[Int(slot)].chunkCount != perRoot[slot] ?? 0 {
            return "root \(slot): chunk count"
        }
        return nil
    }
}
