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

    private func isSilent(_ now: UInt64) -> Bool {
        silences.contains { $0.end(patience: configuration.patienceNs) ?? .max <= now }
    }

    /// Finds out whether the disk has been silent for too long.
    mutating func noteStall(_ now: UInt64) {
        guard !isStalled, isSilent(now) else { return }
        isStalled = true
        counters.stalls += 1
        events.append(.stalled)
        say(
            .stall,
            "\(stallFault.message); until it does, what is on it is computed again, and nothing is "
                + "written to it. Look for a failing or overloaded device", now)
        failReadsThatWait(stallFault)
        failTickets(above: 0, stallFault)
    }

    /// A request has ended.
    mutating func noteAnswer(to task: LogTask, _ now: UInt64) {
        silences[task.silence.rawValue].answered(now)
        guard isStalled, !isSilent(now) else { return }
        isStalled = false
        // What waited for room waited for the disk.
        if noRoomSince != nil { noRoomSince = now }
        lastMessages[.answer] = nil
        say(.answer, "the disk answers again", now)
        // The last message must not be the wrong one.
        lastMessages[.stall] = nil
    }

    mutating func say(_ trouble: Trouble, _ message: String, _ now: UInt64) {
        if let last = lastMessages[trouble], now < last + LogTimes.betweenMessages { return }
        lastMessages[trouble] = now
        events.append(.trouble(message: message))
    }
}

/// How long a disk has given no answer of a kind.
struct LogSilence: Sendable {
    /// What a disk answers one after the other, if not in order.
    enum Kind: Int, CaseIterable {
        case reads, writes, syncs, files

        /// How many times the usual patience it may take: where a file can't be allocated at once, its
        /// zeros are written.
        var patience: UInt64 { self == .files ? 6 : 1 }
    }

    let kind: Kind
    var underWay = 0
    /// The last answer, or the first request after none was under way.
    var since: UInt64 = 0

    mutating func asked(_ now: UInt64) {
        if underWay == 0 { since = now }
        underWay += 1
    }

    mutating func answered(_ now: UInt64) {
        underWay -= 1
        since = now
    }

    /// When it will have been silent for too long; nil where nothing is under way.
    func end(patience: UInt64) -> UInt64? {
        underWay > 0 ? since + patience * kind.patience : nil
    }
}

extension LogTask {
    /// The kind of answer that it waits for.
    var silence: LogSilence.Kind {
        switch self {
        case .reads, .open: .reads
        case .group, .header, .footer: .writes
        case .sync, .headerSync, .footerSync: .syncs
        case .create, .close, .remove: .files
        }
    }
}

extension TierFault {
    init(_ fault: DiskFault) {
        self.init(code: fault.code.description, message: fault.message)
    }
}
