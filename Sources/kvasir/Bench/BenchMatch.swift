import KVClient
import KVIdentity
import KVPolicy
import KVStore
import ReferenceLM

/// (b) How long a match takes: the core alone, beside as many random reads of the same memory, and over the socket.
struct BenchMatch {
    static let name = "match"
    private static let keyCounts = [1, 64, 400, 4_000]
    private static let background = 1_000_000

    let server: BenchServer
    let rounds: Int
    let progress: Progress

    func run() throws -> [BenchResult] {
        try inProcess() + overSocket()
    }

    // MARK: The core alone

    private func inProcess() throws -> [BenchResult] {
        progress.tell("match: filling a core with \(Self.background) chunks")
        var core = try FilledCore(expectedChunks: Self.background + 10_000)
        try core.add(Self.background)
        let prompts = try Self.keyCounts.map { try core.addPrompt($0) }
        let table = RandomReads(records: Self.background)
        var results: [BenchResult] = []
        for (count, keys) in zip(Self.keyCounts, prompts) {
            var (limit, hit, held, miss) = ([Double](), [Double](), [Double](), [Double]())
            let repeats = max(3, 20_000 / count)
            var unknown = keys
            unknown[0] = Digest(words: (1, 2, 3, 4))
            for _ in 0...rounds {
                limit.append(table.time(reads: count, repeats: repeats))
                hit.append(try core.time(keys, repeats: repeats, expected: count))
                held.append(try core.time(keys, repeats: repeats, expected: count, isHeld: true))
                miss.append(try core.time(unknown, repeats: repeats, expected: 0))
            }
            for (what, times) in [("hit", hit), ("hit, hold and release", held), ("miss", miss)] {
                let time = times.dropFirst().map { $0 }.median
                let bound = Array(limit.dropFirst()).median
                let isAimed = count == 400
                results.append(
                    BenchResult(
                        bench: Self.name, what: "\(count) keys, \(what), in the core", unit: "ns",
                        limit: bound,
                        kvasir: time, ratio: time / bound, aim: isAimed ? "under 100 µs" : "",
                        reached: isAimed ? time < 100_000 : nil))
            }
        }
        progress.done()
        return results
    }

    // MARK: Over the socket

    private func overSocket() throws -> [BenchResult] {
        let client = try asking { () throws(ClientError) in try Client(.init(socket: server.socket))
        }
        defer { client.close() }
        let space = try BenchSpace.make(chunkBytes: 4096, number: 1)
        let root = Root(space: space.id)
        var random = SeededRandom(seed: 2)
        var results: [BenchResult] = []
        for count in Self.keyCounts {
            progress.tell("match: \(count) keys over the socket")
            let keys = Digest.random(count, &random)
            try asking { () throws(ClientError) in
                let lease = try client.reserve(space, root: root, keys: keys)
                if lease.id != 0 { try client.commit(lease) }
            }
            var unknown = keys
            unknown[0] = Digest(random: &random)
            for (what, asked, expected) in [("hit", keys, count), ("miss", unknown, 0)] {
                let (match, ping) = try compare(client, space, root, asked, expected)
                let time = match.map(\.wall).median
                let bound = ping.map(\.wall).median
                results.append(
                    BenchResult(
                        bench: Self.name, what: "\(count) keys, \(what), round trip (limit: PING)",
                        unit: "ns",
                        limit: bound, kvasir: time, limitCPU: ping.map(\.cpu).median,
                        kvasirCPU: match.map(\.cpu).median, ratio: time / bound, aim: "",
                        reached: nil))
            }
        }
        progress.done()
        return results
    }

    private func compare(
        _ client: Client, _ space: CacheSpace, _ root: Root, _ keys: [Digest], _ expected: Int
    ) throws -> (match: [Cost], ping: [Cost]) {
        let repeats = max(50, 20_000 / keys.count / 10)
        var (match, ping) = ([Cost](), [Cost]())
        for round in 0...rounds {
            let first = try Measure.cost(with: server.process) {
                for _ in 0..<repeats { _ = try client.ping() }
            }
            let second = try Measure.cost(with: server.process) {
                for _ in 0..<repeats {
                    let found = try client.match(space, root: root, keys: keys)
                    if found.count != expected {
                        throw CommandFailure("\(found.count) of \(expected) keys matched")
                    }
                }
            }
            if round == 0 { continue }
            ping.append(first / repeats)
            match.append(second / repeats)
        }
        return (match, ping)
    }
}

