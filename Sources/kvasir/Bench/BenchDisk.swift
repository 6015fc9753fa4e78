import ArgumentParser
import Foundation
import KVDisk
import KVIdentity
import KVStore
import KVThreads
import Logging
import ReferenceLM
import Synchronization

/// The disk tier beside the device: the same bytes in the same directory, once as a plain file with
/// O_DIRECT, once through a store, alternated.
struct BenchDisk {
    let directory: String
    /// Bytes written and read in each run.
    let byteCount: Int
    /// Bytes of one long prefix; nil for none.
    let prefixBytes: Int?
    /// Bytes of the chunks that are written and read.
    let chunkSizes: [Int]
    let rounds: Int
    let progress: Progress

    /// The chunks that are measured where nothing else is asked for, in bytes.
    static let usualSizes = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
    /// What the bytes of a run are a multiple of.
    static let granularity = 64 << 20
    /// Chunks, or requests to the device, under way at a time.
    private static let depths = [1, 4, 32]

    struct Result: Codable {
        var what: String
        var chunkBytes: Int
        var depth: Int
        /// Gigabytes (10⁹ bytes) a second.
        var device: Double
        var kvasir: Double
        /// The median of the ratios of pairs.
        var ratio: Double
        var aim: String
        var reached: Bool?
    }

    func run() throws -> (results: [Result], fio: String?) {
        let path = directory + "/kvasir-bench-\(getpid())"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true,
            attributes: [.posixPermissions: 0o700])
        defer { try? FileManager.default.removeItem(atPath: path) }
        progress.tell("disk: fio")
        let fio = FioRun(directory: path, byteCount: byteCount).describe()
        var results: [Result] = []
        for size in chunkSizes { results += try measure(chunkBytes: size, path) }
        results += try BenchFlushing(
            path: path + "/flushing", rounds: rounds, progress: progress
        ).run()
        if let prefixBytes { results += try measurePrefix(prefixBytes, path) }
        progress.done()
        return (results, fio)
    }

    // MARK: Rates

    private func measure(chunkBytes: Int, _ path: String) throws -> [Result] {
        let device = try DeviceRuns(path + "/device", byteCount: byteCount)
        defer { device.end() }
        let store = try StoreRuns(path + "/store", chunkBytes: chunkBytes, byteCount: byteCount)
        defer { store.end() }
        var writes = Pairs()
        var reads = Self.depths.map { _ in Pairs() }
        // The first round warms up: files are made, memory is faulted in.
        for round in 0...rounds {
            let size = chunkBytes >= 1 << 20 ? "\(chunkBytes >> 20) MiB" : "\(chunkBytes >> 10) KiB"
            progress.tell("disk: chunks of \(size), round \(round) of \(rounds)")
            writes.add(
                device: try device.write(requestBytes: min(chunkBytes, 8 << 20), depth: 2),
                kvasir: try store.write())
            for (place, depth) in Self.depths.enumerated() {
                reads[place].add(
                    device: try device.read(requestBytes: chunkBytes, depth: depth),
                    kvasir: try store.read(depth: depth))
            }
        }
        let isAimed = chunkBytes >= 1 << 20
        return [writes.result("write", chunkBytes, depth: 2, isAimed: isAimed)]
            + zip(reads, Self.depths).map { pairs, depth in
                pairs.result("read", chunkBytes, depth: depth, isAimed: isAimed)
            }
    }

    private func measurePrefix(_ bytes: Int, _ path: String) throws -> [Result] {
        // 100,000 tokens of a model with 131,072 bytes a token, 256 to a chunk.
        let chunkBytes = 32 << 20
        let byteCount = bytes / Self.granularity * Self.granularity
        let device = try DeviceRuns(path + "/device", byteCount: byteCount)
        defer { device.end() }
        let store = try StoreRuns(path + "/store", chunkBytes: chunkBytes, byteCount: byteCount)
        defer { store.end() }
        progress.tell("disk: writing a prefix of \(bytes >> 20) MiB twice")
        _ = try store.write()
        _ = try device.write(requestBytes: 8 << 20, depth: 2)
        var pairs = Pairs()
        for round in 0...rounds {
            progress.tell("disk: reading a prefix of \(bytes >> 20) MiB, round \(round)")
            try store.forgetMemory()
            pairs.add(
                device: try device.read(requestBytes: 8 << 20, depth: 4),
                kvasir: try store.read(depth: byteCount / chunkBytes))
        }
        return [
            pairs.result(
                "prefix", chunkBytes, depth: byteCount / chunkBytes, isAimed: true)
        ]
    }
}

/// What alternated runs gave; the first of each is left out.
private struct Pairs {
    private var device: [Double] = []
    private var kvasir: [Double] = []

    mutating func add(device: Double, kvasir: Double) {
        self.device.append(device)
        self.kvasir.append(kvasir)
    }

