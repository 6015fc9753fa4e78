import ArgumentParser
import Foundation

/// (d) What the index costs in memory.
struct BenchIndex {
    static let name = "index"

    let chunkCount: Int

    func run() throws -> [BenchResult] {
        // In a process of its own, so that memory that others gave back doesn't hide the growth.
        var pipe: [Int32] = [-1, -1]
        guard Glibc.pipe(&pipe) == 0 else {
            throw CommandFailure("no pipe: \(String(cString: strerror(errno)))")
        }
        let child: ChildProcess
        do {
            defer { close(pipe[1]) }
            child = try ChildProcess(["bench-index", "--chunks", "\(chunkCount)"], output: pipe[1])
        } catch {
            close(pipe[0])
            throw error
        }
        defer { child.stop() }
        let data = FileHandle(fileDescriptor: pipe[0], closeOnDealloc: true).readDataToEndOfFile()
        guard let figures = try? JSONDecoder().decode(Figures.self, from: data) else {
            throw CommandFailure(
                "the process that was measured ended early; it takes about 3 GB of memory")
        }
        return [
            BenchResult(
                bench: Self.name, what: "\(Format.number(figures.chunks)) chunks (limit: a key)",
                unit: "bytes",
                limit: 32, kvasir: figures.bytesPerChunk, ratio: figures.bytesPerChunk / 32,
                aim: "at most 200 bytes",
                reached: figures.bytesPerChunk <= 200,
                details: [
                    "fillNanosecondsPerChunk": figures.nanosecondsPerChunk,
                    "peakBytesPerChunk": figures.peakBytesPerChunk,
                ])
        ]
    }

    struct Figures: Codable {
        var chunks: Int
        var bytesPerChunk: Double
        var peakBytesPerChunk: Double
        var nanosecondsPerChunk: Double
    }
}

/// Fills a core and says by how much the process grew.
struct IndexChild: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench-index", abstract: "Part of 'kvasir bench'.", shouldDisplay: false)

    @Option var chunks: Int

    func run() throws {
        let progress = Progress()
        let before = Measure.residentBytes()
        let started = Measure.now()
        var core = try FilledCore(expectedChunks: chunks)
        let step = max(1, chunks / 20)
        while core.chunkCount < chunks {
            try core.add(min(step, chunks - core.chunkCount))
            progress.tell(
                "index: \(Format.number(core.chunkCount)) of \(Format.number(chunks)) chunks")
        }
        progress.done()
        let time = Double(Measure.now() - started)
        let grown = Double(Measure.residentBytes() - before)
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        let peak = Double(usage.ru_maxrss * 1024 - before)
        let count = Double(core.chunkCount)
        try JSONOutput.print(
            BenchIndex.Figures(
                chunks: core.chunkCount, bytesPerChunk: grown / count,
                peakBytesPerChunk: peak / count,
                nanosecondsPerChunk: time / count))
    }
}
