import KVDiskFormat
import KVIdentity
import KVTier
import Testing

@testable import KVDisk

/// A log whose requests the test answers by hand, in any order.
struct LogBench {
    var log: DiskLog
    var now: UInt64 = 0
    /// What is under way.
    var open: [LogRequest] = []
    var events: [TierEvent] = []
    /// Of the segments, by number, as they were written.
    var headers: [UInt64: SegmentHeader] = [:]
    /// Every group that was asked for.
    var groups: [Group] = []

    /// A group that was asked for.
    struct Group {
        var id: UInt64
        var file: UInt64
        var header: GroupHeader
        var entries: [DiskEntry]
    }

    static let segmentBytes = 128 << 10

    init(
        segments: Int = 4, of segmentBytes: Int = Self.segmentBytes,
        change: (inout LogConfiguration) -> Void = { _ in }
    ) {
        var configuration = LogConfiguration(
            disk: SampleRecord.disk, segmentBytes: segmentBytes,
            budgetBytes: 4096 + segments * segmentBytes, seed: 1, wallOffsetMs: 1_000_000)
        configuration.groupBytes = 64 << 10
        change(&configuration)
        log = DiskLog(configuration)
        log.knowSamples()
    }

    /// A log of an empty directory.
    static func started(
        segments: Int = 4, of segmentBytes: Int = Self.segmentBytes,
        change: (inout LogConfiguration) -> Void = { _ in }
    ) -> LogBench {
        var bench = LogBench(segments: segments, of: segmentBytes, change: change)
        bench.log.begin(epoch: 3, files: [], now: 0)
        bench.log.recovered(now: 0)
        bench.take()
        return bench
    }

    /// A log that has found these closed segments at its start, and no records so far.
    static func finding(_ numbers: ClosedRange<UInt64>, segments: Int = 4) -> LogBench {
        var bench = LogBench(segments: segments)
        bench.log.begin(epoch: 2, files: numbers.map { ($0, segmentBytes) }, now: 0)
        for number in numbers {
            bench.log.adopt(
                segment: RecoveredSegment(
                    number: number, header: nil, state: .closed, firstSequence: number,
                    fileBytes: segmentBytes, tombstones: []))
        }
        return bench
    }

    // MARK: The owner

    /// Its owner is its number.
    mutating func write(_ number: Int, byteCount: Int? = nil, isMove: Bool = false) {
        let sample = SampleRecord(number, byteCount: byteCount)
        let extent = TierExtent(
            offset: UInt64(number) << 20, length: UInt64(sample.paddedBytes))
        log.write(
            sample.record, from: extent, owner: UInt64(number), isMove: isMove, now: now)
        take()
    }

    mutating func read(_ number: UInt64, _ place: TierPlace, pages: Int = 1) {
        let extent = TierExtent(offset: number << 20, length: UInt64(pages * 4096))
        log.read(place, into: extent, owner: number, now: now)
        take()
    }

    mutating func drop(_ number: Int) {
        let record = SampleRecord(number).record
        log.drop(.key(record.key, root: record.root, space: record.space), now: now)
        take()
    }

    mutating func expire(_ number: Int, atMs: UInt64) {
        let record = SampleRecord(number).record
        let drop = TierDrop.keyLater(
            record.key, root: record.root, space: record.space, atMs: atMs)
        log.drop(drop, now: now)
        take()
    }

    mutating func sync(_ ticket: UInt64) {
        log.sync(ticket: ticket, now: now)
        take()
    }

    mutating func reclaimed(_ segment: UInt32) {
        log.reclaimed(segment, now: now)
        take()
    }

    mutating func advance(by nanoseconds: UInt64) {
        now += nanoseconds
        log.advance(to: now)
        take()
    }

    /// Writes records until a segment is full and closed, and gives its number. Each has
    /// `byteCount` bytes; their owners count on from `first`.
    mutating func fillSegment(from first: Int, byteCount: Int = 20 << 10) -> UInt32 {
        var number = first
        write(number, byteCount: byteCount)
        finishAll()
        let head = log.head!
        while log.segments[head]!.phase == .head {
            number += 1
            write(number, byteCount: byteCount)
            finishAll()
        }
        return head
    }

    /// Forgets what was written to a segment, but for the first records.
    mutating func forgetAll(of segment: UInt32, butFirst count: Int = 0) {
        for record in log.records(of: segment).dropFirst(count) { forget(record.owner) }
    }

