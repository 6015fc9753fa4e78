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
    /// Chunks that a request wanted pinned when half the arena was.
    public var pinsRefused = 0
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
    /// Matched keys whose chunk was only on a disk.
    public var matchedKeysOnDisk = 0
    /// Chunks written to a disk, their bytes, and writes that failed.
    public var chunksWritten = 0
    public var bytesWritten = 0
    public var chunkWritesFailed = 0
    /// Of the chunks written, those that were moved to keep them, because their segment was
    /// wanted; and their bytes.
    public var chunksMoved = 0
    public var bytesMoved = 0
    /// Chunks read from a disk into memory, their bytes, those that somebody waited for, and those
    /// that were not read because no memory could be had or the disk does not answer.
    public var chunksLoaded = 0
    public var bytesLoaded = 0
    public var chunksLoadedWaitedFor = 0
    public var chunksRefusedLoad = 0
    /// Chunks that a disk did not give back: it failed, or gave back other bytes.
    public var chunksUnreadable = 0
    /// Chunks gone from memory before a disk had them.
    public var chunksEvictedUnwritten = 0
    /// Chunks that lost their place on a disk with their segment, and are in memory only.
    public var chunksLeftToMemory = 0
    /// Chunks gone with their segment, and those that followed them.
    public var chunksEvictedFromDisk = 0
    /// Chunks found on disk at the start.
    public var chunksRecovered = 0
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
    /// Chunks that are pinned for good, those among them that are missing included.
    public var chunksStatic = 0
    /// What the disks hold.
    public var disk = DiskGauges()
}

/// What the disk tier holds at this moment.
public struct DiskGauges: Sendable, Equatable {
    /// Directories.
    public var disks = 0
    /// Those of them whose content is still being read after the start.
    public var disksRecovering = 0
    /// Those that take no writes for now, after faults.
    public var disksSuspended = 0
    /// Chunks that a disk has, and those among them that are not in memory.
    public var chunksOnDisk = 0
    public var chunksOnDiskOnly = 0
    /// Chunks that wait to be written, that are being written, and that are being read.
    public var chunksWaiting = 0
    public var chunksBeingWritten = 0
    public var chunksLoading = 0
    /// Bytes of all files, of what chunks use in them, and the most they may have.
    public var diskBytes = 0
    /// Segments that were used again although a sync of what was moved from them had failed,
    /// because there was no other room: after a loss of power something may be missing.
    public var unsafeReuses = 0
    /// Times that a disk did not answer for too long.
    public var diskStalls = 0
    public var diskLiveBytes = 0
    public var diskLimitBytes = 0
}
