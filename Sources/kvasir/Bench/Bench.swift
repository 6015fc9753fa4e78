import ArgumentParser
import Foundation
import KVArena
import KVService

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure Kvasir beside the machine's own limits.",
        discussion: """
            descriptors   a small request beside a raw ping-pong over a Unix socket
            match         1 to 4,000 keys, in the core and over the socket
            copy          saving and loading beside memcpy, 1 and 4 clients
            index         memory of the index at 10 million chunks
            engine        the built-in engine's products beside OpenBLAS, and a prefill of 4,096 tokens
            start         a start with a million chunks on disk, or --chunks
            disk          the disk tier beside the device's own limit, and what flushing costs saves and loads
            admission     what the rules of --disk-admission bring and cost on a trace (--trace FILE), in the core

            'all' leaves out start, disk and admission, which need a place and a trace. It starts a server of its own and stops it again. Runs alternate and medians are given. docs/performance.md \
            says what is measured how.
            """)

    enum Part: String, ExpressibleByArgument, CaseIterable {
        case descriptors, match, copy, index, engine, start, disk, admission, all
    }

    @Argument(help: "descriptors, match, copy, index, engine, start, disk, admission or all.")
    var part = Part.all

    @Option(
        help: ArgumentHelp(
            "Measure the server behind this socket, which gives up what it has stored.",
            valueName: "path"))
    var socket: String?

    @Option(help: ArgumentHelp("Memory of the server that is started.", valueName: "size"))
    var memory = ByteCount(1536 << 20)

    @Option(help: ArgumentHelp("Alternated runs of which the median is taken.", valueName: "n"))
    var rounds = 9

    @Option(
        help: ArgumentHelp(
            "Chunks of 'index' (default: 10 million) and of 'start' (default: a million).",
            valueName: "n"))
    var chunks: Int?

    @Option(
        help: ArgumentHelp(
            "Measure 'copy' with this Python, too; it needs the package (pip install ./python).",
            valueName: "path"))
    var python: String?

    @Option(
        help: ArgumentHelp(
            "Of 'disk' and 'start': a directory on the device; files of it are made in it and removed again.",
            valueName: "directory"))
    var directory = "."

    @Option(help: ArgumentHelp("Of 'disk': bytes written and read in each run.", valueName: "size"))
    var size = ByteCount(1 << 30)

    @Option(
        parsing: .upToNextOption,
        help: ArgumentHelp(
            "Of 'disk': the chunks to measure, from 4KiB to 64MiB, each a power of two.",
            valueName: "size"))
    var chunkSize = BenchDisk.usualSizes.map { ByteCount($0) }

    @Option(
        help: ArgumentHelp(
            "Of 'disk': also a prefix of so many bytes from disk to memory in one go, e.g. 13GB; it takes that much memory, and five times as much disk.",
            valueName: "size"))
    var prefix: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Of 'admission': a trace in Mooncake's format, one JSON object a line.",
            valueName: "file"))
    var trace: String?

    @Option(help: ArgumentHelp("Of 'admission': chunks that memory holds.", valueName: "n"))
    var memoryChunks = 5_859

    @Option(help: ArgumentHelp("Of 'admission': chunks that the disk holds.", valueName: "n"))
    var diskChunks = 58_590

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        if !(1...1_000).contains(rounds) {
            throw ValidationError("--rounds takes 1 to 1000, not \(rounds)")
        }
        if let chunks, !(1_000...100_000_000).contains(chunks) {
            throw ValidationError("--chunks takes 1000 to 100000000, not \(chunks)")
        }
        if size.bytes < 256 << 20 || size.bytes % BenchDisk.granularity != 0 {
            throw ValidationError("--size takes 256MiB or more, a multiple of 64MiB, not \(size)")
        }
        for size in chunkSize
        where !(4 << 10...BenchDisk.granularity).contains(size.bytes)
            || size.bytes & (size.bytes - 1) != 0
        {
            throw ValidationError(
                "--chunk-size takes powers of two from 4KiB to 64MiB, not \(size)")
        }
        if let prefix, prefix.bytes < 1 << 30 {
            throw ValidationError("--prefix takes 1GiB or more, not \(prefix)")
        }
        if part == .admission, trace == nil {
            throw ValidationError("'admission' needs a trace: --trace FILE")
        }
        for (name, value) in [("memory-chunks", memoryChunks), ("disk-chunks", diskChunks)]
        where !(100...100_000_000).contains(value) {
            throw ValidationError("--\(name) takes 100 to 100000000, not \(value)")
        }
        if memory.bytes < 1 << 30 {
            throw ValidationError("--memory takes 1GiB or more, not \(memory)")
        }
    }

    func run() throws {
        let progress = Progress()
        if part == .disk {
            var machine = Self.machine()
            let (results, fio) = try BenchDisk(
                directory: directory, byteCount: size.bytes, prefixBytes: prefix?.bytes,
                chunkSizes: chunkSize.map(\.bytes), rounds: rounds, progress: progress
            ).run()
            machine["fio"] = fio
            let report = BenchDiskReport(
                version: KvasirVersion.current, machine: machine, results: results)
            if json { try JSONOutput.print(report) } else { print(report.text) }
            return
        }
        if part == .admission {
            let results = try BenchAdmission(
                trace: try TraceOptions.parse([]).read([trace!], StageProgress()),
                memoryChunks: memoryChunks,
                diskChunks: diskChunks, progress: progress
            ).run()
            if json { try JSONOutput.print(results) } else { print(BenchAdmission.table(results)) }
            return
        }
        let parts: [Part] = part == .all ? [.descriptors, .match, .copy, .index, .engine] : [part]
        var results: [BenchResult] = []
        if part == .start {
            results = try BenchStart(
                directory: directory, chunkCount: chunks ?? 1_000_000, progress: progress
            ).run()
        } else if part != .index && part != .engine {
            let server =
                try socket.map { try BenchServer(named: $0, progress: progress) }
                ?? BenchServer(memoryBytes: memory.bytes, progress: progress)
            defer { server.stop() }
            for part in parts { results += try run(part, server, progress) }
        }
        if parts.contains(.index) {
            results += try BenchIndex(chunkCount: chunks ?? 10_000_000).run()
        }
        if parts.contains(.engine) {
            results += try BenchEngine(rounds: rounds, progress: progress).run()
        }
        let report = BenchReport(
            version: KvasirVersion.current, machine: Self.machine(), results: results)
        if json { try JSONOutput.print(report) } else { print(report.text) }
    }

    private func run(_ part: Part, _ server: BenchServer, _ progress: Progress) throws
        -> [BenchResult]
    {
        switch part {
        case .descriptors:
            try BenchDescriptors(server: server, rounds: rounds, progress: progress).run()
        case .match: try BenchMatch(server: server, rounds: rounds, progress: progress).run()
        case .copy:
            try BenchCopy(
                server: server, rounds: rounds,
                sizes: [1 << 18, 1 << 20, 4 << 20, 8 << 20, 16 << 20, 64 << 20],
                clientCounts: [1, 4], python: python, progress: progress
            ).run()
        case .index, .engine, .start, .disk, .admission, .all: []
        }
    }

    private static func machine() -> [String: String] {
        let information = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
        let model = information.split(separator: "\n").first { $0.hasPrefix("model name") }
        let name = model?.split(separator: ":").last.map { $0.trimmingCharacters(in: .whitespaces) }
        let load = (try? String(contentsOfFile: "/proc/loadavg", encoding: .utf8))?.split(
            separator: " "
        ).first
        return [
            "processor":
                "\(name ?? "unknown"), \(ProcessInfo.processInfo.activeProcessorCount) processors",
            "load before": load.map(String.init) ?? "unknown",
            "huge pages": HugePageProbe.obtainedBytes() > 0 ? "yes" : "no",
        ]
    }
}
