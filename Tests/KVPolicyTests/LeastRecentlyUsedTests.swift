import KVPolicy
import Testing

@Suite("Least recently used")
struct LeastRecentlyUsedTests {
    @Test(
        "The victim is the evictable chunk used longest ago, against a plain list",
        arguments: 0..<20)
    func agreesWithList(seed: UInt64) {
        var random = Generator(state: seed)
        var policy = LeastRecentlyUsed()
        // Oldest first.
        var order: [UInt32] = []
        var evictable: Set<UInt32> = []
        var group: [UInt32: UInt32] = [:]
        for step in 0..<4000 {
            let chunk = UInt32.random(in: 0..<60, using: &random)
            if group[chunk] == nil {
                group[chunk] = chunk % 3
                policy.insert(
                    chunk, NewChunk(group: chunk % 3, parent: nil, fingerprint: UInt64(chunk)))
                order.append(chunk)
            } else {
                switch Int.random(in: 0..<4, using: &random) {
                case 0:
                    policy.touch(chunk)
                    order.removeAll { $0 == chunk }
                    order.append(chunk)
                case 1:
                    policy.setEvictable(chunk, true)
                    evictable.insert(chunk)
                case 2:
                    policy.setEvictable(chunk, false)
                    evictable.remove(chunk)
                default:
                    policy.remove(chunk, wasEvicted: false)
                    order.removeAll { $0 == chunk }
                    evictable.remove(chunk)
                    group[chunk] = nil
                }
            }
            for queue in 0..<UInt32(3) {
                let expected = order.first { evictable.contains($0) && group[$0] == queue }
                #expect(policy.victim(in: queue) == expected, "seed \(seed) step \(step)")
            }
        }
    }

    @Test("Worth orders chunks of different groups by their last use")
    func worthIsComparable() {
        var policy = LeastRecentlyUsed()
        policy.insert(0, NewChunk(group: 0, parent: nil, fingerprint: 0))
        policy.insert(1, NewChunk(group: 1, parent: nil, fingerprint: 1))
        #expect(policy.worth(of: 0) < policy.worth(of: 1))
        policy.touch(0)
        #expect(policy.worth(of: 0) > policy.worth(of: 1))
        #expect(policy.worth(of: 0) <= policy.worthNow)
    }
}

private struct Generator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ (state >> 29)
    }
}
