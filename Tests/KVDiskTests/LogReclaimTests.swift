import KVDiskFormat
import KVTier
import Testing

@testable import KVDisk

@Suite("How a log gets room back")
struct LogReclaimTests {
    /// Three closed segments and a head that is half full, and no room for another file.
    private func full() -> LogBench {
        var bench = LogBench.started(segments: 4, of: 256 << 10)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        return bench
    }

    /// Writes until the log needs another segment.
    private func press(_ bench: inout LogBench) {
        for number in 1000...1010 where bench.reclaims.isEmpty && bench.log.spare == nil {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll()
        }
    }

    @Test("The oldest goes, and is not used before it is let go of")
    func oldest() {
        var bench = full()
        press(&bench)
        #expect(bench.reclaims.map(\.segment) == [1] && !bench.reclaims[0].keepAll)
        #expect(bench.log.records(of: 1).map(\.owner) == Array(100...108))
        bench.advance(by: LogTimes.second)
        bench.finishAll()
        #expect(bench.log.spare == nil && bench.reclaims.count == 1, "one at a time")
        let life = bench.headers[1]!.life
        bench.reclaimed(1)
        bench.finishAll()
        #expect(bench.log.spare == 1 && bench.headers[1]!.life != life)
        #expect(bench.log.records(of: 1).isEmpty && bench.log.counters.creations == 4)
    }

    @Test("One without live bytes goes first, and nobody is asked")
    func empty() {
        var bench = full()
        bench.forgetAll(of: 2)
        #expect(bench.log.segments[2]!.liveBytes == 0)
        press(&bench)
        bench.finishAll()
        #expect(bench.log.spare == 2 && bench.reclaims.isEmpty)
    }

    @Test("One with little that is alive is emptied before the oldest is given up")
    func sparse() {
        var bench = full()
        bench.forgetAll(of: 3, butFirst: 1)
        press(&bench)
        #expect(bench.reclaims.map(\.segment) == [3] && bench.reclaims[0].keepAll)
        bench = full()
        bench.forgetAll(of: 3, butFirst: 4)
        press(&bench)
        #expect(bench.reclaims.map(\.segment) == [1], "80 of 256 KiB are not little")
    }

    @Test("A segment is emptied only if what is on its way leaves room for what is in it")
    func sparseBesideSaves() {
        var bench = full()
        bench.forgetAll(of: 3, butFirst: 1)
        bench.log.promisedSaves = (bytes: bench.log.roomToMove, records: 4)
        press(&bench)
        #expect(bench.reclaims.map(\.segment) == [1] && !bench.reclaims[0].keepAll)
    }

    @Test("While a segment is emptied, what is being prepared counts before more is taken")
    func savesOnTheirWay() {
        for keepsAll in [false, true] {
            var bench = full()
            if keepsAll { bench.forgetAll(of: 3, butFirst: 1) }
            press(&bench)
            #expect(bench.reclaims.map(\.keepAll) == [keepsAll])
            let asked = bench.log.segments[bench.reclaims[0].segment]!
            let share = bench.log.configuration.segmentBytes / 4
            let moved = keepsAll ? bench.log.movedBytes(of: asked) : min(asked.liveBytes, share)
            let room = bench.log.roomToMove - bench.log.slack - moved
            let most = room - bench.log.overhead(records: 1)
            func takes(_ bytes: Int) -> Bool {
                bench.log.promisedSaves = (bytes, 1)
                return bench.log.takesWrites(now: bench.now)
            }
            if most < share {
                #expect(most > 0 && takes(most) && !takes(most + 1))
            } else {
                #expect(takes(share - 1) && !takes(share), "so much may be on its way, no more")
            }
            bench.log.promisedSaves = (0, 0)
            bench.log.promisedMoves = (most, 1)
            #expect(bench.log.takesWrites(now: bench.now))
            bench.log.promisedMoves = (most + 1, 1)
            #expect(!bench.log.takesWrites(now: bench.now))
        }
    }

    @Test("A segment is not used again before its reads have ended")
    func reads() {
        var bench = full()
        press(&bench)
        bench.read(1, bench.place(of: 100)!, pages: 5)
        bench.reclaimed(1)
        bench.finishAll(but: \.isRead)
        #expect(bench.log.spare == nil && bench.open.map(\.isRead) == [true])
        bench.finishAll()
        #expect(bench.log.spare == 1)
    }

    @Test("A segment is not used again before what was moved from it is durable")
    func moved() {
        var bench = full()
        bench.forgetAll(of: 3, butFirst: 1)
        press(&bench)
        bench.write(5000, byteCount: 20 << 10)
        bench.finishAll()
        bench.forget(bench.log.records(of: 3)[0].owner)
        bench.reclaimed(3)
        #expect(bench.open.map(\.isSync) == [true], "a sync, and no header before it is done")
        #expect(bench.log.segments[3]!.phase == .draining)
        bench.finishAll()
        #expect(bench.log.spare == 3)
    }

