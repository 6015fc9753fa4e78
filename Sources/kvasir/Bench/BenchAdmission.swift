import KVPolicy
import KVSimulator
import KVStore

/// What each admission rule brings and costs on a trace: the very core, on virtual time, with a disk
/// that does everything at once and keeps nothing.
struct BenchAdmission {
    static let name = "admission"

    let trace: Trace
    let memoryChunks: Int
    let diskChunks: Int
    let progress: Progress

    struct Result: Codable {
        var admission: String
        var memoryChunks: Int
        var diskChunks: Int
        /// Of the chunks that requests asked for, the share that was found, in memory and on disk.
        var hitShare: Double
        var memoryShare: Double
        var diskShare: Double
        /// Chunks that were computed and stored.
        var sealedChunks: Int
        /// Chunks that were written to disk for each that was stored; those moved on disk included.
        var writtenPerSealed: Double
        /// Of the chunks written, the share that was only moved.
        var movedShare: Double
        /// Chunks that a restart at the end of the trace would find.
        var onDiskAtEnd: Int
    }

    func run() throws -> [Result] {
        let replay = CoreReplay(trace, memoryChunks: memoryChunks, diskChunks: diskChunks)
        let asked = max(1, trace.requests.reduce(0) { $0 + Int($1.fullCount) })
        let admissions: [DiskAdmission?] = [nil] + DiskAdmission.allCases
        let results = try admissions.map { admission in
            let name = admission?.rawValue ?? "no disk"
            let result = try replay.run(policy: PolicyName.default.make(), admission: admission) {
                progress.tell("\(name): \(Int($0 * 100)) %")
            }
            return Result(
                admission: name, memoryChunks: memoryChunks,
                diskChunks: admission == nil ? 0 : diskChunks,
                hitShare: Double(result.memoryHits + result.diskHits) / Double(asked),
                memoryShare: Double(result.memoryHits) / Double(asked),
                diskShare: Double(result.diskHits) / Double(asked),
                sealedChunks: result.sealedChunks,
                writtenPerSealed: Double(result.writtenChunks)
                    / Double(max(1, result.sealedChunks)),
                movedShare: Double(result.movedChunks) / Double(max(1, result.writtenChunks)),
                onDiskAtEnd: result.onDiskAtEnd)
        }
        progress.done()
        return results
    }

    static func table(_ results: [Result]) -> String {
        var table = TextTable(
            "rule", "hits %", "in memory %", "on disk %", "stored", "written / stored", "moved %",
            "on disk at the end")
        for result in results {
            table.rows.append([
                result.admission, Format.fixed(result.hitShare * 100, 2),
                Format.fixed(result.memoryShare * 100, 2),
                Format.fixed(result.diskShare * 100, 2), Format.number(result.sealedChunks),
                Format.fixed(result.writtenPerSealed, 3),
                Format.fixed(result.movedShare * 100, 1), Format.number(result.onDiskAtEnd),
            ])
        }
        return table.text
    }
}
