internal import KVDiskFormat
internal import KVIdentity
internal import KVTier

/// What a log knows of one of its files.
struct LogSegment: Sendable {
    enum Phase: Sendable {
        /// Its file is being made.
        case creating
        /// Nothing in it is of use; it takes a new life when one is needed.
        case free
        /// The header of a new life is being written and synced.
        case preparing
        /// Its header is durable, and it waits to become the head.
        case spare
        /// It takes groups.
        case head
        /// It takes no more groups; its writes end, it is synced and gets its footer.
        case ending
        /// It is only read.
        case closed
        /// The owner was asked to let go of it.
        case asked
        /// The owner has; its reads end, and what it says of drops is written elsewhere.
        case draining
        /// Its file is being closed and removed.
        case removing
        /// It is not ours, or can't be opened.
        case untouchable
    }

    let number: UInt32
    let fileBytes: Int
    var phase: Phase
    /// Of the present life, or the one that is being prepared.
    var header: SegmentHeader?
    /// The lowest sequence in the file: of its life or, until a new life's header is durable, of
    /// the one before, which a crash could bring back. nil: there is none.
    var firstSequence: UInt64?
    var isOpen = false
    /// It could not be removed, and is opened again.
    var isUnremoved = false

    // MARK: While it takes groups

    /// Where the next group starts.
    var end = DiskFormat.segmentHeaderBytes
    /// For the footer.
    var entries: [DiskEntry] = []
    /// Being written, in the order of their places; those that have ended wait for those before.
    var groups: [LogGroup] = []
    /// Spaces whose description is in it.
    var spaces: Set<Digest> = []
    var unsynced: LogUnsynced?
    var syncing: LogUnsynced?
    var isFooterUnderWay = false
    /// A group has failed: what stands behind it can't be found at a start.
    var failure: DiskFault?
    /// A sync has failed: what was not durable before may never be.
    var isDoubtful = false

    // MARK: What is in it

    /// Bytes of its records that somebody may read, with padding.
    var liveBytes = 0
    var records: [(owner: UInt64, place: TierPlace)] = []
    var tombstones: [DiskEntry] = []

    // MARK: While it is let go of

    /// Reads that wait or are under way.
    var reads = 0
    /// Its drops that are on their way to another segment and not durable there.
    var moves = 0
    var hasMoved = false
    /// Groups that must be durable before it is used again: what the owner has moved since it was
    /// asked is in them.
    var movedTo: Range<UInt64> = 0..<0

    init(number: UInt32, fileBytes: Int, phase: Phase) {
        self.number = number
        self.fileBytes = fileBytes
        self.phase = phase
    }

    var name: String { DiskFormat.segmentName(UInt64(number)) }

    /// Whether groups may still be under way, or written and not durable.
    var isActive: Bool { phase == .head || phase == .ending }

    /// Whether its records can be read.
    var isReadable: Bool {
        switch phase {
        case .head, .ending, .closed, .asked, .draining: true
        default: false
        }
    }

    /// The first item that is not durable.
    var firstItem: UInt64 {
        let written = min(unsynced?.firstItem ?? .max, syncing?.firstItem ?? .max)
        return groups.reduce(written) { min($0, $1.firstItem) }
    }

    /// Bytes that groups of `count` more entries can have.
    func room(entries count: Int) -> Int {
        guard let header else { return 0 }
        return header.groupsLimit(entries: entries.count + count) - end
    }

    /// Forgets what was in it, but for the lowest sequence: that is in the file still.
    mutating func empty() {
        end = DiskFormat.segmentHeaderBytes
        entries = []
        spaces = []
        failure = nil
        isDoubtful = false
        liveBytes = 0
        records = []
        tombstones = []
        moves = 0
        hasMoved = false
        movedTo = 0..<0
    }
}
