import KVPolicy
import KVSimulator
import KVStore
import TestRandom
import Testing

@Suite("Replays")
struct ReplayTests {
    /// LRU on a list, by its definition: nothing clever.
    private func naiveLRU(
        _ trace: Trace, capacity: Int, storesPartial: Bool, headFirst: Bool
    ) -> ReplayResult {
        var result = ReplayResult(trace)
        var cache: [UInt32] = []
        for request in trace.requests {
            let path = Array(trace.chunks(of: request, storesPartial: storesPartial))
            let hits = path.prefix { cache.contains($0) }.count
            let tokens = Double(min(hits * trace.chunkTokens, Int(request.tokens)))
            result.hitChunks += Double(hits)
            result.hitTokens += tokens
            result.hitTokensSquared += tokens * tokens
            if hits > 0 { result.hitRequests += 1 }
            for chunk in headFirst ? path : path.reversed() {
                cache.removeAll { $0 == chunk }
                cache.append(chunk)
            }
            while cache.count > capacity { cache.removeFirst() }
        }
        return result
    }

    @Test(
        "The curve from one pass is what a list in the order of last use gives, at every capacity",
        arguments: 0..<12)
    func stackDistances(seed: Int) throws {
        var random = SeededGenerator(seed: UInt64(seed))
        let trace = try randomTrace(&random, requests: 120, branches: 3, longest: 6)
        for storesPartial in [false, true] {
            for order in [StackDistances.Order.tailFirst, .headFirst] {
                let curve = StackDistances(trace, storesPartial: storesPartial, order: order)
                for capacity in [1, 2, 3, 5, 8, 13, 21, 34, 55, 200] {
                    let expected = naiveLRU(
                        trace, capacity: capacity, storesPartial: storesPartial,
                        headFirst: order == .headFirst)
                    #expect(
                        curve.result(capacity: capacity) == expected,
                        "seed \(seed), capacity \(capacity), \(order), partial \(storesPartial)")
                }
            }
        }
    }

    @Test("The store's LRU, leaves first, gives the same as the curve", arguments: 0..<12)
    func leavesFirst(seed: Int) throws {
        var random = SeededGenerator(seed: UInt64(100 + seed))
        let trace = try randomTrace(&random, requests: 400, branches: 3, longest: 7)
        let curve = StackDistances(trace)
        for capacity in [1, 2, 4, 9, 20, 50, 120, 1000] {
            var replay = PolicyReplay(trace, policy: LeastRecentlyUsed(), capacity: capacity)
            replay.run()
            #expect(
                replay.result == curve.result(capacity: capacity),
                "seed \(seed), capacity \(capacity)")
        }
    }

    @Test("Slots that run out and move together change nothing")
    func compaction() throws {
        var random = SeededGenerator(seed: 5)
        let trace = try randomTrace(&random, requests: 6000, branches: 2, longest: 5)
        // Far more uses than slots: 4096 for this few chunks.
        #expect(trace.references.count > 3 * 4096)
        #expect(trace.distinctCount < 200)
        let curve = StackDistances(trace)
        for capacity in [3, 17, 60] {
            #expect(
                curve.result(capacity: capacity)
                    == naiveLRU(
                        trace, capacity: capacity, storesPartial: false, headFirst: false))
        }
    }

    @Test("A sampled curve is near the exact one, and says about how near", arguments: 0..<4)
    func sampling(seed: Int) throws {
        var random = SeededGenerator(seed: UInt64(200 + seed))
        let trace = try randomTrace(&random, requests: 30_000, branches: 6, longest: 6)
        let exact = StackDistances(trace)
        let sampled = StackDistances(trace, sample: 0.2)
        for capacity in [500, 2000, 6000, 20_000] {
            let difference = abs(
                exact.result(capacity: capacity).chunkShare
                    - sampled.result(capacity: capacity).chunkShare)
            let error = sampled.chunkShareError(capacity: capacity)
            #expect(error > 0)
            #expect(error < 0.05)
            #expect(difference < 4 * error, "seed \(seed), capacity \(capacity)")
        }
        #expect(exact.chunkShareError(capacity: 500) == 0)
    }

    /// The most chunks that can be found, by trying all cache states: after each request any subset of
    /// what was cached or asked for, within the capacity.
    private func bruteForce(_ trace: Trace, capacity: Int) -> Int {
        var best: [UInt32: Int] = [0: 0]
        for request in trace.requests {
            let path = Array(trace.chunks(of: request, storesPartial: false))
            let asked = path.reduce(UInt32(0)) { $0 | 1 << $1 }
            var next: [UInt32: Int] = [:]
            for (state, score) in best {
                let hits = path.prefix { state & (1 << $0) != 0 }.count
                let available = state | asked
                var subset = available
                while true {
                    if subset.nonzeroBitCount <= capacity {
                        next[subset] = max(next[subset] ?? -1, score + hits)
                    }
                    if subset == 0 { break }
                    subset = (subset - 1) & available
                }
            }
            best = next
        }
        return best.values.max() ?? 0
    }

    @Test("The optimum is the best of all cache states of small trees", arguments: 0..<60)
    func optimum(seed: Int) throws {
        var random = SeededGenerator(seed: UInt64(300 + seed))
        var trace = try randomTrace(&random, requests: 14, branches: 2, longest: 3)
        while trace.distinctCount > 11 {
            trace = try randomTrace(&random, requests: 12, branches: 2, longest: 3)
        }
        for capacity in 1...5 {
            let found = Optimum(trace).result(capacity: capacity).hitChunks
            #expect(
                Int(found) == bruteForce(trace, capacity: capacity),
                "seed \(seed), capacity \(capacity)")
        }
    }

    @Test("No policy finds more than the optimum, nor anything that wasn't stored before")
    func bounds() throws {
        var random = SeededGenerator(seed: 7)
        let trace = try randomTrace(&random, requests: 1500, branches: 4, longest: 6)
        let unbounded = ReplayResult.unbounded(trace)
        #expect(StackDistances(trace).result(capacity: .max) == unbounded)
        for capacity in [1, 10, 100, 400, 100_000] {
            let most = Optimum(trace).result(capacity: capacity).hitChunks
            #expect(most <= unbounded.hitChunks)
            for name in Simulation.Contender.names {
                let contender = try #require(Simulation.Contender(named: name))
                let found = try Simulation(trace).run(contender, capacities: [capacity])[0].result
                #expect(found.hitChunks <= most, "\(name) at \(capacity)")
                if capacity == 100_000 { #expect(found == unbounded, "\(name)") }
            }
        }
    }

    @Test(
        "The store's core evicts the same chunks in the same order", arguments: PolicyName.allCases)
    func core(name: PolicyName) throws {
        for seed in 0..<4 {
            var random = SeededGenerator(seed: UInt64(400 + seed))
            let trace = try randomTrace(&random, requests: 900, branches: 3, longest: 8)
            for capacity in [16, 48, 160] {
                let simulated = EvictionLog()
                var replay = PolicyReplay(
                    trace, policy: Recording(name.make(), simulated), capacity: capacity)
                replay.run()
                let real = EvictionLog()
                let core = try CoreReplay(trace, memoryChunks: capacity, diskChunks: 0).run(
                    policy: Recording(name.make(), real), admission: nil)
                #expect(core.found == replay.result, "seed \(400 + seed), capacity \(capacity)")
                #expect(!simulated.evicted.isEmpty)
                #expect(
                    simulated.evicted == real.evicted, "seed \(400 + seed), capacity \(capacity)")
            }
        }
    }

    @Test("A disk behind the memory finds more, and no more than a cache without bound")
    func tiers() throws {
        var random = SeededGenerator(seed: 9)
        let trace = try randomTrace(&random, requests: 3000, branches: 5, longest: 6)
        let contender = try #require(Simulation.Contender(named: "lru"))
        let simulation = Simulation(trace)
        let alone = try simulation.run(contender, capacities: [48])[0]
        let both = try simulation.run(contender, capacities: [48], disks: [960])[0]
        let unbounded = StackDistances(trace).result(capacity: .max)
        #expect(both.result.hitChunks > 1.2 * alone.result.hitChunks)
        #expect(both.result.hitChunks <= unbounded.hitChunks)
        let tiers = try #require(both.tiers)
        #expect(tiers.diskHits > 0)
        #expect(Double(tiers.memoryHits + tiers.diskHits) == both.result.hitChunks)
        let large = try simulation.run(contender, capacities: [48], disks: [20_000])[0]
        #expect(large.result == unbounded)
    }

    @Test("A disk that is smaller than the memory is written a bounded number of times")
    func smallDisk() throws {
        var random = SeededGenerator(seed: 10)
        let trace = try randomTrace(&random, requests: 4000, branches: 5, longest: 6)
        let replay = try CoreReplay(trace, memoryChunks: 4096, diskChunks: 64).run(
            policy: LeastRecentlyUsed(), admission: .all)
        #expect(replay.onDiskAtEnd < replay.sealedChunks / 4, "the disk holds no more")
        // What is used after it was written is written again, and nothing else.
        let uses = Int(replay.found.hitChunks) + replay.sealedChunks
        #expect(replay.writtenChunks <= uses, "\(replay.writtenChunks) written, \(uses) uses")
    }

    @Test("Several servers: all requests are served once, and sharing finds no less")
    func cluster() throws {
        var random = SeededGenerator(seed: 11)
        let trace = try randomTrace(&random, requests: 2000, branches: 4, longest: 6)
        let contender = try #require(Simulation.Contender(named: "lru"))
        let single = try Simulation(trace).run(contender, capacities: [800])[0].result
        for routing in Routing.allCases {
            let routes = trace.routes(routing, count: 4)
            #expect(Set(routes) == [0, 1, 2, 3], "\(routing)")
            #expect(trace.routes(routing, count: 4) == routes)
            var simulation = Simulation(trace)
            simulation.cluster.servers = 4
            simulation.cluster.routing = routing
            let apart = try simulation.run(contender, capacities: [200])[0].result
            #expect(apart.chunks == single.chunks && apart.tokens == single.tokens)
            simulation.cluster.sharing = .all
            #expect(try simulation.run(contender, capacities: [200])[0].result == single)
            if routing != .session { #expect(apart.hitChunks < single.hitChunks) }
        }
        // One session, one server.
        let routes = trace.routes(.session, count: 4)
        var servers: [[UInt32]: Set<Int>] = [:]
        for (number, request) in trace.requests.enumerated() {
            let path = Array(trace.chunks(of: request, storesPartial: true))
            servers[path, default: []].insert(routes[number])
        }
        #expect(servers.values.allSatisfy { $0.count == 1 })
    }

    @Test("Hints of the oracle are right as often as asked")
    func hints() throws {
        var random = SeededGenerator(seed: 13)
        let trace = try randomTrace(&random, requests: 4000, branches: 5, longest: 5)
        let truth = trace.oracleHints(accuracy: 1)
        for accuracy in [0.5, 0.8, 0.95] {
            let hints = trace.oracleHints(accuracy: accuracy)
            let right = zip(truth, hints).count { $0 == $1 }
            let asked = truth.count { $0 != .none }
            let none = truth.count - asked
            #expect(abs(Double(right - none) / Double(asked) - accuracy) < 0.03)
        }
    }

    @Test("Times follow from tokens found: the sum of all requests, one by one")
    func service() throws {
        var random = SeededGenerator(seed: 17)
        let trace = try randomTrace(&random, requests: 500, branches: 3, longest: 6)
        var service = ServiceModel(secondsPerToken: 2e-5)
        service.secondsPerTokenSquared = 3e-9
        service.loadSecondsPerToken = 1e-6
        service.loadSecondsPerRequest = 1e-3
        // With unlimited memory, what is found is what was asked for before.
        let outcome = service.outcome(of: StackDistances(trace).result(capacity: .max))
        var seen: Set<UInt32> = []
        var compute = 0.0
        var load = 0.0
        for request in trace.requests {
            let path = trace.chunks(of: request, storesPartial: false)
            let found = Double(path.prefix { seen.contains($0) }.count * 512)
            seen.formUnion(path)
            let tokens = Double(request.tokens)
            compute += 2e-5 * (tokens - found) + 3e-9 * (tokens * tokens - found * found)
            if found > 0 { load += 1e-3 + 1e-6 * found }
        }
        #expect(abs(outcome.prefillSeconds - compute) < 1e-6 * compute)
        #expect(abs(outcome.loadSeconds - load) < 1e-6 * load)
        let mean = (compute + load) / 500
        #expect(abs(outcome.meanFirstTokenSeconds - mean) < 1e-6 * mean)
    }
}
