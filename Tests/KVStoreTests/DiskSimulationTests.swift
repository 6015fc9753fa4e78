import Foundation
import KVDisk
import KVIdentity
import KVPolicy
import KVStore
import Testing

@Suite("A store with disks, simulated")
struct DiskSimulationTests {
    /// Seeds of each kind; `KVASIR_SIMULATION_SEEDS` for more.
    static let seeds =
        ProcessInfo.processInfo.environment["KVASIR_SIMULATION_SEEDS"].flatMap { Int($0) }
        ?? usualSeeds
    static let usualSeeds = 12

    /// The first seed; `KVASIR_SIMULATION_FIRST` names one.
    static let first =
        ProcessInfo.processInfo.environment["KVASIR_SIMULATION_FIRST"].flatMap { UInt64($0) }
        ?? UInt64.random(in: 0..<1 << 32)

    @Test(
        "Random events, faults and crashes: no wrong byte, nothing durable lost, nothing dropped back",
        arguments: DiskSimulation.Kind.all)
    func randomEvents(kind: DiskSimulation.Kind) throws {
        // One kind alone, to look into a seed.
        let only = ProcessInfo.processInfo.environment["KVASIR_SIMULATION_KIND"]
        if let only, only != kind.name { return }
        print("disk simulation '\(kind.name)': \(Self.seeds) seeds from \(Self.first) on")
        var counts: [String: Int] = [:]
        for seed in Self.first..<(Self.first + UInt64(Self.seeds)) {
            do {
                let simulation = try DiskSimulation(seed: seed, kind: kind)
                try simulation.run(events: 1500)
                counts.merge(simulation.counts, uniquingKeysWith: +)
            } catch {
                Issue.record("seed \(seed): \(error)")
                return
            }
        }
        print("disk simulation '\(kind.name)': \(counts.sorted { $0.key < $1.key })")
        // A few seeds need not have seen everything.
        if Self.seeds < Self.usualSeeds { return }
        if kind.isLate { #expect(counts["stalls", default: 0] > 0) }
        for what in [
            "saves", "hits", "disk hits", "reads", "syncs", "drops", "expiries", "crashes",
            "static",
        ] {
            #expect(counts[what, default: 0] > 0, "\(what)")
        }
    }

    @Test("Who waits for a disk that does not answer to make something durable is told so")
    func hangingSync() throws {
        let simulation = try DiskSimulation(seed: Self.first, kind: .all[0])
        while simulation.core.counters.chunksWritten < 30 {
            try simulation.save()
            simulation.drain()
            try simulation.rest()
        }
        for disk in simulation.disks {
            disk.faults.late = 1
            disk.faults.lateNanoseconds = 600_000_000_000...600_000_000_000
        }
        while simulation.core.gauges.disk.chunksBeingWritten == 0 {
            try simulation.save()
            simulation.drain()
        }
        simulation.finishRecovery()
        try simulation.sync()
        simulation.drain()
        simulation.hashSome()
        simulation.pass(9_000_000_000)
        #expect(simulation.syncs.count == 1, "seed \(Self.first)")
        // It may wait for a file that is made, which may take longer.
        simulation.pass(52_000_000_000)
        #expect(simulation.syncs.isEmpty && simulation.counts["failed syncs"] == 1)
        // At once, now that it is known.
        try simulation.sync()
        simulation.drain()
        #expect(simulation.syncs.isEmpty && simulation.counts["failed syncs"] == 2)
        #expect(simulation.core.brokenInvariant() == nil)
    }

    @Test(
        "What waits for a disk is evicted last, as long as that is a quarter of memory",
        arguments: PolicyName.allCases)
    func spared(policy: PolicyName) throws {
        let simulation = try DiskSimulation(seed: Self.first, kind: .all[0], policy: policy)
        simulation.finishRecovery()
        var prompts: [DiskSimulation.Node] = []
        func save() throws {
            let number: [UInt64] = [77, UInt64(prompts.count)]
            let (root, chunk) = (simulation.key(number, 999), simulation.key(number))
            prompts.append(DiskSimulation.Node(space: 0, root: root, path: [chunk]))
            try simulation.store(prompts.last!, variant: 0)
        }
        // Memory is full of what the disk has, and of what all policies like better than new chunks.
        for _ in 0..<2 * DiskSimulation.pages {
            try save()
            try simulation.rest()
            for prompt in prompts.suffix(DiskSimulation.pages / 2) {
                _ = try simulation.core.match(
                    space: simulation.handles[0], root: prompt.root, keys: prompt.path,
                    session: simulation.session, now: simulation.now)
            }
        }
        #expect(simulation.core.counters.chunksEvicted > 0)
        #expect(simulation.core.counters.chunksEvictedUnwritten == 0)
        // Now it takes nothing more.
        let quarter = DiskSimulation.pages / 4
        while simulation.core.gauges.disk.chunksWaiting <= quarter {
            #expect(simulation.core.counters.chunksEvictedUnwritten == 0, "seed \(Self.first)")
            try save()
        }
        for _ in 0..<2 * DiskSimulation.pages { try save() }
        #expect(simulation.core.counters.chunksEvictedUnwritten > 0)
        #expect(simulation.core.brokenInvariant() == nil)
        try simulation.rest()
        #expect(simulation.core.gauges.disk.chunksWaiting == 0)
    }

    /// A chunk that was durable, and is saved again while the disk is read.
    enum SavedAgain: CaseIterable {
        case waiting, writing, leased
    }

    @Test(
        "What is saved again before it is found keeps its place on the disk",
        arguments: SavedAgain.allCases, [true, false])
    func savedAgain(state: SavedAgain, isOther: Bool) throws {
        let kind = DiskSimulation.Kind.all[state == .waiting ? 6 : 0]
        let (simulation, node) = try durable(kind)
        try simulation.restart()

        let lease = try simulation.store(node, variant: isOther ? 1 : 0, commits: state != .leased)
        if state == .writing {
            #expect(simulation.core.gauges.disk.chunksBeingWritten == 2)
        }
        simulation.finishRecovery()
        #expect(simulation.core.brokenInvariant() == nil)
        if state == .leased {
            #expect(
                try simulation.core.commit(
                    lease: lease, shard: 0, positions: nil, session: simulation.session,
                    now: simulation.now) == 0)
            _ = try? simulation.core.release(
                lease, session: simulation.session, now: simulation.now)
        }
        try simulation.rest()
        #expect(simulation.core.gauges.disk.chunksOnDisk == 2)
        // Memory gives everything up.
        while try node.path.contains(where: { try simulation.place(of: $0) != .disk }) {
            try simulation.save()
            try simulation.rest()
        }
        #expect(simulation.core.brokenInvariant() == nil)
        let reading = try simulation.acquire(node)
        simulation.drain()
        try simulation.rest()
        let extents = try simulation.extents(reading)
        #expect(extents.count == node.path.count)
        for (extent, key) in zip(extents, node.path) {
            #expect(extent != .gone && simulation.isRight(extent, key: key, shard: 0))
        }
        #expect(simulation.core.counters.chunksDamaged == 0)
    }

