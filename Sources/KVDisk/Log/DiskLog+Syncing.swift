internal import KVTier

extension DiskLog {
    package mutating func sync(ticket: UInt64, now: UInt64) {
        let isPending = oldestItem < itemCount
        if let number = doubtful.keys.filter({ segments[$0]!.liveBytes > 0 }).min() {
            events.append(.synced(ticket: ticket, fault: doubt(number)))
        } else if isPending, let fault = suspensionFault {
            events.append(.synced(ticket: ticket, fault: fault))
        } else {
            tickets.append(LogTicket(ticket: ticket, mark: itemCount))
        }
        pump(now)
    }

    /// The first item that is not durable.
    private var oldestItem: UInt64 {
        let waiting = min(queue.first?.number ?? .max, moves.first?.number ?? .max)
        var oldest = drops.reduce(waiting) { min($0, $1.number) }
        for number in active { oldest = min(oldest, segments[number]!.firstItem) }
        return oldest
    }

    mutating func answerTickets() -> Bool {
        guard let first = tickets.first else { return false }
        let oldest = oldestItem
        guard first.mark <= oldest else { return false }
        while let ticket = tickets.first, ticket.mark <= oldest {
            _ = tickets.removeFirst()
            events.append(.synced(ticket: ticket.ticket, fault: nil))
        }
        return true
    }

    /// Items from `item` on may be lost.
    mutating func failTickets(above item: UInt64, _ fault: TierFault) {
        guard !tickets.isEmpty else { return }
        let failed = tickets.all.filter { $0.mark > item }
        tickets.removeAll { $0.mark > item }
        for ticket in failed { events.append(.synced(ticket: ticket.ticket, fault: fault)) }
    }

    // MARK: Syncs

    /// Syncs what is due: by time, for the first ticket, or for a segment that waits.
    mutating func startSyncs(_ now: UInt64) -> Bool {
        guard !active.isEmpty else { return false }
        let mark = tickets.first?.mark ?? 0
        let isWritten = mark > 0 && isWritten(below: mark)
        let groupMark = draining.reduce(0) { max($0, segments[$1]!.movedTo.upperBound) }
        for number in active {
            guard segments[number]!.syncing == nil, let unsynced = segments[number]!.unsynced,
                segments[number]!.isOpen
            else { continue }
            let isDue = unsynced.since + configuration.syncIntervalNs <= now
            let isWanted = isWritten && unsynced.firstItem < mark
            if isDue || isWanted || unsynced.isUrgent || unsynced.firstGroup < groupMark {
                startSync(number)
                return true
            }
        }
        return false
    }

    /// Whether nothing below waits to be written, so that one sync is enough.
    private func isWritten(below mark: UInt64) -> Bool {
        if let first = queue.first, first.number < mark { return false }
        if let first = moves.first, first.number < mark { return false }
        if drops.contains(where: { $0.number < mark }) { return false }
        return !active.contains { number in
            segments[number]!.groups.contains { $0.firstItem < mark }
        }
    }

    mutating func startSync(_ number: UInt32) {
        segments[number]!.syncing = segments[number]!.unsynced
        segments[number]!.unsynced = nil
        request(.sync(file: UInt64(number)), for: .sync(number))
    }

    mutating func synced(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        let synced = segments[number]!.syncing!
        segments[number]!.syncing = nil
        switch outcome {
        case .done:
            counters.syncs += 1
            for item in synced.drops { if let source = item.source { moved(from: source) } }
        case .failed(let fault): syncFailed(number, synced, fault, now)
        }
    }

    /// What was written since the last good sync may be lost, even if a later one succeeds. The
    /// owner is asked to write it again; what was dropped is written again from here.
    private mutating func syncFailed(
        _ number: UInt32, _ synced: LogUnsynced, _ fault: DiskFault, _ now: UInt64
    ) {
        var lost = synced
        if let unsynced = segments[number]!.unsynced { lost.merge(unsynced) }
        segments[number]!.unsynced = nil
        segments[number]!.isDoubtful = true
        doubtful[number] = lost.firstGroup..<groupCount
        end(number)
        drops += lost.drops
        suspend(fault, .sync, now)
        failTickets(above: lost.firstItem, doubt(number))
    }

    func doubt(_ number: UInt32) -> TierFault {
        TierFault(
            code: "in-doubt",
            message: "a sync of \(segments[number]!.name) failed, so what was written to it may "
                + "be lost; it is being written again: ask again, and look after the device")
    }
}
