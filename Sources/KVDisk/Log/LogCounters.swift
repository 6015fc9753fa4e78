/// What a log has done since its start.
package struct LogCounters: Sendable, Hashable {
    /// Records that can be read.
    package var records = 0
    /// Bytes of bodies that were written, without padding.
    package var bodyBytes = 0
    /// All other bytes that were written: headers, entries, footers, padding.
    package var overheadBytes = 0
    /// Groups that were written.
    package var groups = 0
    /// What was dropped, as often as it was written.
    package var drops = 0
    /// Syncs that succeeded.
    package var syncs = 0
    /// Records that were read.
    package var reads = 0
    /// Bytes that were read, with padding.
    package var readBytes = 0
    /// Requests to the disk.
    package var requests = 0
    /// Requests that failed.
    package var faults = 0
    /// Segments that the owner was asked to empty.
    package var reclaims = 0
    /// Files that were made.
    package var creations = 0
    /// Files that were removed.
    package var removals = 0
    /// Segments that were used again, for want of any other, though what was moved from them was in
    /// doubt.
    package var unsafeReuses = 0
    /// Times that writing was suspended.
    package var suspensions = 0
    /// Times that the disk did not answer in time.
    package var stalls = 0
}

/// How a log is now.
package struct LogGauges: Sendable, Hashable {
    /// Segments, whatever they are used for.
    package var segments = 0
    /// Of these, those without anything.
    package var freeSegments = 0
    /// Bytes of all files.
    package var fileBytes = 0
    /// Bytes of records that somebody may read, with padding.
    package var liveBytes = 0
    /// Bytes of records that wait to be written, with padding.
    package var queuedBytes = 0
    /// Records and drops that wait to be written.
    package var queued = 0
    /// Reads that wait.
    package var queuedReads = 0
    /// Whether nothing is written, after a fault or because the disk does not answer.
    package var isSuspended = false
}