    /// A store with a prompt of two chunks that is durable.
    private func durable(
        _ kind: DiskSimulation.Kind, lifeMs: UInt64? = nil
    ) throws -> (DiskSimulation, DiskSimulation.Node) {
        let simulation = try DiskSimulation(seed: Self.first, kind: kind)
        simulation.finishRecovery()
        var node = simulation.prompt().last!
        while node.path.count != 2 { node = simulation.prompt().last! }
        try simulation.store(node, variant: 0)
        if let lifeMs {
            _ = try simulation.core.expire(
                space: simulation.handles[node.space], root: node.root, keys: node.path,
                after: TimeToLive(ms: lifeMs), session: simulation.session, now: simulation.now)
        }
        try makeDurable(simulation)
        #expect(simulation.durable.count == 2, "seed \(Self.first)")
        return (simulation, node)
    }

    private func makeDurable(_ simulation: DiskSimulation) throws {
        try simulation.sync()
        while !simulation.syncs.isEmpty {
            try simulation.rest()
            simulation.pass(1_000_000_000)
        }
        #expect(simulation.counts["failed syncs"] == nil)
    }

    @Test("What is in a file that can't be opened is no place for what is saved again")
    func unreadablePlace() throws {
        let (simulation, node) = try durable(.all[0])
        try simulation.restart()
        simulation.core.settle(now: simulation.now)
        let effects = simulation.core.effects
        simulation.core.effects = []
        for effect in effects {
            if case .io(let volume, let request) = effect, case .open = request.operation {
                simulation.core.diskCompleted(
                    volume: volume, request.id, .failed(DiskFault(.inputOutput, "open it")),
                    now: simulation.now)
            } else {
                simulation.carryOut(effect)
            }
        }
        simulation.drain()
        try simulation.store(node, variant: 1)
        simulation.finishRecovery()
        try makeDurable(simulation)
        #expect(simulation.core.brokenInvariant() == nil)
        while try node.path.contains(where: { try simulation.place(of: $0) != .disk }) {
            try simulation.save()
            try simulation.rest()
        }
        let reading = try simulation.acquire(node)
        simulation.drain()
        try simulation.rest()
        for (extent, key) in zip(try simulation.extents(reading), node.path) {
            #expect(extent != .gone && simulation.isRight(extent, key: key, shard: 0))
        }
        #expect(simulation.core.counters.chunksUnreadable == 0)
    }

