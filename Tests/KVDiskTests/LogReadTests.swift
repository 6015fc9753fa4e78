import KVDiskFormat
import KVTier
import Testing

@testable import KVDisk

@Suite("What a log reads")
struct LogReadTests {
    /// Ten records of 4 KiB side by side in one segment.
    private func bench(
        change: (inout LogConfiguration) -> Void = { _ in }
    ) -> LogBench {
        var bench = LogBench.started { configuration in
            configuration.readBytes = 3 * 4096
            configuration.readsUnderWay = 1
            change(&configuration)
        }
        for number in 1...10 { bench.write(number * 2, byteCount: 4096) }
        bench.finishAll()
        return bench
    }

    private func ranges(_ bench: LogBench) -> [Int] {
        bench.open.compactMap {
            if case .read(_, _, let extents) = $0.operation { extents.count } else { nil }
        }
    }

    @Test("Neighbours that wait are one request, up to its bound, and requests are bounded")
    func merges() {
        var bench = bench()
        let places = (1...10).map { bench.place(of: UInt64($0 * 2))! }
        let first = (0..<6).first { index in
            (1...3).allSatisfy { places[index + $0].page == places[index].page + UInt32($0) }
        }!
        bench.read(100, places[9])
        for index in 0..<4 { bench.read(200 + UInt64(index), places[first + index]) }
        #expect(ranges(bench) == [1], "one under way")
        bench.finish(bench.open[0])
        #expect(ranges(bench) == [3], "three pages at most")
        bench.finish(bench.open[0])
        #expect(ranges(bench) == [1])
        bench.finishAll()
        let owners = bench.events.compactMap {
            if case .read(let owner, nil) = $0 { owner } else { nil }
        }
        #expect(owners == [100, 200, 201, 202, 203] && bench.log.counters.reads == 5)
    }

    @Test("A read that fails is told, and does not fail its neighbours")
    func faults() {
        var bench = bench()
        let places = (4...6).map { bench.place(of: UInt64($0 * 2))! }
        bench.read(100, places[0])
        for (index, place) in places.enumerated() { bench.read(200 + UInt64(index), place) }
        bench.finish(bench.open[0])
        #expect(ranges(bench) == [3])
        bench.fail(.inputOutput, \.isRead)
        bench.fail(.inputOutput, \.isRead)
        bench.finishAll()
        var failed: [UInt64] = []
        var good: [UInt64] = []
        for case .read(let owner, let fault) in bench.events {
            if fault == nil { good.append(owner) } else { failed.append(owner) }
        }
        #expect(failed == [200] && good == [100, 201, 202])
        #expect(bench.log.takesWrites(now: 0), "reads suspend no writes")
    }

    @Test("What is in no segment is answered with a fault")
    func gone() {
        var bench = bench()
        bench.read(1, TierPlace(segment: 77, page: 1))
        #expect(
            bench.events.last.map { if case .read(1, .some) = $0 { true } else { false } } == true)
    }

    @Test("Reads of a segment that is being opened wait for it")
    func opening() {
        for isOpen in [true, false] {
            var bench = LogBench()
            bench.log.begin(epoch: 2, files: [(3, LogBench.segmentBytes)], now: 0)
            bench.log.adopt(
                segment: RecoveredSegment(
                    number: 3, header: nil, state: .closed, firstSequence: 7,
                    fileBytes: LogBench.segmentBytes, tombstones: []))
            bench.log.adopt(TierPlace(segment: 3, page: 4), length: 4096, owner: 1)
            bench.take()
            bench.read(1, TierPlace(segment: 3, page: 4))
            #expect(bench.open.count == 1)
            let opening = bench.open[0]
            bench.finish(
                opening, isOpen ? .done : .failed(DiskFault(.permission, "open segment-3")))
            #expect(bench.open.count(where: \.isRead) == (isOpen ? 1 : 0))
            bench.finishAll()
            let good = bench.events.contains { if case .read(1, nil) = $0 { true } else { false } }
            #expect(good == isOpen)
        }
    }

    @Test("A disk that does not answer: what waits for its turn fails softly, what is new at once")
    func stalls() {
        var bench = bench { $0.patienceNs = 3 * LogTimes.second }
        func faults(_ bench: LogBench) -> [UInt64: String] {
            var faults: [UInt64: String] = [:]
            for case .read(let owner, let fault) in bench.events {
                faults[owner] = fault?.code ?? ""
            }
            return faults
        }
        func stalls(_ bench: LogBench) -> Int { bench.events.count { $0 == .stalled } }
        let place = bench.place(of: 2)!
        bench.read(100, place)
        bench.advance(by: LogTimes.second)
        bench.read(200, place)
        #expect(bench.log.nextDeadline == 3 * LogTimes.second)
        bench.advance(by: 2 * LogTimes.second - 1)
        #expect(stalls(bench) == 0 && bench.log.takesWrites(now: bench.now))
        bench.advance(by: 1)
        #expect(stalls(bench) == 1 && bench.log.isStalled && bench.log.isSuspended)
        #expect(faults(bench) == [200: TierFault.stalled], "100 is the kernel's")
        bench.read(300, place)
        #expect(faults(bench)[300] == TierFault.stalled)
        #expect(!bench.log.takesWrites(now: bench.now))
        #expect(bench.log.nextDeadline ?? .max > bench.now, "it does not wake for this again")
        #expect(ranges(bench) == [1], "no request is added")

        bench.finishAll()
        #expect(faults(bench)[100] == "" && !bench.log.isStalled)
        #expect(bench.log.takesWrites(now: bench.now) && bench.troubles == 2)
        bench.read(400, place)
        bench.finishAll()
        #expect(faults(bench)[400] == "" && bench.log.counters.stalls == 1)
        // Nothing is owed to the reads that failed: the segment can be emptied.
        #expect(bench.log.segments[place.segment]!.reads == 0)
    }

    @Test("A slow disk is not a stalled one: it answers, if late; nor is a long pause a stall")
    func slowDisk() {
        var bench = bench {
            $0.patienceNs = 3 * LogTimes.second
            $0.readsUnderWay = 8
        }
        let place = bench.place(of: 2)!
        bench.advance(by: 60 * LogTimes.second)
        bench.finishAll()
        for owner in 100..<108 { bench.read(UInt64(owner), place) }
        for _ in 0..<8 {
            bench.advance(by: 2 * LogTimes.second)
            #expect(!bench.log.isStalled)
            bench.finish(bench.open.first(where: \.isRead)!)
        }
        #expect(bench.log.counters.stalls == 0 && bench.now > 70 * LogTimes.second)
    }

    @Test("Files that are opened after a long start don't make a stall")
    func longStart() {
        var bench = LogBench { $0.patienceNs = 3 * LogTimes.second }
        bench.log.begin(epoch: 3, files: [], now: 0)
        for _ in 0..<20 { bench.advance(by: LogTimes.second) }
        bench.log.recovered(now: bench.now)
        bench.take()
        bench.write(1)
        bench.advance(by: 1)
        #expect(bench.log.counters.stalls == 0)
        bench.finishAll()
        #expect(bench.written == [1])
    }
}
