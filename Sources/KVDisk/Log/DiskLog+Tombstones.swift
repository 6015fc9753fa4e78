internal import KVDiskFormat
internal import KVIdentity

// What was dropped must not come back: the entry that says so is needed as long as any file holds
// a lower sequence than its bound.
extension DiskLog {
    /// The lowest sequence of all files, and the lowest of all others.
    struct Floors {
        var lowest: (sequence: UInt64, segment: UInt32)?
        var next: UInt64 = .max

        func lowest(without number: UInt32) -> UInt64 {
            guard let lowest else { return .max }
            return lowest.segment == number ? next : lowest.sequence
        }
    }

    /// Also of files whose life is over: until another one's header is durable in them, a crash
    /// can bring them back. O(segments).
    func lowestSequences() -> Floors {
        var floors = Floors()
        for segment in segments.values {
            guard let first = segment.firstSequence else { continue }
            if let lowest = floors.lowest, lowest.sequence <= first {
                floors.next = min(floors.next, first)
            } else {
                floors.next = floors.lowest?.sequence ?? .max
                floors.lowest = (first, segment.number)
            }
        }
        return floors
    }

    /// The drops in a segment that must be written elsewhere before it is used again.
    func neededDrops(of number: UInt32, _ floors: Floors) -> [DiskEntry] {
        let tombstones = segments[number]!.tombstones
        if tombstones.isEmpty { return [] }
        let lowest = floors.lowest(without: number)
        // Of the times that were told of a key the last one counts.
        var lastTimes: [Digest: UInt64] = [:]
        for entry in tombstones where entry.kind == .expireKey {
            lastTimes[entry.key] = max(entry.bound, lastTimes[entry.key] ?? 0)
        }
        return tombstones.filter { entry in
            entry.bound > lowest
                && (entry.kind != .expireKey || lastTimes[entry.key] == entry.bound)
        }
    }

    /// What a group of drops takes, with their entries in the footer.
    func bytesOfDrops(_ count: Int) -> Int {
        guard count > 0 else { return 0 }
        return DiskFormat.groupHeaderBytes(entries: count)
            + DiskFormat.footerBytes(entries: count)
    }

    /// What groups of records leave free in the head for drops that may have to be moved.
    var roomForDrops: Int {
        var count = drops.count
        if let asked { count += segments[asked]!.tombstones.count }
        for number in draining where !segments[number]!.hasMoved {
            count += segments[number]!.tombstones.count
        }
        return bytesOfDrops(count)
    }

    /// Whether drops wait to be moved and there is no room for them.
    var areDropsStuck: Bool {
        guard !drops.isEmpty, spare == nil, preparing == nil else { return false }
        guard let head else { return true }
        return segments[head]!.room(entries: 1) < DiskFormat.groupHeaderBytes(entries: 1)
    }

    // MARK: Letting go

    /// Begins to use a segment again: nobody wants anything that is in it.
    mutating func drain(_ number: UInt32) {
        segments[number]!.phase = .draining
        compaction?.candidates?.remove(number)
        liveBytes -= segments[number]!.liveBytes
        segments[number]!.liveBytes = 0
        segments[number]!.records = []
        segments[number]!.movedTo = segments[number]!.movedTo.lowerBound..<groupCount
        if let groups = doubtful.removeValue(forKey: number) {
            // Who has waited for its groups waits for what was moved from there.
            for other in draining where segments[other]!.movedTo.overlaps(groups) {
                segments[other]!.movedTo = segments[other]!.movedTo.lowerBound..<groupCount
            }
        }
        draining.append(number)
    }

    mutating func drainSegments() -> Bool {
        for number in draining {
            guard segments[number]!.reads == 0 else { continue }
            if !segments[number]!.hasMoved {
                moveDrops(of: number)
                return true
            }
            if segments[number]!.moves == 0, areDurable(segments[number]!.movedTo) {
                release(number)
                return true
            }
        }
        return forgetMoves()
    }

    /// Whether groups are durable. Those of a segment in doubt are not before that is emptied, and
    /// what was moved from there is durable.
    private func areDurable(_ groups: Range<UInt64>) -> Bool {
        if groups.isEmpty { return true }
        if areInDoubt(groups) { return false }
        return !active.contains { number in
            let segment = segments[number]!
            return min(segment.unsynced?.firstGroup ?? .max, segment.syncing?.firstGroup ?? .max)
                < groups.upperBound
        }
    }

    /// Whether all segments that were let go of, if any, wait for one in doubt, which may need room
    /// itself.
    var areDrainsInDoubt: Bool {
        draining.allSatisfy { number in
            let segment = segments[number]!
            return segment.reads == 0 && segment.hasMoved && segment.moves == 0
                && areInDoubt(segment.movedTo)
        }
    }

    /// Whether a sync of one of the groups has failed.
    func areInDoubt(_ groups: Range<UInt64>) -> Bool {
        doubtful.values.contains { $0.overlaps(groups) }
    }

    /// Queues the drops that are still needed.
    private mutating func moveDrops(of number: UInt32) {
        let needed = neededDrops(of: number, lowestSequences())
        for entry in needed {
            drops.append(
                LogItem(number: itemCount, content: .drop(entry.unplaced, source: number)))
            itemCount += 1
        }
        segments[number]!.moves = needed.count
        segments[number]!.hasMoved = true
    }

    /// Drops that wait to be moved are not needed any more once what they killed is gone.
    private mutating func forgetMoves() -> Bool {
        guard lastFloorChange != floorChanges, !draining.isEmpty, !drops.isEmpty else {
            return false
        }
        lastFloorChange = floorChanges
        let floors = lowestSequences()
        var forgotten: [UInt32] = []
        drops.removeAll { item in
            guard case .drop(let entry, let source?) = item.content,
                entry.bound <= floors.lowest(without: source)
            else { return false }
            forgotten.append(source)
            return true
        }
        for source in forgotten { moved(from: source) }
        return !forgotten.isEmpty
    }

    /// A drop of a segment is durable elsewhere, or not needed.
    mutating func moved(from number: UInt32) {
        segments[number]!.moves -= 1
    }

    private mutating func release(_ number: UInt32) {
        draining.removeAll { $0 == number }
        segments[number]!.empty()
        let isTooMuch =
            fileBytes > configuration.budgetBytes && unadopted.isEmpty && unremovableUntil == nil
        if segments[number]!.fileBytes != configuration.segmentBytes || isTooMuch {
            remove(number)
        } else {
            segments[number]!.phase = .free
            free.append(number)
        }
    }
}

extension DiskEntry {
    /// The same without a place; it keeps its bound.
    fileprivate var unplaced: DiskEntry {
        var entry = self
        entry.sequence = 0
        return entry
    }
}