    /// Forgets what was written of an owner.
    mutating func forget(_ owner: UInt64, byteCount: Int = 20 << 10) {
        log.forget(place(of: owner)!, length: DiskFormat.aligned(byteCount))
    }

    // MARK: The disk

    mutating func take() {
        for request in log.requests { note(request) }
        open += log.requests
        log.requests = []
        events += log.events
        log.events = []
    }

    private mutating func note(_ request: LogRequest) {
        guard case .write(let file, let offset, let pieces) = request.operation,
            case .bytes(let bytes)? = pieces.first
        else { return }
        bytes.withUnsafeBytes { bytes in
            if offset == 0 {
                headers[file] = try! SegmentHeader(decoding: bytes)
            } else if let segment = headers[file],
                let header = try? GroupHeader(decoding: bytes, in: segment, at: offset)
            {
                let entries = try! header.entries(decoding: bytes)
                groups.append(Group(id: request.id, file: file, header: header, entries: entries))
            }
        }
    }

    mutating func finish(_ request: LogRequest, _ outcome: DiskOutcome = .done) {
        let index = open.firstIndex { $0.id == request.id }!
        open.remove(at: index)
        log.completed(request.id, outcome, now: now)
        take()
    }

    /// Finishes everything, and what follows from it, but for some.
    mutating func finishAll(but isKept: (LogRequest) -> Bool = { _ in false }) {
        while let next = open.first(where: { !isKept($0) }) { finish(next) }
    }

    /// The same but for syncs that come after the first group.
    mutating func finishAllButSyncsOfGroups() {
        while let next = open.first(where: { !$0.isSync || groups.isEmpty }) { finish(next) }
    }

    /// Fails the only request of a kind.
    mutating func fail(_ code: DiskFault.Code, _ isIt: (LogRequest) -> Bool) {
        let found = open.filter(isIt)
        #expect(found.count == 1, "\(found.count) such requests")
        finish(found[0], .failed(DiskFault(code, "do it")))
    }

    var openGroups: [Group] { groups.filter { group in open.contains { $0.id == group.id } } }

    func request(_ group: Group) -> LogRequest { open.first { $0.id == group.id }! }

    // MARK: Looking on

    func place(of owner: UInt64) -> TierPlace? {
        for case .written(owner, let place) in events { return place }
        return nil
    }

    /// Owners of written records, in order.
    var written: [UInt64] {
        events.compactMap { if case .written(let owner, _) = $0 { owner } else { nil } }
    }

    var failed: [UInt64] {
        events.compactMap { if case .writeFailed(let owner, _) = $0 { owner } else { nil } }
    }

    /// The answer to a ticket: nil if there is none, else whether it is good.
    func answer(_ ticket: UInt64) -> Bool? {
        for case .synced(ticket, let fault) in events { return fault == nil }
        return nil
    }

    var reclaims: [(segment: UInt32, keepAll: Bool)] {
        events.compactMap {
            if case .reclaim(let segment, let keepAll) = $0 { (segment, keepAll) } else { nil }
        }
    }

    var troubles: Int {
        events.count { if case .trouble = $0 { true } else { false } }
    }

    /// All drops that were asked to be written, in order.
    var drops: [DiskEntry] { groups.flatMap(\.entries).filter(\.kind.isDrop) }
}

extension LogRequest {
    var isSync: Bool { if case .sync = operation { true } else { false } }
    var isCreate: Bool { if case .create = operation { true } else { false } }
    var isRemove: Bool { if case .remove = operation { true } else { false } }
    var isRead: Bool { if case .read = operation { true } else { false } }

    var isGroup: Bool {
        if case .write(_, let offset, let pieces) = operation, offset > 0,
            case .bytes(let bytes)? = pieces.first
        {
            bytes.prefix(8).elementsEqual("KVGROUP1".utf8)
        } else {
            false
        }
    }

    var isHeader: Bool { if case .write(_, 0, _) = operation { true } else { false } }

    var isFooter: Bool {
        if case .write = operation { !isHeader && !isGroup } else { false }
    }

    /// The segment; 0 for a removal.
    var file: UInt64 {
        switch operation {
        case .read(let file, _, _), .write(let file, _, _), .sync(let file),
            .create(let file, _, _), .open(let file, _), .close(let file):
            file
        case .remove: 0
        }
    }
}
