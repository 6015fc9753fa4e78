import KVDiskFormat
import KVTier
import Testing

@testable import KVDisk

@Suite("What a log makes durable")
struct LogSyncTests {
    @Test("A ticket waits for all that was given before, and for nothing else")
    func tickets() {
        var bench = LogBench.started()
        bench.sync(1)
        #expect(bench.answer(1) == true, "nothing to wait for")
        bench.write(1)
        bench.sync(2)
        bench.finishAll { $0.isGroup }
        bench.write(2)
        let groups = bench.openGroups
        bench.finish(bench.request(groups[0]))
        #expect(bench.answer(2) == nil)
        #expect(bench.open.count(where: \.isSync) == 1)
        bench.finish(bench.open.first(where: \.isSync)!)
        #expect(bench.answer(2) == true)
        bench.finishAll()
        bench.drop(1)
        bench.sync(3)
        bench.finish(bench.open.first(where: \.isGroup)!)
        #expect(bench.answer(3) == nil)
        bench.finishAll()
        #expect(bench.answer(3) == true)
    }

    @Test("A sync covers what was written when it was asked for, not what came later")
    func laterWrites() {
        var bench = LogBench.started()
        bench.write(1)
        bench.sync(1)
        bench.finishAllButSyncsOfGroups()
        let sync = bench.open.first(where: \.isSync)!
        bench.write(2)
        bench.finishAll { $0.id == sync.id }
        bench.sync(2)
        bench.finish(sync)
        #expect(bench.answer(1) == true && bench.answer(2) == nil)
        bench.finishAll()
        #expect(bench.answer(2) == true)
    }

    @Test("What is written is synced after a second, whether anybody asks or not")
    func periodic() {
        var bench = LogBench.started()
        bench.write(1)
        bench.finishAll()
        let syncs = bench.log.counters.syncs
        #expect(bench.log.nextDeadline == LogTimes.second)
        bench.advance(by: LogTimes.second - 1)
        #expect(bench.open.isEmpty)
        bench.advance(by: 1)
        #expect(bench.open.map(\.isSync) == [true])
        bench.finishAll()
        #expect(bench.log.counters.syncs == syncs + 1 && bench.log.nextDeadline == nil)
    }

    @Test(
        "After a sync that failed the segment is asked back whole, and no ticket is answered well")
    func doubt() {
        var bench = LogBench.started()
        bench.write(1)
        bench.drop(7)
        bench.finishAll()
        bench.sync(1)
        bench.fail(.inputOutput) { $0.isSync }
        #expect(bench.answer(1) == false)
        bench.finishAll()
        #expect(bench.reclaims.isEmpty, "not while nothing can be written")
        bench.advance(by: LogTimes.second)
        bench.finishAll()
        #expect(bench.reclaims.map(\.segment) == [1] && bench.reclaims[0].keepAll)
        bench.sync(2)
        #expect(bench.answer(2) == false, "a live record is in doubt")
        bench.finishAll()
        // The owner writes it again.
        bench.write(101, byteCount: 4096)
        bench.finishAll()
        #expect(bench.groups.last!.file == 2)
        bench.forget(1, byteCount: SampleRecord(1).body.count)
        bench.reclaimed(1)
        bench.sync(3)
        #expect(bench.answer(3) == nil)
        bench.finishAll()
        #expect(bench.answer(3) == true)
        #expect(bench.drops.count == 2 && bench.drops[0].bound == bench.drops[1].bound)
        #expect(bench.drops[0].sequence != bench.drops[1].sequence)
    }

    @Test("A drop whose sync has failed is written again before a later ticket is answered")
    func dropInDoubt() {
        var bench = LogBench.started()
        bench.drop(7)
        bench.sync(1)
        bench.finishAllButSyncsOfGroups()
        bench.fail(.inputOutput) { $0.isSync }
        bench.advance(by: LogTimes.second)
        bench.sync(2)
        bench.finishAll { $0.isGroup }
        #expect(bench.answer(2) == nil)
        bench.finishAll()
        #expect(bench.answer(2) == true && bench.drops.count == 2)
    }

    @Test("A ticket that is asked for while nothing can be written fails at once")
    func suspended() {
        var bench = LogBench.started()
        bench.write(1)
        bench.fail(.permission) { $0.isCreate }
        bench.sync(1)
        #expect(bench.answer(1) == false)
        bench.advance(by: LogTimes.second)
        bench.sync(2)
        bench.finishAll()
        #expect(bench.answer(2) == true && bench.written == [1])
    }

    @Test("Tickets fail when the disk does not answer, those that wait and those that come then")
    func stalled() {
        var bench = LogBench.started { $0.patienceNs = 3 * LogTimes.second }
        bench.write(1)
        bench.finishAllButSyncsOfGroups()
        #expect(bench.written == [1])
        bench.sync(1)
        let sync = bench.open.first(where: \.isSync)!
        bench.advance(by: 3 * LogTimes.second - 1)
        #expect(bench.answer(1) == nil)
        bench.advance(by: 1)
        #expect(bench.answer(1) == false && bench.log.isStalled)
        bench.sync(2)
        #expect(bench.answer(2) == false)
        bench.finish(sync)
        #expect(!bench.log.isStalled)
        bench.write(2)
        bench.sync(3)
        bench.finishAll()
        #expect(bench.answer(3) == true && bench.written == [1, 2])
    }
}
