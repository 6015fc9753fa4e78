internal import KVDisk

// Time only enters here: every event first lets pass what is due.

extension StoreCore {
    /// When something next comes due, if anything does.
    package var nextDeadline: UInt64? {
        var earliest = deadlines.earliest ?? .max
        for volume in disk.volumes { earliest = min(earliest, volume.log.nextDeadline ?? .max) }
        if statics.isWaiting, statics.retryAt > currentTime {
            earliest = min(earliest, statics.retryAt)
        }
        for reclaim in disk.reclaims where reclaim.retryAt > currentTime {
            earliest = min(earliest, reclaim.retryAt)
        }
        return earliest == .max ? nil : earliest
    }

    /// Lets the deadlines up to `now` pass. Every event does so itself; the driver calls it when
    /// nothing else happens.
    package mutating func advance(to now: UInt64) {
        if now > currentTime { currentTime = now }
        while let (due, item) = deadlines.next(dueAt: currentTime) {
            switch item {
            case .hold(let id):
                if holds[id]?.deadline == due { expireHold(id) }
            case .writeLease(let id):
                if writeLeases[id]?.deadline == due, !writeLeases[id]!.hasExpired {
                    counters.writeLeasesExpired += 1
                    expireWriteLease(id)
                }
            case .timeToLive(let chunk):
                if lives[chunk]?.due == due { lifeIsDue(chunk) }
            case .pin(let chunk):
                if pinsUntil[chunk] == due { endTimedPin(chunk) }
            }
        }
        compactDeadlinesIfMostAreStale()
        for volume in disk.volumes.indices { disk.volumes[volume].log.advance(to: currentTime) }
    }

    private mutating func compactDeadlinesIfMostAreStale() {
        let live = holds.count + writeLeases.count + lives.count + pinsUntil.count
        if deadlines.count < 4096 || deadlines.count < 4 * live { return }
        var queue = DeadlineQueue()
        swap(&queue, &deadlines)
        queue.compact { due, item in
            switch item {
            case .hold(let id): holds[id]?.deadline == due
            case .writeLease(let id):
                writeLeases[id]?.deadline == due && !writeLeases[id]!.hasExpired
            case .timeToLive(let chunk): lives[chunk]?.due == due
            case .pin(let chunk): pinsUntil[chunk] == due
            }
        }
        swap(&queue, &deadlines)
    }
}