    func result(_ what: String, _ chunkBytes: Int, depth: Int, isAimed: Bool) -> BenchDisk.Result {
        let ratios = zip(kvasir, device).map { $0 / $1 }.dropFirst()
        let ratio = Array(ratios).median
        return BenchDisk.Result(
            what: what, chunkBytes: chunkBytes, depth: depth,
            device: Array(device.dropFirst()).median, kvasir: Array(kvasir.dropFirst()).median,
            ratio: ratio, aim: isAimed ? "at least 0.95" : "",
            reached: isAimed ? ratio >= 0.95 : nil)
    }
}

/// The device alone: one file, written and read from start to end.
private final class DeviceRuns {
    private let io: any DiskIO
    private let path: String
    private let byteCount: Int
    private var isWritten = false

    init(_ path: String, byteCount: Int) throws {
        self.path = path
        self.byteCount = byteCount
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true)
        io = try DiskIOKind.best(directory: path).io
    }

    func end() {
        io.stop()
        try? FileManager.default.removeItem(atPath: path)
    }

    func write(requestBytes: Int, depth: Int) throws -> Double {
        try measure(requestBytes, depth) { (run) throws(DiskFault) in try run.write("write") }
    }

    func read(requestBytes: Int, depth: Int) throws -> Double {
        try measure(requestBytes, depth) { (run) throws(DiskFault) in try run.read("read") }
    }

    private func measure(
        _ requestBytes: Int, _ depth: Int,
        _ body: (DiskMeasurement) throws(DiskFault) -> DiskThroughput
    ) throws -> Double {
        precondition(byteCount % requestBytes == 0, "whole requests, or it is another file")
        let run = try DiskMeasurement(
            io, requestBytes: requestBytes, depth: min(depth, byteCount / requestBytes),
            fileBytes: byteCount, keepsFile: true)
        let rate = try body(run).gigabytesPerSecond
        try run.end()
        return rate
    }
}

/// The same through a store whose memory holds one run, so that what is read was not in memory.
private final class StoreRuns {
    private let path: String
    private let store: Store
    private let session: StoreSession
    private let space: StoreSession.Space
    private let root: Root
    private let chunkBytes: Int
    private let count: Int
    private var random = SeededRandom(seed: 1)
    /// Keys of the runs that are on disk.
    private var runs: [[Digest]] = []
    private var nextRead = 0

    init(_ path: String, chunkBytes: Int, byteCount: Int) throws {
        self.path = path
        self.chunkBytes = chunkBytes
        count = byteCount / chunkBytes
        var logger = Logger(label: "bench")
        logger.logLevel = .error
        // Two runs fit on the disk, one in memory, with some room for what is on its way.
        let memory = byteCount + max(2 * chunkBytes, byteCount / 8)
        store = try Store(
            .init(
                memoryBytes: memory, verifyOneIn: 0,
                disks: [
                    .init(directory: path, byteCount: 4 * byteCount + (1 << 30))
                ], logger: logger))
        if !store.waitUntilReady(seconds: 120) { throw CommandFailure("no memory for the arena") }
        session = store.session(name: "bench")
        space = try session.open(BenchSpace.make(chunkBytes: chunkBytes))
        root = Root(space: space.space.id)
    }

    func end() {
        store.stop()
        try? FileManager.default.removeItem(atPath: path)
    }

    /// Saves a run and waits until it is durable. - Returns: gigabytes a second.
    func write() throws -> Double {
        let keys = Digest.random(count, &random)
        let cost = try Measure.cost {
            for start in stride(from: 0, to: count, by: 16) {
                let part = Array(keys[start..<min(start + 16, count)])
                let lease = try session.reserve(
                    space, root: root, keys: part, parent: start == 0 ? nil : keys[start - 1])
                if lease.positions.count < part.count {
                    throw CommandFailure("no room for a save: \(lease.refusal)")
                }
                try lease.commit()
            }
            try store.sync()
        }
        runs.append(keys)
        // Memory has this one now.
        nextRead = 0
        if runs.count > 2 { try session.drop(space, root: root, keys: [runs.removeFirst()[0]]) }
        return Double(count * chunkBytes) / cost.wall
    }

    /// Has memory hold the second run, so that the first is read next.
    func forgetMemory() throws {
        if nextRead == 1 { _ = try read(depth: 32) }
    }

    /// Loads the run that is not in memory, `depth` chunks ahead. - Returns: gigabytes a second.
    func read(depth: Int) throws -> Double {
        if runs.count < 2 { _ = try write() }
        let keys = runs[nextRead]
        nextRead = 1 - nextRead
        let before = store.counters.chunksLoaded
        let cost = try Measure.cost {
            try session.prefetch(space, root: root, keys: Array(keys.prefix(depth)))
            for (place, key) in keys.enumerated() {
                if place > 0, place + depth - 1 < count {
                    try session.prefetch(space, root: root, keys: [keys[place + depth - 1]])
                }
                guard let lease = try session.read(space, root: root, keys: [key]) else {
                    throw CommandFailure("chunk \(place) is gone")
                }
                try lease.release()
            }
        }
        // Memory has room for a few more chunks than one run.
        let loaded = store.counters.chunksLoaded - before
        if loaded < count / 2 {
            throw CommandFailure("what was to be read from disk was in memory")
        }
        return Double(loaded * chunkBytes) / cost.wall
    }
}

