import KVPolicy
import KVSimulator
import KVStore
import TestRandom
import Testing

/// Memories of their own before one disk.
@Suite("A shared disk")
struct SharedDiskTests {
    /// The model by its definition, with sets that are searched from end to end; least recently used.
    private struct Plain {
        let trace: Trace
        let capacity: Int
        let diskChunks: Int
        let segmentChunks: Int

        /// By server: chunks in memory; and of chunks in memory or met on the disk, the last use there.
        var memories: [Set<UInt32>]
        var used: [[UInt32: Int]]
        var clock = 0
        /// Segments in the order of time, the last being filled. A chunk lives where it stands last.
        var segments: [[UInt32?]] = [[]]
        var isHot: Set<UInt32> = []
        var lastUse: [UInt32: Int] = [:]
        var result: CoreReplay.Result

        init(
            _ trace: Trace, servers: Int, capacity: Int, diskChunks: Int, segmentChunks: Int
        ) {
            self.trace = trace
            self.capacity = capacity
            self.diskChunks = diskChunks
            self.segmentChunks = segmentChunks
            memories = Array(repeating: [], count: servers)
            used = Array(repeating: [:], count: servers)
            result = CoreReplay.Result(trace)
        }

        var onDisk: Set<UInt32> { Set(segments.joined().compactMap { $0 }) }
        var inSomeMemory: Set<UInt32> { memories.reduce([]) { $0.union($1) } }

        mutating func tick() -> Int {
            clock += 1
            return clock
        }

        mutating func run(_ routes: [UInt16]) -> CoreReplay.Result {
            for (number, request) in trace.requests.enumerated() {
                let path = Array(trace.chunks(of: request, storesPartial: false))
                if !path.isEmpty { serve(path, request, Int(routes[number])) }
            }
            result.onDiskAtEnd = onDisk.count
            return result
        }

        mutating func serve(_ path: [UInt32], _ request: Trace.Request, _ server: Int) {
            let disk = onDisk
            let inMemory = path.prefix { memories[server].contains($0) }
            let found = path.prefix { memories[server].contains($0) || disk.contains($0) }
            let inMemoryTokens = Double(min(inMemory.count * 512, Int(request.tokens)))
            let foundTokens = Double(min(found.count * 512, Int(request.tokens)))
            result.memoryHits += inMemory.count
            result.diskHits += found.count - inMemory.count
            result.diskHitTokens += foundTokens - inMemoryTokens
            result.found.hitChunks += Double(found.count)
            result.found.hitTokens += foundTokens
            result.found.hitTokensSquared += foundTokens * foundTokens
            if !found.isEmpty { result.found.hitRequests += 1 }
            for chunk in found.reversed() {
                used[server][chunk] = tick()
                lastUse[chunk] = clock
                isHot.insert(chunk)
            }
            var isLoaded = true
            for chunk in found.dropFirst(inMemory.count) where isLoaded {
                isLoaded = makeRoom(server, keeping: path)
                if isLoaded { memories[server].insert(chunk) }
            }
            write(found.filter { !disk.contains($0) })
            if !isLoaded || found.count == path.count { return }
            for chunk in found.reversed() { used[server][chunk] = tick() }
            var new: [UInt32] = []
            for chunk in path.dropFirst(found.count) {
                if !makeRoom(server, keeping: path) { break }
                memories[server].insert(chunk)
                used[server][chunk] = tick()
                result.sealedChunks += 1
                new.append(chunk)
            }
            write(new)
        }

        mutating func makeRoom(_ server: Int, keeping path: [UInt32]) -> Bool {
            while memories[server].count >= capacity {
                let parents = Set(memories[server].map { trace.parents[Int($0)] })
                let leaves = memories[server].filter { !parents.contains($0) && !path.contains($0) }
                guard let victim = leaves.min(by: { used[server][$0]! < used[server][$1]! }) else {
                    return false
                }
                memories[server].remove(victim)
                dropUnreachable()
            }
            return true
        }

        /// What no server can find, for want of a chunk before it.
        mutating func dropUnreachable() {
            let disk = onDisk
            for segment in segments.indices {
                for place in segments[segment].indices {
                    guard let chunk = segments[segment][place] else { continue }
                    let isReachable = memories.contains { memory in
                        var next = trace.parents[Int(chunk)]
                        while next != Trace.none {
                            if !disk.contains(next), !memory.contains(next) { return false }
                            next = trace.parents[Int(next)]
                        }
                        return true
                    }
                    if !isReachable { segments[segment][place] = nil }
                }
            }
        }

        mutating func write(_ chunks: [UInt32]) {
            if diskChunks == 0 { return }
            var queue = chunks
            while !queue.isEmpty {
                let chunk = queue.removeFirst()
                if onDisk.contains(chunk) || !inSomeMemory.contains(chunk) { continue }
                append(chunk)
                while (segments.count - 1) * segmentChunks > diskChunks { queue += reclaim() }
            }
        }