    @Test("Live bytes grow with what is written or adopted, and fall with what is forgotten")
    func liveBytes() {
        var bench = LogBench.finding(3...3)
        bench.log.adopt(TierPlace(segment: 3, page: 4), length: 8192, owner: 77)
        bench.log.recovered(now: 0)
        bench.take()
        #expect(bench.log.gauges.liveBytes == 8192)
        #expect(bench.log.records(of: 3).map(\.owner) == [77])
        bench.write(1, byteCount: 5000)
        bench.finishAll()
        #expect(bench.log.gauges.liveBytes == 16384)
        bench.forget(1, byteCount: 5000)
        bench.log.forget(TierPlace(segment: 3, page: 4), length: 8192)
        #expect(bench.log.gauges.liveBytes == 0)
    }

    @Test("Who waits for room that only he can give gets an answer")
    func noRoom() {
        var bench = full()
        press(&bench)
        for number in 2000...2030 { bench.write(number, byteCount: 20 << 10) }
        bench.sync(1)
        bench.finishAll()
        #expect(bench.failed.isEmpty && bench.answer(1) == nil)
        #expect(!bench.log.takesWrites(now: bench.now))
        bench.advance(by: LogTimes.noRoom)
        bench.advance(by: LogTimes.noRoom)
        #expect(!bench.failed.isEmpty && bench.answer(1) == false)
        bench.reclaimed(1)
        bench.finishAll()
        #expect(bench.log.spare == 1 || bench.log.head == 1)
    }

    @Test("Moves are taken as far as there is room, with those that are still being prepared")
    func roomForMoves() {
        var bench = full()
        press(&bench)
        #expect(!bench.reclaims.isEmpty)
        let (room, page) = (bench.log.roomToMove - bench.log.slack, 4096)
        #expect(room > 20 * page, "\(room) bytes")
        func fits(_ bytes: Int, _ records: Int = 1) -> Bool {
            bench.log.takesMove(bytes: bytes, records: records, now: bench.now)
        }
        let most = room - bench.log.overhead(records: 1)
        #expect(fits(most) && !fits(most + page))
        #expect(!fits(most, 2), "each record takes something beside its bytes")
        bench.log.promisedMoves = (bytes: 3 * page, records: 2)
        let less = most - 3 * page - bench.log.overhead(records: 2)
        #expect(fits(less) && !fits(less + page))
    }

    @Test("New records wait while moves need the rest of the head, and find room afterwards")
    func heldBack() {
        var bench = full()
        press(&bench)
        let asked = bench.reclaims[0].segment
        let room = bench.log.roomToMove
        #expect(bench.log.queuedBytes == 0 && room > 40 << 10)
        bench.log.promisedMoves = (bytes: room - (8 << 10), records: 1)
        bench.write(5000, byteCount: 20 << 10)
        bench.finishAll()
        #expect(bench.place(of: 5000) == nil && bench.log.isHeldBack && !bench.log.isHeadFull)
        #expect(bench.log.roomToMove == room, "what waits takes none of it")
        // The moves have arrived.
        bench.log.promisedMoves = (0, 0)
        bench.write(5001, byteCount: 4096, isMove: true)
        bench.finishAll()
        #expect(bench.place(of: 5001) != nil && bench.place(of: 5000) != nil)
        // They never arrive: it does not wait for ever.
        bench.log.promisedMoves = (bytes: room, records: 1)
        bench.write(5002, byteCount: 20 << 10)
        bench.finishAll()
        bench.advance(by: LogTimes.noRoom)
        bench.advance(by: LogTimes.noRoom)
        bench.finishAll()
        #expect(bench.place(of: 5002) != nil && bench.failed.isEmpty)
        bench.log.promisedMoves = (0, 0)
        bench.reclaimed(asked)
        bench.write(5003, byteCount: 20 << 10)
        bench.finishAll()
        #expect(bench.place(of: 5003) != nil && !bench.log.isHeldBack)
    }

    @Test("A move that fits no segment takes no room from others")
    func moveTooLong() {
        var bench = LogBench.started()
        bench.write(1, byteCount: LogBench.segmentBytes, isMove: true)
        bench.finishAll()
        #expect(bench.failed == [1])
        #expect(bench.log.moves.bytes == 0 && bench.log.queuedBytes == 0)
    }

