import KVIdentity
import KVPolicy
import KVStore
import TestRandom
import Testing

/// What the core promises, one promise a test. `SimulationTests` has the random ones.
@Suite("The core")
struct StoreCoreTests {
    /// A core with one session and one space, by default of a page a chunk.
    private final class Setup {
        var core: StoreCore
        let session: UInt64
        let space: UInt32
        let root = key(1)

        init(pages: Int = 64, shardBytes: [Int] = [4096], checkOneIn: Int = 0) throws {
            core = makeCore(pages: pages, checkOneIn: checkOneIn)
            session = core.openSession(name: "engine")
            space = try core.open(
                makeSpace(shardBytes: shardBytes, stages: shardBytes.count), session: session
            ).handle
        }

        var gauges: StoreGauges { core.gauges }
        var counters: StoreCounters { core.counters }
        func leaseTagged(_ tag: UInt64) -> UInt64? { core.writeLease(tag: tag, session: session) }
        var isKnown: Bool { core.hasSession(session) }
        var broken: String? { core.brokenInvariant() }

        func keys(_ count: Int, branch: UInt64 = 0) -> [Digest] {
            (0..<count).map { key(1, branch, UInt64($0)) }
        }

        func open(_ name: String, shardBytes: [Int] = [4096]) throws -> UInt32 {
            try core.open(makeSpace(name, shardBytes: shardBytes), session: session).handle
        }

        func reserve(
            _ keys: [Digest], parent: Digest? = nil, space other: UInt32? = nil,
            root under: Digest? = nil,
            ms: UInt64 = 60_000, now: UInt64 = 1
        ) throws(StoreError) -> StoreCore.Reservation {
            try core.reserve(
                space: other ?? space, root: under ?? root, keys: keys, parent: parent,
                timeToLiveMs: ms,
                session: session, now: now)
        }

        func commit(_ lease: UInt64, shard: Int = 0, positions: [Int]? = nil, now: UInt64 = 1)
            throws(StoreError) -> Int
        {
            try core.commit(
                lease: lease, shard: shard, positions: positions, session: session, now: now)
        }

        func save(_ keys: [Digest], now: UInt64 = 1) throws(StoreError) {
            let reservation = try reserve(keys, now: now)
            if reservation.lease != 0 { _ = try commit(reservation.lease, now: now) }
        }

        func match(
            _ keys: [Digest], space other: UInt32? = nil, root under: Digest? = nil,
            holdMs: UInt64? = nil,
            readers: Int = 1, now: UInt64 = 1
        ) throws(StoreError) -> StoreCore.Match {
            try core.match(
                space: other ?? space, root: under ?? root, keys: keys, holdMs: holdMs,
                readers: readers,
                session: session, now: now)
        }

        func acquire(_ hold: UInt64, now: UInt64 = 1) throws(StoreError) -> (
            lease: UInt64, extents: [Extent]
        ) {
            try core.acquire(hold: hold, shard: 0, session: session, now: now)
        }

        func release(_ id: UInt64, now: UInt64 = 1) throws(StoreError) -> Bool {
            try core.release(id, session: session, now: now)
        }

        func pin(_ keys: [Digest], ms: Int) throws(StoreError) -> Int {
            try core.pin(
                space: space, root: root, keys: keys, for: .milliseconds(ms), session: session,
                now: 1)
        }

        func drop(_ keys: [Digest]) throws(StoreError) -> Int {
            try core.drop(space: space, root: root, keys: keys, session: session, now: 1)
        }

        func why(_ keys: [Digest]) throws(StoreError) -> String {
            try core.explain(space: space, root: root, keys: keys, session: session, now: 1).code
        }

        /// Answers the checks that the core asked for.
        func answerChecks(_ checksum: (UInt64) -> UInt64) {
            let effects = core.effects
            core.effects = []
            for case .check(let job, let offset, _) in effects {
                core.checkCompleted(job: job, checksum: checksum(offset), now: 1)
            }
        }
    }

    /// The code of the error that `body` throws.
    private func code<T>(_ body: () throws(StoreError) -> T) -> StoreError.Code? {
        do throws(StoreError) {
            _ = try body()
            return nil
        } catch {
            return error.code
        }
    }

