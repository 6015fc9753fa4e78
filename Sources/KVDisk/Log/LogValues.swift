internal import KVDiskFormat
internal import KVTier

/// Something that waits to be written or to be durable.
struct LogItem: Sendable {
    enum Content: Sendable {
        case record(TierRecord, from: TierExtent, owner: UInt64)
        /// `source` is the segment that it must leave before that one is used again.
        case drop(DiskEntry, source: UInt32?)
    }

    /// Counts what was given to the log, in order. What is written once more because the first
    /// time failed keeps its number.
    let number: UInt64
    var content: Content

    /// Bytes of its body on disk.
    var paddedBytes: Int {
        if case .record(let record, _, _) = content {
            DiskFormat.aligned(record.byteCount)
        } else {
            0
        }
    }

    var isRecord: Bool { if case .record = content { true } else { false } }

    var source: UInt32? { if case .drop(_, let source) = content { source } else { nil } }
}

/// A group that is being written.
struct LogGroup: Sendable {
    let id: UInt64
    let members: [Member]
    /// The first of its items.
    let firstItem: UInt64
    /// How its write ended; nil while it is under way.
    var outcome: DiskOutcome?

    struct Member: Sendable {
        let item: LogItem
        /// Where its body is, in pages of the segment; 0 without one.
        let page: UInt32
    }

    init(id: UInt64, members: [Member]) {
        self.id = id
        self.members = members
        firstItem = members.reduce(.max) { min($0, $1.item.number) }
    }
}

/// What is written and not yet durable.
struct LogUnsynced: Sendable {
    /// The first of the items.
    var firstItem: UInt64
    /// The first of the groups.
    var firstGroup: UInt64
    /// When the oldest was written.
    var since: UInt64
    /// Those that say what was dropped.
    private(set) var drops: [LogItem] = []
    /// Whether a segment waits for it before it can be used again.
    private(set) var isUrgent = false

    init(firstItem: UInt64, firstGroup: UInt64, since: UInt64) {
        self.firstItem = firstItem
        self.firstGroup = firstGroup
        self.since = since
    }

    mutating func append(_ drop: LogItem) {
        drops.append(drop)
        if drop.source != nil { isUrgent = true }
    }

    mutating func merge(_ other: LogUnsynced) {
        firstItem = min(firstItem, other.firstItem)
        firstGroup = min(firstGroup, other.firstGroup)
        since = min(since, other.since)
        drops += other.drops
        isUrgent = isUrgent || other.isUrgent
    }
}

/// What ``DiskLog/compact(below:now:)`` is to do.
struct LogCompaction: Sendable {
    /// Segments of which less is alive are emptied.
    let share: Double
    /// Those that may be emptied, each once: what is moved fills others, which are left alone.
    /// nil until recovery is done.
    var candidates: Set<UInt32>?
}

/// Somebody who waits for all items below `mark` to be durable.
struct LogTicket: Sendable {
    let ticket: UInt64
    let mark: UInt64
}

/// A read that waits or is under way.
struct LogRead: Sendable {
    let place: TierPlace
    let extent: TierExtent
    let owner: UInt64
    /// Not to be read together with others: that has failed.
    var isAlone = false

    /// The page behind its last.
    var endPage: UInt64 {
        UInt64(place.page) + extent.length / UInt64(TierExtent.pageBytes)
    }
}

/// What a request is for.
enum LogTask: Sendable {
    case group(UInt32)
    case sync(UInt32)
    case header(UInt32)
    case headerSync(UInt32)
    case footer(UInt32)
    case footerSync(UInt32)
    case create(UInt32)
    case open(UInt32)
    case close(UInt32)
    case remove(UInt32)
    case reads(UInt32, [LogRead])
}

/// First in, first out. Amortised O(1).
struct LogQueue<Element: Sendable>: Sendable {
    private var elements: [Element?] = []
    private var start = 0

    var count: Int { elements.count - start }
    var isEmpty: Bool { count == 0 }
    var first: Element? { isEmpty ? nil : elements[start] }

    mutating func append(_ element: Element) {
        elements.append(element)
    }

    mutating func removeFirst() -> Element? {
        guard !isEmpty else { return nil }
        defer {
            elements[start] = nil
            start += 1
            if start > 64, start * 2 > elements.count {
                elements.removeFirst(start)
                start = 0
            }
        }
        return elements[start]
    }

    mutating func removeAll(where isOut: (Element) -> Bool) {
        elements = elements[start...].filter { !isOut($0!) }
        start = 0
    }

    /// All of them, in order. O(count).
    var all: [Element] { elements[start...].map { $0! } }
}

/// Items that wait to be written, and how many bytes their bodies take, padded.
struct LogItemQueue: Sendable {
    private var items = LogQueue<LogItem>()
    private(set) var bytes = 0

    var count: Int { items.count }
    var isEmpty: Bool { items.isEmpty }
    var first: LogItem? { items.first }

    mutating func append(_ item: LogItem) {
        items.append(item)
        bytes += item.paddedBytes
    }

    mutating func removeFirst() -> LogItem? {
        guard let item = items.removeFirst() else { return nil }
        bytes -= item.paddedBytes
        return item
    }

    /// - Returns: the records that were in it, in order; drops stay.
    mutating func removeRecords() -> [LogItem] {
        let records = items.all.filter(\.isRecord)
        items.removeAll(where: \.isRecord)
        // A drop has no body.
        bytes = 0
        return records
    }
}
