import KVDisk
import KVDiskFormat
import KVIdentity
import KVPolicy
import KVStore
import KVTier
import Testing

/// What the core promises of chunks that are pinned for good; what real disks keep of them is in
/// `StaticStoreTests`.
@Suite("Static chunks")
struct StaticChunkTests {
    private final class Setup {
        var core: StoreCore
        let session: UInt64
        let space: UInt32
        let root = key(1)
        var now: UInt64 = 1

        init(pages: Int = 64, policy: PolicyName = .lru) throws {
            core = makeCore(pages: pages, policy: policy)
            session = core.openSession(name: "engine")
            space = try core.open(makeSpace(), session: session).handle
        }

        deinit { #expect(core.brokenInvariant() == nil) }

        func keys(_ count: Int, branch: UInt64 = 0) -> [Digest] {
            (0..<count).map { key(1, branch, UInt64($0)) }
        }

        func save(_ keys: [Digest], parent: Digest? = nil, pin: PinDuration? = nil) throws {
            let reservation = try core.reserve(
                space: space, root: root, keys: keys, parent: parent, timeToLiveMs: 60_000,
                pin: pin, session: session, now: now)
            if reservation.lease == 0 { return }
            _ = try core.commit(
                lease: reservation.lease, shard: 0, positions: nil, session: session, now: now)
        }

        func match(_ keys: [Digest], pin: PinDuration? = nil) throws -> Int {
            try core.match(
                space: space, root: root, keys: keys, pin: pin, session: session, now: now
            ).count
        }

        func pin(_ keys: [Digest], _ duration: PinDuration = .forever) throws(StoreError) -> Int {
            try core.pin(
                space: space, root: root, keys: keys, for: duration, session: session, now: now)
        }

        func unpin(_ keys: [Digest]) throws -> Int {
            try core.unpin(space: space, root: root, keys: keys, session: session, now: now)
        }

        func expire(_ keys: [Digest], ms: UInt64) throws {
            _ = try core.expire(
                space: space, root: root, keys: keys, after: TimeToLive(ms: ms), session: session,
                now: now)
        }

        func drop(_ keys: [Digest]) throws -> Int {
            try core.drop(space: space, root: root, keys: keys, session: session, now: now)
        }

        /// Saves other things until nothing that may be evicted is left.
        func crowd(_ branch: UInt64) throws {
            for number in 0..<4 { try save(keys(32, branch: branch * 10 + UInt64(number))) }
        }

        var staticKeys: Set<Digest> { Set(core.staticList.map(\.key)) }
    }

    @Test(
        "are never evicted, with every policy, until they are unpinned",
        arguments: PolicyName.allCases)
    func stay(policy: PolicyName) throws {
        let setup = try Setup(policy: policy)
        let keys = setup.keys(8)
        try setup.save(keys)
        #expect(try setup.pin(keys) == 8)
        #expect(setup.core.gauges.chunksStatic == 8)
        setup.now += 400 * 86_400 * second
        for round in 1...3 as ClosedRange<UInt64> { try setup.crowd(round) }
        #expect(try setup.match(keys) == 8)
        // A pin that ends does not make it shorter.
        #expect(try setup.pin(keys, .milliseconds(1)) == 8)
        setup.now += second
        #expect(try setup.match(keys, pin: .milliseconds(1)) == 8)
        setup.now += second
        try setup.crowd(4)
        #expect(try setup.match(keys) == 8)

        #expect(try setup.unpin(keys) == 8)
        #expect(try setup.unpin(keys) == 0)
        #expect(setup.core.gauges.chunksStatic == 0 && setup.core.gauges.pinnedBytes == 0)
        // The other policies keep what was used more often for longer.
        if policy != .lru { return }
        try setup.crowd(5)
        #expect(try setup.match(keys) == 0)
    }

