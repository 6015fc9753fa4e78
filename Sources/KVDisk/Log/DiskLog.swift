internal import KVDiskFormat
package import KVIdentity
package import KVTier

/// The log of one disk directory: where records are written, what is synced, read, let go of and
/// used again.
///
/// A value without I/O, clock, lock or thread. Its owner calls it as a ``KVTier``; whoever drives
/// it takes ``requests`` after each call, carries them out (a ``LogDriver`` does), and gives each
/// outcome back with ``completed(_:_:now:)``. Requests are independent: the log asks for what
/// depends on another only when that has completed.
///
/// It starts without knowing its directory: writes, drops and syncs wait until
/// ``begin(epoch:files:now:)``. What recovery finds is handed over with ``adopt(segment:)`` and
/// ``adopt(_:length:owner:)``; only after ``recovered(now:)`` the owner is asked to let go of
/// anything.
///
/// An owner that empties a segment writes what it keeps again, and forgets the old place when the
/// new one is written. While it does, ``takesWrites(now:)`` keeps room for that: what is new waits.
/// Where that room is gone, too, and the segment was not asked for with `keepAll`, it forgets; what
/// it waits for in vain for ``LogTimes/noRoom`` fails.
package struct DiskLog: KVTier {
    package var events: [TierEvent] = []
    /// What is to be done on the disk; the driver takes and empties it after each call.
    package var requests: [LogRequest] = []
    /// What was done since the start.
    package internal(set) var counters = LogCounters()

    let configuration: LogConfiguration
    var random: SimulatedRandom
    var spaces: [Digest: [UInt8]] = [:]
    var longestSpaceBytes = DiskFormat.alignment

    // MARK: Segments

    var segments: [UInt32: LogSegment] = [:]
    /// Files that recovery has not described yet, with their lengths.
    var unadopted: [UInt64: Int] = [:]
    var fileBytes = DiskFormat.diskHeaderBytes
    var nextNumber: UInt32 = 1
    var head: UInt32?
    var isHeadFull = false
    /// New records wait although the head is not full: what is left of it is for moves.
    var isHeldBack = false
    /// A segment that is being made, or gets its header.
    var preparing: UInt32?
    /// Segments with the header of a new life, and nothing else: the next heads.
    var spares: [UInt32] = []
    var spare: UInt32? { spares.first }
    var free: [UInt32] = []
    /// The head and those that end.
    var active: [UInt32] = []
    /// Those of which a sync has failed, with the groups that are in doubt.
    var doubtful: [UInt32: Range<UInt64>] = [:]
    var asked: UInt32?
    /// Of the segment that is asked for, everything is moved.
    var asksForAll = false
    var draining: [UInt32] = []
    var removing = 0
    /// Counts times that the lowest sequence of a file went away.
    var floorChanges: UInt64 = 0
    var lastFloorChange: UInt64 = 0
    /// The room, also for all that is alive in a segment, and the floors with which no segment was worth
    /// emptying, until that may change.
    var noVictim: (room: Int, roomForAll: Int, floors: UInt64)?
    /// Counts how often all segments were looked at for one that is worth emptying.
    var victimScans = 0
    /// Something may be done that nobody has waited for.
    var needsPump = false
    /// Free files that are being opened.
    var freeOpening = 0
    /// Of all segments.
    var liveBytes = 0

    // MARK: What waits

    /// nil until the headers of all segments were read.
    var epoch: UInt64?
    var isRecovered = false
    var sequenceCount: UInt64 = 0
    /// Those that were given so far; what recovery has found is item 0.
    var itemCount: UInt64 = 1
    var queue = LogItemQueue()
    /// Records that leave a segment that is asked for: they go first, because what is in the queue may
    /// wait for that segment. What names them in the queue came later, so their lower sequences are
    /// right.
    var moves = LogItemQueue()
    /// Drops in the queue behind which no record is queued: one more of the same is not needed.
    var lastDrops: Set<TierDrop> = []
    /// Drops that were in segments before. Their bounds are fixed, so they go first.
    var drops: [LogItem] = []
    package var promisedMoves = (bytes: 0, records: 0) {
        didSet { if isHeldBack { needsPump = true } }
    }
    package var promisedSaves = (bytes: 0, records: 0)
    var groupsUnderWay = 0
    /// Groups that can be read, counted in the order in which their owners were told.
    var groupCount: UInt64 = 0
    var tickets = LogQueue<LogTicket>()
    var readQueue = LogQueue<LogRead>()
    /// Reads of segments that are being opened.
    var closedReads: [UInt32: [LogRead]] = [:]
    var readRequests = 0
    /// Segments are being emptied because somebody has asked for that.
    var compaction: LogCompaction?

    // MARK: Trouble

    var suspension: UInt64 = 0
    var suspendedUntil: UInt64?
    var lastFault: TierFault?
    /// The device was full: no file is made until then.
    var fullUntil: UInt64?
    /// A file could not be removed: none is until then.
    var unremovableUntil: UInt64?
    /// Files that hold nothing, and could not be removed, or be opened after that.
    var unremoved: [UInt32] = []
    /// Since when nothing can be written because the owner has not let go of a segment.
    var noRoomSince: UInt64?
    /// Records have failed because of that; neither was a head found since, nor another segment
    /// asked for.
    var hasFailedWithoutRoom = false
    var lastMessages: [Trouble: UInt64] = [:]

    // MARK: Requests

    var underWay: [UInt64: LogTask] = [:]
    var lastRequest: UInt64 = 0
    /// Whether the disk answers, by the kind of what it is asked for.
    var silences = LogSilence.Kind.allCases.map { LogSilence(kind: $0) }
    package internal(set) var isStalled = false
    /// Of the call that is being answered.
    var currentTime: UInt64 = 0

    /// A log that knows nothing of its directory yet.
    package init(_ configuration: LogConfiguration) {
        self.configuration = configuration
        random = SimulatedRandom(seed: configuration.seed)
    }

    package mutating func know(space: Digest, json: [UInt8]) {
        precondition(
            (1...DiskFormat.largestSpaceBytes).contains(json.count),
            "no description of a space has \(json.count) bytes")
        spaces[space] = json
        longestSpaceBytes = max(longestSpaceBytes, DiskFormat.aligned(json.count))
    }

    package mutating func forget(space: Digest) {
        spaces[space] = nil
    }

    package func accepts(byteCount: Int) -> Bool {
        guard (1...DiskFormat.largestBodyBytes).contains(byteCount) else { return false }
        let overhead =
            DiskFormat.segmentHeaderBytes + DiskFormat.groupHeaderBytes(entries: 2)
            + longestSpaceBytes + DiskFormat.footerBytes(entries: 2) + DiskFormat.trailerBytes
        return DiskFormat.aligned(byteCount) <= configuration.segmentBytes - overhead
    }

    package mutating func advance(to now: UInt64) {
        currentTime = now
        guard needsPump || nextDeadline ?? .max <= now else { return }
        noteStall(now)
        if let until = suspendedUntil, until <= now { suspendedUntil = nil }
        if let until = fullUntil, until <= now { fullUntil = nil }
        if let until = unremovableUntil, until <= now { removeAgain() }
        failWithoutRoom(now)
        pump(now)
    }

    package var nextDeadline: UInt64? {
        var next = min(suspendedUntil ?? .max, fullUntil ?? .max, unremovableUntil ?? .max)
        if !isStalled {
            for silence in silences {
                next = min(next, silence.end(patience: configuration.patienceNs) ?? .max)
            }
        }
        if let noRoomSince, !isStalled { next = min(next, noRoomSince + LogTimes.noRoom) }
        for number in active {
            let segment = segments[number]!
            guard segment.isOpen, segment.syncing == nil, let unsynced = segment.unsynced
            else { continue }
            next = min(next, unsynced.since + configuration.syncIntervalNs)
        }
        return next == .max ? nil : next
    }

    /// Whether nothing is written for now, after a fault or because the disk does not answer. O(1).
    package var isSuspended: Bool { suspendedUntil != nil || isStalled }

    /// Why nothing is written for now; nil when it is.
    package var suspensionFault: TierFault? {
        isStalled ? stallFault : suspendedUntil == nil ? nil : lastFault
    }

    /// How it is now. O(1).
    package var gauges: LogGauges {
        var gauges = LogGauges()
        gauges.segments = segments.count + unadopted.count
        gauges.freeSegments = free.count + spares.count + (preparing == nil ? 0 : 1)
        gauges.fileBytes = fileBytes
        gauges.liveBytes = liveBytes
        gauges.queuedBytes = queuedBytes
        gauges.queued = queue.count + moves.count + drops.count
        gauges.queuedReads = readQueue.count
        gauges.isSuspended = isSuspended
        return gauges
    }

    /// Records that were written to the segment or adopted there, also those that were forgotten
    /// since: the owner compares places.
    package func records(of segment: UInt32) -> [(owner: UInt64, place: TierPlace)] {
        segments[segment]?.records ?? []
    }

    // MARK: Going on

    /// Does all that can be done now.
    mutating func pump(_ now: UInt64) {
        needsPump = false
        currentTime = now
        while takesStep(now) {}
        noteRoom(now)
    }

    /// One step of what can be done, in the order in which it matters; false if there was none.
    private mutating func takesStep(_ now: UInt64) -> Bool {
        startReads() || drainSegments() || startGroup(now) || provideSegment(now)
            || endFullHead() || endSegments() || startSyncs(now) || answerTickets()
    }

    /// Asks for something to be done.
    @discardableResult
    mutating func request(_ operation: LogRequest.Operation, for task: LogTask) -> UInt64 {
        lastRequest += 1
        underWay[lastRequest] = task
        silences[task.silence.rawValue].asked(currentTime)
        requests.append(LogRequest(id: lastRequest, operation: operation))
        counters.requests += 1
        return lastRequest
    }

    /// The next sequence that an entry gets.
    var nextSequence: UInt64 {
        guard let epoch else { preconditionFailure("there is no epoch yet") }
        precondition(sequenceCount < 1 << 40 && epoch < 1 << 24, "there are no more sequences")
        return epoch << 40 | sequenceCount
    }

    func wallMs(_ now: UInt64) -> UInt64 {
        configuration.wallOffsetMs &+ now / 1_000_000
    }
}
