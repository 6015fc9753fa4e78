internal import KVDisk
package import KVIdentity
internal import KVTier

/// When the life of a chunk ends, by the core's clock in nanoseconds.
struct ChunkLife {
    var due: UInt64
    /// From each use on; 0: it ends when it is due, used or not; nil: as the rule of its space says.
    var slidingNs: UInt64?
}

// Times to live. One that slides costs its chunk's users nothing: only when it is due, it is looked
// up when the chunk was used last.

extension StoreCore {
    /// Gives the leading keys a time to live from now on; nil takes it away. - Returns: how many.
    package mutating func expire(
        space handle: UInt32, root: Digest, keys: [Digest], after life: TimeToLive?,
        session: SessionID, now: UInt64
    ) throws(StoreError) -> Int {
        advance(to: now)
        try requireKeys(keys)
        _ = try requireSpace(handle, session: session)
        if let life { try requireLife(life) }
        let found = visiblePrefix(space: handle, root: root, keys: keys)
        for chunk in found {
            set(life, of: chunk)
            tellDisksOfExpiry(chunk)
        }
        return found.count
    }

    /// Gives chunks of a space that are sealed from now on a time to live; nil for none. If it slides,
    /// so do the lives of its chunks that were found on disks, which only know when they end.
    package mutating func setLife(
        ofSpace handle: UInt32, _ life: TimeToLive?, session: SessionID, now: UInt64
    ) throws(StoreError) {
        advance(to: now)
        _ = try requireSpace(handle, session: session)
        if let life { try requireLife(life) }
        spaces[handle]!.life = life
    }

    private func requireLife(_ life: TimeToLive) throws(StoreError) {
        try requireLifetime(
            life.ms, smallest: life.isSliding ? TimeToLive.shortestSlidingMs : 1)
    }

    /// A chunk was sealed.
    mutating func beginLife(of chunk: UInt32) {
        if let life = spaces[chunks[chunk].space]!.life { set(life, of: chunk) }
    }

    private mutating func set(_ life: TimeToLive?, of chunk: UInt32) {
        guard let life else {
            chunks[chunk].hasTimeToLive = false
            lives[chunk] = nil
            return
        }
        let length = life.ms * 1_000_000
        set(
            ChunkLife(due: currentTime + length, slidingNs: life.isSliding ? length : 0), of: chunk)
    }

    /// The chunk has a life without end.
    mutating func takeLife(of chunk: UInt32) {
        if !chunks[chunk].hasTimeToLive { return }
        set(TimeToLive?.none, of: chunk)
        tellDisksOfExpiry(chunk)
    }

    private mutating func set(_ life: ChunkLife, of chunk: UInt32) {
        chunks[chunk].hasTimeToLive = true
        lives[chunk] = life
        deadlines.add(.timeToLive(chunk: chunk), due: life.due)
    }

    /// A chunk was found on a disk with the end of its life, in milliseconds since 1970.
    mutating func limitLife(of chunk: UInt32, untilMs: UInt64) {
        // A clock that jumped must not make a life of centuries.
        let left = min(untilMs > wallMs ? untilMs - wallMs : 0, StoreLimits.lifetimeMs)
        set(ChunkLife(due: currentTime + left * 1_000_000), of: chunk)
    }

    /// Milliseconds since 1970.
    var wallMs: UInt64 { currentTime / 1_000_000 + configuration.wallOffsetMs }

    /// The life of a chunk is over, unless it slides and the chunk was used.
    mutating func lifeIsDue(_ chunk: UInt32) {
        let entry = chunks[chunk]
        let rule = spaces[entry.space]!.life
        let ruleNs = rule.map { $0.isSliding ? $0.ms * 1_000_000 : 0 } ?? 0
        var life = lives[chunk]!
        let length = life.slidingNs ?? ruleNs
        let end = UInt64(entry.usedSeconds) * 1_000_000_000 + length
        if length > 0, end > currentTime {
            life.due = end
            set(life, of: chunk)
            tellDisksOfExpiry(chunk)
            return
        }
        dropOnDisks(
            .key(entry.key, root: roots[Int(entry.root)].digest, space: spaces[entry.space]!.id))
        removeSubtree(chunk, fate: .expired)
    }

    /// When the chunk expires by the clock on the wall; 0 for never.
    func expiryMs(of chunk: UInt32) -> UInt64 {
        lives[chunk].map { $0.due / 1_000_000 + configuration.wallOffsetMs } ?? 0
    }

    /// Also where no disk has the chunk now: it may have been there, under an earlier life, and what is
    /// not used again yet is still in the files. What is written later has its time with it.
    mutating func tellDisksOfExpiry(_ chunk: UInt32) {
        if !hasDisks { return }
        let entry = chunks[chunk]
        let (root, space) = (roots[Int(entry.root)].digest, spaces[entry.space]!.id)
        let expiresMs = expiryMs(of: chunk)
        if isRecovering { disk.recentExpiries[entry.key] = expiresMs }
        let expiry = TierDrop.keyLater(entry.key, root: root, space: space, atMs: expiresMs)
        for volume in disk.volumes.indices {
            disk.volumes[volume].log.drop(expiry, now: currentTime)
        }
    }
}
