import KVDiskFormat
import KVIdentity
import KVThreads
import TestDisk
import TestRandom
import Testing

@testable import KVDisk

@Suite("Recovery of several volumes")
struct RecoveryVolumesTests {
    /// Two volumes, and a prompt whose chunks are on them in turn.
    struct Sample {
        var disks = [SampleDisk(seed: 31), SampleDisk(seed: 32)]
        let space: CacheSpace
        let root: Digest
        let keys: [Digest]
        private var segments: UInt64 = 0

        init(shardBytes: [Int] = [5_000]) {
            // Sequences of different volumes have nothing to do with each other.
            disks[1].nextSequence = 3 << 40
            space = disks[0].space(shardBytes)
            root = disks[0].digest()
            var keys: [Digest] = []
            for _ in 0..<6 { keys.append(disks[0].digest()) }
            self.keys = keys
        }

        mutating func chunk(
            _ index: Int, on volume: Int, shard: Int = 0, writtenMs: UInt64 = 1
        ) -> Written {
            var written = disks[volume].chunk(
                keys[index], parent: index == 0 ? nil : keys[index - 1], root: root,
                space: space.id, index: index, shard: shard, byteCount: space.shardBytes[shard])
            written.entry.writtenMs = writtenMs
            return written
        }

        /// Adds a segment to each volume.
        mutating func add(_ written: [[Written]]) {
            segments += 1
            for volume in disks.indices {
                let description = disks[volume].description(of: space)
                disks[volume].addSegment(
                    segments, [[description] + written[volume]], isClosed: segments % 2 == 1)
            }
        }

        mutating func addPrompt() {
            var written: [[Written]] = [[], []]
            for index in keys.indices {
                written[index % 2].append(chunk(index, on: index % 2))
            }
            add(written)
        }

        mutating func drop(_ index: Int) {
            let drop = Written(
                entry: .dropKey(keys[index], space: space.id, root: root, writtenMs: 1), body: [])
            add([[drop], [drop]])
        }

        func recovered() throws -> Recovered {
            let recovered = try Recovered(disks.map { MemoryIO($0.files) })
            #expect(recovered.complaint(disks) == nil)
            return recovered
        }
    }

