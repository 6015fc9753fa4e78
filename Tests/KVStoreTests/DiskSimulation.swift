import KVDisk
import KVDiskFormat
import KVIdentity
import KVPolicy
import KVStore
import KVThreads
import KVTier
import TestRandom
import Testing

/// Drives a core with disks by random events, with real bytes in a small arena and simulated disks
/// that delay, fail and lose what was not synced. Everything follows from the seed.
///
/// What a shard holds follows from its key, so every byte that comes back can be compared.
final class DiskSimulation {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// What a run is to go through.
    struct Kind: CustomTestStringConvertible, Sendable {
        var name: String
        /// The disks are so small that segments are reclaimed.
        var isTight = false
        /// Writes, syncs and creations fail.
        var hasWriteFaults = false
        /// Reads fail, and bits turn.
        var hasReadFaults = false
        /// The disks don't answer for a while now and then.
        var isLate = false
        var admission = DiskAdmission.all

        var testDescription: String { name }

        static let all = [
            Kind(name: "healthy"),
            Kind(name: "tight", isTight: true),
            Kind(name: "write faults", hasWriteFaults: true),
            Kind(name: "all faults", isTight: true, hasWriteFaults: true, hasReadFaults: true),
            Kind(name: "late", isLate: true),
            Kind(name: "on second use", isTight: true, admission: .secondUse),
            Kind(name: "on eviction", admission: .eviction),
        ]
    }

    /// A chunk of the little world of prompts.
    struct Node {
        var space: Int
        var root: Digest
        /// From the root to the chunk itself.
        var path: [Digest]
    }

    struct Reader {
        var nodes: [Node]
        var shard: Int
    }

    struct Sync {
        /// What is to be durable when it ends well.
        var sealed: Set<Digest>
        /// What is to be gone for good then.
        var dropped: Set<Digest>
        /// When what expires is to be gone for good.
        var expiries: [Digest: UInt64]
        /// Of which it is durable when they expire, or that they don't.
        var unsettled: Set<Digest>
    }

    static let pages = 48
    static let segmentBytes = DiskFormat.smallestSegmentBytes

    let kind: Kind
    /// Any, if none is named.
    let policy: PolicyName?
    var random: SeededGenerator
    var core: StoreCore
    var now: UInt64 = 1
    let spaces: [CacheSpace]
    var handles: [UInt32] = []
    var session: UInt64 = 0
    let memory = DiskMemory(byteCount: pages * 4096)
    var disks: [SimulatedIO]
    let completions = Completions()
    var jobs: [(job: UInt64, offset: UInt64, length: UInt64, clears: Bool)] = []
    var readers: [UInt64: Reader] = [:]
    var holds: [UInt64: [Node]] = [:]
    var syncs: [UInt64: Sync] = [:]
    var nodes: [Digest: Node] = [:]
    /// Chunks that must be there after a restart.
    var durable: Set<Digest> = []
    /// Chunks that were dropped since they were sealed last.
    var dropped: Set<Digest> = []
    /// Those among them whose drop is durable: they must not come back.
    var gone: Set<Digest> = []
    /// When chunks expire, and those among them of which that is durable.
    var expiries: [Digest: UInt64] = [:]
    var durableExpiries: [Digest: UInt64] = [:]
    /// Of which that was told and is not durable; and those of which a crash made that uncertain.
    var unsettled: Set<Digest> = []
    var uncertain: Set<Digest> = []
    /// Bits turn in what is written: then a drop may rot, and what it dropped come back at a start.
    let turnsBits: Bool
    /// What is still to be handed to the core after a start.
    var recovery: (found: RecoveredDisks, batches: [RecoveredBatch])?
    /// Of how many chunks the core is told at a time; any, if that isn't said.
    var batchChunks: Int?
    var counts: [String: Int] = [:]
    /// Which chunks are static, as a start finds it; and whether there is something newer.
    var keptStatics: [TierMark] = []
    var staticsToKeep = false
    private var isCrashing = false
    /// What was saved while the disks were read.
    private var savedAgain: Set<Digest> = []

