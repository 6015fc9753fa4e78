internal import KVDiskFormat

/// What a recovery found in one file.
package struct SegmentSummary: Sendable {
    /// The file.
    package let file: SegmentFile
    /// Entries of all kinds.
    package internal(set) var entryCount = 0
    /// Of these, shards of chunks.
    package internal(set) var shardCount = 0
    /// Bytes of those, with padding.
    package internal(set) var shardBytes = 0
    /// Shards of chunks that are valid and whose newest place is here.
    package internal(set) var liveShardCount = 0
    /// Bytes of those, with padding.
    package internal(set) var liveBytes = 0
    /// Bodies that were read and are not what was written.
    package internal(set) var badBodyCount = 0
    /// What the log is told.
    package internal(set) var recovered: RecoveredSegment
    /// Whether the log must leave it alone, and nothing in it can be used.
    var isUntouchable = false {
        didSet { if isUntouchable { recovered.state = .untouchable } }
    }

    /// Of a file that was not read so far.
    init(file: SegmentFile) {
        self.file = file
        let isFree: Bool
        switch file.state {
        case .readable, .empty: isFree = true
        case .leftover, .untouchable: isFree = false
        }
        recovered = RecoveredSegment(
            number: file.number, header: file.header, state: isFree ? .free : .untouchable,
            firstSequence: 0, fileBytes: file.byteCount, tombstones: [])
        isUntouchable = !isFree
    }

    /// Notes what it says of itself.
    mutating func take(_ content: SegmentContent) {
        entryCount = content.entries.count
        badBodyCount = content.badBodies.count
        for entry in content.entries where entry.kind == .chunk {
            shardCount += 1
            shardBytes += entry.paddedBodyBytes
        }
        recovered.tombstones = content.entries.filter(\.kind.isDrop)
        recovered.firstSequence = content.entries.first?.sequence ?? 0
        if content.isNewer || !content.isComplete {
            isUntouchable = true
        } else if content.hasFooter {
            recovered.state = .closed
        } else if !content.badBodies.isEmpty {
            recovered.state = .walked
        } else if !content.entries.isEmpty {
            recovered.state = .unfinished(
                entries: content.entries, groupsEnd: content.groupsEnd)
        }
    }
}
