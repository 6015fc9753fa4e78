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

            It starts a server of its own and stops it again. Runs alternate and medians are given. docs/performance.md \
            says what is measured how.
            """)

    enum Part: String, ExpressibleByArgument, CaseIterable {
        case descriptors, match, copy, index, engine, all
    }

    @Argument(help: "descriptors, match, copy, index, engine or all.")
    var part = Part.all

    @Option(
        help: ArgumentHelp(
            "Measure the server behind this socket, which gives up what it has stored.",
            valueName: "path"))
    var socket: String?

    @Option(help: ArgumentHelp("Memory of the server that is started.", valueName: "size"))
    var memory = ByteCount(1536 << 20)

    @Option(help: ArgumentHelp("Alternated runs of which the median is taken.", valueName: "n"))
    var rounds = 7

    @Option(help: ArgumentHelp("Chunks of 'index'.", valueName: "n"))
    var chunks = 10_000_000

    @Option(
        help: ArgumentHelp(
            "Measure 'copy' with this Python, too; it needs the package (pip install ./python).",
            valueName: "path"))
    var python: String?

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        if !(1...1_000).contains(rounds) {
            throw ValidationError("--rounds takes 1 to 1000, not \(rounds)")
        }
        if !(1_000...100_000_000).contains(chunks) {
            throw ValidationError("--chunks takes 1000 to 100000000, not \(chunks)")
        }
        if memory.bytes < 1 << 30 {
            throw ValidationError("--memory takes 1GiB or more, not \(memory)")
        }
    }

    func run() throws {
        let progress = Progress()
        let parts: [Part] = part == .all ? [.descriptors, .match, .copy, .index, .engine] : [part]
        var results: [BenchResult] = []
        if part != .index && part != .engine {
            let server =
                try socket.map { try BenchServer(named: $0, progress: progress) }
                ?? BenchServer(memoryBytes: memory.bytes, progress: progress)
            defer { server.stop() }
            for part in parts { results += try run(part, server, progress) }
        }
        if parts.contains(.index) { results += try BenchIndex(chunkCount: chunks).run() }
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
        case .index, .engine, .all: []
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