    init(seed: UInt64, kind: Kind, policy: PolicyName? = nil) throws {
        random = SeededGenerator(seed: seed)
        self.kind = kind
        self.policy = policy
        let isOdd = random.next() % 2 == 1
        turnsBits = kind.hasReadFaults && isOdd
        spaces = [
            try makeSpace("one", shardBytes: [4096]),
            try makeSpace("three", shardBytes: [3 * 4096 - 5]),
            try makeSpace("pair", shardBytes: [4096, 2 * 4096 - 100], stages: 2),
        ]
        disks = (0..<(random.next() % 3 == 0 ? 1 : 2)).map { SimulatedIO(seed: seed &+ $0) }
        core = Self.makeDiskCore(&random, kind, policy)
        try start()
    }

    static func makeDiskCore(
        _ random: inout SeededGenerator, _ kind: Kind, _ policy: PolicyName?
    ) -> StoreCore {
        let seed = random.next()
        // Mostly so little that the chunks of a prompt are on several disks.
        let turnBytes = [1, 1, 20_000, 8 << 20].randomElement(using: &random)!
        let anyPolicy = PolicyName.allCases.randomElement(using: &random)!
        var core = StoreCore(
            .init(
                arenaBytes: pages * 4096, slabBytes: 16 * 4096, checkOneIn: 7,
                secret: (seed, seed ^ 99), admission: kind.admission, wallOffsetMs: 1_000_000,
                diskTurnBytes: turnBytes),
            policy: (policy ?? anyPolicy).make())
        core.slabsBecameReady(0..<(pages / 16))
        return core
    }

