import Foundation
import KVDisk
import KVIdentity
import KVStore
import KVThreads
import Logging
import ReferenceLM
import Synchronization

/// What a start costs when a disk is full of small chunks: how soon the store answers, how soon it
/// knows everything, and how long it lets callers wait meanwhile.
struct BenchStart {
    static let name = "start"

    let directory: String
    let chunkCount: Int
    let progress: Progress

    private static let chunkBytes = 4096
    /// Chunks of one prompt, saved together.
    private static let promptChunks = 1000

    func run() throws -> [BenchResult] {
        let path = directory + "/kvasir-bench-\(getpid())"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let last = try fill(path)
        progress.tell("start: reading \(Format.number(chunkCount)) chunks")
        let reading = try readAlone(path)
        let start = try measureStart(path, last: last)
        progress.done()
        let count = Format.number(chunkCount)
        return [
            BenchResult(
                bench: Self.name, what: "the first answer", unit: "ns", limit: 0,
                kvasir: start.firstAnswer, ratio: 0, aim: "at most 1 s",
                reached: start.firstAnswer <= 1e9),
            BenchResult(
                bench: Self.name, what: "\(count) chunks can be matched (limit: read and judged)",
                unit: "ns", limit: reading.wall, kvasir: start.whole.wall,
                limitCPU: reading.cpu, kvasirCPU: start.whole.cpu,
                ratio: start.whole.wall / reading.wall, aim: "at most 10 s a million",
                reached: start.whole.wall <= 1e10 * max(1, Double(chunkCount) / 1e6)),
            BenchResult(
                bench: Self.name,
                what: "the longest of \(Format.number(start.answers)) answers until then"
                    + " (limit: of as many afterwards)",
                unit: "ns", limit: start.longestAfterwards, kvasir: start.longest,
                ratio: start.longest / start.longestAfterwards, aim: "at most 50 ms",
                reached: start.longest <= 5e7, details: ["p99": start.p99]),
        ]
    }

    private func open(_ path: String) throws -> Store {
        var logger = Logger(label: "bench")
        logger.logLevel = .error
        let disk = DiskConfiguration(
            directory: path, byteCount: max(1 << 30, chunkCount * Self.chunkBytes * 2))
        return try Store(
            .init(memoryBytes: 256 << 20, verifyOneIn: 0, disks: [disk], logger: logger))
    }

    // MARK: Filling

    /// - Returns: the first key of the prompt that was saved last.
    private func fill(_ path: String) throws -> Digest {
        let store = try open(path)
        defer { store.stop() }
        if !store.waitUntilReady() { throw CommandFailure("no memory for the arena") }
        let session = store.session(name: "bench")
        let space = try session.open(BenchSpace.make(chunkBytes: Self.chunkBytes))
        let root = Root(space: space.space.id)
        var random = SeededRandom(seed: 1)
        var (saved, first) = (0, Digest(random: &random))
        while saved < chunkCount {
            let keys = Digest.random(min(Self.promptChunks, chunkCount - saved), &random)
            let lease = try session.reserve(space, root: root, keys: keys)
            try lease.commit()
            saved += keys.count
            first = keys[0]
            // Nothing may be evicted before it was written.
            if saved % (16 * Self.promptChunks) == 0 || saved == chunkCount { try store.sync() }
            progress.tell(
                "start: saving \(Format.number(saved)) of \(Format.number(chunkCount)) chunks")
        }
        return first
    }

    // MARK: Starting

    private func readAlone(_ path: String) throws -> Cost {
        let io = try DiskIOKind.best(directory: path).io
        defer { io.stop() }
        return try Measure.cost {
            var random = SystemRandomNumberGenerator()
            let wallMs = UInt64(Date().timeIntervalSince1970 * 1000)
            let found = DiskRecovery(
                [try DiskDirectory.open(io, nowMs: wallMs, random: &random)], wallMs: wallMs
            ).run()
            if found?.chunkCount != chunkCount {
                throw CommandFailure("\(found?.chunkCount ?? 0) chunks of \(chunkCount) were found")
            }
        }
    }

    private struct Start {
        var firstAnswer = 0.0
        var whole = Cost(wall: 0, cpu: 0)
        var answers = 0
        var longest = 0.0
        var p99 = 0.0
        var longestAfterwards = 0.0
    }

    private func measureStart(_ path: String, last: Digest) throws -> Start {
        var start = Start()
        let began = Measure.now()
        let processor = Measure.processorTime()
        let store = try open(path)
        defer { store.stop() }
        let session = store.session(name: "bench")
        let space = try session.open(BenchSpace.make(chunkBytes: Self.chunkBytes))
        let root = Root(space: space.space.id)
        func ask() throws -> Double {
            let asked = Measure.now()
            _ = try session.match(space, root: root, keys: [last])
            return Double(Measure.now() - asked)
        }
        _ = try ask()
        start.firstAnswer = Double(Measure.now() - began)
        var waits: [Double] = []
        while store.gauges.disk.disksRecovering > 0 {
            waits.append(try ask())
            usleep(500)
        }
        start.whole = Cost(
            wall: Double(Measure.now() - began), cpu: Double(Measure.processorTime() - processor))
        if store.gauges.disk.chunksOnDisk != chunkCount {
            throw CommandFailure(
                "\(store.gauges.disk.chunksOnDisk) chunks of \(chunkCount) were recovered")
        }
        start.answers = waits.count
        start.longest = waits.max() ?? 0
        start.p99 = waits.percentile(0.99)
        for _ in waits {
            start.longestAfterwards = max(start.longestAfterwards, try ask())
            usleep(500)
        }
        return start
    }
}