    @Test("At a start, too, what is empty goes before what is alive, whatever waits")
    func emptyFirst() {
        var bench = LogBench.finding(1...4)
        for number in 1...3 as ClosedRange<UInt32> {
            let place = TierPlace(segment: number, page: 4)
            bench.log.adopt(place, length: 65536, owner: UInt64(number))
        }
        bench.take()
        bench.finishAll()
        bench.write(1000, byteCount: 5000)
        bench.log.promisedMoves = (1 << 20, 4)
        bench.log.recovered(now: 0)
        bench.take()
        bench.finishAll()
        #expect(bench.reclaims.isEmpty, "asked for \(bench.reclaims)")
        #expect(bench.place(of: 1000) != nil)
    }

    @Test("All segments are looked at once, and again only when something has changed")
    func scans() {
        var bench = LogBench.started(segments: 6, of: 256 << 10)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        bench.write(400)
        bench.finishAll()
        #expect(bench.log.spares.isEmpty == false || bench.log.victimScans > 0)
        let count = bench.log.victimScans
        for number in 500...520 { bench.read(UInt64(number), bench.place(of: 100)!) }
        bench.finishAll()
        bench.forget(200)
        bench.advance(by: 1)
        #expect(bench.log.victimScans == count && bench.reclaims.isEmpty)
        for owner in bench.log.records(of: 2).dropFirst().map(\.owner) { bench.forget(owner) }
        bench.advance(by: 1)
        bench.finishAll()
        #expect(bench.log.victimScans > count && bench.log.segments[2]!.phase != .closed)
        #expect(
            bench.log.gauges.liveBytes
                == bench.log.segments.values.reduce(0) {
                    $0 + $1.liveBytes
                })
    }

    // MARK: Compaction

    /// Moves what a segment that was asked for holds, until none is asked for any more.
    private func compact(_ bench: inout LogBench, below share: Double) {
        bench.log.compact(below: share, now: bench.now)
        bench.take()
        var next = 3000
        for _ in 0..<20 {
            bench.finishAll()
            guard let asked = bench.log.asked else { return }
            let old = bench.log.records(of: asked)
            for _ in 0..<bench.log.segments[asked]!.liveBytes / (20 << 10) {
                next += 1
                bench.write(next, byteCount: 20 << 10)
            }
            bench.finishAll()
            for record in old where bench.log.segments[asked]!.liveBytes > 0 {
                bench.log.forget(record.place, length: 20 << 10)
            }
            bench.reclaimed(asked)
        }
    }

    @Test("Compaction ends, whatever share it is given, and takes each segment once")
    func compactionEnds() {
        var bench = LogBench.started(segments: 12, of: 256 << 10)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        for number in 1...3 { bench.forgetAll(of: UInt32(number), butFirst: 4) }
        compact(&bench, below: 1)
        #expect(!bench.log.isCompacting && bench.reclaims.count == 3)
    }

    @Test("Compaction gives room back, that of the reserve, too")
    func compactionGivesBack() {
        var bench = LogBench.started(segments: 4, of: 256 << 10)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        for number in 1...3 { bench.forgetAll(of: UInt32(number), butFirst: number == 2 ? 1 : 0) }
        bench.finishAll()
        compact(&bench, below: 0.5)
        #expect(!bench.log.isCompacting)
        #expect(bench.log.gauges.fileBytes == 4096 + (256 << 10), "the head is left")
        bench.write(4000)
        bench.finishAll()
        #expect(bench.written.last == 4000)
    }

    @Test("Segments of drops that are needed are not moved")
    func compactionOfDrops() {
        var bench = LogBench.started(segments: 12, of: 256 << 10)
        _ = bench.fillSegment(from: 100)
        for number in 0..<200 { bench.drop(number) }
        bench.finishAll()
        _ = bench.fillSegment(from: 300)
        bench.forgetAll(of: 2)
        let count = bench.drops.count
        compact(&bench, below: 0.1)
        #expect(!bench.log.isCompacting && bench.drops.count == count)
    }

    // MARK: Drops

    @Test("A drop that is still needed is written elsewhere, durably, before its segment goes")
    func dropsMove() {
        var bench = LogBench.started(segments: 4, of: 256 << 10)
        _ = bench.fillSegment(from: 100)
        bench.drop(100)
        _ = bench.fillSegment(from: 200)
        _ = bench.fillSegment(from: 300)
        let drop = bench.drops[0]
        let home = bench.groups.first { $0.entries.contains(drop) }!.file
        #expect(home == 2 && drop.bound == drop.sequence)
        bench.forgetAll(of: 2)
        bench.finishAll()
        for number in 1000...1010 where bench.drops.count == 1 {
            bench.write(number, byteCount: 20 << 10)
            while bench.drops.count == 1, let next = bench.open.first { bench.finish(next) }
        }
        #expect(bench.drops.count == 2)
        #expect(bench.drops[1].bound == drop.bound && bench.drops[1].sequence > drop.sequence)
        #expect(bench.log.segments[2]!.phase == .draining)
        bench.finishAll(but: \.isSync)
        #expect(bench.log.segments[2]!.phase == .draining, "written, and not durable")
        bench.finishAll()
        #expect(bench.log.spare == 2 || bench.log.head == 2)
    }

    @Test("Of the times that a key expires the last one is written elsewhere, and only that")
    func expiriesMove() {
        var bench = LogBench.started(segments: 4, of: 256 << 10)
        _ = bench.fillSegment(from: 100)
        for atMs: UInt64 in [7, 9, 8, 9, 0] {
            bench.expire(100, atMs: atMs)
            bench.expire(101, atMs: atMs + 1)
        }
        bench.expire(100, atMs: 5)
        _ = bench.fillSegment(from: 200)
        _ = bench.fillSegment(from: 300)
        #expect(bench.drops.map(\.expiresMs) == [7, 8, 9, 10, 8, 9, 9, 10, 0, 1, 5])
        let last = [bench.drops[10], bench.drops[9]]
        bench.forgetAll(of: 2)
        bench.finishAll()
        for number in 1000...1010 where bench.drops.count == 11 {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll()
        }
        let moved = bench.drops.dropFirst(11).sorted { $0.bound > $1.bound }
        #expect(moved.map(\.key) == last.map(\.key))
        #expect(moved.map(\.expiresMs) == [5, 1])
        #expect(moved.map(\.bound) == last.map(\.bound))
        #expect(moved.allSatisfy { $0.kind == .expireKey && $0.sequence > $0.bound })
    }

    @Test("A drop goes with the oldest segment: nothing is left that it could kill")
    func dropsEnd() {
        var bench = LogBench.started(segments: 4, of: 256 << 10)
        bench.write(99)
        bench.drop(99)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        press(&bench)
        #expect(bench.reclaims.map(\.segment) == [1])
        bench.reclaimed(1)
        bench.finishAll()
        #expect(bench.log.spare == 1 && bench.drops.count == 1)
    }

    @Test("What a file may hold that can't be read, or that only seems free, counts")
    func unreadFilesCount() {
        var bench = LogBench()
        let header = SegmentHeader(
            disk: SampleRecord.disk, number: 7, life: 9, segmentBytes: LogBench.segmentBytes,
            firstSequence: 1 << 40, createdMs: 0)
        let numbers: [UInt64] = [5, 7]
        bench.log.begin(
            epoch: 2, files: numbers.map { ($0, LogBench.segmentBytes) }, now: 0)
        for number in numbers {
            bench.log.adopt(
                segment: RecoveredSegment(
                    number: number, header: header, state: number == 5 ? .free : .untouchable,
                    firstSequence: 0, fileBytes: LogBench.segmentBytes, tombstones: []))
        }
        bench.log.recovered(now: 0)
        bench.take()
        #expect(bench.log.lowestSequences().lowest?.sequence == 0)
        bench.finishAll()
        bench.write(1)
        bench.finishAll()
        #expect(bench.place(of: 1)?.segment == 5)
        let floors = bench.log.lowestSequences()
        #expect(floors.lowest?.segment == 7 && floors.lowest?.sequence == 1 << 40)
    }

    @Test("What a free segment still holds counts: a crash can bring it back")
    func freeSegmentsCount() {
        // So many that none is needed in reserve, which would get another header at once.
        var bench = LogBench.started(segments: 8, of: 256 << 10)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        var floors = bench.log.lowestSequences()
        #expect(floors.lowest?.segment == 1)
        bench.log.drain(1)
        bench.log.pump(0)
        bench.take()
        bench.finishAll()
        #expect(bench.log.segments[1]!.phase == .free)
        floors = bench.log.lowestSequences()
        #expect(floors.lowest?.segment == 1, "its header is the old one still")
        bench.finishAll()
        for number in 1000...1005 {
            bench.write(number, byteCount: 20 << 10)
            bench.finishAll()
        }
        floors = bench.log.lowestSequences()
        #expect(floors.lowest?.segment == 2)
    }

    @Test("Half of the segments is kept in reserve, as long as nothing gets lost by it")
    func reserve() {
        var bench = LogBench.started(segments: 4, of: 256 << 10)
        for first in [100, 200, 300] { _ = bench.fillSegment(from: first) }
        #expect(bench.reclaims.isEmpty, "all of it is alive")
        bench.forgetAll(of: 2)
        bench.write(1000, byteCount: 4 << 10)
        bench.finishAll()
        #expect(bench.log.spare == 2 && bench.reclaims.isEmpty, "long before the head is half full")
    }
}