    @Test("A pin without end takes the time to live away, and one that is given later counts")
    func timeToLive() throws {
        let setup = try Setup()
        try setup.core.setLife(
            ofSpace: setup.space, TimeToLive(ms: 1000), session: setup.session, now: 1)
        let (first, second, third) = (
            setup.keys(2), setup.keys(2, branch: 1), setup.keys(2, branch: 2)
        )
        for keys in [first, second] { try setup.save(keys) }
        try setup.save(third, pin: .forever)
        #expect(try setup.pin(first) == 2)
        setup.now += 5 * KVStoreTests.second
        #expect(try setup.match(first) == 2 && setup.match(second) == 0)
        #expect(try setup.match(third) == 2, "the rule of the space does not count either")

        try setup.expire([first[0], first[1]], ms: 1000)
        setup.now += 2 * KVStoreTests.second
        #expect(try setup.match(first) == 0)
        #expect(setup.staticKeys == Set(third), "what has expired is static no more")
    }

    @Test("Requests make static what they use, and what it follows")
    func hints() throws {
        let setup = try Setup()
        let keys = setup.keys(6)
        try setup.save(Array(keys[..<3]))
        // What is sealed after others makes those static, too.
        try setup.save(Array(keys[3...]), parent: keys[2], pin: .forever)
        #expect(setup.staticKeys == Set(keys))
        #expect(try setup.unpin(keys) == 6)
        #expect(try setup.match(Array(keys[2...3]), pin: .forever) == 2)
        #expect(setup.staticKeys == Set(keys[...3]))
        #expect(setup.core.gauges.pinnedBytes == 4 * 4096)
    }

    @Test("What something static follows stays static")
    func branches() throws {
        let setup = try Setup()
        let trunk = setup.keys(3)
        let (left, right) = (setup.keys(2, branch: 1), setup.keys(2, branch: 2))
        try setup.save(trunk)
        for branch in [left, right] {
            try setup.save(branch, parent: trunk[2])
            #expect(try setup.pin(trunk + branch) == 5)
        }
        #expect(try setup.unpin(trunk + left) == 2)
        #expect(setup.staticKeys == Set(trunk + right))
        #expect(try setup.unpin(trunk) == 0)
        #expect(try setup.unpin(trunk + right) == 5)
        #expect(setup.staticKeys.isEmpty)
    }

    @Test("A drop ends it; other losses leave the mark, until it is unpinned")
    func marks() throws {
        let setup = try Setup()
        let keys = setup.keys(4)
        try setup.save(keys)
        #expect(try setup.pin(keys) == 4)
        #expect(try setup.drop([keys[2]]) == 2)
        #expect(setup.staticKeys == Set(keys[..<2]))
        try setup.save(keys)
        #expect(
            setup.staticKeys == Set(keys[..<2]), "what was dropped comes back as an ordinary one")

        // As a start that does not find them.
        let list = setup.core.staticList
        let later = try Setup()
        later.core.restoreStatics(list)
        #expect(later.core.gauges.chunksStatic == 2 && later.core.gauges.pinnedBytes == 0)
        try later.save(keys)
        #expect(
            later.core.gauges.pinnedBytes == 2 * 4096, "it is static again when it is saved again")
        #expect(try later.unpin(keys) == 2)

