import KVThreads
import Testing

@testable import KVDisk

/// Drives a simulated disk with random requests and crashes, and knows of every sector what may be
/// found there afterwards: what was there at the last sync that covered it, or any write since.
struct CrashModel {
    struct File {
        var number: UInt64
        var isReady = false
        var underWay = 0
        /// Of each sector: the writes of which one is found, in the order of their completions.
        var candidates: [[UInt64]]
        /// Of the writes under way.
        var ranges: [UInt64: Range<Int>] = [:]
        /// Writes that no sync makes sure of: they failed, or a sync that covered them did.
        var uncertain: Set<UInt64> = []
    }

    enum UnderWay {
        case create(String)
        case write(String, Range<Int>, DiskMemory)
        /// With the candidates when it was submitted.
        case sync(String, [[UInt64]])
        case remove(String)
    }

    private(set) var disk: SimulatedIO
    private var random: SeededRandom
    private var files: [String: File] = [:]
    private var underWay: [UInt64: UnderWay] = [:]
    private let inbox = OutcomeList()
    private var last: UInt64 = 0

    init(seed: UInt64, faults: SimulatedFaults = SimulatedFaults()) {
        disk = SimulatedIO(seed: seed, faults: faults)
        random = SeededRandom(seed: seed ^ 0xC0FFEE)
    }

    mutating func run(requests: Int) {
        for _ in 0..<requests {
            switch Int.random(in: 0..<10, using: &random) {
            case 0: create()
            case 1..<5: write()
            case 5..<7: sync()
            case 7 where Int.random(in: 0..<4, using: &random) == 0: remove()
            default: step()
            }
        }
    }

    /// Crashes, checks what is found, and goes on with it.
    mutating func crash() {
        disk = disk.crash()
        let found = Set(disk.list().map(\.name))
        for (id, request) in underWay {
            guard case .write(let name, let range, _) = request else { continue }
            for sector in range { files[name]!.candidates[sector].append(id) }
        }
        let removals = Set(
            underWay.values.compactMap { if case .remove(let name) = $0 { name } else { nil } })
        for (name, file) in files {
            if file.isReady && !removals.contains(name) {
                #expect(found.contains(name), "\(name) is gone")
            }
        }
        #expect(found.isSubset(of: Set(files.keys).union(removals)), "what was removed is back")
        underWay = [:]
        for name in files.keys.sorted() {
            guard found.contains(name), !removals.contains(name), files[name]!.isReady else {
                files[name] = nil
                if found.contains(name) { discard(name) }
                continue
            }
            check(name)
        }
        for name in removals.sorted() where found.contains(name) { discard(name) }
    }

    private mutating func discard(_ name: String) {
        let outcome = finish(.remove(name: name))
        #expect(outcome == .done)
    }

