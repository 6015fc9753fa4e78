import CKvasir
import Foundation
import KVArena
import KVClient
import KVIdentity
import KVThreads
import ReferenceLM
import Synchronization

/// (c) Saving and loading with real clients beside memcpy of the same bytes in the same process.
///
/// A save is reserve, copy, commit; a load is acquire, copy, release: what a rank does (the scheduler's match is measured in
/// (b)). memcpy goes to and from memory of the same kind and size as the arena, so that caches and page tables are equal.
///
/// A round trip between copies costs more than one in a row: the other process has gone to sleep, and the copy has taken its
/// cache. So the raw round trips are measured in the same rhythm: one, memcpy, one more (the *raw walk*).
struct BenchCopy {
    static let name = "copy"
    static let largestChunkBytes = 4 << 20

    let server: BenchServer
    let rounds: Int
    let sizes: [Int]
    let clientCounts: [Int]
    let python: String?
    let progress: Progress

    func run() throws -> [BenchResult] {
        var results: [BenchResult] = []
        let mirror = try Mirror(byteCount: 1 << 30, progress: progress)
        let peer = try RawEcho()
        defer { peer.stop() }
        let floor = try peer.roundTripNanoseconds()
        for count in clientCounts {
            for size in sizes {
                progress.tell("copy: \(count) clients, \(ByteCount(size))")
                let workers = try (0..<count).map {
                    try CopyWorker(
                        server.socket, size: size, index: $0, of: count, mirror: mirror,
                        raw: try peer.connect())
                }
                defer { for worker in workers { worker.close() } }
                results += try measure(workers, size, floor)
            }
        }
        progress.done()
        if let python {
            results += try PythonCopy(python: python, socket: server.socket, sizes: sizes).run()
        }
        return results
    }

    private func measure(_ workers: [CopyWorker], _ size: Int, _ floor: Double) throws
        -> [BenchResult]
    {
        let repeats = min(400, max(2, (256 << 20) / size / workers.count))
        var costs: [CopyWorker.Phase: [Cost]] = [:]
        try Self.together(workers) { try $0.prepare(repeats) }
        for round in 0...rounds {
            for phase in CopyWorker.Phase.allCases {
                try Self.together(workers) { try $0.hold(phase, repeats) }
                var cost =
                    try Measure.cost(with: server.process) {
                        try Self.together(workers) { try $0.run(phase, repeats) }
                    } / repeats
                // Of one client the median request, which others on the machine disturb least.
                if workers.count == 1 { cost.wall = workers[0].times.median }
                if round > 0 { costs[phase, default: []].append(cost) }
            }
        }
        let who = "\(workers.count) client\(workers.count == 1 ? "" : "s")"
        return [("save", .memcpyIn, .rawWalkIn, .save), ("load", .memcpyOut, .rawWalkOut, .load)]
            .map {
                what, limit, walk, kvasir in
                let walks = costs[walk]!
                // Where other work hides it, it is at least what it is in a row.
                let inRhythm = zip(costs[limit]!, walks).map { ($1.wall - $0.wall) / 2 }.median
                let roundTrip = max(floor, inRhythm)
                var result = Self.result(
                    "\(what) \(ByteCount(size)), \(who)", size, costs[limit]!, costs[kvasir]!,
                    roundTrip, workers.count)
                let byWalk = zip(walks, costs[kvasir]!).map { $0.wall / $1.wall }.median
                let reachedByWalk = zip(costs[limit]!, walks).map { $0.wall / $1.wall }.median
                result.details["ratioToRawWalk"] = byWalk
                result.details["ratioOfRawWalk"] = reachedByWalk
                if size >= 8 << 20 {
                    result.aim += " (raw walk: \(Format.fixed(reachedByWalk, 2)))"
                }
                return result
            }
    }

    static func result(
        _ what: String, _ size: Int, _ limits: [Cost], _ costs: [Cost], _ roundTrip: Double,
        _ clients: Int
    ) -> BenchResult {
        let (limit, time) = (limits.map(\.wall).median, costs.map(\.wall).median)
        let ratio = zip(limits, costs).map { $0.wall / $1.wall }.median
        let beyond = zip(limits, costs).map { ($1.wall - $0.wall) / roundTrip }.median
        let isLarge = size >= 8 << 20
        return BenchResult(
            bench: name, what: what, unit: "ns", limit: limit, kvasir: time,
            limitCPU: limits.map(\.cpu).median,
            kvasirCPU: costs.map(\.cpu).median, ratio: ratio,
            ratioCPU: zip(limits, costs).map { $0.cpu / $1.cpu }.median,
            aim: isLarge
                ? "at least 0.95" : "memcpy + 2.6 round trips (+\(Format.fixed(beyond, 1)))",
            reached: isLarge ? ratio >= 0.95 : beyond <= 2.6,
            details: [
                "gigabytesPerSecond": Double(size * clients) / time,
                "roundTripsBeyondMemcpy": beyond,
                "rawRoundTripNanoseconds": roundTrip, "bytes": Double(size),
                "clients": Double(clients),
            ])
    }

