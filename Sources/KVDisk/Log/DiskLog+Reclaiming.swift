internal import KVDiskFormat
package import KVTier

extension DiskLog {
    package mutating func forget(_ place: TierPlace, length: Int) {
        guard let segment = segments[place.segment], segment.isReadable else { return }
        precondition(
            length > 0 && length % DiskFormat.alignment == 0 && length <= segment.liveBytes,
            "\(length) bytes are forgotten where \(segment.liveBytes) are alive")
        segments[place.segment]!.liveBytes -= length
        liveBytes -= length
        guard segment.phase == .closed else { return }
        let left = segment.liveBytes - length
        if left == 0 || isSparse(left, of: segment.fileBytes) {
            noVictim = nil
            needsPump = true
        }
    }

    /// Whether so little is alive that the segment is emptied before any other is given up.
    private func isSparse(_ liveBytes: Int, of fileBytes: Int) -> Bool {
        liveBytes * 4 < fileBytes
    }

    package mutating func reclaimed(_ segment: UInt32, now: UInt64) {
        precondition(asked == segment, "segment \(segment) was not asked for")
        asked = nil
        isHeldBack = false
        drain(segment)
        pump(now)
    }

    // MARK: Asking

    /// What can be let go of, and how.
    private struct Victims {
        var empty: UInt32?
        var sparse: UInt32?
        var oldest: UInt32?
    }

    /// Asks the owner to let go of a segment, if one can be had and none is on its way.
    mutating func askForSegment(_ now: UInt64) -> Bool {
        guard isRecovered, asked == nil, removing == 0, areDropsStuck || areDrainsInDoubt else {
            return false
        }
        // After a start, free ones may still be opened.
        if freeOpening > 0 { return false }
        // In doubt, it must be emptied anyway.
        if askForDoubtful() { return true }
        let victims = victims()
        if let empty = victims.empty {
            drain(empty)
        } else if let sparse = victims.sparse {
            ask(for: sparse, keepAll: true)
        } else if let oldest = victims.oldest {
            tellIfCornered(oldest, now)
            ask(for: oldest, keepAll: false)
        } else {
            return false
        }
        return true
    }

    /// The oldest goes because nothing else can, not because the disk is full.
    private mutating func tellIfCornered(_ oldest: UInt32, _ now: UInt64) {
        guard head == nil, isRecovered else { return }
        if liveBytes * 2 > fileBytes { return }
        say(
            .cornered,
            "\(segments[oldest]!.name) is used again although the disk is not full: starts that "
                + "ended soon, one after the other, have left no room to move what it holds", now)
    }

    /// The same for one of which nothing gets lost, although no segment is needed yet.
    mutating func askForReserve() -> Bool {
        let (room, roomForAll) = (roomToMove, roomForAll)
        if let noVictim, room <= noVictim.room, roomForAll <= noVictim.roomForAll,
            noVictim.floors == floorChanges
        {
            return false
        }
        let victims = victims()
        if let empty = victims.empty {
            drain(empty)
        } else if let sparse = victims.sparse {
            ask(for: sparse, keepAll: true)
        } else {
            noVictim = (room, roomForAll, floorChanges)
            return false
        }
        return true
    }

    /// A segment in doubt is asked for as soon as it is closed and there is room for what it holds,
    /// whether its room is needed or not.
    mutating func askForDoubtful() -> Bool {
        guard isRecovered, asked == nil, suspendedUntil == nil, let number = closedDoubtful,
            segments[number]!.liveBytes <= roomToMove || spare != nil
        else { return false }
        ask(for: number, keepAll: true)
        return true
    }

    private var closedDoubtful: UInt32? {
        if doubtful.isEmpty { return nil }
        return doubtful.keys.filter { segments[$0]!.phase == .closed }.min()
    }

    /// Whether a segment in doubt waits for room.
    var doubtfulNeedsRoom: Bool {
        guard isRecovered, asked == nil, let number = closedDoubtful else { return false }
        return segments[number]!.liveBytes > roomToMove
    }

    mutating func ask(for number: UInt32, keepAll: Bool) {
        if segments[number]!.liveBytes == 0 { return drain(number) }
        segments[number]!.phase = .asked
        segments[number]!.movedTo = groupCount..<groupCount
        asked = number
        asksForAll = keepAll
        hasFailedWithoutRoom = false
        counters.reclaims += 1
        events.append(.reclaim(segment: number, keepAll: keepAll))
    }