    func pick(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &random) }

    // MARK: Start and crash

    func start() throws {
        core = Self.makeDiskCore(&random, kind, policy)
        session = core.openSession(name: "client")
        handles = try spaces.map { try core.open($0, session: session).handle }
        core.restoreStatics(keptStatics)
        staticsToKeep = false
        for disk in disks { disk.faults = SimulatedFaults() }
        let directories = try disks.enumerated().map { try open($1, volume: $0) }
        try recover(directories)
        for disk in disks { disk.faults = faults() }
    }

    private func open(_ disk: SimulatedIO, volume: Int) throws -> DiskDirectory {
        let directory = try DiskDirectory.open(
            SteppedIO(disk), nowMs: 1_000_000, random: &random)
        var configuration = LogConfiguration(
            disk: directory.disk, segmentBytes: Self.segmentBytes,
            budgetBytes: (kind.isTight ? 9 : 400) * Self.segmentBytes, seed: random.next(),
            wallOffsetMs: 1_000_000)
        configuration.groupBytes = 4 * 4096 * (1 + pick(4))
        _ = core.add(configuration)
        core.diskMayBegin(
            volume: volume, epoch: directory.nextEpoch,
            files: directory.segments.map { ($0.number, $0.byteCount) }, now: now)
        return directory
    }

    /// Reads what the disks have; the core is told of the chunks bit by bit.
    private func recover(_ directories: [DiskDirectory]) throws {
        let wallMs = 1_000_000 + now / 1_000_000
        guard let found = DiskRecovery(directories, wallMs: wallMs).run() else {
            throw Failure(description: "the recovery was ended")
        }
        for (volume, content) in found.volumes.enumerated() {
            for segment in content.segments { core.found(volume: volume, segment, now: now) }
        }
        var batches: [RecoveredBatch] = []
        found.forEachBatch(of: batchChunks ?? 1 + pick(20)) { batch in
            batches.append(batch)
            return true
        }
        recovery = (found, batches)
    }

    func faults() -> SimulatedFaults {
        var faults = SimulatedFaults()
        if kind.hasWriteFaults {
            faults.writeError = 0.02
            faults.syncError = 0.02
            faults.shortTransfer = 0.05
            switch pick(6) {
            case 0: faults.capacityBytes = (3 + pick(6)) * Self.segmentBytes
            case 1: faults.createError = 0.05
            default: break
            }
        }
        if kind.isLate { faults.late = 0.02 }
        if kind.hasReadFaults {
            faults.readError = 0.02
            faults.flipOnRead = 0.02
            if turnsBits { faults.flipOnWrite = 0.01 }
        }
        return faults
    }

    /// Hands some of what was found to the core; all of it in the end.
    func recoverSome() {
        guard var next = recovery else { return }
        if next.batches.isEmpty {
            recovery = nil
            for volume in disks.indices { core.recovered(volume: volume, now: now) }
        } else {
            core.found(next.batches.removeFirst(), spaces: next.found.spaces, now: now)
            recovery = next
        }
        drain()
    }

    func finishRecovery() { while recovery != nil { recoverSome() } }

    /// Whether there was room for all, so far. Where it runs out, what was durable makes way for
    /// what is new.
    private var keepsAll: Bool {
        disks.allSatisfy { $0.faults.capacityBytes == nil } && !kind.isTight
            && !kind.hasReadFaults
            && core.counters.chunksEvictedFromDisk == 0
            && core.counters.chunksLeftToMemory == 0
            && core.gauges.disk.unsafeReuses == 0
    }

    /// The process and the power go, and it starts again.
    func restart() throws {
        count("stalls", core.gauges.disk.diskStalls)
        disks = disks.map { $0.crash() }
        // It is down for a while.
        if pick(3) > 0 {
            now = max(now, disks.map(\.now).max()!) + UInt64(pick(8)) * second
            for disk in disks { disk.advance(to: now) }
        }
        completions.list.withLock { $0 = [] }
        (jobs, readers, holds, syncs) = ([], [:], [:], [:])
        // What was not synced may be back or not.
        dropped = gone
        expiries = durableExpiries
        uncertain.formUnion(unsettled)
        unsettled = []
        try start()
        count("crashes")
    }

    /// A restart; what comes back must be what it has to be, whatever is done meanwhile.
    func crash() throws {
        isCrashing = true
        defer { isCrashing = false }
        finishRecovery()
        let keptAll = keepsAll
        try restart()
        for _ in 0..<(pick(2) * pick(100)) where recovery != nil {
            try step()
            drain()
        }
        if let broken = core.brokenInvariant() { throw Failure(description: broken) }
        finishRecovery()
        if let broken = core.brokenInvariant() { throw Failure(description: broken) }
        for key in gone where try isThere(key) {
            if !turnsBits {
                throw Failure(description: "\(key) was dropped for good and is back")
            }
            gone.remove(key)
        }
        for (key, due) in expiries where try isThere(key) {
            if due > now {
                count("expiries kept")
            } else if turnsBits {
                expiries[key] = nil
                durableExpiries[key] = nil
            } else {
                throw Failure(description: "\(key) has expired and is back")
            }
        }
        if keptAll, keepsAll {
            for key in durable where try !isThere(key) {
                throw Failure(description: "\(key) was durable and is lost")
            }
            count("durable", durable.count)
        } else {
            // In memory, perhaps, and on no disk.
            durable.subtract(savedAgain)
        }
        savedAgain = []
        durable = durable.filter { (try? isThere($0)) ?? false }
    }

    func isThere(_ key: Digest) throws -> Bool {
        let place = try place(of: key)
        return place != .absent && place != .beingWritten
    }

    func place(of key: Digest) throws -> StoreCore.Location {
        let node = nodes[key]!
        return try core.locate(
            space: handles[node.space], root: node.root, keys: [key], session: session, now: now)[0]
    }

    func count(_ what: String, _ number: Int = 1) { counts[what, default: 0] += number }

    // MARK: The outside

    /// Has the effects carried out.
    func drain() {
        core.settle(now: now)
        while !core.effects.isEmpty {
            let effects = core.effects
            core.effects = []
            for effect in effects { carryOut(effect) }
            core.settle(now: now)
        }
    }

    func carryOut(_ effect: StoreCore.Effect) {
        switch effect {
        case .check(let job, let offset, let length): jobs.append((job, offset, length, false))
        case .prepare(let job, let offset, let length): jobs.append((job, offset, length, true))
        case .io(let volume, let request):
            let driver = LogDriver(
                disks[volume], arena: memory.buffer.address, byteCount: memory.buffer.count)
            driver.carryOut([request]) { [completions] id, outcome in
                completions.list.withLock { $0.append((volume, id, outcome)) }
            }
        case .synced(let ticket, let fault): synced(ticket, fault)
        case .keepStatics: staticsToKeep = true
        case .leaseReady, .warning: break
        }
    }

    func hashSome() {
        for _ in 0..<(1 + pick(6)) where !jobs.isEmpty {
            let job = jobs.remove(at: pick(jobs.count))
            let bytes = bytes(job.offset, job.length)
            let checksum = DiskFormat.checksum(UnsafeRawBufferPointer(bytes))
            if job.clears, job.length % 4096 != 0 {
                let padding = 4096 - job.length % 4096
                self.bytes(job.offset + job.length, padding).initializeMemory(
                    as: UInt8.self, repeating: 0)
            }
            core.checkCompleted(job: job.job, checksum: checksum, now: now)
            drain()
        }
    }

    func stepDisks(_ most: Int = 8) {
        for disk in disks { for _ in 0..<(1 + pick(most)) { disk.step() } }
        takeCompletions()
    }

    func takeCompletions() {
        now = max(now, disks.map(\.now).max()!)
        let ended = completions.list.withLock { completions in
            defer { completions = [] }
            return completions
        }
        for (volume, id, outcome) in ended {
            core.diskCompleted(volume: volume, id, outcome, now: now)
            drain()
        }
    }

    func pass(_ nanoseconds: UInt64) {
        let end = now + nanoseconds
        for disk in disks { while let due = disk.nextDue, due <= end { disk.step() } }
        for disk in disks where disk.now < end { disk.advance(to: end) }
        takeCompletions()
        now = max(now, end)
        core.advance(to: now)
        drain()
    }

    /// Lets everything that is under way end.
    func rest() throws {
        for disk in disks { disk.faults = SimulatedFaults() }
        for _ in 0..<2000 {
            finishRecovery()
            hashSome()
            stepDisks(40)
            core.advance(to: now)
            drain()
            let isQuiet =
                jobs.isEmpty && core.gauges.disk.chunksBeingWritten == 0
                && core.gauges.disk.chunksLoading == 0
                && core.gauges.disk.chunksWaiting == 0
            if isQuiet { return }
            pass(second / 10)
        }
        throw Failure(description: "it never comes to rest: \(core.gauges.disk)")
    }

    // MARK: Bytes

    func bytes(_ offset: UInt64, _ length: UInt64) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(
            start: memory.buffer.address + Int(offset), count: Int(length))
    }

    /// What stands at each place of a shard.
    func word(_ key: Digest, shard: Int) -> UInt64 {
        key.words.0 &+ UInt64(shard) &* 0x9E37_79B9 | 1
    }

    /// As an engine does that computes a chunk again and gets slightly other numbers.
    func fill(_ extent: Extent, key: Digest, shard: Int, variant: UInt64) {
        let bytes = bytes(extent.offset, extent.length)
        let word = word(key, shard: shard) ^ variant << 40
        for place in stride(from: 0, to: bytes.count - 7, by: 8) {
            bytes.storeBytes(of: word &+ UInt64(place), toByteOffset: place, as: UInt64.self)
        }
    }

    func isRight(_ extent: Extent, key: Digest, shard: Int) -> Bool {
        let bytes = bytes(extent.offset, extent.length)
        var word = word(key, shard: shard)
        if bytes.load(as: UInt64.self) != word { word ^= 1 << 40 }
        for place in stride(from: 0, to: bytes.count - 7, by: 8)
        where bytes.load(fromByteOffset: place, as: UInt64.self) != word &+ UInt64(place) {
            return false
        }
        return true
    }

    // MARK: Events

    func run(events: Int) throws {
        for event in 0..<events {
            try step()
            drain()
            if event % 64 == 0 { try check() }
        }
        try rest()
        try check()
        count("failed writes", core.counters.chunkWritesFailed)
    }

    func check() throws {
        if let broken = core.brokenInvariant() { throw Failure(description: broken) }
        for (volume, disk) in disks.enumerated() {
            let bytes = disk.list().reduce(0) { $0 + $1.byteCount }
            let limit = (kind.isTight ? 9 : 400) * Self.segmentBytes + 4096
            if bytes > limit {
                throw Failure(description: "disk \(volume) has \(bytes) bytes, more than \(limit)")
            }
        }
    }

    func step() throws {
        switch pick(100) {
        case 0..<22: try save()
        case 22..<36: try match()
        case 36..<44: try acquire()
        case 44..<56: try finishReading()
        case 56..<60: try prefetch()
        case 60..<74: hashSome()
        case 74..<88: stepDisks()
        case 88: try drop()
        case 89: if pick(2) == 0 { try drop() } else { try expire() }
        case 90..<93: try sync()
        case 93..<95: recoverSome()
        case 95: if pick(2) == 0 { pass(UInt64(pick(3)) * second) } else { try pinForGood() }
        case 96: pass(second / 100)
        case 97: try releaseHold()
        case 98: if pick(4) == 0, !isCrashing { try crash() }
        default: try look()
        }
    }

    /// A random prompt; its chunks become known to the model.
    func prompt() -> [Node] {
        let space = pick(spaces.count)
        let number = UInt64(space * 10 + pick(2))
        let root = key([number], 999)
        var path: [UInt64] = [number]
        var keys: [Digest] = []
        var prompt: [Node] = []
        for _ in 0..<(1 + pick(7)) {
            path.append(UInt64(pick(10) < 7 ? 0 : 1 + pick(3)))
            keys.append(key(path))
            let node = Node(space: space, root: root, path: keys)
            nodes[keys.last!] = node
            prompt.append(node)
        }
        return prompt
    }

    func key(_ path: [UInt64], _ more: UInt64) -> Digest { KVStoreTests.key(path + [more]) }
    func key(_ path: [UInt64]) -> Digest { KVStoreTests.key(path) }

    func save() throws {
        let prompt = prompt()
        let space = prompt[0].space
        let shardCount = spaces[space].shardCount
        let reservation = try core.reserve(
            space: handles[space], root: prompt[0].root, keys: prompt.last!.path,
            timeToLiveMs: 60_000, session: session, now: now)
        drain()
        if reservation.lease == 0 { return }
        let granted = prompt.indices.filter { reservation.states[$0] == .granted }
        for (place, position) in granted.enumerated() {
            for shard in 0..<shardCount {
                fill(
                    reservation.extents[place * shardCount + shard],
                    key: prompt[position].path.last!,
                    shard: shard, variant: UInt64(pick(2)))
            }
        }
        for shard in 0..<shardCount {
            _ = try core.commit(
                lease: reservation.lease, shard: shard, positions: nil, session: session, now: now)
        }
        for position in granted {
            let key = prompt[position].path.last!
            dropped.remove(key)
            gone.remove(key)
            let hadExpiry =
                expiries.removeValue(forKey: key) != nil || unsettled.contains(key)
                || uncertain.contains(key)
            forgetExpiry(key)
            // Not durable, it can get lost and come back with the life that it had: after a crash, or
            // while the disks are read.
            if hadExpiry { unsettled.insert(key) }
            if hadExpiry, recovery != nil { uncertain.insert(key) }
            if isCrashing { savedAgain.insert(key) }
            for ticket in syncs.keys { syncs[ticket]!.dropped.remove(key) }
        }
        count("saves", granted.count)
    }

    /// Saves a chunk and those before it. - Returns: the lease.
    @discardableResult
    func store(_ node: Node, variant: UInt64, commits: Bool = true) throws -> UInt64 {
        let shardCount = spaces[node.space].shardCount
        let reservation = try core.reserve(
            space: handles[node.space], root: node.root, keys: node.path,
            timeToLiveMs: 60_000, session: session, now: now)
        drain()
        for (place, extent) in reservation.extents.enumerated() {
            let key = node.path[place / shardCount]
            fill(extent, key: key, shard: place % shardCount, variant: variant)
        }
        for shard in 0..<(commits ? shardCount : 0) {
            _ = try core.commit(
                lease: reservation.lease, shard: shard, positions: nil, session: session, now: now)
        }
        drain()
        return reservation.lease
    }

    func match() throws {
        let prompt = prompt()
        let match = try core.match(
            space: handles[prompt[0].space], root: prompt[0].root, keys: prompt.last!.path,
            holdMs: UInt64(1 + pick(5)) * 1000, readers: 1 + pick(2), session: session, now: now)
        count("hits", match.count)
        count("disk hits", match.tiers.count { $0 == .disk })
        if match.hold != 0 { holds[match.hold] = Array(prompt.prefix(match.count)) }
        for node in prompt.prefix(match.count) {
            let key = node.path.last!
            if gone.contains(key) { throw Failure(description: "\(key) was dropped and matches") }
            if expiries[key] ?? .max <= now {
                throw Failure(description: "\(key) has expired and matches")
            }
        }
    }

    /// Sets when chunks expire, or that they don't.
    func expire() throws {
        let prompt = prompt()
        let ms = UInt64([0, 1, 100, 5_000][pick(4)])
        let found = try core.expire(
            space: handles[prompt[0].space], root: prompt[0].root, keys: prompt.last!.path,
            after: ms > 0 ? TimeToLive(ms: ms) : nil, session: session, now: now)
        for node in prompt.prefix(found) {
            let key = node.path.last!
            expiries[key] = ms == 0 ? nil : now + ms * 1_000_000
            forgetExpiry(key)
            unsettled.insert(key)
            if ms == 0 { continue }
            for (key, other) in nodes where other.path.starts(with: node.path) {
                durable.remove(key)
                for ticket in syncs.keys { syncs[ticket]!.sealed.remove(key) }
            }
        }
        count("expiries", ms == 0 ? 0 : found)
    }

    /// Makes a prompt static, or ordinary again; and perhaps has the list kept.
    func pinForGood() throws {
        let prompt = prompt()
        let (handle, root) = (handles[prompt[0].space], prompt[0].root)
        if pick(3) == 0 {
            let count = try core.unpin(
                space: handle, root: root, keys: prompt.last!.path, session: session, now: now)
            self.count("unpins", count)
        } else {
            do {
                let found = try core.pin(
                    space: handle, root: root, keys: prompt.last!.path, for: .forever,
                    session: session, now: now)
                count("static", found)
                // It takes the time to live away, as expiry by 0 does.
                for node in prompt.prefix(found) {
                    let key = node.path.last!
                    if expiries.removeValue(forKey: key) == nil, !unsettled.contains(key),
                        !uncertain.contains(key)
                    {
                        continue
                    }
                    forgetExpiry(key)
                    unsettled.insert(key)
                }
            } catch {
                if error.code != .limit { throw error }
            }
        }
        drain()
        if staticsToKeep, pick(2) == 0 { (keptStatics, staticsToKeep) = (core.staticList, false) }
    }

    /// What was told earlier counts no more.
    func forgetExpiry(_ key: Digest) {
        durableExpiries[key] = nil
        unsettled.remove(key)
        uncertain.remove(key)
        for ticket in syncs.keys {
            syncs[ticket]!.expiries[key] = nil
            syncs[ticket]!.unsettled.remove(key)
        }
    }

    /// Holds a chunk for two minutes. - Returns: a lease of its shard.
    func acquire(_ node: Node, shard: Int = 0) throws -> UInt64 {
        let match = try core.match(
            space: handles[node.space], root: node.root, keys: node.path, holdMs: 120_000,
            readers: 1, session: session, now: now)
        return try core.acquire(hold: match.hold, shard: shard, session: session, now: now).lease
    }

    func extents(_ lease: UInt64) throws -> [Extent] {
        try core.extents(lease: lease, session: session, now: now)
    }

    func extent(_ lease: UInt64) throws -> Extent { try extents(lease)[0] }

    func acquire() throws {
        guard let hold = holds.keys.sorted().first, let nodes = holds.removeValue(forKey: hold)
        else { return }
        let shard = pick(spaces[nodes[0].space].shardCount)
        do {
            let lease = try core.acquire(hold: hold, shard: shard, session: session, now: now)
            readers[lease.lease] = Reader(nodes: nodes, shard: shard)
        } catch {
            if error.code != .expired { throw error }
        }
    }

    func finishReading() throws {
        guard let lease = readers.keys.sorted().first else { return }
        let reader = readers[lease]!
        let extents: [Extent]
        do {
            extents = try core.extents(lease: lease, session: session, now: now)
        } catch {
            readers[lease] = nil
            return
        }
        if extents.contains(.pending), pick(3) > 0 { return }
        for (node, extent) in zip(reader.nodes, extents) where extent != .gone && extent != .pending
        {
            if !isRight(extent, key: node.path.last!, shard: reader.shard) {
                throw Failure(description: "wrong bytes under \(node.path.last!)")
            }
            count("reads")
        }
        count("gone", extents.count { $0 == .gone })
        readers[lease] = nil
        _ = try core.release(lease, session: session, now: now)
    }

    func prefetch() throws {
        let prompt = prompt()
        _ = try core.prefetch(
            space: handles[prompt[0].space], root: prompt[0].root, keys: prompt.last!.path,
            session: session, now: now)
    }

    func releaseHold() throws {
        guard let hold = holds.keys.sorted().first else { return }
        holds[hold] = nil
        _ = try core.release(hold, session: session, now: now)
    }

    func drop() throws {
        let node = prompt().randomElement(using: &random)!
        let handle = handles[node.space]
        let isHit: (Node) -> Bool
        switch pick(6) {
        case 0:
            _ = try core.drop(space: handle, root: node.root, session: session, now: now)
            isHit = { $0.root == node.root }
        case 1 where pick(3) == 0:
            _ = try core.drop(space: handle, now: now)
            isHit = { $0.space == node.space }
        default:
            _ = try core.drop(
                space: handle, root: node.root, keys: [node.path.last!], session: session, now: now)
            isHit = { $0.root == node.root && $0.path.starts(with: node.path) }
        }
        for (key, other) in nodes where isHit(other) {
            dropped.insert(key)
            durable.remove(key)
            for ticket in syncs.keys { syncs[ticket]!.sealed.remove(key) }
            if try isThere(key) { throw Failure(description: "\(key) is there after its drop") }
        }
        count("drops")
    }

    func sync() throws {
        let sealed = try nodes.filter { key, node in
            try isThere(key)
                && !node.path.contains { expiries[$0] != nil || uncertain.contains($0) }
        }
        let ticket = try core.sync(now: now)
        syncs[ticket] = Sync(
            sealed: Set(sealed.keys), dropped: dropped, expiries: expiries, unsettled: unsettled)
    }

    func synced(_ ticket: UInt64, _ fault: TierFault?) {
        guard let sync = syncs.removeValue(forKey: ticket) else { return }
        if fault != nil {
            count("failed syncs")
            return
        }
        count("syncs")
        durable.formUnion(sync.sealed)
        gone.formUnion(sync.dropped)
        durableExpiries.merge(sync.expiries) { $1 }
        unsettled.subtract(sync.unsettled)
    }

    func look() throws {
        let prompt = prompt()
        _ = try core.explain(
            space: handles[prompt[0].space], root: prompt[0].root, keys: prompt.last!.path,
            session: session, now: now)
        _ = core.list(cursor: 0, count: 1000, filter: .init(), now: now)
        if pick(8) == 0 { core.compactDisks(below: Double(pick(10)) / 10, now: now) }
    }
}

/// Requests that have ended and are not told to the core yet.
final class Completions: Sendable {
    let list = Locked<[(volume: Int, id: UInt64, outcome: DiskOutcome)]>([])
}

/// A simulated disk whose requests end before `submit` returns: for those who wait for each.
final class SteppedIO: DiskIO {
    private let disk: SimulatedIO

    init(_ disk: SimulatedIO) { self.disk = disk }

    var isDirect: Bool { disk.isDirect }
    func list() -> [(name: String, byteCount: Int)] { disk.list() }
    func stop() {}

    func submit(
        _ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void
    ) {
        let outcome = Locked<DiskOutcome?>(nil)
        disk.submit(request) { ended in outcome.withLock { $0 = ended } }
        while outcome.withLock({ $0 == nil }) { disk.step() }
        completion(outcome.withLock { $0! })
    }
}
