import Glibc
import KVDiskFormat
import KVIdentity
import KVTier

@testable import KVDisk

/// A small owner of a log on a simulated disk. It writes, reads, drops, forgets, moves and syncs
/// at random, and knows what must be found after a crash, and what must not.
final class LogSimulation {
    struct Violation: Error, CustomStringConvertible {
        let description: String
    }

    /// What may happen to the disk.
    struct Weather {
        var faults = SimulatedFaults()
        var crashes = true
    }

    private struct Key {
        var place: TierPlace?
        var isPending = false
        /// Changes whenever its record is given up.
        var generation = 0
        /// A sync has said that it is durable.
        var mustBeFound = false
        /// When a write or a drop of it was last asked for, and which drop is durable.
        var writtenAt = -1
        var droppedAt = -1
        var durablyDroppedAt = -1
    }

    private struct Write {
        var key: Int
        var slot: Int
        var generation: Int
        var from: TierPlace?
    }

    private struct Read {
        var key: Int
        var slot: Int
        var generation: Int
        var place: TierPlace
        var isMove: Bool
    }

    private struct Ticket {
        var generations: [Int]
        /// Whether there was a record, or one on its way.
        var isThere: [Bool]
        var drops: [Int]
    }

    private struct Reclaim {
        var segment: UInt32
        var keepAll: Bool
        var keys: Set<Int>
        var attempts = 0
    }

    static let samples = (0..<36).map { SampleRecord($0) }
    private static let slotPages = 3
    private static let slots = 24

    let seed: UInt64
    private(set) var io: SimulatedIO
    private(set) var log: DiskLog
    private(set) var writtenCount = 0
    private(set) var foundCount = 0
    private(set) var ticketCount = 0
    private(set) var goodTickets = 0
    private(set) var crashCount = 0
    private(set) var unsafeCount = 0
    private var random: SimulatedRandom
    private let weather: Weather
    private let arena = DiskMemory(byteCount: slots * slotPages * 4096)
    private var driver: LogDriver
    private let inbox = OutcomeList()
    private var freeSlots: [Int] = []
    private var keys = samples.map { _ in Key() }
    private var writes: [UInt64: Write] = [:]
    private var reads: [UInt64: Read] = [:]
    private var tickets: [UInt64: Ticket] = [:]
    private var reclaim: Reclaim?
    private var lastOwner: UInt64 = 0
    private var operations = 0
    private var mostBytes = 0
    private var isStarting = false
    /// Prints everything; for a seed that fails.
    private let isTracing = getenv("KVASIR_TRACE") != nil

    init(seed: UInt64, weather: Weather) {
        self.seed = seed
        self.weather = weather
        random = SimulatedRandom(seed: seed ^ 0xD15C)
        io = SimulatedIO(seed: seed, faults: weather.faults)
        driver = LogDriver(io, arena: arena.buffer.address, byteCount: arena.buffer.count)
        log = DiskLog(Self.configuration(&random))
    }

    private static func configuration(_ random: inout SimulatedRandom) -> LogConfiguration {
        let segmentBytes = [64, 64, 64, 96].randomElement(using: &random)! << 10
        var configuration = LogConfiguration(
            disk: SampleRecord.disk, segmentBytes: segmentBytes,
            budgetBytes: 4096 + segmentBytes * Int.random(in: 1...6, using: &random),
            seed: random.next(), wallOffsetMs: 1_700_000_000_000)
        configuration.groupBytes = 32 << 10
        configuration.readBytes = 24 << 10
        configuration.readsUnderWay = Int.random(in: 1...4, using: &random)
        configuration.queueBytes = 128 << 10
        configuration.syncIntervalNs = 20_000_000
        return configuration
    }

    // MARK: Running

    func run(operations count: Int) throws {
        try start()
        for _ in 0..<count {
            operations += 1
            try act()
            if weather.crashes, below(100) == 0 { try crash() }
        }
        try comeToRest()
        try crash()
        try comeToRest()
    }

