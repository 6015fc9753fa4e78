import KVDiskFormat
import KVTier
import Testing

@testable import KVDisk

@Suite("What a log writes")
struct LogWritingTests {
    @Test("Nothing before the epoch is known")
    func waitsForEpoch() {
        var bench = LogBench()
        bench.write(1)
        bench.drop(2)
        bench.sync(1)
        bench.advance(by: 10 * LogTimes.second)
        #expect(bench.open.isEmpty && bench.events.isEmpty)
        bench.log.begin(epoch: 5, files: [(9, 128 << 10)], now: bench.now)
        bench.take()
        #expect(bench.open.count == 1 && bench.open[0].isCreate)
        #expect(bench.open[0].file == 10, "no number of a file that is there")
        bench.finishAll()
        #expect(bench.written == [1])
        #expect(bench.answer(1) == true)
        #expect(bench.groups[0].header.firstSequence >> 40 == 5)
    }

    @Test("A header, a sync of it, and only then groups")
    func headerFirst() {
        var bench = LogBench.started()
        bench.write(1)
        #expect(bench.open.map(\.isCreate) == [true])
        bench.finish(bench.open[0])
        #expect(bench.open.map(\.isHeader) == [true])
        bench.finish(bench.open[0])
        #expect(bench.open.map(\.isSync) == [true])
        bench.finish(bench.open[0])
        #expect(bench.open.map(\.isGroup) == [true])
        #expect(bench.written.isEmpty)
        bench.finish(bench.open[0])
        #expect(bench.written == [1])
        let place = bench.place(of: 1)!
        #expect(place == TierPlace(segment: 1, page: 3), "behind two headers and a description")
    }

    @Test("A drop that waits is not queued twice, unless a record came between")
    func equalDrops() {
        var bench = LogBench()
        for _ in 0..<3 { bench.drop(1) }
        bench.drop(2)
        bench.write(1)
        for _ in 0..<3 { bench.drop(1) }
        bench.sync(1)
        #expect(bench.log.gauges.queued == 4)
        bench.log.begin(epoch: 3, files: [], now: 0)
        bench.take()
        bench.finishAll()
        #expect(bench.drops.count == 3 && bench.answer(1) == true)
        bench.drop(1)
        bench.finishAll()
        #expect(bench.drops.count == 4, "it waits no more")
    }

    @Test("Two groups at a time; what waits becomes the next one, up to its bound")
    func groups() {
        var bench = LogBench.started()
        for number in 1...20 { bench.write(number, byteCount: 4000) }
        bench.finishAll { $0.isGroup }
        #expect(bench.openGroups.count == 2)
        #expect(bench.groups[0].header.groupBytes <= 64 << 10)
        #expect(bench.groups[0].entries.count > 5, "what has waited goes together")
        bench.finishAll()
        #expect(bench.written.count == 20)
        // When idle, each goes at once.
        let count = bench.groups.count
        bench.write(30, byteCount: 100)
        bench.write(31, byteCount: 100)
        bench.write(32, byteCount: 100)
        bench.write(33, byteCount: 100)
        #expect(bench.groups.count == count + 2)
        bench.finish(bench.request(bench.openGroups[0]))
        #expect(bench.groups.count == count + 3)
        #expect(bench.groups.last!.entries.count { $0.kind == .chunk } == 2)
    }

    @Test("Sequences are consecutive in a segment, and never go back")
    func sequences() {
        var bench = LogBench.started()
        for number in 1...40 { bench.write(number, byteCount: 9000) }
        bench.finishAll()
        let files = Set(bench.groups.map(\.file))
        #expect(files.count > 2)
        for file in files {
            let groups = bench.groups.filter { $0.file == file }
            for (one, next) in zip(groups, groups.dropFirst()) {
                #expect(one.header.nextSequence == next.header.firstSequence)
                #expect(one.header.end == next.header.offset)
            }
        }
        let all = bench.groups.flatMap(\.entries).map(\.sequence)
        #expect(all == all.sorted() && all[0] == 3 << 40)
    }

    @Test("A space is described in each segment, before its first record and once")
    func descriptions() {
        var bench = LogBench.started()
        for number in 1...40 { bench.write(number, byteCount: 9000) }
        bench.finishAll()
        for file in Set(bench.groups.map(\.file)) {
            let entries = bench.groups.filter { $0.file == file }.flatMap(\.entries)
            for space in SampleRecord.spaces {
                let own = entries.filter { $0.space == space }
                #expect(own.isEmpty || own[0].kind == .space)
                #expect(own.dropFirst().allSatisfy { $0.kind == .chunk })
            }
        }
    }

