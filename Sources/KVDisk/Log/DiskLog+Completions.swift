extension DiskLog {
    /// Tells how a request ended; each is told once.
    package mutating func completed(_ id: UInt64, _ outcome: DiskOutcome, now: UInt64) {
        guard let task = underWay.removeValue(forKey: id) else {
            preconditionFailure("request \(id) is not under way")
        }
        currentTime = now
        if outcome != .done { counters.faults += 1 }
        noteAnswer(to: task, now)
        switch task {
        case .group(let number): groupEnded(id, of: number, outcome, now: now)
        case .sync(let number): synced(number, outcome, now: now)
        case .header(let number): headerWritten(number, outcome, now: now)
        case .headerSync(let number): headerSynced(number, outcome, now: now)
        case .footer(let number): footerWritten(number, outcome, now: now)
        case .footerSync(let number): footerSynced(number, outcome, now: now)
        case .create(let number): created(number, outcome, now: now)
        case .open(let number): opened(number, outcome, now: now)
        case .close(let number): fileClosed(number)
        case .remove(let number): removed(number, outcome, now: now)
        case .reads(let number, let reads): readsEnded(reads, of: number, outcome, now: now)
        }
        pump(now)
    }
}