    /// Runs `body` for every worker at once, each on a thread.
    private static func together(
        _ workers: [CopyWorker], _ body: @escaping @Sendable (CopyWorker) throws -> Void
    )
        throws
    {
        if workers.count == 1 { return try body(workers[0]) }
        let failure = FailureBox()
        let threads = workers.map { worker in
            NamedThread("bench-copy") {
                do { try body(worker) } catch { failure.set(error) }
            }
        }
        for thread in threads { thread.join() }
        if let error = failure.error { throw error }
    }
}

private final class FailureBox: Sendable {
    private let first = Mutex<(any Error)?>(nil)

    var error: (any Error)? { first.withLock { $0 } }

    func set(_ error: any Error) { first.withLock { if $0 == nil { $0 = error } } }
}

/// Shared memory like the arena's, for memcpy alone.
final class Mirror: Sendable {
    let byteCount: Int
    // SAFETY: workers touch parts of their own.
    nonisolated(unsafe) let base: UnsafeMutableRawPointer

    init(byteCount: Int, progress: Progress) throws {
        let usable = MemoryBudget.current().usableBytes
        let size = min(byteCount, usable / 4 / (64 << 20) * (64 << 20))
        guard size >= 512 << 20 else {
            throw CommandFailure(
                "\(usable >> 20) MiB of memory are left; 'bench copy' takes 4 GiB, so free some")
        }
        let fd = kv_memfd("kvasir-bench", UInt64(size))
        if fd < 0 {
            throw CommandFailure("can't make a memfd: \(String(cString: strerror(errno)))")
        }
        defer { Glibc.close(fd) }
        let mapped = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        guard let mapped, mapped != MAP_FAILED else {
            throw CommandFailure("can't map \(size >> 20) MiB: \(String(cString: strerror(errno)))")
        }
        _ = kv_advise_huge_pages(mapped, size)
        for start in stride(from: 0, to: size, by: 64 << 20) {
            progress.tell("copy: memory to compare with, \(start >> 20) of \(size >> 20) MiB")
            _ = kv_populate_write(mapped + start, 64 << 20)
        }
        base = mapped
        self.byteCount = size
    }

    deinit { munmap(base, byteCount) }
}

/// One client that saves and loads. Used by one thread at a time.
final class CopyWorker: @unchecked Sendable {
    enum Phase: CaseIterable {
        case memcpyIn, rawWalkIn, save, memcpyOut, rawWalkOut, load
    }

    private let client: Client
    private let raw: RawClient
    private let space: CacheSpace
    private let root: Root
    private let size: Int
    private let chunkCount: Int
    private let mirror: UnsafeMutableRawBufferPointer
    private let buffer: UnsafeMutableRawBufferPointer
    private var random: SeededRandom
    private var mirrorOffset = 0
    private var prompts: [[Digest]] = []
    private var nextPrompt = 0
    private var fresh: [[Digest]] = []
    private var holds: [Hold] = []
    /// Of each request of the last phase, in nanoseconds.
    private(set) var times: [Double] = []

    init(_ socket: String, size: Int, index: Int, of count: Int, mirror: Mirror, raw: RawClient)
        throws
    {
        self.raw = raw
        let chunkBytes = min(size, BenchCopy.largestChunkBytes)
        client = try asking { () throws(ClientError) in
            try Client(.init(socket: socket, timeoutMs: 30_000))
        }
        space = try BenchSpace.make(chunkBytes: chunkBytes, number: 2)
        root = Root(space: space.id, salt: "\(index)")
        self.size = size
        chunkCount = size / chunkBytes
        random = SeededRandom(seed: Measure.now() ^ UInt64(index))
        let share = mirror.byteCount / count / size * size
        self.mirror = UnsafeMutableRawBufferPointer(
            start: mirror.base + index * share, count: share)
        buffer = .allocate(byteCount: size, alignment: 4096)
        // Random bytes, so that no page is the kernel's zero page.
        for offset in stride(from: 0, to: size, by: 8) {
            buffer.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
        }
        _ = try asking { () throws(ClientError) in try client.mapArena() }
    }

    deinit { buffer.deallocate() }

    func close() {
        // So that the next size starts with an empty store.
        _ = try? client.drop(space)
        client.close()
    }

    /// Stores the prompts that will be loaded.
    func prepare(_ repeats: Int) throws {
        for _ in 0..<repeats {
            let keys = Digest.random(chunkCount, &random)
            try save(keys)
            prompts.append(keys)
        }
    }

