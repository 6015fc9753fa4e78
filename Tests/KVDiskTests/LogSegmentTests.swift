import KVDiskFormat
import KVTier
import Testing

@testable import KVDisk

@Suite("The life of a segment in a log")
struct LogSegmentTests {
    @Test("The next segment is made when the head is half full")
    func spare() {
        var bench = LogBench.started()
        bench.write(1, byteCount: 40 << 10)
        bench.finishAll()
        #expect(bench.log.counters.creations == 1)
        bench.write(2, byteCount: 20 << 10)
        bench.finishAll { $0.isCreate }
        #expect(bench.open.map(\.file) == [2])
        bench.finishAll()
        #expect(bench.log.spare == 2 && bench.log.head == 1)
    }

    @Test("A full segment is synced, gets footer and trailer in one write, and is synced again")
    func footer() {
        var bench = LogBench.started()
        for number in 1...4 {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll()
        }
        let count = bench.groups.count
        bench.write(5, byteCount: 20 << 10)
        #expect(bench.groups.count == count + 1 && bench.groups.last!.file == 2, "the next head")
        #expect(bench.open.filter { $0.file == 1 }.map(\.isSync) == [true])
        bench.finish(bench.open.first { $0.file == 1 }!)
        let write = bench.open.filter { $0.file == 1 }
        #expect(write.map(\.isFooter) == [true])
        guard case .write(_, let offset, let pieces) = write[0].operation,
            case .bytes(let bytes) = pieces[0]
        else { return }
        let entries = bench.groups.filter { $0.file == 1 }.flatMap(\.entries)
        let header = bench.headers[1]!
        #expect(offset == header.groupsLimit(entries: entries.count))
        #expect(offset + bytes.count == LogBench.segmentBytes)
        bytes.withUnsafeBytes { bytes in
            let last = UnsafeRawBufferPointer(rebasing: bytes[(bytes.count - 4096)...])
            let trailer = try! SegmentTrailer(decoding: last, in: header)
            let footer = try! SegmentFooter(decoding: bytes, in: header, trailer: trailer)
            #expect(footer.entries == entries)
        }
        bench.finish(write[0])
        #expect(bench.open.filter { $0.file == 1 }.map(\.isSync) == [true])
        #expect(bench.log.segments[1]!.phase == .ending)
        bench.finish(bench.open.first { $0.file == 1 }!)
        #expect(bench.log.segments[1]!.phase == .closed)
    }

    @Test("The footer waits for writes that are under way")
    func footerWaits() {
        var bench = LogBench.started()
        for number in 1...3 {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll()
        }
        bench.write(4, byteCount: 20 << 10)
        bench.write(5, byteCount: 20 << 10)
        let last = bench.openGroups.first { $0.file == 1 }!
        #expect(bench.log.segments[1]!.phase == .ending)
        bench.finishAll { $0.id == last.id }
        #expect(bench.log.segments[1]!.phase == .ending)
        bench.finishAll()
        #expect(bench.log.segments[1]!.phase == .closed)
    }

    @Test("A footer that fails costs nothing but time at the next start")
    func failedFooter() {
        var bench = LogBench.started()
        for number in 1...6 {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll { $0.isFooter }
        }
        bench.fail(.inputOutput) { $0.isFooter }
        bench.finishAll()
        #expect(bench.log.segments[1]!.phase == .closed && bench.failed.isEmpty)
        #expect(bench.log.takesWrites(now: 0) && bench.troubles == 1)
    }

    @Test("Where the device is full the limit is what exists, until a minute later")
    func noSpace() {
        var bench = LogBench.started(segments: 10)
        _ = bench.fillSegment(from: 1)
        let last = 10
        for number in 7...9 { bench.write(number, byteCount: 20 << 10) }
        bench.finishAll { $0.isCreate }
        bench.fail(.noSpace) { $0.isCreate }
        bench.finishAll()
        #expect(bench.reclaims.map(\.segment) == [1], "what exists is used again")
        #expect(bench.log.takesWrites(now: bench.now) == false, "room is kept for what is moved")
        bench.reclaimed(1)
        bench.finishAll()
        #expect(bench.log.spare == 1 && bench.troubles == 1)
        for number in last...12 { bench.write(number, byteCount: 20 << 10) }
        bench.finishAll()
        #expect(bench.log.counters.creations == 2)
        bench.advance(by: 61 * LogTimes.second)
        for number in 13...18 {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll()
        }
        #expect(bench.log.counters.creations > 2)
    }

    @Test("Where files can't be made, those that exist are used, and writing goes on")
    func noCreation() {
        var bench = LogBench.started(segments: 10)
        _ = bench.fillSegment(from: 1)
        for number in 7...9 { bench.write(number, byteCount: 20 << 10) }
        bench.finishAll { $0.isCreate }
        bench.fail(.permission) { $0.isCreate }
        bench.finishAll()
        #expect(bench.log.counters.suspensions == 0 && bench.reclaims.map(\.segment) == [1])
        bench.reclaimed(1)
        bench.finishAll()
        #expect(bench.log.spare == 1 && bench.troubles == 1)
    }

    @Test("Where no file can be made at all, records and tickets fail, and it is tried again")
    func nothingAtAll() {
        var bench = LogBench.started()
        bench.write(1)
        bench.sync(1)
        bench.fail(.noSpace) { $0.isCreate }
        #expect(bench.failed == [1] && bench.answer(1) == false)
        #expect(!bench.log.takesWrites(now: bench.now))
        bench.advance(by: 60 * LogTimes.second)
        #expect(bench.log.takesWrites(now: bench.now))
        bench.write(2)
        bench.finishAll()
        #expect(bench.written == [2])
    }

