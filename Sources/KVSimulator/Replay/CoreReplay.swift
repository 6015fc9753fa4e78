import KVDisk
import KVDiskFormat
import KVIdentity
package import KVPolicy
package import KVStore

/// The store's very core on a trace, on virtual time: memory, and behind it a disk that does
/// everything at once and keeps nothing.
///
/// The disk is the store's own log: segments that are filled in turn; when the oldest is wanted back,
/// chunks that were used since they were written are written again, up to half of a segment, and
/// the others are gone, with all that follows them and isn't in memory.
package struct CoreReplay {
    /// Bytes of a chunk; what they are is of no matter, only that entries are small beside them.
    private static let chunkBytes = 64 << 10

    /// Chunks of the memory, and of the disk, at most: what the core keeps of them grows with it, and
    /// a segment of the log must not get longer than the format allows.
    package static let chunksMaximum = 1 << 24

    let trace: Trace
    let memoryChunks: Int
    let diskChunks: Int
    let storesPartial: Bool
    private let keys: [Digest]

    package struct Result: Sendable {
        /// Found in memory or on disk.
        package var found: ReplayResult
        /// Chunks found in memory, and on disk.
        package var memoryHits = 0
        package var diskHits = 0
        /// Tokens found on disk.
        package var diskHitTokens = 0.0
        /// Chunks that were computed and stored.
        package var sealedChunks = 0
        /// Chunks written to disk, and those of them that were only moved.
        package var writtenChunks = 0
        package var movedChunks = 0
        /// Chunks that a restart at the end of the trace would find.
        package var onDiskAtEnd = 0

        /// Nothing was stored so far.
        package init(_ trace: Trace) {
            found = ReplayResult(trace)
        }

        /// What two servers did.
        package static func + (left: Result, right: Result) -> Result {
            var sum = left
            sum.found = left.found + right.found
            sum.memoryHits += right.memoryHits
            sum.diskHits += right.diskHits
            sum.diskHitTokens += right.diskHitTokens
            sum.sealedChunks += right.sealedChunks
            sum.writtenChunks += right.writtenChunks
            sum.movedChunks += right.movedChunks
            sum.onDiskAtEnd += right.onDiskAtEnd
            return sum
        }
    }

    /// - Parameters:
    ///   - memoryChunks: rounded up to whole slabs (16 chunks).
    ///   - diskChunks: the room of the log in chunks; at least some are in the segment being filled.
    package init(
        _ trace: Trace, memoryChunks: Int, diskChunks: Int, storesPartial: Bool = false
    ) {
        self.trace = trace
        self.memoryChunks = memoryChunks
        self.diskChunks = diskChunks
        self.storesPartial = storesPartial
        keys = trace.fingerprints.map { fingerprint in
            Digest(
                words: (
                    fingerprint, ChunkName.mix(fingerprint &+ 1), ChunkName.mix(fingerprint &+ 2),
                    ChunkName.mix(fingerprint &+ 3)
                ))
        }
    }

    /// - Throws: ``SizeError`` if a size is more than ``chunksMaximum``.
    package static func check(memoryChunks: Int, diskChunks: Int) throws {
        for (name, chunks) in [("memory", memoryChunks), ("disk", diskChunks)]
        where chunks > chunksMaximum {
            throw SizeError(
                description:
                    "a \(name) of \(chunks) chunks (all servers together, if they share) is more than "
                    + "the \(chunksMaximum) that can be replayed with a disk; take a smaller size, or "
                    + "larger chunks (--chunk-tokens)")
        }
    }

    /// Why sizes can't be replayed, and what to do.
    package struct SizeError: Error, CustomStringConvertible, Equatable {
        package let description: String
    }

    /// Replays the trace.
    ///
    /// - Parameters:
    ///   - admission: which chunks go to disk; nil for no disk.
    ///   - hints: by request; nil for what the trace has.
    package func run(
        policy: any EvictionPolicy, admission: DiskAdmission?, hints: [ReuseHint]? = nil,
        progress: (Double) -> Void = { _ in }, found: OnFound = { _, _ in }
    ) throws -> Result {
        try Self.check(memoryChunks: memoryChunks, diskChunks: diskChunks)
        let slabBytes = 1 << 20
        let arenaBytes = (memoryChunks * Self.chunkBytes + slabBytes - 1) / slabBytes * slabBytes
        let box = CoreBox(
            .init(
                arenaBytes: arenaBytes, slabBytes: slabBytes, checkOneIn: 0, secret: (1, 2),
                admission: admission ?? .all), policy: policy)
        return try box.withCore { core in
            try run(
                &core, admission, hints, slabCount: arenaBytes / slabBytes, progress, found)
        }
    }

    private func run(
        _ core: inout StoreCore, _ admission: DiskAdmission?, _ hints: [ReuseHint]?,
        slabCount: Int, _ progress: (Double) -> Void, _ onFound: OnFound
    ) throws -> Result {
        let space = try CacheSpace(
            model: keys.first ?? Digest(words: (1, 2, 3, 4)), modelName: "kvasir simulate",
            dtype: "bfloat16", kind: .opaque, layers: 1, heads: 1, headSize: 1, order: "bytes",
            blockTokens: 16, chunkTokens: 256, shardBytes: [Self.chunkBytes])
        core.slabsBecameReady(0..<slabCount)
        if admission != nil {
            let volume = core.add(diskConfiguration())
            core.diskMayBegin(volume: volume, epoch: 1, now: 0)
            core.recovered(volume: volume, now: 0)
        }
        let session = core.openSession(name: "replay")
        let handle = try core.open(space, session: session).handle
        let root = Root(space: space.id).digest
        var found = ReplayResult(trace)
        var diskHitTokens = 0.0
        for (number, request) in trace.requests.enumerated() {
            if number % 256 == 0 { progress(Double(number) / Double(trace.requests.count)) }
            let path = trace.chunks(of: request, storesPartial: storesPartial)
            if path.isEmpty { continue }
            let hits = try replay(
                path.map { keys[Int($0)] }, at: request.nanoseconds + 1,
                hints?[number] ?? ReuseHint(request.hint),
                &core, space: handle, root: root, session: session)
            found.count(hits: hits.all, of: request, chunkTokens: trace.chunkTokens)
            diskHitTokens += hits.tokens(of: request, chunkTokens: trace.chunkTokens).onDisk
            onFound(number, hits)
        }
        let counters = core.counters
        var result = Result(trace)
        result.found = found
        result.memoryHits = counters.matchedKeysHit - counters.matchedKeysOnDisk
        result.diskHits = counters.matchedKeysOnDisk
        result.diskHitTokens = diskHitTokens
        result.sealedChunks = counters.chunksSealed
        result.writtenChunks = counters.chunksWritten
        result.movedChunks = counters.chunksMoved
        result.onDiskAtEnd = core.gauges.disk.chunksOnDisk
        return result
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
    ///
    /// - Returns: chunks found.
    private func replay(
        _ keys: [Digest], at now: UInt64, _ hint: ReuseHint, _ core: inout StoreCore,
        space: UInt32, root: Digest, session: UInt64
    ) throws -> Hits {
        let match = try core.match(
            space: space, root: root, keys: keys, holdMs: 1_000, hint: hint, session: session,
            now: now)
        settle(&core, now)
        if match.hold != 0 {
            let lease = try core.acquire(hold: match.hold, shard: 0, session: session, now: now)
            settle(&core, now)
            _ = try core.release(lease.lease, session: session, now: now)
            settle(&core, now)
        }
        let hits = Hits(all: match.count, onDisk: match.tiers.count { $0 == .disk })
        if match.count == keys.count { return hits }
        // What is longer than the memory can't be saved whole.
        let reservation = try core.reserve(
            space: space, root: root, keys: Array(keys[match.count...]),
            parent: match.count > 0 ? keys[match.count - 1] : nil, timeToLiveMs: 1_000,
            hint: hint, session: session, now: now)
        settle(&core, now)
        if reservation.lease == 0 { return hits }
        _ = try core.commit(
            lease: reservation.lease, shard: 0, positions: nil, session: session, now: now)
        settle(&core, now)
        return hits
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
                case .leaseReady, .warning, .synced, .keepStatics: break
                }
                core.settle(now: now)
            }
        }
    }
}
