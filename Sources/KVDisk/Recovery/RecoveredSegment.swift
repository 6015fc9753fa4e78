package import KVDiskFormat

/// What a start found of one file of a disk directory, for the log that goes on with it.
package struct RecoveredSegment: Sendable {
    /// What can be done with the file.
    package enum State: Sendable {
        /// Its footer was read: complete.
        case closed
        /// It has no footer that can be read. Its groups were walked up to `groupsEnd`, and all
        /// bodies are good. `entries` are all of them, with consecutive sequences; the log writes
        /// a footer of them.
        case unfinished(entries: [DiskEntry], groupsEnd: Int)
        /// It has no footer that can be read, and a body is bad. It never gets a footer, so that
        /// every start looks at its bodies: that one must not hide an older, good copy.
        case walked
        /// It holds nothing that could ever be read: no header, or no group.
        case free
        /// It is not ours, or can't be read: it is counted, and left alone.
        case untouchable
    }

    /// The number in its name.
    package var number: UInt64
    /// Its header; nil if there is none that can be read.
    package var header: SegmentHeader?
    /// What can be done with it.
    package var state: State
    /// The sequence of its first entry; of no meaning where it holds none.
    package var firstSequence: UInt64
    /// The file's length in bytes.
    package var fileBytes: Int
    /// Its entries that say what was dropped.
    package var tombstones: [DiskEntry]

    /// Describes a file.
    package init(
        number: UInt64, header: SegmentHeader?, state: State, firstSequence: UInt64,
        fileBytes: Int, tombstones: [DiskEntry]
    ) {
        self.number = number
        self.header = header
        self.state = state
        self.firstSequence = firstSequence
        self.fileBytes = fileBytes
        self.tombstones = tombstones
    }
}
