/// What the store has done since it started. All counts only grow.
public struct StoreCounters: Sendable, Equatable {
    /// Matches asked for, keys in them, and keys that matched.
    public var matches = 0
    public var matchedKeysAsked = 0
    public var matchedKeysHit = 0
    /// Chunks by what a reservation answered for them.
    public var chunksGranted = 0
    public var chunksPresent = 0
    public var chunksBusy = 0
    public var chunksRefusedFull = 0
    public var chunksRefusedNotReady = 0
    /// Reservations refused as a whole, for a gap in the keys or a broken chain.
    public var reservationsRefused = 0
    /// Chunks sealed, and their bytes.
    public var chunksSealed = 0
    public var bytesSealed = 0
    /// Chunks that writers gave up, or lost by their deadline, before they were sealed.
    public var chunksAbandoned = 0
    /// Chunks evicted, and those among them that made room for another length.
    public var chunksEvicted = 0
    public var chunksEvictedForOtherLength = 0
    public var chunksDropped = 0
    public var chunksExpired = 0
    /// Chunks whose bytes had changed since they were sealed.
    public var chunksDamaged = 0
    /// Deadlines that passed.
    public var holdsExpired = 0
    public var readLeasesExpired = 0
    public var writeLeasesExpired = 0
    /// Bytes given to readers (of extents acquired).
    public var bytesAcquired = 0
    /// Checksums made, and compared.
    public var checksumsMade = 0
    public var checksumsCompared = 0
    /// Checks not made because too many were waiting.
    public var checksSkipped = 0
}

/// What the store holds at this moment.
public struct StoreGauges: Sendable, Equatable {
    public var chunks = 0
    public var chunksWriting = 0
    public var chunksDoomed = 0
    public var spaces = 0
    public var roots = 0
    public var sessions = 0
    public var holds = 0
    public var readLeases = 0
    public var writeLeases = 0
    public var arenaBytes = 0
    public var arenaReadyBytes = 0
    public var usedBytes = 0
    public var quarantinedBytes = 0
    public var pinnedBytes = 0
}