    @Test("a chunk's parent may be on another volume")
    func parents() throws {
        var sample = Sample()
        sample.addPrompt()
        let recovered = try sample.recovered()
        #expect(recovered.chunks.map(\.chunk.key) == sample.keys)
        #expect(recovered.chunks.map(\.chunk.volume) == [0, 1, 0, 1, 0, 1])
        #expect(recovered.disks.spaces == [sample.space])
        for volume in recovered.disks.volumes {
            #expect(volume.counts.chunks == 3 && volume.summaries[0].liveShardCount == 3)
            #expect(volume.segments.count == 1 && volume.problems.isEmpty)
        }
        // Each alone lacks parents.
        let alone = try Recovered(MemoryIO(sample.disks[1].files))
        #expect(alone.chunks.isEmpty && alone.disk.counts.orphanedChunks == 3)
        #expect(alone.problems.isEmpty)
        let verification = try #require(
            DiskVerification(recovered.directories, recovered.disks))
        #expect(verification.shardCount == 6 && verification.badCount == 0)
    }

    @Test("a verification says which volume is bad")
    func verification() throws {
        var sample = Sample()
        sample.addPrompt()
        let entry = sample.disks[1].written.last!.entry
        sample.disks[1].flip(1, at: entry.bodyOffset)
        let recovered = try Recovered(sample.disks.map { MemoryIO($0.files) })
        let verification = try #require(
            DiskVerification(recovered.directories, recovered.disks))
        #expect(verification.shardCount == 6 && verification.badCount == 1)
        #expect(verification.bad.map(\.volume) == [1] && verification.bad[0].key == entry.key)
    }

    @Test("what has expired does not come back from an older copy that knew no end")
    func expiredCopy() throws {
        for (expiresMs, writtenMs, found) in [(20, 9, 0), (40, 9, 1), (20, 1, 1)] {
            var sample = Sample()
            var newer = sample.chunk(0, on: 1, writtenMs: UInt64(writtenMs))
            newer.entry.expiresMs = UInt64(expiresMs)
            sample.add([[sample.chunk(0, on: 0, writtenMs: 5)], [newer]])
            let recovered = try Recovered(sample.disks.map { MemoryIO($0.files) }, wallMs: 30)
            #expect(recovered.chunks.count == found, "\(expiresMs), \(writtenMs)")
            #expect(recovered.complaint(sample.disks) == nil)
        }
    }

    @Test("a drop reaches what follows on other volumes, and only what is older there")
    func drops() throws {
        var sample = Sample()
        sample.addPrompt()
        sample.drop(2)
        #expect(try sample.recovered().chunks.map(\.chunk.key) == Array(sample.keys[..<2]))
        // Its chunk is there again, on the other volume: what follows it is still dropped.
        sample.add([[], [sample.chunk(2, on: 1)]])
        let again = try sample.recovered()
        #expect(again.chunks.map(\.chunk.key) == Array(sample.keys[..<3]))
        #expect(again.disks.volumes[0].counts.droppedChunks == 1)
        #expect(again.disks.volumes[1].counts.droppedChunks == 1)
        // And one that was written later isn't.
        sample.add([[sample.chunk(3, on: 0)], []])
        let last = try sample.recovered()
        #expect(last.chunks.map(\.chunk.key) == Array(sample.keys[..<4]))
        #expect(last.chunks.map(\.chunk.volume) == [0, 1, 1, 0])
    }

    @Test(
        "of two copies the one written later is taken, at the same time the lower volume",
        arguments: [(3, 2, 0), (2, 3, 1), (3, 3, 0)] as [(UInt64, UInt64, Int)])
    func copies(first: UInt64, second: UInt64, taken: Int) throws {
        var sample = Sample()
        sample.add([
            [sample.chunk(0, on: 0, writtenMs: first)], [sample.chunk(0, on: 1, writtenMs: second)],
        ])
        let recovered = try sample.recovered()
        #expect(recovered.chunks.map(\.chunk.volume) == [taken])
        #expect(recovered.disks.volumes[taken].counts.chunks == 1)
        #expect(recovered.disks.volumes[1 - taken].counts.supersededChunks == 1)
        #expect(recovered.disks.volumes[1 - taken].summaries[0].liveShardCount == 0)
    }

    @Test("a copy that isn't complete gives way to one that is; two halves make no chunk")
    func halves() throws {
        var sample = Sample(shardBytes: [4_096, 5_000])
        sample.add([
            [sample.chunk(0, on: 0, shard: 0)], [sample.chunk(0, on: 1, shard: 1, writtenMs: 9)],
        ])
        let halves = try sample.recovered()
        #expect(halves.chunks.isEmpty)
        #expect(halves.disks.volumes.map(\.counts.incompleteChunks) == [1, 1])
        sample.add([[sample.chunk(0, on: 0, shard: 1)], []])
        let whole = try sample.recovered()
        #expect(whole.chunks.map(\.chunk.volume) == [0])
        #expect(whole.disks.volumes.map(\.counts.incompleteChunks) == [0, 1])
    }

    @Test("a volume that can't be read is left out; the others are read")
    func unreadable() throws {
        var sample = Sample()
        sample.addPrompt()
        let dead = MemoryIO(sample.disks[0].files)
        var random = SeededGenerator(seed: 1)
        let directories = [
            try DiskDirectory.open(dead, nowMs: 1, random: &random),
            try DiskDirectory.open(MemoryIO(sample.disks[1].files), nowMs: 1, random: &random),
        ]
        dead.state.withLock { state in
            for name in state.files.keys { state.badRanges[name] = 0..<Int.max }
        }
        let lost = try #require(DiskRecovery(directories, wallMs: 0).run())
        #expect(lost.chunkCount == 0 && lost.volumes[1].counts.orphanedChunks == 3)
        #expect(!lost.volumes[0].problems.isEmpty && lost.volumes[1].problems.isEmpty)
        // What needs nothing from it is found.
        sample.add([[], (0..<3).map { sample.chunk($0, on: 1) }])
        let file = MemoryIO(sample.disks[1].files)
        let whole = try DiskDirectory.open(file, nowMs: 1, random: &random)
        let found = try #require(DiskRecovery([directories[0], whole], wallMs: 0).run())
        #expect(found.chunkCount == 4)
    }

    @Test("each volume may have its part of the shards")
    func limit() throws {
        var sample = Sample()
        sample.addPrompt()
        let files = sample.disks.map { MemoryIO($0.files) }
        let recovered = try Recovered(files, mostShards: 4)
        #expect(recovered.disks.volumes.map(\.counts.beyondLimit) == [1, 1])
        #expect(recovered.keys == Set(sample.keys[..<4]))
    }
}
