import KVDiskFormat
import KVIdentity
import KVThreads
import KVTier
import TestDisk
import TestRandom
import Testing

@testable import KVDisk

@Suite("Recovery")
struct RecoveryTests {
    @Test("finds exactly what the rules leave, over random logs", arguments: 1...3)
    func rules(volumes: Int) throws {
        let first = seedOfThisRun()
        print("recovery of \(volumes): seed \(first)")
        var counts = RecoveryCounts()
        for seed in first..<(first + 150) {
            var log = RandomLog(seed: seed, volumes: volumes)
            log.write(segments: 1 + Int(seed % 4))
            let files = log.disks.map { MemoryIO($0.files) }
            let recovered = try Recovered(files, wallMs: 1_000)
            if let complaint = recovered.complaint(log.disks) {
                Issue.record("seed \(seed): \(complaint)")
                return
            }
            let model = RecoveryModel(
                written: log.disks.map { $0.written.map(\.entry) }, spaces: log.described,
                wallMs: 1_000)
            let found = Self.found(recovered, log.disks)
            guard found == model.valid() else {
                Issue.record("seed \(seed): \(found.count) chunks, not \(model.valid().count)")
                return
            }
            for (chunk, _) in recovered.chunks {
                #expect(found[chunk.key]!.sequences.max() == chunk.sequence, "seed \(seed)")
            }
            #expect(recovered.problems.isEmpty, "seed \(seed)")
            #expect(!files.contains { $0.state.withLock { $0.isWritten } }, "it wrote")
            counts = recovered.disks.volumes.map(\.counts).reduce(counts, +)
        }
        // Everything has happened.
        print("recovery of \(volumes): \(counts)")
        #expect(counts.chunks > 100 && counts.droppedChunks > 0, "\(counts)")
        #expect(counts.expiredChunks > 0 && counts.incompleteChunks > 0, "\(counts)")
        #expect(counts.orphanedChunks > 0 && counts.supersededShards > 0, "\(counts)")
    }

    /// By key: the volume, and the sequences of the shards.
    private static func found(
        _ recovered: Recovered, _ disks: [SampleDisk]
    ) -> [Digest: RecoveryModel.Valid] {
        var sequences: [String: UInt64] = [:]
        for (volume, disk) in disks.enumerated() {
            for written in disk.written where written.entry.kind.hasBody {
                let page = written.entry.bodyOffset / 4096
                sequences["\(volume) \(written.segment) \(page)"] = written.entry.sequence
            }
        }
        var found: [Digest: RecoveryModel.Valid] = [:]
        for (chunk, shards) in recovered.chunks {
            let mine = shards.map {
                sequences["\(chunk.volume) \($0.place.segment) \($0.place.page)"]!
            }
            found[chunk.key] = .init(volume: chunk.volume, sequences: mine)
        }
        return found
    }

    @Test("a segment is read by its footer, else group by group, and told to the log")
    func segments() throws {
        var sample = Damage.sample()
        sample.disk.addSegment(9, [], isClosed: false)
        let recovered = try Recovered(MemoryIO(sample.disk.files))
        #expect(recovered.keys == sample.disk.keys(in: [1, 2, 3]))
        #expect([1, 2, 3, 9].map(recovered.state) == ["closed", "closed", "unfinished", "free"])
        #expect(recovered.directory.highestEpoch == 7 && recovered.directory.nextEpoch == 8)
        let unfinished = recovered.disk.segments[2]
        guard case .unfinished(let entries, let groupsEnd) = unfinished.state else { return }
        let mine = sample.disk.written.filter { $0.segment == 3 }.map(\.entry)
        #expect(entries == mine && groupsEnd == sample.disk.ends[3])
        #expect(unfinished.firstSequence == mine[0].sequence)
        #expect(unfinished.tombstones == mine.filter(\.kind.isDrop) && !mine.isEmpty)
        #expect(unfinished.header == sample.disk.headers[3])
        let live = recovered.disk.summaries.map(\.liveShardCount)
        #expect(live == [3, 3, 3, 0])
        #expect(recovered.disk.summaries[0].liveBytes == 3 * 8192)
        #expect(recovered.disks.spaces == [sample.space])
    }

    @Test("a body longer than the memory for it is verified in pieces")
    func longBodies() throws {
        for byteCount in [FileWindow.mostBytes - 4096, 2 * FileWindow.mostBytes + 123] {
            var disk = SampleDisk(seed: 4)
            let space = disk.space([byteCount])
            let chain = disk.chain(2, of: space)
            disk.addSegment(
                1, [[disk.description(of: space)], [chain[0]], [chain[1]]], isClosed: false,
                byteCount: 64 << 20)
            let recovered = try Recovered(MemoryIO(disk.files))
            #expect(recovered.keys == Set(chain.map(\.entry.key)))
            // One bit of the last byte.
            let last = disk.written.last!.entry
            disk.flip(1, at: last.bodyOffset + last.bodyBytes - 1, bit: 7)
            let damaged = try Recovered(MemoryIO(disk.files))
            #expect(damaged.keys == [chain[0].entry.key])
            #expect(damaged.disk.counts.damagedBodies == 1 && damaged.state(1) == "walked")
        }
    }

    @Test("what is streamed has the checksum of the whole")
    func streamedChecksum() {
        var random = SeededGenerator(seed: 5)
        for _ in 0..<200 {
            let bytes = (0..<random.below(5_000)).map { _ in
                UInt8(truncatingIfNeeded: random.next())
            }
            var streamed = StreamedChecksum()
            var start = 0
            while start < bytes.count {
                let end = min(bytes.count, start + 1 + random.below(700))
                bytes[start..<end].withUnsafeBytes { streamed.add($0) }
                start = end
            }
            #expect(streamed.value == checksum(bytes))
        }
    }

    @Test("more shards than the limit: the newest segments win, and it is told")
    func limit() throws {
        let sample = Damage.sample()
        let recovered = try Recovered(MemoryIO(sample.disk.files), mostShards: 6)
        #expect(recovered.keys == sample.disk.keys(in: [2, 3]))
        #expect(recovered.disk.counts.beyondLimit == 3)
        #expect(recovered.problems.contains("more than 6 shards"))
    }

    @Test("progress reaches the end, and can end the recovery")
    func progress() throws {
        let sample = Damage.sample()
        let directory = try DiskDirectory.look(MemoryIO(sample.disk.files))
        var told: [DiskRecoveryProgress] = []
        let disk = DiskRecovery([directory], wallMs: 0) {
            told.append($0)
            return true
        }.run()
        #expect(disk != nil)
        let last = try #require(told.last)
        #expect(last.segmentsDone == 3 && last.segmentCount == 3)
        #expect(last.bytesDone == 3 * 256 << 10 && last.bytesTotal == last.bytesDone)
        for stop in 1...told.count {
            var count = 0
            let recovery = DiskRecovery([directory], wallMs: 0) { _ in
                count += 1
                return count < stop
            }
            #expect(recovery.run() == nil && count == stop)
        }
    }

    @Test("a simulated disk after a crash: what was synced is there")
    func simulated() throws {
        let io = SimulatedIO(seed: 3)
        var random = SeededGenerator(seed: 3)
        let made = try DiskDirectory.open(io, nowMs: 5, random: &random)
        #expect(made.isNew && made.segments.isEmpty && made.nextEpoch == 1)
        let again = try DiskDirectory.open(io.crash(), nowMs: 6, random: &random)
        #expect(!again.isNew && again.header == made.header)
        #expect(DiskRecovery([again], wallMs: 0).run()?.chunkCount == 0)
    }
}