    @Test("What follows a chunk that is dropped and saved again before all is found stays away")
    func droppedBetweenBatches() throws {
        let (simulation, node) = try durable(.all[0])
        simulation.batchChunks = 1
        try simulation.restart()
        let first = DiskSimulation.Node(
            space: node.space, root: node.root, path: [node.path[0]])
        func matches() throws -> Int {
            try simulation.core.match(
                space: simulation.handles[node.space], root: node.root, keys: node.path,
                session: simulation.session, now: simulation.now
            ).count
        }
        while try matches() == 0 { simulation.recoverSome() }
        #expect(try matches() == 1)
        _ = try simulation.core.drop(
            space: simulation.handles[node.space], root: node.root, keys: first.path,
            session: simulation.session, now: simulation.now)
        simulation.drain()
        try simulation.store(first, variant: 0)
        simulation.finishRecovery()
        #expect(try matches() == 1, "what followed it was dropped with it")
        #expect(simulation.core.brokenInvariant() == nil)
    }

    @Test("What expires before it is found leaves those alone who save it again")
    func expiredPlace() throws {
        let (simulation, node) = try durable(.all[0], lifeMs: 60_000)
        try simulation.restart()
        simulation.pass(30_000_000_000)
        let lease = try simulation.store(node, variant: 0, commits: false)
        simulation.pass(35_000_000_000)
        simulation.finishRecovery()
        simulation.pass(1_000_000)
        for shard in 0..<simulation.spaces[node.space].shardCount {
            _ = try simulation.core.commit(
                lease: lease, shard: shard, positions: nil, session: simulation.session,
                now: simulation.now)
        }
        #expect(try node.path.allSatisfy { try simulation.isThere($0) })
        #expect(simulation.core.counters.chunksExpired == 0)
        #expect(simulation.core.brokenInvariant() == nil)
    }

    @Test("Nobody waits long for a disk that does not answer, and nothing on it is lost")
    func stalledDisk() throws {
        let kind = DiskSimulation.Kind.all[0]
        let simulation = try DiskSimulation(seed: Self.first, kind: kind)
        while simulation.core.gauges.disk.chunksOnDiskOnly < 20 {
            try simulation.save()
            simulation.drain()
            try simulation.rest()
        }
        let node = try #require(
            try simulation.nodes.sorted { $0.key < $1.key }.first { key, node in
                try node.path.count == 1 && simulation.place(of: key) == .disk
            }?.value, "seed \(Self.first)")
        for disk in simulation.disks {
            disk.faults.late = 1
            disk.faults.lateNanoseconds = 60_000_000_000...60_000_000_000
        }

        let waiting = try simulation.acquire(node)
        simulation.drain()
        simulation.pass(9_000_000_000)
        #expect(try simulation.extent(waiting) == .pending)
        simulation.pass(2_000_000_000)
        #expect(try simulation.extent(waiting) == .gone)
        #expect(simulation.core.gauges.disk.disksSuspended == 1)
        // At once, now that it is known.
        let late = try simulation.acquire(node)
        simulation.drain()
        #expect(try simulation.extent(late) == .gone)
        _ = try simulation.core.prefetch(
            space: simulation.handles[node.space], root: node.root, keys: node.path,
            session: simulation.session, now: simulation.now)
        simulation.drain()
        #expect(simulation.core.brokenInvariant() == nil)

        for disk in simulation.disks { disk.faults = SimulatedFaults() }
        simulation.pass(60_000_000_000)
        try simulation.rest()
        #expect(simulation.core.gauges.disk.disksSuspended == 0)
        let again = try simulation.acquire(node)
        simulation.drain()
        try simulation.rest()
        let extent = try simulation.extent(again)
        #expect(extent != .gone && extent != .pending)
        #expect(simulation.isRight(extent, key: node.path[0], shard: 0))
    }
}