    private mutating func check(_ name: String) {
        let count = files[name]!.candidates.count
        last += 1
        files[name]!.number = last
        files[name]!.underWay = 0
        files[name]!.ranges = [:]
        files[name]!.uncertain = []
        #expect(finish(.open(file: last, name: name)) == .done)
        let memory = DiskMemory(byteCount: count * 512)
        #expect(finish(.read(file: last, offset: 0, into: [memory.buffer])) == .done)
        for sector in 0..<count {
            let stamps = Set(
                stride(from: 0, to: 512, by: 8).map {
                    memory.buffer.address.load(
                        fromByteOffset: sector * 512 + $0, as: UInt64.self)
                })
            let candidates = files[name]!.candidates[sector]
            #expect(stamps.count == 1, "a torn sector")
            #expect(
                candidates.contains(stamps.first!),
                "sector \(sector) of \(name) is of \(stamps), not of \(candidates)")
            files[name]!.candidates[sector] = [stamps.first!]
        }
    }

    /// Lets one request through alone.
    private func finish(_ operation: DiskRequest.Operation) -> DiskOutcome? {
        let box = OutcomeBox()
        disk.submit(DiskRequest(id: 0, operation: operation)) { box.set($0) }
        while disk.step() {}
        return box.value
    }

    // MARK: Requests

    private mutating func create() {
        guard files.count < 4 else { return }
        let blocks = Int.random(in: 1...8, using: &random)
        last += 1
        let name = "f\(last)"
        files[name] = File(
            number: last, candidates: Array(repeating: [0], count: blocks * 8))
        submit(
            .create(name), .create(file: last, name: name, byteCount: blocks * 4096))
    }

    private mutating func write() {
        guard let name = randomFile({ $0.isReady }) else { return }
        let blocks = files[name]!.candidates.count / 8
        let first = Int.random(in: 0..<blocks, using: &random)
        let end = Int.random(in: first + 1...blocks, using: &random)
        let sectors = first * 8..<end * 8
        guard !files[name]!.ranges.values.contains(where: { $0.overlaps(sectors) }) else { return }
        let memory = DiskMemory(byteCount: sectors.count * 512)
        let id = last + 1
        for offset in stride(from: 0, to: memory.buffer.count, by: 8) {
            memory.buffer.address.storeBytes(of: id, toByteOffset: offset, as: UInt64.self)
        }
        files[name]!.ranges[id] = sectors
        files[name]!.underWay += 1
        last += 1
        submit(
            .write(name, sectors, memory),
            .write(file: files[name]!.number, offset: first * 4096, from: [memory.buffer]))
    }

    private mutating func sync() {
        guard let name = randomFile({ $0.isReady }) else { return }
        last += 1
        files[name]!.underWay += 1
        submit(.sync(name, files[name]!.candidates), .sync(file: files[name]!.number))
    }

    private mutating func remove() {
        guard let name = randomFile({ $0.isReady && $0.underWay == 0 }) else { return }
        files[name]!.isReady = false
        last += 1
        submit(.remove(name), .remove(name: name))
    }

    private mutating func submit(_ request: UnderWay, _ operation: DiskRequest.Operation) {
        let (id, box) = (last, inbox)
        underWay[id] = request
        disk.submit(DiskRequest(id: id, operation: operation)) { box.append((id, $0)) }
    }

    // MARK: Completions

    private mutating func step() {
        disk.step()
        for (id, outcome) in inbox.take() { complete(id, outcome) }
    }

    private mutating func complete(_ id: UInt64, _ outcome: DiskOutcome) {
        let isDone = outcome == .done
        switch underWay.removeValue(forKey: id)! {
        case .create(let name):
            if isDone { files[name]!.isReady = true } else { files[name] = nil }
        case .write(let name, let range, _):
            // A failed one may have left its bytes in any sector.
            for sector in range { files[name]!.candidates[sector].append(id) }
            if !isDone { files[name]!.uncertain.insert(id) }
            files[name]!.ranges[id] = nil
            files[name]!.underWay -= 1
        case .sync(let name, let then):
            files[name]!.underWay -= 1
            for (sector, covered) in then.enumerated() {
                if isDone {
                    drop(before: covered, name, sector)
                } else {
                    files[name]!.uncertain.formUnion(covered.dropFirst())
                }
            }
        case .remove(let name): files[name] = nil
        }
    }

    /// After a sync only the last of the writes it covered, or a later one, is found.
    private mutating func drop(before covered: [UInt64], _ name: String, _ sector: Int) {
        let now = files[name]!.candidates[sector]
        let certain = covered.last { !files[name]!.uncertain.contains($0) }
        guard let certain, let first = now.firstIndex(of: certain) else { return }
        files[name]!.candidates[sector] = Array(now[first...])
    }

    private mutating func randomFile(_ isFit: (File) -> Bool) -> String? {
        files.keys.filter { isFit(files[$0]!) }.sorted().randomElement(using: &random)
    }
}

/// The outcome of one request.
final class OutcomeBox: Sendable {
    private let outcome = Locked<DiskOutcome?>(nil)

    var value: DiskOutcome? { outcome.withLock { $0 } }

    func set(_ ended: DiskOutcome) {
        outcome.withLock { outcome in
            precondition(outcome == nil, "completed twice")
            outcome = ended
        }
    }
}

/// What has completed since one looked.
final class OutcomeList: Sendable {
    private let ended = Locked<[(UInt64, DiskOutcome)]>([])

    func append(_ one: (UInt64, DiskOutcome)) { ended.withLock { $0.append(one) } }

    func take() -> [(UInt64, DiskOutcome)] {
        ended.withLock { ended in
            defer { ended = [] }
            return ended
        }
    }
}
