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