    /// What is moved, and drops that are still needed, must fit where groups are taken now. Of the
    /// oldest segment no drop is needed, unless a file that can't be read may be older.
    private mutating func victims() -> Victims {
        victimScans += 1
        let floors = lowestSequences()
        let room = roomToMove
        let roomForAll = roomForAll
        var victims = Victims()
        var sparseBytes = Int.max
        var oldestFits = false
        for segment in segments.values where segment.phase == .closed && segment.isOpen {
            let number = segment.number
            // Emptied, it could only be removed.
            if unremovableUntil != nil, segment.fileBytes != configuration.segmentBytes { continue }
            let dropBytes = bytesOfDrops(neededDrops(of: number, floors).count)
            let fits = dropBytes <= room
            if fits == oldestFits ? isOlder(number, than: victims.oldest) : fits {
                victims.oldest = number
                oldestFits = fits
            }
            if segment.liveBytes == 0, dropBytes <= room {
                if isOlder(number, than: victims.empty) { victims.empty = number }
            } else if isSparse(segment.liveBytes, of: segment.fileBytes),
                movedBytes(of: segment) + dropBytes <= roomForAll,
                (segment.liveBytes, number) < (sparseBytes, victims.sparse ?? .max)
            {
                victims.sparse = number
                sparseBytes = segment.liveBytes
            }
        }
        return victims
    }

    private func isOlder(_ number: UInt32, than other: UInt32?) -> Bool {
        guard let other else { return true }
        let mine = (segments[number]!.firstSequence ?? 0, number)
        return mine < (segments[other]!.firstSequence ?? 0, other)
    }

    // MARK: Room

    /// Bytes of a group for each record that waits, or is being prepared, to be saved.
    private var roomForSaves: Int {
        queue.bytes + promisedSaves.bytes + overhead(records: queue.count + promisedSaves.records)
    }

    /// What can take all that is alive in a segment: what is on its way can't be kept back.
    private var roomForAll: Int { roomToMove - roomForMoves() - roomForSaves - slack }

    /// Bytes that can be written without another segment.
    var roomToMove: Int {
        var room = 0
        if let head, !isHeadFull { room += segments[head]!.room(entries: 1) }
        if spare != nil { room += configuration.segmentBytes / 2 }
        return max(0, room)
    }

    /// While the owner empties a segment, what it moves must find room: new records wait.
    var leavesRoomToMove: Bool {
        guard let asked else { return true }
        let moved =
            asksForAll
            ? movedBytes(of: segments[asked]!)
            : min(segments[asked]!.liveBytes, configuration.segmentBytes / 4)
        return roomForMoves() + roomForSaves + moved + slack <= roomToMove
    }

    /// What it takes to write all that is alive in a segment once more.
    func movedBytes(of segment: LogSegment) -> Int {
        segment.liveBytes + overhead(records: segment.records.count)
    }

    /// What the moves that are known of will take, and `bytes` more. One that finds no room waits for
    /// the segment that it comes from.
    func roomForMoves(bytes: Int = 0, records: Int = 0) -> Int {
        moves.bytes + promisedMoves.bytes + bytes
            + overhead(records: moves.count + promisedMoves.records + records)
    }

    /// What new records leave free for moves that are being prepared. Not for those that have yet
    /// to come to memory: that may wait for these records.
    var roomForMovesToCome: Int {
        promisedMoves.records == 0 || hasFailedWithoutRoom ? 0 : roomForMoves()
    }

    /// What records take beside their extents, if each is a group of its own.
    func overhead(records: Int) -> Int {
        records * (DiskFormat.groupHeaderBytes(entries: 1) + DiskFormat.entryBytes)
    }

    /// Room for what can't be foreseen: descriptions of spaces, drops.
    var slack: Int { min(configuration.groupBytes, configuration.segmentBytes / 8) }

    /// Watches for a state that only the owner can end, by letting go of a segment.
    mutating func noteRoom(_ now: UInt64) {
        let isStuck =
            asked != nil && !(queue.isEmpty && moves.isEmpty) && spare == nil && preparing == nil
            && removing == 0
            && suspendedUntil == nil && (head == nil || isHeadFull || isHeldBack)
        if !isStuck {
            noRoomSince = nil
        } else if noRoomSince == nil {
            noRoomSince = now
        }
    }