        mutating func append(_ chunk: UInt32) {
            segments[segments.count - 1].append(chunk)
            isHot.remove(chunk)
            result.writtenChunks += 1
            if segments.last!.count == segmentChunks { segments.append([]) }
        }

        /// - Returns: what is to be written once more.
        mutating func reclaim() -> [UInt32] {
            let room = segmentChunks - segments.last!.count
            let lives = segments.dropLast().map { $0.count { $0 != nil } }
            let least = lives.min()!
            let keepsAll = least * 4 < segmentChunks && least <= room
            let victim = segments.remove(at: keepsAll ? lives.firstIndex(of: least)! : 0)
            let chunks = victim.compactMap { $0 }
            let hot = chunks.filter { isHot.contains($0) }.sorted { lastUse[$0]! > lastUse[$1]! }
            let kept = Set(keepsAll ? chunks : Array(hot.prefix(segmentChunks / 2)))
            var again: [UInt32] = []
            // Nothing that follows what is gone is moved.
            var waiting = chunks
            while !waiting.isEmpty {
                let chunk = waiting.removeFirst()
                if kept.contains(chunk) {
                    append(chunk)
                    result.movedChunks += 1
                    continue
                }
                if inSomeMemory.contains(chunk), isHot.contains(chunk) { again.append(chunk) }
                // Seen with what waits still, so that all of that counts as stored.
                segments.insert(waiting, at: 0)
                dropUnreachable()
                waiting = segments.removeFirst().compactMap { $0 }
            }
            return again
        }
    }

    private func routes(_ random: inout SeededGenerator, _ trace: Trace, _ servers: Int)
        -> [UInt16]
    {
        trace.requests.map { _ in UInt16(random.below(servers)) }
    }

    @Test("It does what its definition says, on small cases", arguments: 0..<160)
    func definition(seed: Int) throws {
        var random = SeededGenerator(seed: UInt64(600 + seed))
        let servers = 1 + random.below(3)
        let capacity = 3 + random.below(14)
        let segment = 2 + random.below(5)
        // One that is smaller than the memories is never replayed.
        let disk =
            random.below(8) == 0 ? 0 : servers * capacity + segment * random.below(10)
        let trace = try randomTrace(
            &random, requests: 300, branches: 2 + random.below(2), longest: 5)
        let routes = routes(&random, trace, servers)
        var replay = SharedDiskReplay(
            trace, routes: routes, servers: servers, memoryChunks: capacity,
            diskChunks: disk, segmentChunks: segment,
            makePolicy: { LeastRecentlyUsed() })
        var plain = Plain(
            trace, servers: servers, capacity: capacity,
            diskChunks: disk, segmentChunks: segment)
        let result = replay.run()
        let expected = plain.run(routes)
        let what = "seed \(600 + seed): \(servers), \(capacity), \(segment), \(disk)"
        #expect(result.found == expected.found, "\(what)")
        #expect(result.memoryHits == expected.memoryHits, "\(what)")
        #expect(result.diskHits == expected.diskHits, "\(what)")
        #expect(result.diskHitTokens == expected.diskHitTokens, "\(what)")
        #expect(result.sealedChunks == expected.sealedChunks, "\(what)")
        #expect(result.writtenChunks == expected.writtenChunks, "\(what)")
        #expect(result.movedChunks == expected.movedChunks, "\(what)")
        #expect(result.onDiskAtEnd == expected.onDiskAtEnd, "\(what)")
        #expect(Double(result.memoryHits + result.diskHits) == result.found.hitChunks)
        #expect(result.onDiskAtEnd <= disk + segment)
    }

    @Test("Without a disk it is servers apart", arguments: PolicyName.allCases)
    func noDisk(name: PolicyName) throws {
        var random = SeededGenerator(seed: 31)
        let trace = try randomTrace(&random, requests: 900, branches: 4, longest: 6)
        for servers in [1, 3] {
            let routes = routes(&random, trace, servers)
            for capacity in [8, 60, 300] {
                var replay = SharedDiskReplay(
                    trace, routes: routes, servers: servers, memoryChunks: capacity, diskChunks: 0,
                    makePolicy: { name.make() })
                var apart = ReplayResult()
                for part in trace.split(routes.map { Int($0) }, count: servers) {
                    var alone = PolicyReplay(part, policy: name.make(), capacity: capacity)
                    alone.run()
                    apart = apart + alone.result
                }
                #expect(replay.run().found == apart, "\(servers) servers, \(capacity)")
            }
        }
    }