    @Test("Records are told in the order of their places, whichever write ends first")
    func order() {
        var bench = LogBench.started()
        bench.write(0)
        bench.finishAll()
        bench.write(1)
        bench.write(2)
        let groups = bench.openGroups
        bench.finish(bench.request(groups[1]))
        #expect(bench.written == [0])
        bench.finish(bench.request(groups[0]))
        #expect(bench.written == [0, 1, 2])
    }

    @Test("When a group fails, so do those behind it; those before stay, and a drop goes elsewhere")
    func failedGroup() {
        var bench = LogBench.started()
        bench.write(1)
        bench.finishAll()
        bench.drop(9)
        bench.write(2)
        bench.sync(1)
        let groups = bench.openGroups
        #expect(groups[0].entries[0].kind == .dropKey)
        bench.finish(bench.request(groups[1]))
        bench.finish(bench.request(groups[0]), .failed(DiskFault(.inputOutput, "write")))
        #expect(bench.written == [1] && bench.failed == [2])
        #expect(bench.answer(1) == false)
        bench.finishAll()
        let broken = bench.log.segments[1]!
        #expect(broken.phase == .closed && broken.liveBytes > 0)
        let footers = bench.groups.count
        #expect(!bench.log.takesWrites(now: bench.now) && bench.troubles == 1)
        bench.advance(by: LogTimes.second)
        #expect(bench.log.takesWrites(now: bench.now))
        bench.finishAll()
        #expect(bench.groups.count == footers + 1)
        let again = bench.groups.last!
        #expect(again.file == 2 && again.entries.map(\.kind) == [.dropKey])
        #expect(again.entries[0].bound == groups[0].entries[0].sequence, "it keeps its bound")
        #expect(bench.log.counters.overheadBytes > 0)
    }

    @Test("A segment whose group has failed gets no footer")
    func noFooter() {
        var bench = LogBench.started()
        bench.write(1)
        bench.finishAll()
        bench.write(2)
        bench.fail(.inputOutput) { $0.isGroup }
        var footers = 0
        while let next = bench.open.first {
            footers += next.isFooter ? 1 : 0
            bench.finish(next)
        }
        #expect(footers == 0 && bench.log.segments[1]!.phase == .closed)
    }

    @Test("Suspensions double up to a minute, and end with a good write")
    func suspensions() {
        var bench = LogBench.started(segments: 20)
        bench.write(0)
        bench.finishAll()
        var seconds: [UInt64] = []
        for number in 1...8 {
            bench.write(number)
            bench.finishAll { $0.isGroup }
            bench.fail(.inputOutput) { $0.isGroup }
            let until = bench.log.nextDeadline!
            seconds.append((until - bench.now) / LogTimes.second)
            #expect(!bench.log.takesWrites(now: until - 1))
            bench.advance(by: until - bench.now)
        }
        #expect(seconds == [1, 2, 4, 8, 16, 32, 60, 60])
        #expect(bench.troubles < 8, "not one for each")
        bench.write(20)
        bench.finishAll()
        bench.write(21)
        bench.fail(.inputOutput) { $0.isGroup }
        #expect(bench.log.nextDeadline! - bench.now <= LogTimes.second)
    }

    @Test("A queue has a bound in bytes and in records")
    func bounds() {
        var bench = LogBench { $0.queueBytes = 20_000 }
        bench.write(1, byteCount: 8192)
        bench.write(2, byteCount: 8192)
        #expect(bench.log.takesWrites(now: 0))
        bench.write(3, byteCount: 8192)
        #expect(!bench.log.takesWrites(now: 0))
        bench = LogBench { $0.queueRecords = 2 }
        bench.write(1)
        #expect(bench.log.takesWrites(now: 0))
        bench.write(2)
        #expect(!bench.log.takesWrites(now: 0))
    }

    @Test("What is accepted fits a segment, and what is not does not")
    func accepts() {
        var bench = LogBench.started()
        // Segment header, group header, description, footer, trailer.
        let most = LogBench.segmentBytes - 5 * 4096
        #expect(bench.log.accepts(byteCount: most) && bench.log.accepts(byteCount: 1))
        #expect(!bench.log.accepts(byteCount: most + 1) && !bench.log.accepts(byteCount: 0))
        bench.write(1, byteCount: most)
        bench.finishAll()
        #expect(bench.written == [1])
        bench.write(2, byteCount: most + 1)
        bench.finishAll()
        #expect(bench.failed == [2])
        bench.write(3)
        bench.finishAll()
        #expect(bench.written == [1, 3])
    }
}