    private func below(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &random) }

    private func act() throws {
        switch below(16) {
        case 0..<4: try write()
        case 4: try read()
        case 5: try forget()
        case 6 where below(2) == 0: try drop()
        case 7 where below(2) == 0: try sync()
        case 8..<10: try goOnReclaiming()
        default: try pass()
        }
        try check()
    }

    /// Without faults everything that waits is answered.
    private func comeToRest() throws {
        var faults = SimulatedFaults()
        faults.capacityBytes = weather.faults.capacityBytes
        io.faults = faults
        try sync()
        var steps = 0
        while !isAtRest {
            steps += 1
            if steps > 20_000 { throw violation("it does not come to rest: \(waiting)") }
            try goOnReclaiming()
            try pass()
        }
        try check()
        io.faults = weather.faults
    }

    private var isAtRest: Bool {
        writes.isEmpty && reads.isEmpty && tickets.isEmpty && reclaim == nil
            && log.underWay.isEmpty && log.suspendedUntil == nil
    }

    private var waiting: String {
        "\(writes.count) writes, \(reads.count) reads, \(tickets.count) tickets, "
            + "reclaim \(String(describing: reclaim)), \(log.underWay), \(log.gauges), "
            + "head \(String(describing: log.head)) full \(log.isHeadFull), drops \(log.drops.count), "
            + "draining \(log.draining), asked \(String(describing: log.asked))"
    }

    /// The next thing that happens by itself.
    private func pass() throws {
        let due = io.nextDue
        if let deadline = log.nextDeadline, deadline < due ?? .max {
            if deadline < io.now { throw violation("a deadline has passed: \(deadline)") }
            io.advance(to: deadline)
            log.advance(to: deadline)
            if let next = log.nextDeadline, next <= deadline {
                throw violation("a deadline stays: \(next)")
            }
        } else {
            guard due != nil else { return }
            io.step()
            for (id, outcome) in inbox.take() {
                if isTracing { print(io.now, "completed", id, outcome) }
                log.completed(id, outcome, now: io.now)
            }
        }
        try handle()
    }

    // MARK: Requests of the owner

    private func write() throws {
        guard log.takesWrites(now: io.now) || below(20) == 0, let slot = freeSlots.popLast() else {
            return
        }
        let absent = keys.indices.filter { keys[$0].place == nil && !keys[$0].isPending }
        guard let key = absent.randomElement(using: &random) else { return freeSlots.append(slot) }
        keys[key].isPending = true
        try write(key, slot, from: nil)
    }

    private func write(_ key: Int, _ slot: Int, from place: TierPlace?) throws {
        let sample = Self.samples[key]
        keys[key].writtenAt = operations
        operations += 1
        memcpy(memory(slot), sample.body, sample.body.count)
        lastOwner += 1
        writes[lastOwner] = Write(
            key: key, slot: slot, generation: keys[key].generation, from: place)
        log.write(sample.record, from: extent(slot, key), owner: lastOwner, now: io.now)
        try handle()
    }

    private func read() throws {
        guard let slot = freeSlots.popLast() else { return }
        let present = keys.indices.filter { keys[$0].place != nil }
        guard let first = present.randomElement(using: &random) else {
            return freeSlots.append(slot)
        }
        try read(first, slot, isMove: false)
        // Its neighbour, too, as a loader would.
        let place = keys[first].place!
        let page = place.page + UInt32(Self.samples[first].paddedBytes / 4096)
        let next = TierPlace(segment: place.segment, page: page)
        if let key = present.first(where: { keys[$0].place == next }),
            let slot = freeSlots.popLast()
        {
            try read(key, slot, isMove: false)
        }
    }

    private func read(_ key: Int, _ slot: Int, isMove: Bool) throws {
        lastOwner += 1
        let place = keys[key].place!
        reads[lastOwner] = Read(
            key: key, slot: slot, generation: keys[key].generation, place: place, isMove: isMove)
        log.read(place, into: extent(slot, key), owner: lastOwner, now: io.now)
        try handle()
    }

    private func forget() throws {
        let present = keys.indices.filter { keys[$0].place != nil }
        guard let key = present.randomElement(using: &random) else { return }
        giveUp(key)
    }

    private func drop() throws {
        let number = below(keys.count)
        let record = Self.samples[number].record
        let dropped: [Int]
        let drop: TierDrop
        switch below(12) {
        case 0:
            drop = .space(record.space)
            dropped = keys.indices.filter { Self.samples[$0].record.space == record.space }
        case 1..<4:
            drop = .root(record.root, space: record.space)
            dropped = keys.indices.filter { Self.samples[$0].record.root == record.root }
        case 4..<7:
            // Long ago, so that it is the same for a start.
            drop = .keyLater(record.key, root: record.root, space: record.space, atMs: 1)
            dropped = [number]
        default:
            drop = .key(record.key, root: record.root, space: record.space)
            dropped = [number]
        }
        for key in dropped {
            giveUp(key)
            keys[key].droppedAt = operations
        }
        operations += 1
        log.drop(drop, now: io.now)
        try handle()
    }

    private func giveUp(_ key: Int) {
        if let place = keys[key].place {
            log.forget(place, length: Self.samples[key].paddedBytes)
        }
        keys[key].place = nil
        keys[key].isPending = false
        keys[key].mustBeFound = false
        keys[key].generation += 1
    }

    private func sync() throws {
        ticketCount += 1
        tickets[UInt64(ticketCount)] = Ticket(
            generations: keys.map(\.generation),
            isThere: keys.map { $0.place != nil || ($0.isPending && !isStarting) },
            drops: keys.map(\.droppedAt))
        log.sync(ticket: UInt64(ticketCount), now: io.now)
        try handle()
    }

    /// Empties the segment that was asked for, one record at a time.
    private func goOnReclaiming() throws {
        guard let asked = reclaim else { return }
        let left = asked.keys.filter { keys[$0].place?.segment == asked.segment }.sorted()
        if left.isEmpty, !isMoving(from: asked.segment) {
            reclaim = nil
            log.reclaimed(asked.segment, now: io.now)
            return try handle()
        }
        let moving = Set(
            writes.values.filter { $0.from != nil }.map(\.key)
                + reads.values.filter(\.isMove).map(\.key))
        guard let key = left.first(where: { !moving.contains($0) }) else { return }
        let hasRoom = log.takesWrites(now: io.now)
        if asked.attempts < 100, asked.keepAll || (below(3) == 0 && hasRoom) {
            guard let slot = freeSlots.popLast() else { return }
            reclaim!.attempts += 1
            try read(key, slot, isMove: true)
        } else {
            giveUp(key)
        }
    }

    private func isMoving(from segment: UInt32) -> Bool {
        writes.values.contains { $0.from?.segment == segment }
            || reads.values.contains { $0.isMove && $0.place.segment == segment }
    }

    // MARK: Events

    private func handle() throws {
        while !log.events.isEmpty || !log.requests.isEmpty {
            let requests = log.requests
            log.requests = []
            let inbox = inbox
            driver.carryOut(requests) { inbox.append(($0, $1)) }
            let events = log.events
            log.events = []
            if isTracing {
                for request in requests { print(io.now, request.id, Self.brief(request.operation)) }
                for event in events { print(io.now, event) }
            }
            for event in events { try handle(event) }
        }
    }

    private func handle(_ event: TierEvent) throws {
        switch event {
        case .written(let owner, let place): try written(owner, place)
        case .writeFailed(let owner, _): try writeFailed(owner)
        case .read(let owner, let fault): try wasRead(owner, fault)
        case .synced(let ticket, let fault): try synced(ticket, fault)
        case .reclaim(let segment, let keepAll):
            if reclaim != nil { throw violation("two segments are asked for") }
            let there = keys.indices.filter { keys[$0].place?.segment == segment }
            let known = Set(log.records(of: segment).map(\.place))
            if let key = there.first(where: { !known.contains(keys[$0].place!) }) {
                throw violation("a record of key \(key) is not among those of its segment")
            }
            reclaim = Reclaim(segment: segment, keepAll: keepAll, keys: Set(there))
        case .stalled, .trouble: break
        }
    }

    private func written(_ owner: UInt64, _ place: TierPlace) throws {
        guard let write = writes.removeValue(forKey: owner) else {
            throw violation("owner \(owner) was written twice")
        }
        freeSlots.append(write.slot)
        writtenCount += 1
        let length = Self.samples[write.key].paddedBytes
        guard keys[write.key].generation == write.generation else {
            return log.forget(place, length: length)
        }
        if let from = write.from { log.forget(from, length: length) }
        keys[write.key].place = place
        keys[write.key].isPending = false
    }

    private func writeFailed(_ owner: UInt64) throws {
        guard let write = writes.removeValue(forKey: owner) else {
            throw violation("owner \(owner) failed twice")
        }
        freeSlots.append(write.slot)
        guard keys[write.key].generation == write.generation else { return }
        if write.from == nil || reclaim?.keepAll == false { giveUp(write.key) }
    }

    private func wasRead(_ owner: UInt64, _ fault: TierFault?) throws {
        guard let read = reads.removeValue(forKey: owner) else {
            throw violation("owner \(owner) was read twice")
        }
        let isCurrent = keys[read.key].generation == read.generation
        if fault != nil {
            freeSlots.append(read.slot)
            if weather.faults.readError == 0 { throw violation("a read failed: \(fault!)") }
            if read.isMove, isCurrent, below(3) == 0 { giveUp(read.key) }
            return
        }
        let body = Self.samples[read.key].body
        if memcmp(memory(read.slot), body, body.count) != 0 {
            throw violation("wrong bytes of key \(read.key) at \(read.place)")
        }
        if read.isMove, isCurrent, keys[read.key].place == read.place {
            return try write(read.key, read.slot, from: read.place)
        }
        freeSlots.append(read.slot)
    }

    private func synced(_ number: UInt64, _ fault: TierFault?) throws {
        guard let ticket = tickets.removeValue(forKey: number) else {
            throw violation("ticket \(number) was answered twice")
        }
        guard fault == nil else { return }
        goodTickets += 1
        for key in keys.indices {
            keys[key].durablyDroppedAt = max(keys[key].durablyDroppedAt, ticket.drops[key])
            guard ticket.isThere[key], ticket.generations[key] == keys[key].generation else {
                continue
            }
            if keys[key].place == nil { throw violation("key \(key) is durable and not written") }
            keys[key].mustBeFound = true
        }
    }

    // MARK: Crashes

    private static func brief(_ operation: LogRequest.Operation) -> String {
        switch operation {
        case .write(let file, let offset, let pieces):
            "write \(file) at \(offset), \(pieces.count) pieces"
        default: "\(operation)"
        }
    }

    private func crash() throws {
        if isTracing { print(io.now, "CRASH", keys.enumerated().filter { $0.1.mustBeFound }) }
        crashCount += 1
        if log.counters.unsafeReuses > 0 {
            // It has said so; this is the one way to lose what a sync has covered.
            unsafeCount += 1
            for key in keys.indices { keys[key].mustBeFound = false }
        }
        io = io.crash()
        writes = [:]
        reads = [:]
        tickets = [:]
        reclaim = nil
        _ = inbox.take()
        log = DiskLog(Self.configuration(&random))
        driver = LogDriver(io, arena: arena.buffer.address, byteCount: arena.buffer.count)
        try start()
    }

    private func start() throws {
        isStarting = true
        freeSlots = Array(0..<Self.slots)
        log.knowSamples()
        let found: LogReader
        do { found = try LogReader(io, disk: SampleRecord.disk) } catch {
            throw violation("\(error)")
        }
        try compare(found)
        mostBytes = max(log.configuration.budgetBytes, bytesOfFiles)
        if below(4) == 0 { try write() }
        log.begin(
            epoch: found.epoch + 1, files: found.segments.map { ($0.number, $0.fileBytes) },
            now: io.now)
        try handle()
        for segment in found.segments {
            log.adopt(segment: segment)
            try handle()
            if below(4) == 0 { try act() }
        }
        adoptRecords(found)
        isStarting = false
        if below(4) == 0 { try pass() }
        log.recovered(now: io.now)
        try handle()
        try check()
    }

    private func compare(_ found: LogReader) throws {
        for (index, key) in keys.enumerated() {
            let record = found.alive[Self.samples[index].key]?[0]
            if let record, record.body != Self.samples[index].body {
                throw violation("wrong bytes of key \(index) after a crash")
            }
            if record == nil, key.mustBeFound {
                throw violation("key \(index) is lost, though a sync has covered it")
            }
            if record != nil, key.durablyDroppedAt > key.writtenAt {
                throw violation("key \(index) is back, though a sync has covered its drop")
            }
            keys[index].place = nil
            keys[index].generation += 1
            // What a start has found is known until it is handed over.
            keys[index].isPending = record != nil
            keys[index].mustBeFound = false
            // A drop that no sync has covered may be lost.
            keys[index].droppedAt = key.durablyDroppedAt
        }
    }

    private func adoptRecords(_ found: LogReader) {
        for (index, sample) in Self.samples.enumerated() {
            guard let record = found.alive[sample.key]?[0] else { continue }
            // Dropped or given up meanwhile.
            guard keys[index].isPending, !writes.values.contains(where: { $0.key == index })
            else { continue }
            foundCount += 1
            keys[index].isPending = false
            keys[index].mustBeFound = true
            let place = TierPlace(
                segment: UInt32(record.segment), page: UInt32(record.entry.bodyOffset / 4096))
            keys[index].place = place
            lastOwner += 1
            log.adopt(place, length: sample.paddedBytes, owner: lastOwner)
        }
    }

    // MARK: Checks

    private var bytesOfFiles: Int { io.list().reduce(4096) { $0 + $1.byteCount } }

    private func check() throws {
        var live: [UInt32: Int] = [:]
        for (index, key) in keys.enumerated() {
            guard let place = key.place else { continue }
            live[place.segment, default: 0] += Self.samples[index].paddedBytes
        }
        for segment in log.segments.values where segment.isReadable {
            if segment.liveBytes != live[segment.number] ?? 0 {
                throw violation(
                    "segment \(segment.number) has \(segment.liveBytes) live bytes, not "
                        + "\(live[segment.number] ?? 0)")
            }
        }
        if bytesOfFiles > mostBytes {
            throw violation("\(bytesOfFiles) bytes of files, and \(mostBytes) are allowed")
        }
        if log.groupsUnderWay > log.configuration.writesUnderWay
            || log.readRequests > log.configuration.readsUnderWay
        {
            throw violation("too many requests")
        }
    }

    private func memory(_ slot: Int) -> UnsafeMutableRawPointer {
        arena.buffer.address + slot * Self.slotPages * 4096
    }

    private func extent(_ slot: Int, _ key: Int) -> TierExtent {
        TierExtent(
            offset: UInt64(slot * Self.slotPages * 4096),
            length: UInt64(Self.samples[key].paddedBytes))
    }

    private func violation(_ description: String) -> Violation {
        Violation(description: description)
    }
}