/// What saves and loads in memory cost while other chunks are being flushed.
private struct BenchFlushing {
    let path: String
    let rounds: Int
    let progress: Progress

    private static let chunkBytes = 1 << 20
    private static let requests = 2_000

    func run() throws -> [BenchDisk.Result] {
        progress.tell("disk: saves and loads while flushing")
        let names = ["save p99", "load p99"]
        var alone: [[Double]] = [[], []]
        var flushing = alone
        for _ in 0..<rounds {
            let (first, second) = (try measure(disk: nil), try measure(disk: path))
            for place in names.indices {
                alone[place].append(first[place])
                flushing[place].append(second[place])
            }
        }
        return names.indices.map { place in
            let ratio = zip(flushing[place], alone[place]).map { $0 / $1 }.median
            return BenchDisk.Result(
                what: "\(names[place]), ms, memory only and flushing",
                chunkBytes: Self.chunkBytes, depth: 1, device: alone[place].median / 1e6,
                kvasir: flushing[place].median / 1e6, ratio: ratio,
                aim: "at most 2", reached: ratio <= 2)
        }
    }

    /// - Returns: the 99th percentiles of saves and loads in nanoseconds.
    private func measure(disk: String?) throws -> [Double] {
        var logger = Logger(label: "bench")
        logger.logLevel = .error
        let disks = disk.map { [DiskConfiguration(directory: $0, byteCount: 4 << 30)] } ?? []
        let store = try Store(
            .init(memoryBytes: 1 << 30, verifyOneIn: 0, disks: disks, logger: logger))
        defer {
            store.stop()
            if let disk { try? FileManager.default.removeItem(atPath: disk) }
        }
        if !store.waitUntilReady(seconds: 120) { throw CommandFailure("no memory for the arena") }
        let isOver = Flag()
        // Saves 4 MiB chunks at about 400 MB/s, flushed or not.
        let background = NamedThread("bench-saves") {
            try? Self.saveSteadily(store, until: isOver)
        }
        defer {
            isOver.raise()
            background.join()
        }
        return try measureForeground(store)
    }

    private func measureForeground(_ store: Store) throws -> [Double] {
        let session = store.session(name: "foreground")
        let space = try session.open(BenchSpace.make(chunkBytes: Self.chunkBytes))
        let root = Root(space: space.space.id)
        var random = SeededRandom(seed: 2)
        var buffer = [UInt8](repeating: 7, count: Self.chunkBytes)
        var (saves, loads) = ([Double](), [Double]())
        for _ in 0..<Self.requests {
            let key = Digest(random: &random)
            var start = Measure.now()
            let lease = try session.reserve(space, root: root, keys: [key])
            lease.withBytes(of: 0) { bytes in buffer.withUnsafeBytes { bytes.copyMemory(from: $0) }
            }
            try lease.commit()
            saves.append(Double(Measure.now() - start))
            start = Measure.now()
            guard let read = try session.read(space, root: root, keys: [key]) else {
                throw CommandFailure("what was saved just now is gone")
            }
            read.withBytes(of: 0) { bytes in
                buffer.withUnsafeMutableBytes { $0.copyMemory(from: bytes) }
            }
            try read.release()
            loads.append(Double(Measure.now() - start))
        }
        return [saves.percentile(0.99), loads.percentile(0.99)]
    }

    private static func saveSteadily(_ store: Store, until isOver: Flag) throws {
        let session = store.session(name: "background")
        let space = try session.open(BenchSpace.make(chunkBytes: 4 << 20))
        let root = Root(space: space.space.id)
        var random = SeededRandom(seed: 3)
        while !isOver.isRaised {
            let lease = try session.reserve(space, root: root, keys: [Digest(random: &random)])
            try lease.commit()
            usleep(10_000)
        }
    }
}

private final class Flag: Sendable {
    private let value = Atomic<Bool>(false)

    var isRaised: Bool { value.load(ordering: .relaxed) }
    func raise() { value.store(true, ordering: .relaxed) }
}

struct BenchDiskReport: Codable {
    var version: String
    var machine: [String: String]
    var results: [BenchDisk.Result]

    var text: String {
        let lines = machine.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }
        var table = TextTable("ratio", "what", "chunk", "depth", "limit", "Kvasir", "aim", "")
        table.leftColumns = [1, 6, 7]
        for result in results {
            table.rows.append([
                Format.fixed(result.ratio, 2), result.what, "\(ByteCount(result.chunkBytes))",
                "\(result.depth)", Format.fixed(result.device, 2), Format.fixed(result.kvasir, 2),
                result.aim, result.reached.map { $0 ? "reached" : "missed" } ?? "",
            ])
        }
        return (lines + ["", "GB/s where nothing else is said", table.text]).joined(separator: "\n")
    }
}