        let missing = try Setup()
        missing.core.restoreStatics(list)
        #expect(try missing.unpin(keys) == 2)
        #expect(missing.staticKeys.isEmpty)
        missing.core.restoreStatics(list)
        #expect(try missing.drop([keys[0]]) == 0)
        #expect(missing.staticKeys.isEmpty, "nor what followed it")
        missing.core.restoreStatics(list)
        #expect(try missing.core.drop(space: missing.space, now: 1) == 0)
        #expect(missing.staticKeys.isEmpty)
        missing.core.restoreStatics(list)
        #expect(
            try missing.core.drop(
                space: missing.space, root: missing.root, session: missing.session, now: 1) == 0)
        #expect(missing.staticKeys.isEmpty)
    }

    @Test("A mark is of one space and one root, whatever keys clients choose")
    func kin() throws {
        let setup = try Setup()
        let keys = setup.keys(2)
        try setup.save(keys)
        #expect(try setup.pin(keys) == 2)
        let other = try Setup()
        other.core.restoreStatics(
            setup.core.staticList.map {
                TierMark(key: $0.key, parent: $0.parent, root: key(77), space: $0.space)
            })
        try other.save(keys)
        #expect(other.core.gauges.pinnedBytes == 0)
        #expect(try other.unpin(keys) == 0 && other.drop(keys) == 2)
        #expect(other.core.gauges.chunksStatic == 2)
    }

    @Test("Half the arena can be pinned, and not a chunk more")
    func budget() throws {
        let setup = try Setup(pages: 16)
        let keys = setup.keys(9)
        try setup.save(keys)
        let error = #expect(throws: StoreError.self) { try setup.pin(keys) }
        #expect(error?.code == .limit)
        #expect(setup.core.gauges.chunksStatic == 0, "it changed nothing")
        #expect(try setup.match(keys, pin: .forever) == 9)
        #expect(setup.core.counters.pinsRefused == 1)
        #expect(setup.staticKeys == Set(keys[..<8]))
        #expect(setup.core.gauges.pinnedBytes == 8 * 4096)

        // A smaller arena keeps the marks of what it has no room for, and pins it once there is some.
        let smaller = try Setup(pages: 16)
        smaller.core.restoreStatics(setup.core.staticList)
        try smaller.save([key(9)])
        #expect(try smaller.pin([key(9)]) == 1)
        try smaller.save(keys)
        #expect(smaller.core.gauges.chunksStatic == 9)
        #expect(smaller.core.gauges.pinnedBytes == 8 * 4096)
        #expect(try smaller.unpin([key(9)]) == 1)
        smaller.now += 2 * second
        smaller.core.settle(now: smaller.now)
        smaller.core.advance(to: smaller.now)
        smaller.core.settle(now: smaller.now)
        #expect(smaller.core.gauges.pinnedBytes == 8 * 4096)
    }

    @Test("As many chunks are static as the limit says, and not one more")
    func mostMarks() throws {
        let setup = try Setup()
        let keys = setup.keys(2)
        try setup.save(keys)
        let space = makeSpaceID
        let most = StoreLimits.staticChunks
        func marks(_ count: Int) -> [TierMark] {
            (0..<count).map {
                TierMark(key: key(5, UInt64($0)), parent: nil, root: key(6), space: space)
            }
        }
        setup.core.restoreStatics(marks(most - 2))
        #expect(try setup.pin(keys) == 2)
        #expect(try setup.unpin(keys) == 2)
        setup.core.restoreStatics(marks(most - 1))
        let error = #expect(throws: StoreError.self) { try setup.pin(keys) }
        #expect(error?.code == .limit)
        #expect(try setup.match(keys, pin: .forever) == 2)
        #expect(setup.core.counters.pinsRefused == 1)
        #expect(setup.core.gauges.chunksStatic == most)
        #expect(DiskFormat.mostStaticChunks == most, "the file has room for as many")
    }

    private var makeSpaceID: Digest { key(4) }

    @Test("A quarter of the disks can be static, and not a chunk more; changes are told once")
    func shareOfDisk() throws {
        // 2 disks of 64 KiB segments, 1 MiB each: 512 KiB of 128 pages.
        let setup = try Setup(pages: 512)
        for _ in 0..<2 {
            _ = setup.core.add(
                LogConfiguration(
                    disk: DiskID(words: (1, 2)), segmentBytes: 64 << 10, budgetBytes: 1 << 20,
                    seed: 1, wallOffsetMs: 0))
        }
        let keys = setup.keys(129)
        try setup.save(keys)
        setup.core.effects = []
        let error = #expect(throws: StoreError.self) { try setup.pin(keys) }
        #expect(error?.message.contains("--disk-size") == true)
        #expect(try setup.pin(Array(keys[..<128])) == 128)
        setup.core.settle(now: 1)
        #expect(setup.core.effects.count { $0 == .keepStatics } == 1)
        setup.core.effects = []
        #expect(try setup.match(keys, pin: .forever) == 129)
        #expect(setup.core.counters.pinsRefused == 1)
        setup.core.settle(now: 1)
        #expect(!setup.core.effects.contains(.keepStatics), "nothing has changed")
        #expect(try setup.drop([keys[100]]) == 29)
        setup.core.settle(now: 1)
        #expect(setup.core.effects.contains(.keepStatics))
    }
}