    @Test("A limit below one segment is said, and nothing hangs")
    func tinyBudget() {
        var bench = LogBench.started(segments: 0)
        bench.write(1)
        #expect(bench.failed == [1] && bench.open.isEmpty && bench.troubles == 1)
        bench.sync(1)
        bench.drop(1)
        bench.sync(2)
        #expect(bench.answer(1) == true && bench.answer(2) == false)
    }

    @Test("What a start found without a footer is synced and gets one; a bad body forbids it")
    func adoption() {
        var bench = LogBench()
        var sample = SegmentHeader(
            disk: SampleRecord.disk, number: 4, life: 9, segmentBytes: LogBench.segmentBytes,
            firstSequence: 1 << 40, createdMs: 0)
        sample.number = 4
        let drop = SampleRecord(1).record
        var entries = [
            DiskEntry.dropKey(drop.key, space: drop.space, root: drop.root, writtenMs: 0)
        ]
        let group = GroupHeader(
            placing: &entries, at: 4096, in: sample, firstSequence: 1 << 40)
        let lengths = [(UInt64(4), LogBench.segmentBytes), (6, LogBench.segmentBytes)]
        bench.log.begin(epoch: 2, files: lengths, now: 0)
        for (number, state) in [
            (UInt64(4), RecoveredSegment.State.unfinished(entries: entries, groupsEnd: group.end)),
            (6, .walked),
        ] {
            bench.log.adopt(
                segment: RecoveredSegment(
                    number: number, header: sample, state: state, firstSequence: 1 << 40,
                    fileBytes: LogBench.segmentBytes, tombstones: entries))
        }
        bench.log.recovered(now: 0)
        bench.sync(1)
        #expect(bench.open.count == 2 && bench.answer(1) == nil)
        bench.finish(bench.open[0])
        bench.finish(bench.open[0])
        #expect(bench.open.map(\.isSync) == [true, true])
        bench.finish(bench.open[0])
        #expect(bench.answer(1) == nil, "a sync covers what was found, too")
        bench.finish(bench.open[0])
        #expect(bench.answer(1) == true)
        #expect(bench.open.map(\.isFooter) == [true] && bench.open[0].file == 4)
        bench.finishAll()
        #expect(bench.log.segments[4]!.phase == .closed && bench.log.segments[6]!.phase == .closed)
    }

    @Test("Free files are used before new ones; those of another length are removed")
    func freeFiles() {
        var bench = LogBench()
        let other = 64 << 10
        bench.log.begin(
            epoch: 2, files: [(3, other), (5, LogBench.segmentBytes), (7, 4096)], now: 0)
        for (number, byteCount) in [(UInt64(3), other), (5, LogBench.segmentBytes), (7, 4096)] {
            bench.log.adopt(
                segment: RecoveredSegment(
                    number: number, header: nil, state: number == 7 ? .untouchable : .free,
                    firstSequence: 0, fileBytes: byteCount, tombstones: []))
        }
        bench.log.recovered(now: 0)
        bench.take()
        bench.finishAll()
        #expect(bench.log.counters.removals == 1 && bench.log.segments[3] == nil)
        bench.write(1)
        bench.finishAll()
        #expect(bench.place(of: 1)?.segment == 5 && bench.log.counters.creations == 0)
        #expect(bench.log.gauges.fileBytes == 4096 + LogBench.segmentBytes + 4096)
    }

    /// Four closed segments, of which one is to stay.
    private func tooMany() -> LogBench {
        var bench = LogBench.finding(1...4, segments: 1)
        bench.log.adopt(TierPlace(segment: 1, page: 4), length: 64 << 10, owner: 1)
        bench.take()
        return bench
    }

    @Test("A lower limit gives files back")
    func shrinks() {
        var bench = tooMany()
        bench.finishAll()
        #expect(bench.log.counters.removals == 0, "not before all was handed over")
        bench.log.recovered(now: 0)
        bench.take()
        bench.finishAll()
        #expect(bench.log.counters.removals == 3 && bench.reclaims.isEmpty)
        #expect(bench.log.gauges.fileBytes == bench.log.configuration.budgetBytes)
    }

    @Test("A file that can't be removed is used again, and nothing else is emptied for a minute")
    func failedRemoval() {
        var bench = tooMany()
        bench.finishAll()
        bench.log.recovered(now: 0)
        bench.take()
        bench.finishAll(but: \.isRemove)
        bench.fail(.permission, \.isRemove)
        bench.finishAll()
        #expect(bench.log.counters.removals == 0 && bench.troubles == 1)
        #expect(bench.log.gauges.freeSegments == 1)
        #expect(bench.log.segments.values.count { $0.phase == .closed } == 3)
        bench.advance(by: LogTimes.fullRetry)
        bench.finishAll(but: \.isRemove)
        // Its name was gone, but not durably.
        bench.fail(.inputOutput, \.isRemove)
        bench.fail(.notFound) { if case .open = $0.operation { true } else { false } }
        bench.finishAll()
        #expect(bench.log.counters.removals == 0 && bench.log.gauges.freeSegments == 0)
        bench.advance(by: LogTimes.fullRetry)
        bench.finishAll()
        #expect(bench.log.counters.removals == 3)
        #expect(bench.log.gauges.fileBytes == bench.log.configuration.budgetBytes)
    }
}
