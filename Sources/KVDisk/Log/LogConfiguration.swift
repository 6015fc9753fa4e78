package import KVDiskFormat

/// What a log is told at its start. Times are in nanoseconds, lengths in bytes.
package struct LogConfiguration: Sendable {
    /// The directory's identity.
    package var disk: DiskID
    /// The length of new segments, within the limits of ``DiskFormat``.
    package var segmentBytes: Int
    /// What all files of the directory may take together.
    package var budgetBytes: Int
    /// The lives of segments are drawn from it: another one at each start.
    package var seed: UInt64
    /// What is added to `now`, in milliseconds, for milliseconds since 1970.
    package var wallOffsetMs: UInt64
    /// How long a group grows, but for a body that is longer.
    package var groupBytes = 8 << 20
    /// Groups that are written at a time.
    package var writesUnderWay = 2
    /// Read requests that are under way at a time.
    package var readsUnderWay = 64
    /// How long a read request grows, but for a body that is longer.
    package var readBytes = 8 << 20
    /// How much may wait to be written before ``DiskLog/takesWrites(now:)`` says no.
    package var queueBytes = 64 << 20
    /// How many records may.
    package var queueRecords = 65_536
    /// How long what was written may stay without a sync.
    package var syncIntervalNs: UInt64 = 1_000_000_000

    /// How long the disk may answer no read, no write or no sync, while some are under way, before it
    /// counts as stalled; six times as long for making and removing files.
    package var patienceNs: UInt64 = 10_000_000_000

    /// A configuration with the usual limits.
    package init(
        disk: DiskID, segmentBytes: Int, budgetBytes: Int, seed: UInt64, wallOffsetMs: UInt64
    ) {
        precondition(
            (DiskFormat.smallestSegmentBytes...DiskFormat.largestSegmentBytes)
                .contains(segmentBytes) && segmentBytes % DiskFormat.alignment == 0,
            "no segment has \(segmentBytes) bytes")
        self.disk = disk
        self.segmentBytes = segmentBytes
        self.budgetBytes = budgetBytes
        self.seed = seed
        self.wallOffsetMs = wallOffsetMs
    }
}

/// Times that nobody needs to change.
enum LogTimes {
    static let second: UInt64 = 1_000_000_000
    /// The longest suspension after a fault.
    static let longestSuspension = 60 * second
    /// Until a new file is tried again after the device was full.
    static let fullRetry = 60 * second
    /// How long the owner may take to empty a segment while nothing can be written.
    static let noRoom = 5 * second
    /// Between two messages of one kind.
    static let betweenMessages = 60 * second
}
