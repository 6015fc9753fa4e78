import KVPolicy
import Testing

@Suite("The adaptive policy")
struct AdaptiveTests {
    private static func hitPercent(
        _ policy: any EvictionPolicy, _ requests: [SampleRequest], capacity: Int,
        hintRight: Double? = nil
    ) -> Double {
        var driver = PolicyDriver(policy, capacity: capacity)
        driver.run(requests, hintRight: hintRight)
        return driver.hitPercent
    }

    @Test(
        "Never much worse than LRU or ARC, on traffic of each kind",
        arguments: SampleTraffic.Kind.allCases)
    func regretIsSmall(kind: SampleTraffic.Kind) {
        let seed: UInt64 = 1
        let requests = SampleTraffic.make(kind, seed: seed)
        let capacity = 150
        let own = Self.hitPercent(Adaptive(), requests, capacity: capacity)
        let best = max(
            Self.hitPercent(LeastRecentlyUsed(), requests, capacity: capacity),
            Self.hitPercent(AdaptiveReplacement(), requests, capacity: capacity))
        // These traces are short: learning takes a part of each.
        #expect(own > best - 2, "\(kind), seed \(seed): \(own) against \(best)")
    }

    @Test(
        "A flood of prompts that come once displaces no chats",
        arguments: [1] as [UInt64])
    func floodDoesLittle(seed: UInt64) {
        let requests = SampleTraffic.make(.flood, seed: seed)
        let own = Self.hitPercent(Adaptive(), requests, capacity: 400)
        let lru = Self.hitPercent(LeastRecentlyUsed(), requests, capacity: 400)
        #expect(own > lru * 1.1, "seed \(seed): \(own) against \(lru)")
    }

    @Test("Of a loop larger than the memory a part stays", arguments: [1] as [UInt64])
    func loopIsKeptInPart(seed: UInt64) {
        let requests = SampleTraffic.make(.loop, seed: seed)
        #expect(Self.hitPercent(LeastRecentlyUsed(), requests, capacity: 200) < 1)
        #expect(Self.hitPercent(Adaptive(), requests, capacity: 200) > 25, "seed \(seed)")
    }

    @Test(
        "Right hints help much, and useless ones cost little",
        arguments: [1] as [UInt64])
    func hintsAreWeighed(seed: UInt64) {
        let requests = SampleTraffic.make(.chats, seed: seed)
        func percent(_ right: Double?) -> Double {
            Self.hitPercent(Adaptive(), requests, capacity: 320, hintRight: right)
        }
        let without = percent(nil)
        #expect(percent(0.95) > without + 4, "seed \(seed)")
        #expect(percent(0.5) > without - 1.5, "seed \(seed)")
        // Always wrong is as good as always right, once that is learnt.
        #expect(percent(0) > without, "seed \(seed)")
    }

    @Test("Without a clock it still evicts sensibly")
    func timeMayStandStill() {
        var requests = SampleTraffic.make(.popular, seed: 1)
        for place in requests.indices { requests[place].seconds = 0 }
        let own = Self.hitPercent(Adaptive(), requests, capacity: 200)
        let lru = Self.hitPercent(LeastRecentlyUsed(), requests, capacity: 200)
        #expect(own > lru - 2)
    }

    @Test("Chunks of lower priority go first")
    func priorityCounts() {
        var driver = PolicyDriver(LeastExpectedHits(), capacity: 40)
        for round in 0..<200 {
            let keys = (0..<10).map { UInt64(round * 10 + $0 + 1) }
            let hint = ReuseHint(.unknown, priority: round % 4 == 0 ? -1 : 0)
            driver.run(
                keys, PolicyRequest(now: UInt64(round) * 1_000_000_000, hint: hint, length: 10))
        }
        // Every fourth prompt goes before the ones around it.
        let low = driver.victims.enumerated().filter { ($0.element - 1) / 10 % 4 == 0 }
        let position = low.map { $0.offset }.reduce(0, +) / max(1, low.count)
        let others = driver.victims.enumerated().filter { ($0.element - 1) / 10 % 4 != 0 }
        let otherPosition = others.map { $0.offset }.reduce(0, +) / max(1, others.count)
        #expect(!low.isEmpty && position <= otherPosition + 20)
        let firstLow = driver.victims.firstIndex { ($0 - 1) / 10 == 4 }
        let firstBefore = driver.victims.firstIndex { ($0 - 1) / 10 == 3 }
        #expect(firstLow! < firstBefore ?? .max)
    }
}

@Suite("Published forms")
struct BlockCacheTests {
    @Test("Never more blocks than the capacity, and what was accessed last is there")
    func capacityHolds() {
        let requests = SampleTraffic.make(.popular, seed: 5)
        for capacity in [1, 10, 300] {
            var caches: [any BlockCache] = [
                BlockARC(capacity: capacity), BlockS3FIFO(capacity: capacity),
            ]
            let last = requests.flatMap(\.keys).max()!
            for place in caches.indices {
                for request in requests {
                    for key in request.keys.reversed() {
                        caches[place].access(UInt32(key))
                        #expect(caches[place].contains(UInt32(key)))
                    }
                }
                let count = (0...last).count { caches[place].contains(UInt32($0)) }
                #expect(count <= capacity, "\(capacity)")
            }
        }
    }
}
