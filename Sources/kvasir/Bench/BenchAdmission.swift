import ArgumentParser
import Foundation
import KVDisk
import KVDiskFormat
import KVIdentity
import KVStore
import ReferenceLM

/// What each admission rule brings and costs on a trace: the very core, on virtual time, with a disk
/// that does everything at once and keeps nothing.
struct BenchAdmission {
    static let name = "admission"

    /// Bytes of a chunk; what they are is of no matter, only that entries are small beside them.
    private static let chunkBytes = 64 << 10

    let trace: [MooncakeRequest]
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
        var results = [try replay(nil)]
        for admission in DiskAdmission.allCases { results.append(try replay(admission)) }
        progress.done()
        return results
    }

    /// - Parameter admission: nil for no disk.
    private func replay(_ admission: DiskAdmission?) throws -> Result {
        let slabBytes = 1 << 20
        let arenaBytes = (memoryChunks * Self.chunkBytes + slabBytes - 1) / slabBytes * slabBytes
        // Never destroyed: it lives about as long as the benchmark.
        let place = UnsafeMutablePointer<StoreCore>.allocate(capacity: 1)
        place.initialize(
            to: StoreCore(
                .init(
                    arenaBytes: arenaBytes, slabBytes: slabBytes, checkOneIn: 0, secret: (1, 2),
                    admission: admission ?? .all)))
        return try replay(into: &place.pointee, admission, slabCount: arenaBytes / slabBytes)
    }

    private func replay(
        into core: inout StoreCore, _ admission: DiskAdmission?, slabCount: Int
    ) throws -> Result {
        let space = try BenchSpace.make(chunkBytes: Self.chunkBytes)
        core.slabsBecameReady(0..<slabCount)
        if admission != nil {
            let volume = core.add(diskConfiguration())
            core.diskMayBegin(volume: volume, epoch: 1, now: 0)
            core.recovered(volume: volume, now: 0)
        }
        let session = core.openSession(name: "replay")
        let handle = try core.open(space, session: session).handle
        let root = Root(space: space.id).digest
        var asked = 0
        for (number, request) in trace.enumerated() where !request.keys.isEmpty {
            asked += request.keys.count
            try replay(
                request, &core, space: handle, root: root, session: session)
            if number % 256 == 0 {
                progress.tell(
                    "\(admission?.rawValue ?? "no disk"): \(number) of \(trace.count) requests")
            }
        }
        let counters = core.counters
        let sealed = max(1, counters.chunksSealed)
        let hits = counters.matchedKeysHit
        return Result(
            admission: admission?.rawValue ?? "no disk", memoryChunks: memoryChunks,
            diskChunks: admission == nil ? 0 : diskChunks,
            hitShare: Double(hits) / Double(asked),
            memoryShare: Double(hits - counters.matchedKeysOnDisk) / Double(asked),
            diskShare: Double(counters.matchedKeysOnDisk) / Double(asked),
            sealedChunks: counters.chunksSealed,
            writtenPerSealed: Double(counters.chunksWritten) / Double(sealed),
            movedShare: Double(counters.chunksMoved) / Double(max(1, counters.chunksWritten)),
            onDiskAtEnd: core.gauges.disk.chunksOnDisk)
    }

    private func diskConfiguration() -> LogConfiguration {
        let segmentChunks = max(64, diskChunks / 64)
        // Headers, entries and footers come on top.
        let segment = (segmentChunks * (Self.chunkBytes + 512) + (1 << 20)) / 4096 * 4096
        return LogConfiguration(
            disk: DiskID(words: (1, 1)), segmentBytes: segment,
            budgetBytes: (diskChunks / segmentChunks + 2) * segment, seed: 1, wallOffsetMs: 0)
    }

    /// A request as a connector makes it: match, load what is there, save what is not.
    private func replay(
        _ request: MooncakeRequest, _ core: inout StoreCore, space: UInt32, root: Digest,
        session: UInt64
    ) throws {
        let now = request.milliseconds * 1_000_000 + 1
        let keys = request.keys
        let match = try core.match(
            space: space, root: root, keys: keys, holdMs: 1_000, session: session, now: now)
        settle(&core, now)
        if match.hold != 0 {
            let lease = try core.acquire(hold: match.hold, shard: 0, session: session, now: now)
            settle(&core, now)
            _ = try core.release(lease.lease, session: session, now: now)
            settle(&core, now)
        }
        if match.count == keys.count { return }
        // What is longer than the memory can't be saved whole.
        let reservation = try core.reserve(
            space: space, root: root, keys: Array(keys[match.count...]),
            parent: match.count > 0 ? keys[match.count - 1] : nil, timeToLiveMs: 1_000,
            session: session, now: now)
        settle(&core, now)
        if reservation.lease == 0 { return }
        _ = try core.commit(
            lease: reservation.lease, shard: 0, positions: nil, session: session, now: now)
        settle(&core, now)
    }

    /// Does at once what the core asks for.
    private func settle(_ core: inout StoreCore, _ now: UInt64) {
        core.settle(now: now)
        while !core.effects.isEmpty {
            let effects = core.effects
            core.effects = []
            for effect in effects {
                switch effect {
                case .check(let job, _, _), .prepare(let job, _, _):
                    core.checkCompleted(job: job, checksum: 0, now: now)
                case .io(let volume, let request):
                    core.diskCompleted(volume: volume, request.id, .done, now: now)
                case .leaseReady, .warning, .synced: break
                }
                core.settle(now: now)
            }
        }
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

/// A request of a trace in Mooncake's format: one JSON object a line with `timestamp` in
/// milliseconds, `input_length` in tokens and `hash_ids`, one for each 512 tokens. Equal ids mean
/// equal prefixes. A last block that is not full is left out.
struct MooncakeRequest {
    var milliseconds: UInt64
    var keys: [Digest]

    private struct Line: Decodable {
        var timestamp: Double
        var inputLength: Int
        var hashIDs: [UInt64]

        enum CodingKeys: String, CodingKey {
            case timestamp
            case inputLength = "input_length"
            case hashIDs = "hash_ids"
        }
    }

    static func read(_ path: String) throws -> [MooncakeRequest] {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw CommandFailure("can't read the trace \(path)")
        }
        let decoder = JSONDecoder()
        var requests: [MooncakeRequest] = []
        for (number, line) in text.split(separator: "\n").enumerated() {
            guard let parsed = try? decoder.decode(Line.self, from: Data(line.utf8)),
                parsed.timestamp >= 0, parsed.inputLength >= 0
            else {
                throw CommandFailure(
                    "\(path), line \(number + 1): not a request of a trace in Mooncake's format "
                        + "(timestamp, input_length, hash_ids)")
            }
            let full = min(parsed.hashIDs.count, parsed.inputLength / 512)
            requests.append(
                MooncakeRequest(
                    milliseconds: UInt64(parsed.timestamp),
                    keys: parsed.hashIDs.prefix(full).map { id in
                        var random = SeededRandom(seed: id)
                        return Digest(random: &random)
                    }))
        }
        return requests
    }
}