    /// The owner may wait for what it moves, while that waits for the owner.
    mutating func failWithoutRoom(_ now: UInt64) {
        guard !isStalled, let since = noRoomSince, since + LogTimes.noRoom <= now else { return }
        noRoomSince = nil
        if isHeldBack, !isHeadFull, !hasFailedWithoutRoom {
            // There is room, only kept for moves that take too long.
            hasFailedWithoutRoom = true
            isHeldBack = false
            return
        }
        defer { hasFailedWithoutRoom = true }
        let waiting = draining.filter { areInDoubt(segments[$0]!.movedTo) }
        if hasFailedWithoutRoom, !waiting.isEmpty {
            // They wait for what was moved to a segment in doubt, which can't be written again.
            for number in waiting { segments[number]!.movedTo = 0..<0 }
            counters.unsafeReuses += waiting.count
            let names = waiting.map { segments[$0]!.name }.joined(separator: ", ")
            say(
                .full,
                "\(names) must be used again, though a sync of what was moved from there has "
                    + "failed; a loss of power now may lose that", now)
            return
        }
        failQueue(
            TierFault(
                code: TierFault.noRoom,
                message: "all segments are full, and segment \(asked ?? 0) is not let go of"))
    }

    /// Records that wait are given up; drops never are.
    private mutating func failQueue(_ fault: TierFault) {
        let failed = moves.removeRecords() + queue.removeRecords()
        guard let first = failed.map(\.number).min() else { return }
        for case .record(_, _, let owner) in failed.map(\.content) {
            events.append(.writeFailed(owner: owner, fault: fault))
        }
        failTickets(above: first, fault)
    }

    /// Whether there is nothing to write to, and nothing that could become it.
    var isWithoutSegments: Bool {
        isRecovered && !isProviding && head == nil && active.isEmpty
            && !segments.values.contains { $0.phase == .closed || $0.phase == .free }
    }

    /// No segment is to be had before something changes outside.
    mutating func giveUpForNow(_ now: UInt64) -> Bool {
        let message =
            "no segment of \(configuration.segmentBytes) bytes fits the disk tier's limit of "
            + "\(configuration.budgetBytes) bytes; raise the limit, or make segments shorter"
        let fault =
            fullUntil == nil
            ? TierFault(code: TierFault.noRoom, message: message)
            : lastFault ?? TierFault(code: "no-space", message: message)
        suspendedUntil = fullUntil ?? now + LogTimes.fullRetry
        lastFault = fault
        counters.suspensions += 1
        say(.full, fault.message, now)
        failQueue(fault)
        failTickets(above: 0, fault)
        return true
    }

    // MARK: Less

    /// Gives files back while they take more than the limit, which may be lower than it was.
    mutating func shrink(_ now: UInt64) -> Bool {
        guard fileBytes > configuration.budgetBytes, unadopted.isEmpty, removing == 0,
            unremovableUntil == nil
        else { return false }
        if removeIdle() { return true }
        return suspendedUntil == nil && askForSegment(now)
    }

    /// Removes a file; what it said of drops is durable elsewhere.
    mutating func remove(_ number: UInt32) {
        segments[number]!.phase = .removing
        removing += 1
        if segments[number]!.isOpen {
            request(.close(file: UInt64(number)), for: .close(number))
        } else {
            request(.remove(name: segments[number]!.name), for: .remove(number))
        }
    }

    mutating func fileClosed(_ number: UInt32) {
        segments[number]!.isOpen = false
        request(.remove(name: segments[number]!.name), for: .remove(number))
    }

    mutating func removed(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        removing -= 1
        if case .failed(let fault) = outcome {
            removalFailed(number)
            unremovableUntil = now + LogTimes.fullRetry
            compaction = nil
            say(.remove, fault.message, now)
            return
        }
        counters.removals += 1
        fileBytes -= segments.removeValue(forKey: number)!.fileBytes
        floorChanges += 1
    }

    /// It is used again if it is still there: its name may be gone, though not durably.
    private mutating func removalFailed(_ number: UInt32) {
        if segments[number]!.fileBytes == configuration.segmentBytes {
            segments[number]!.phase = .free
            segments[number]!.isUnremoved = true
            freeOpening += 1
            open(segments[number]!)
        } else {
            segments[number]!.phase = .untouchable
            unremoved.append(number)
        }
    }

    mutating func removeAgain() {
        unremovableUntil = nil
        noVictim = nil
        let numbers = unremoved
        unremoved = []
        for number in numbers { remove(number) }
    }
}