/// A core without a server and without an arena: chunks of one page each, of which nobody touches a byte.
struct FilledCore: ~Copyable {
    /// Never destroyed: it lives as long as the benchmark, and to give back a million chunks one by one takes time.
    private let core: UnsafeMutablePointer<StoreCore>
    private let session: StoreCore.SessionID
    private let space: UInt32
    private let root: Digest
    private var random = SeededRandom(seed: 3)
    private(set) var chunkCount = 0

    init(expectedChunks: Int) throws {
        let slab = 2 << 20
        let bytes = (expectedChunks * 4096 + slab - 1) / slab * slab + slab
        core = .allocate(capacity: 1)
        core.initialize(
            to: StoreCore(
                .init(
                    arenaBytes: bytes, slabBytes: slab, checkOneIn: 0,
                    secret: (0x9E37_79B9, 0x7F4A_7C15)),
                policy: PolicyName.default.make()))
        core.pointee.slabsBecameReady(0..<(bytes / slab))
        session = core.pointee.openSession(name: "bench")
        let cacheSpace = try BenchSpace.make(chunkBytes: 4096)
        space = try core.pointee.open(cacheSpace, session: session).handle
        root = Root(space: cacheSpace.id).digest
    }

    /// Stores chunks in prompts of 64.
    mutating func add(_ count: Int) throws {
        let end = chunkCount + count
        while chunkCount < end { _ = try addPrompt(min(64, end - chunkCount)) }
    }

    /// Stores a prompt. - Returns: its keys.
    mutating func addPrompt(_ count: Int) throws -> [Digest] {
        let keys = Digest.random(count, &random)
        let reserved = try core.pointee.reserve(
            space: space, root: root, keys: keys, timeToLiveMs: 60_000, session: session, now: 0)
        let sealed = try core.pointee.commit(
            lease: reserved.lease, shard: 0, positions: nil, session: session, now: 0)
        if sealed != count { throw CommandFailure("the core took \(sealed) of \(count) chunks") }
        chunkCount += count
        return keys
    }

    /// The median time of a match in nanoseconds.
    mutating func time(_ keys: [Digest], repeats: Int, expected: Int, isHeld: Bool = false) throws
        -> Double
    {
        var times: [Double] = []
        times.reserveCapacity(repeats)
        for _ in 0..<repeats {
            let started = Measure.now()
            let match = try core.pointee.match(
                space: space, root: root, keys: keys, holdMs: isHeld ? 60_000 : nil,
                session: session, now: 0)
            if match.hold != 0 {
                _ = try core.pointee.release(match.hold, session: session, now: 0)
            }
            times.append(Double(Measure.now() - started))
            if match.count != expected {
                throw CommandFailure("\(match.count) of \(expected) keys matched")
            }
        }
        return times.median
    }
}

/// What any index pays at least: a bucket and a record for each key, somewhere in memory.
final class RandomReads {
    private static let recordBytes = 72
    private let records: UnsafeMutableRawPointer
    private let buckets: UnsafeMutablePointer<UInt32>
    private let mask: Int

    init(records count: Int) {
        var bucketCount = 1
        while bucketCount * 3 < count * 4 { bucketCount *= 2 }
        mask = bucketCount - 1
        records = .allocate(byteCount: count * Self.recordBytes, alignment: 8)
        records.initializeMemory(as: UInt8.self, repeating: 1, count: count * Self.recordBytes)
        buckets = .allocate(capacity: bucketCount)
        var random = SeededRandom(seed: 4)
        for index in 0..<bucketCount {
            (buckets + index).initialize(to: UInt32(random.next() % UInt64(count)))
        }
    }

    deinit {
        records.deallocate()
        buckets.deallocate()
    }

    /// The same reads each time, as a match repeated reads the same chunks.
    func time(reads: Int, repeats: Int) -> Double {
        var times: [Double] = []
        var sum: UInt64 = 0
        for _ in 0..<repeats {
            var random = SeededRandom(seed: 5)
            let started = Measure.now()
            for _ in 0..<reads {
                let record = Int(buckets[Int(truncatingIfNeeded: random.next()) & mask])
                sum &+= records.load(fromByteOffset: record * Self.recordBytes, as: UInt64.self)
            }
            times.append(Double(Measure.now() - started))
        }
        precondition(sum != 0, "the reads are needed")
        return times.median
    }
}
