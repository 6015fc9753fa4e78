internal import KVTier

/// What a log has trouble with; of each kind one message a minute is told.
enum Trouble: Sendable {
    case write
    case create
    case sync
    case read
    case footer
    case full
    case cornered
    case remove
    case open
    case stall
    case answer
}

extension DiskLog {
    /// Writes nothing for a while: a second, and twice as long after each fault that follows.
    mutating func suspend(_ fault: DiskFault, _ trouble: Trouble, _ now: UInt64) {
        suspension =
            suspension == 0 ? LogTimes.second : min(suspension * 2, LogTimes.longestSuspension)
        suspendedUntil = now + suspension
        lastFault = TierFault(fault)
        counters.suspensions += 1
        let seconds = suspension / LogTimes.second
        say(trouble, "\(fault.message); the disk tier tries again in \(seconds) s", now)
        failTickets(above: 0, TierFault(fault))
    }

    // MARK: A disk that does not answer

    /// Why nothing is asked of the disk while it is stalled.
    var stallFault: TierFault {
        let seconds = configuration.patienceNs / LogTimes.second
        return TierFault(
            code: TierFault.stalled, message: "the disk has not answered for \(seconds) s")
    }

    /// Finds out whether something has been under way for too long.
    mutating func noteStall(_ now: UInt64) {
        guard !isStalled, let oldest = requestTimes.first,
            oldest.time + configuration.patienceNs <= now
        else { return }
        isStalled = true
        counters.stalls += 1
        events.append(.stalled)
        say(
            .stall,
            "\(stallFault.message); until it does, what is on it is computed again, and nothing is "
                + "written to it. Look for a failing or overloaded device", now)
        failReadsThatWait(stallFault)
    }

    /// Something has ended: the disk answers again if the rest is not late, too.
    mutating func noteAnswer(_ now: UInt64) {
        while let first = requestTimes.first, underWay[first.id] == nil {
            _ = requestTimes.removeFirst()
        }
        guard isStalled else { return }
        if let oldest = requestTimes.first, oldest.time + configuration.patienceNs <= now { return }
        isStalled = false
        // What waited for room waited for the disk.
        if noRoomSince != nil { noRoomSince = now }
        say(.answer, "the disk answers again", now)
    }

    mutating func say(_ trouble: Trouble, _ message: String, _ now: UInt64) {
        if let last = lastMessages[trouble], now < last + LogTimes.betweenMessages { return }
        lastMessages[trouble] = now
        events.append(.trouble(message: message))
    }
}

extension TierFault {
    init(_ fault: DiskFault) {
        self.init(code: fault.code.description, message: fault.message)
    }
}