    /// What comes before a phase and is not timed.
    func hold(_ phase: Phase, _ repeats: Int) throws {
        switch phase {
        case .save:
            fresh = (0..<repeats).map { _ in Digest.random(chunkCount, &random) }
        case .load:
            holds = []
            for _ in 0..<repeats {
                let keys = prompts[nextPrompt % prompts.count]
                nextPrompt += 1
                let match = try asking { () throws(ClientError) in
                    try client.match(space, root: root, keys: keys, holdMs: 60_000)
                }
                guard let hold = match.hold, match.count == chunkCount else {
                    throw CommandFailure(
                        "a stored prompt was evicted; give --memory more than 1GiB")
                }
                holds.append(hold)
            }
        case .memcpyIn, .memcpyOut, .rawWalkIn, .rawWalkOut: break
        }
    }

    func run(_ phase: Phase, _ repeats: Int) throws {
        times = []
        for index in 0..<repeats {
            let started = Measure.now()
            defer { times.append(Double(Measure.now() - started)) }
            switch phase {
            case .memcpyIn: copyIn()
            case .memcpyOut: copyOut()
            case .rawWalkIn:
                try raw.roundTrip()
                copyIn()
                try raw.roundTrip()
            case .rawWalkOut:
                try raw.roundTrip()
                copyOut()
                try raw.roundTrip()
            case .save: try save(fresh[index])
            case .load: try load(holds[index])
            }
        }
    }

    private func copyIn() { nextMirror().copyMemory(from: UnsafeRawBufferPointer(buffer)) }

    private func copyOut() { buffer.copyMemory(from: UnsafeRawBufferPointer(nextMirror())) }

    private func nextMirror() -> UnsafeMutableRawBufferPointer {
        let start = mirrorOffset
        mirrorOffset = (mirrorOffset + size) % mirror.count
        return UnsafeMutableRawBufferPointer(rebasing: mirror[start..<(start + size)])
    }

    private func save(_ keys: [Digest]) throws {
        let lease = try client.reserve(space, root: root, keys: keys)
        guard lease.granted.count == keys.count else {
            throw CommandFailure("the server had no room: \(lease.reason)")
        }
        let chunkBytes = size / chunkCount
        for position in 0..<chunkCount {
            let source = buffer[(position * chunkBytes)..<((position + 1) * chunkBytes)]
            try lease.withMutableBytes(of: position) {
                $0.copyMemory(from: UnsafeRawBufferPointer(rebasing: source))
            }
        }
        try client.commit(lease)
    }

    private func load(_ hold: Hold) throws {
        var lease = try client.acquire(hold)
        let chunkBytes = size / chunkCount
        // What is there first; what is being verified meanwhile.
        var late: [Int] = []
        for position in 0..<chunkCount {
            if lease.extents[position].isPending {
                late.append(position)
            } else {
                try copy(position, of: lease, chunkBytes)
            }
        }
        if !late.isEmpty {
            lease = try client.wait(for: lease)
            for position in late { try copy(position, of: lease, chunkBytes) }
        }
        if try !client.release(lease) {
            throw CommandFailure("a lease expired; the machine is too slow or busy")
        }
    }

    private func copy(_ position: Int, of lease: ReadLease, _ chunkBytes: Int) throws {
        let target = UnsafeMutableRawBufferPointer(
            rebasing: buffer[(position * chunkBytes)..<((position + 1) * chunkBytes)])
        try lease.withBytes(of: position) { target.copyMemory(from: $0) }
    }
}

/// A raw peer that answers 204 bytes with 68, in a process of its own.
final class RawEcho {
    private let directory: TemporaryDirectory
    private let peer: ChildProcess
    private var socket: String { directory.path + "/raw.sock" }

    init() throws {
        directory = try TemporaryDirectory()
        peer = try ChildProcess([
            "bench-peer", "--socket", directory.path + "/raw.sock", "--request", "204", "--reply",
            "68",
        ])
    }

    func stop() { peer.stop() }

    /// The median of round trips in a row.
    func roundTripNanoseconds() throws -> Double {
        let client = try connect()
        var times: [Double] = []
        for _ in 0..<5_000 {
            let started = Measure.now()
            try client.roundTrip()
            times.append(Double(Measure.now() - started))
        }
        return times.median
    }

    func connect() throws -> RawClient {
        let deadline = Measure.now() + 5_000_000_000
        let request = [UInt8](repeating: 0, count: 204)
        while true {
            if let client = try? RawClient(socket: socket, request: request, replyBytes: 68) {
                return client
            }
            if Measure.now() > deadline { throw CommandFailure("the raw peer doesn't start") }
            usleep(5_000)
        }
    }
}