    @Test("With a disk without bound it is one cache without bound", arguments: PolicyName.allCases)
    func largeDisk(name: PolicyName) throws {
        var random = SeededGenerator(seed: 32)
        let trace = try randomTrace(&random, requests: 2500, branches: 4, longest: 6)
        let unbounded = ReplayResult.unbounded(trace)
        for servers in [1, 5] {
            for capacity in [6, 100] {
                var replay = SharedDiskReplay(
                    trace, routes: routes(&random, trace, servers), servers: servers,
                    memoryChunks: capacity, diskChunks: 1 << 20, makePolicy: { name.make() })
                let result = replay.run()
                #expect(result.found == unbounded, "\(servers) servers, \(capacity)")
                #expect(result.writtenChunks == trace.storableCount && result.movedChunks == 0)
            }
        }
    }

    @Test(
        "One server finds what the core finds with its log: within 1 % of all chunks, 2 % in memory",
        arguments: PolicyName.allCases)
    func core(name: PolicyName) throws {
        for seed in 0..<2 {
            var random = SeededGenerator(seed: UInt64(700 + seed))
            let trace = try randomTrace(&random, requests: 2500, branches: 6, longest: 6)
            for (memory, disk) in [(48, 256), (96, 1024)] {
                let core = try CoreReplay(trace, memoryChunks: memory, diskChunks: disk).run(
                    policy: name.make(), admission: .all)
                var replay = SharedDiskReplay(
                    trace, routes: trace.requests.map { _ in 0 }, servers: 1, memoryChunks: memory,
                    diskChunks: disk, makePolicy: { name.make() })
                let result = replay.run()
                let difference = abs(core.found.chunkShare - result.found.chunkShare)
                let inMemory =
                    abs(Double(core.memoryHits - result.memoryHits)) / Double(core.found.chunks)
                #expect(difference < 0.01, "seed \(700 + seed), \(memory), \(disk)")
                #expect(inMemory < 0.02, "seed \(700 + seed), \(memory), \(disk)")
            }
        }
    }

    @Test(
        "Several servers find more with a disk in common than apart, and no more than the optimum")
    func order() throws {
        var random = SeededGenerator(seed: 33)
        let trace = try randomTrace(&random, requests: 6000, branches: 5, longest: 6)
        var simulation = Simulation(trace)
        simulation.cluster.servers = 4
        simulation.cluster.routing = .roundRobin
        let lru = try #require(Simulation.Contender(named: "lru"))
        let optimum = try #require(Simulation.Contender(named: "optimum"))
        func found(
            _ contender: Simulation.Contender, _ sharing: Simulation.Sharing
        ) throws -> Simulation.Point {
            simulation.cluster.sharing = sharing
            return try simulation.run(contender, capacities: [48], disks: [320])[0]
        }
        let apart = try found(lru, .none)
        let common = try found(lru, .disk)
        #expect(common.result.hitChunks > 1.1 * apart.result.hitChunks)
        #expect(common.result.hitChunks <= (try found(optimum, .disk)).result.hitChunks)
        #expect(common.result.chunks == apart.result.chunks)
        let tiers = try #require(common.tiers)
        #expect(Double(tiers.memoryHits + tiers.diskHits) == common.result.hitChunks)
        #expect(tiers.movedChunks > 0 && tiers.writtenChunks > tiers.onDiskAtEnd)
        #expect(try found(optimum, .disk).result == found(optimum, .all).result)
    }

    @Test("Sizes that can't be replayed are refused with a sentence")
    func limits() throws {
        var random = SeededGenerator(seed: 34)
        let trace = try randomTrace(&random, requests: 50, branches: 2, longest: 4)
        var simulation = Simulation(trace)
        simulation.cluster.servers = 2
        simulation.cluster.sharing = .disk
        func problem(_ name: String, _ memory: Int, _ disk: Int) throws -> String {
            let contender = try #require(Simulation.Contender(named: name))
            do {
                _ = try simulation.run(contender, capacities: [memory], disks: [disk])
                return ""
            } catch {
                return "\(error)"
            }
        }
        #expect(try problem("lru", 16, 256) == "")
        #expect(try problem("lru-head-first", 16, 256).contains("leave it away"))
        #expect(try problem("lru", 257, 256).contains("smaller than the memory"))
        #expect(try problem("lru", 256, 256) == "")
        simulation.cluster.sharing = .none
        #expect(try problem("lru-head-first", 16, 256) == "")
        #expect(try problem("lru", 257, 256) == "")
        try SharedDiskReplay.check(trace, servers: 1000)
        let most = SharedDiskReplay.entriesMaximum / trace.distinctCount
        try SharedDiskReplay.check(trace, servers: most)
        #expect(throws: CoreReplay.SizeError.self) {
            try SharedDiskReplay.check(trace, servers: most + 1)
        }
    }
}