    @Test("What is saved matches, up to the first key that is not there")
    func savesAndMatches() throws {
        let setup = try Setup()
        let keys = setup.keys(5)
        try setup.save(Array(keys[..<3]))
        #expect(try setup.match(keys).count == 3)
        #expect(
            try setup.match(Array(keys[1...])).count == 2,
            "keys may start in the middle of the chain")
        #expect(try setup.match(Array(keys[3...])).count == 0)
    }

    @Test("A chunk is visible only when all its shards are committed")
    func sealsWithLastShard() throws {
        let setup = try Setup(shardBytes: [4096, 8192])
        let keys = setup.keys(2)
        let lease = try setup.reserve(keys).lease
        #expect(try setup.commit(lease, shard: 1, positions: nil) == 0)
        #expect(try setup.match(keys).count == 0)
        #expect(try setup.commit(lease, shard: 0, positions: [1]) == 1)
        #expect(try setup.match(keys).count == 0, "chunk 1 is sealed, but chunk 0 before it is not")
        #expect(try setup.commit(lease, shard: 0, positions: [0]) == 1)
        #expect(try setup.match(keys).count == 2)
        #expect(setup.gauges.writeLeases == 0, "committing the last shard ends the lease")
    }

    @Test("A sealed chunk can't be reserved again, nor one that somebody writes")
    func sealedIsImmutable() throws {
        let setup = try Setup()
        let keys = setup.keys(3)
        try setup.save([keys[0]])
        let first = try setup.reserve(keys)
        #expect(first.states == [.present, .granted, .granted])
        #expect(first.extents.count == 2)
        let second = try setup.reserve(keys)
        #expect(second.states == [.present, .busy, .busy])
        #expect(second.lease == 0)
    }

    @Test("A gap and a broken chain are refused, and change nothing")
    func refusesGaps() throws {
        let setup = try Setup()
        let keys = setup.keys(4)
        try setup.save([keys[0]])
        #expect(
            code { () throws(StoreError) in try setup.reserve([keys[2]], parent: keys[1]) } == .gap)
        #expect(
            code { () throws(StoreError) in try setup.reserve([keys[1], keys[0]], parent: keys[0]) }
                == .chain)
        #expect(
            code { () throws(StoreError) in try setup.reserve([keys[1], keys[1]], parent: keys[0]) }
                == .chain)
        #expect(setup.gauges.chunks == 1)
        #expect(setup.broken == nil)
    }

    @Test("Eviction takes the least recently used leaf, never a parent before its children")
    func evictsLeaves() throws {
        let setup = try Setup(pages: 16)
        let old = setup.keys(8, branch: 1)
        let new = setup.keys(8, branch: 2)
        try setup.save(old)
        try setup.save(new)
        #expect(try setup.match(old).count == 8, "a touch makes the old ones the newest")
        try setup.save([key(9)])
        #expect(try setup.match(new).count == 7, "the tail of the other prompt went")
        #expect(try setup.match(old).count == 8)
        #expect(setup.broken == nil)
    }

    @Test("What is held is not evicted: a full store refuses, and says why")
    func fullStoreRefuses() throws {
        let setup = try Setup(pages: 16)
        let keys = setup.keys(16)
        try setup.save(keys)
        let match = try setup.match(keys, holdMs: 1000)
        let refused = try setup.reserve([key(8), key(9)])
        #expect(refused.states == [.refused, .refused] && refused.lease == 0)
        #expect(refused.reason.hasPrefix("KVFULL "))
        #expect(setup.counters.chunksRefusedFull == 2)
        #expect(try setup.release(match.hold, now: 1))
        #expect(try setup.reserve([key(8), key(9)]).states == [.granted, .granted])
    }

    @Test("A reader past the hold's deadline learns so at release, and its extents are reused")
    func lateReader() throws {
        let setup = try Setup(pages: 16)
        let keys = setup.keys(16)
        try setup.save(keys)
        let match = try setup.match(keys, holdMs: 1000)
        let (lease, extents) = try setup.acquire(match.hold)
        #expect(extents.count == 16)
        let late = 2 * second
        let reservation = try setup.reserve([key(8)], now: late)
        #expect(extents.contains(reservation.extents[0]), "the memory went to the next")
        #expect(try setup.release(lease, now: late) == false)
    }

    @Test("A writer past its deadline can't commit, and nobody gets its extents before it releases")
    func lateWriter() throws {
        let setup = try Setup(pages: 16)
        let lease = try setup.reserve(setup.keys(16), ms: 1000)
        let late = 2 * second
        #expect(try setup.reserve([key(8)], now: late).states == [.refused])
        #expect(setup.gauges.quarantinedBytes == 16 * 4096)
        #expect(
            code { () throws(StoreError) in try setup.commit(lease.lease, now: late) } == .expired)
        #expect(try setup.release(lease.lease, now: late) == false)
        #expect(setup.gauges.usedBytes == 0)
        #expect(try setup.reserve([key(8)], now: late).states == [.granted])
    }

    @Test("A session that ends frees its holds at once, its writes when its processes are gone")
    func endingSession() throws {
        let setup = try Setup(pages: 32)
        let keys = setup.keys(8)
        try setup.save(keys)
        _ = try setup.match(keys, holdMs: 60_000)
        _ = try setup.reserve(setup.keys(8, branch: 5))
        setup.core.endSession(setup.session, processesAlive: true)
        #expect(setup.gauges.holds == 0)
        #expect(setup.gauges.quarantinedBytes == 8 * 4096)
        #expect(setup.isKnown)
        setup.core.processesGone(setup.session)
        #expect(setup.gauges.quarantinedBytes == 0)
        #expect(setup.gauges.usedBytes == 8 * 4096, "what was sealed stays")
        #expect(!setup.isKnown)
        #expect(setup.broken == nil)
    }

    @Test("The hold ends after its last reader, not before")
    func readersCountDown() throws {
        let setup = try Setup(pages: 16)
        let keys = setup.keys(4)
        try setup.save(keys)
        let match = try setup.match(keys, holdMs: 60_000, readers: 2)
        let first = try setup.acquire(match.hold).lease
        #expect(try setup.release(first, now: 1))
        #expect(setup.gauges.holds == 1)
        let second = try setup.acquire(match.hold).lease
        #expect(
            code { () throws(StoreError) in try setup.acquire(match.hold).lease } == .limit,
            "a third of two")
        #expect(try setup.release(second, now: 1))
        #expect(setup.gauges.holds == 0)
    }

    @Test("Bytes that changed under the seal are a miss, and the writer is named")
    func damageIsFound() throws {
        let setup = try Setup(checkOneIn: 1)
        let keys = setup.keys(2)
        try setup.save(keys)
        setup.answerChecks { $0 + 1 }
        let match = try setup.match(keys, holdMs: 1000)
        let (lease, extents) = try setup.acquire(match.hold)
        #expect(
            extents == [.pending, .pending], "with --verify all every acquire waits for its check")
        let second = extents.count - 1
        var position = 0
        setup.answerChecks { offset in
            defer { position += 1 }
            return position == second ? 666 : offset + 1
        }
        let after = try setup.core.extents(lease: lease, session: setup.session, now: 1)
        #expect(after[0] != .gone && after[1] == .gone)
        #expect(setup.counters.chunksDamaged == 1)
        let warnings = setup.core.effects.compactMap {
            if case .warning(let text) = $0 { text } else { nil }
        }
        #expect(warnings.count == 1 && warnings[0].contains("'engine'"))
        #expect(try setup.match(keys).count == 1, "the bad chunk is dropped")
        #expect(try setup.why(keys) == "damaged")
    }

    @Test("Chunks are reached only through their own space and root")
    func rootsAreApart() throws {
        let setup = try Setup()
        let keys = setup.keys(2)
        try setup.save(keys)
        let other = try setup.open("other")
        #expect(try setup.match(keys, root: key(2)).count == 0)
        #expect(try setup.match(keys, space: other).count == 0)
        #expect(code { () throws(StoreError) in try setup.reserve(keys, root: key(2)) } == .chain)
        #expect(try setup.match(keys).count == 2)
    }

    @Test("Pins keep chunks until their time, and at most half the arena")
    func pins() throws {
        let setup = try Setup(pages: 16)
        let keys = setup.keys(8)
        try setup.save(keys)
        #expect(try setup.pin(keys, ms: 5000) == 8)
        try setup.save(setup.keys(16, branch: 3))
        #expect(try setup.match(keys).count == 8)
        try setup.save([key(4)])
        #expect(code { () throws(StoreError) in try setup.pin([key(4)], ms: 5000) } == .limit)
        let late = 6 * second
        try setup.save(setup.keys(16, branch: 4), now: late)
        #expect(try setup.match(keys, now: late).count == 0, "the pins have ended")
        #expect(setup.gauges.pinnedBytes == 0)
    }

    @Test("What has expired is never served, nor what follows it")
    func timeToLive() throws {
        let setup = try Setup()
        let keys = setup.keys(4)
        try setup.save(keys)
        _ = try setup.core.expire(
            space: setup.space, root: setup.root, keys: [keys[0]], after: TimeToLive(ms: 1000),
            session: setup.session, now: 1)
        #expect(try setup.match(keys, now: second).count == 4)
        #expect(try setup.match(keys, now: second + 2).count == 0)
        #expect(setup.gauges.usedBytes == 0)
    }

    @Test("A life that slides begins anew with each use; it ends a second early at most")
    func slidingLife() throws {
        let setup = try Setup()
        let keys = setup.keys(4)
        try setup.save(keys)
        let life = TimeToLive(ms: 10_000, isSliding: true)
        let count = try setup.core.expire(
            space: setup.space, root: setup.root, keys: keys, after: life, session: setup.session,
            now: 1)
        #expect(count == 4)
        for time: UInt64 in stride(from: 8, through: 80, by: 8) {
            #expect(try setup.match(keys, now: time * second + second / 2).count == 4)
        }
        #expect(try setup.match(Array(keys.prefix(2)), now: 88 * second).count == 2)
        #expect(try setup.match(keys, now: 91 * second).count == 2, "two were not used")
        #expect(try setup.match(keys, now: 101 * second + 1).count == 0)
        #expect(setup.core.brokenInvariant() == nil && setup.gauges.usedBytes == 0)
    }

    @Test("What is sealed lives as long as its space says at that time; limits from both sides")
    func lifeOfSpace() throws {
        let setup = try Setup()
        func setLife(_ life: TimeToLive?, now: UInt64) throws(StoreError) {
            try setup.core.setLife(
                ofSpace: setup.space, life, session: setup.session, now: now)
        }
        let (before, limited) = (setup.keys(2, branch: 1), setup.keys(2, branch: 2))
        let after = setup.keys(2, branch: 3)
        try setup.save(before)
        try setLife(TimeToLive(ms: 5_000), now: 1)
        try setup.save(limited)
        try setLife(nil, now: 2)
        try setup.save(after)
        #expect(try setup.match(limited, now: 5 * second).count == 2)
        #expect(try setup.match(limited, now: 6 * second).count == 0)
        #expect(try setup.match(before, now: 7 * second).count == 2)
        #expect(try setup.match(after, now: 7 * second).count == 2)

        let most = StoreLimits.lifetimeMs
        try setLife(TimeToLive(ms: most), now: 8 * second)
        try setLife(TimeToLive(ms: 1), now: 8 * second)
        try setLife(TimeToLive(ms: 2_000, isSliding: true), now: 8 * second)
        for wrong in [
            TimeToLive(ms: 0), TimeToLive(ms: most + 1), TimeToLive(ms: 1_999, isSliding: true),
        ] {
            let code = code { () throws(StoreError) in try setLife(wrong, now: 8 * second) }
            #expect(code == .argument, "\(wrong)")
        }
    }

    @Test("A dropped chunk that somebody reads stays until they are done, and matches no more")
    func dropWhileReading() throws {
        let setup = try Setup()
        let keys = setup.keys(3)
        try setup.save(keys)
        let match = try setup.match(keys, holdMs: 60_000, readers: 2)
        let (lease, _) = try setup.acquire(match.hold)
        #expect(try setup.drop([keys[1]]) == 2)
        #expect(try setup.match(keys).count == 1)
        #expect(setup.gauges.usedBytes == 3 * 4096)
        let late = try setup.acquire(match.hold)
        #expect(late.extents[0] != .gone && late.extents[1] == .gone && late.extents[2] == .gone)
        #expect(try setup.release(lease, now: 1))
        #expect(try setup.release(late.lease, now: 1))
        #expect(setup.gauges.usedBytes == 4096)
        #expect(setup.broken == nil)
    }

    @Test("A new length takes the place of the other that is used less")
    func lengthsShareMemory() throws {
        let setup = try Setup(pages: 256)
        try setup.save(setup.keys(256))
        let wide = try setup.open("wide", shardBytes: [5 * 4096])
        for number in 0..<200 {
            let result = try setup.reserve([key(2, UInt64(number))], space: wide, root: key(2))
            #expect(result.states == [.granted])
            _ = try setup.commit(result.lease)
        }
        #expect(
            setup.counters.chunksEvictedForOtherLength == 256,
            "all of the old length gave way in the end")
        #expect(setup.broken == nil)
    }

    @Test("explain tells why a chunk is not there")
    func explains() throws {
        let setup = try Setup(pages: 16)
        let keys = setup.keys(16)
        #expect(try setup.why(keys) == "never-stored")
        let lease = try setup.reserve(keys).lease
        #expect(try setup.why(keys) == "being-written")
        _ = try setup.release(lease, now: 1)
        #expect(try setup.why(keys) == "writer-gave-up")
        try setup.save(keys)
        #expect(try setup.why(keys) == "hit")
        try setup.save(setup.keys(16, branch: 7))
        #expect(try setup.why(keys) == "evicted")
        _ = try setup.core.drop(space: setup.space, now: 1)
        #expect(try setup.why(setup.keys(16, branch: 7)) == "dropped")
    }

    @Test("Limits hold from both sides")
    func limits() throws {
        let setup = try Setup(pages: 16)
        let many = (0...StoreLimits.keys).map { key(UInt64($0)) }
        #expect(try setup.match(Array(many.dropLast())).count == 0)
        #expect(code { () throws(StoreError) in try setup.match(many) } == .limit)
        #expect(code { () throws(StoreError) in try setup.match([]) } == .argument)
        #expect(try setup.match([key(1)], holdMs: StoreLimits.leaseMs).count == 0)
        for ms in [0, StoreLimits.leaseMs + 1] {
            #expect(
                code { () throws(StoreError) in try setup.match([key(1)], holdMs: ms) } == .argument
            )
        }
        #expect(throws: StoreError.self, "a chunk larger than the arena") {
            try setup.open("huge", shardBytes: [17 * 4096])
        }
        #expect(try setup.open("big", shardBytes: [16 * 4096]) > 0)
    }

    @Test("Ten thousand chunks are found while the index grows under them")
    func indexGrows() throws {
        let setup = try Setup(pages: 16 * 1024)
        var saved: [[Digest]] = []
        for branch in 0..<1000 {
            let keys = setup.keys(10, branch: UInt64(branch))
            try setup.save(keys)
            saved.append(keys)
            if branch % 50 == 0 { for keys in saved { #expect(try setup.match(keys).count == 10) } }
        }
        for (number, keys) in saved.enumerated() where number % 2 == 0 {
            _ = try setup.drop([keys[5]])
        }
        for (number, keys) in saved.enumerated() {
            #expect(try setup.match(keys).count == (number % 2 == 0 ? 5 : 10))
        }
        #expect(setup.broken == nil)
    }

    @Test("A chunk whose shards don't fit together is refused when its space is opened")
    func wholeChunkMustFit() throws {
        let setup = try Setup(pages: 16)
        let fits = Array(repeating: 4096, count: 16)
        #expect(try setup.open("fits", shardBytes: fits) > 0)
        #expect(throws: StoreError.self) { try setup.open("too many", shardBytes: fits + [4096]) }
    }

    @Test("A reservation takes so many extents, not one more")
    func reservationLimit() throws {
        let setup = try Setup(pages: 32)
        let wide = try setup.open("wide", shardBytes: Array(repeating: 4096, count: 32))
        let keys = (0...UInt64(StoreLimits.extentsPerReservation / 32)).map { key(2, $0) }
        let root = key(2)
        #expect(
            code { () throws(StoreError) in
                try setup.reserve(keys, space: wide, root: root)
            } == .limit)
        let fitting = Array(keys.dropLast())
        #expect(try setup.reserve(fitting, space: wide, root: root).states[0] == .granted)
    }

    @Test("A root belongs to one space")
    func rootsBelongToOneSpace() throws {
        let setup = try Setup()
        try setup.save(setup.keys(2))
        let other = try setup.open("other")
        #expect(
            code { () throws(StoreError) in try setup.reserve([key(7)], space: other) } == .chain)
    }

    @Test("A write lease is found by its tag, which can't be given twice")
    func tags() throws {
        let setup = try Setup()
        func reserve(_ keys: [Digest]) throws(StoreError) -> UInt64 {
            try setup.core.reserve(
                space: setup.space, root: setup.root, keys: keys, timeToLiveMs: 1000, tag: 42,
                session: setup.session, now: 1
            ).lease
        }
        let lease = try reserve(setup.keys(1))
        #expect(setup.leaseTagged(42) == lease)
        #expect(setup.leaseTagged(43) == nil)
        #expect(code { () throws(StoreError) in try reserve([key(3)]) } == .argument)
        #expect(try setup.release(lease))
        #expect(setup.leaseTagged(42) == nil)
    }

    @Test("Keys that agree in a part of their bytes don't make the index slow")
    func noCollisionsToOrder() throws {
        func time(_ keys: [Digest]) throws -> Duration {
            let setup = try Setup(pages: 32 * 1024)
            let started = ContinuousClock.now
            try setup.save(keys)
            #expect(try setup.match(keys).count == keys.count)
            return ContinuousClock.now - started
        }
        let numbers = 0..<UInt64(30_000)
        let usual = try time(numbers.map { key($0) })
        let alike = try time(numbers.map { Digest(words: (5, 6, 7, $0)) })
        // If every key probed past all others it would be thousands of times.
        #expect(alike < usual * 50)
    }
}
