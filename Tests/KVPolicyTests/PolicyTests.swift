import KVPolicy
import TestRandom
import Testing

@Suite("All policies")
struct PolicyTests {
    @Test(
        "A hint says of itself what is read back, by the millisecond",
        arguments: [
            (ReuseHint.none, "none"), (.closed, "closed"), (.pending, "pending"),
            (.pending(seconds: 0), "pending:0.000"), (.pending(seconds: 2.5), "pending:2.500"),
            (.pending(seconds: 0.0004), "pending:0.000"),
            (.pending(seconds: 59.9996), "pending:60.000"),
            (.pending(seconds: ReuseHint.mostSeconds), "pending:31536000.000"),
            (.pending(seconds: .infinity), "pending:31536000.000"),
            (.pending(seconds: -1), "pending:0.000"), (.pending(seconds: .nan), "pending"),
        ])
    func hintText(hint: ReuseHint, text: String) throws {
        #expect(hint.text == text)
        let read = try #require(ReuseHint(text))
        #expect(read.expectation == hint.expectation && read.text == text)
    }

    @Test(
        "Victims are evictable",
        arguments: PolicyName.allCases, [SampleTraffic.Kind.loop, .agents])
    func victimsAreEvictable(name: PolicyName, kind: SampleTraffic.Kind) {
        let seed: UInt64 = 7
        let requests = SampleTraffic.make(kind, seed: seed)
        let capacity = kind == .agents ? 60 : 200
        var one = PolicyDriver(name.make(), capacity: capacity)
        one.run(requests)
        #expect(one.faults == [], "\(name), \(kind), seed \(seed)")
        #expect(one.victims.count > 50, "\(name), \(kind): the traffic is more than fits")
    }

    @Test(
        "The same calls give the same victims",
        arguments: PolicyName.allCases)
    func victimsRepeat(name: PolicyName) {
        let requests = SampleTraffic.make(.chats, seed: 8)
        var one = PolicyDriver(name.make(), capacity: 120)
        one.run(requests)
        var other = PolicyDriver(name.make(), capacity: 120)
        other.run(requests)
        #expect(one.victims == other.victims)
        #expect(one.victims.count > 500)
    }

    @Test(
        "Chunks that come, go, lose their memory and get it again leave nothing wrong",
        arguments: PolicyName.allCases, 0..<2 as Range<UInt64>)
    func randomCallsAreSafe(name: PolicyName, seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var policy = name.make()
        var known: [UInt32: (group: UInt32, isResident: Bool, isEvictable: Bool)] = [:]
        for step in 0..<3000 {
            let note = "\(name), seed \(seed), step \(step)"
            let chunk = UInt32(random.below(80))
            if random.below(4) == 0 {
                // Now and then the clock jumps, or goes back.
                let now =
                    UInt64(step) * 300_000_000 &+ random.next() >> UInt64(random.below(40) + 20)
                policy.begin(
                    PolicyRequest(
                        now: now,
                        hint: ReuseHint(.allCases[random.below(3)], priority: random.below(3) - 1),
                        length: random.below(50), isRefresh: random.below(3) == 0))
            }
            if known[chunk] == nil {
                let group = chunk % 3
                let isResident = random.below(5) > 0
                policy.insert(
                    chunk,
                    NewChunk(
                        group: group, parent: nil, fingerprint: UInt64(random.below(300)) << 7,
                        isResident: isResident))
                known[chunk] = (group, isResident, false)
                continue
            }
            switch random.below(6) {
            case 0, 1: policy.touch(chunk)
            case 2 where known[chunk]!.isResident:
                policy.setEvictable(chunk, true)
                known[chunk]!.isEvictable = true
            case 3:
                policy.setEvictable(chunk, false)
                known[chunk]!.isEvictable = false
            case 4:
                known[chunk]!.isResident.toggle()
                known[chunk]!.isEvictable = false
                policy.setResident(chunk, known[chunk]!.isResident)
            default:
                policy.remove(chunk, wasEvicted: random.below(2) == 0)
                known[chunk] = nil
            }
            for group in 0..<UInt32(3) {
                let candidates = known.filter { $0.value.group == group && $0.value.isEvictable }
                let victim = policy.victim(in: group)
                #expect((victim == nil) == candidates.isEmpty, "\(note)")
                if let victim { #expect(candidates[victim] != nil, "\(note)") }
                let least = policy.leastWorth(in: group)
                // What LFU counted many uses of is worth more than what is used first now.
                #expect(name == .lfuda || least ?? 0 <= policy.worthNow, "\(note)")
            }
        }
    }

    @Test("What is used first now is worth what the policy says", arguments: PolicyName.allCases)
    func worthOfNew(name: PolicyName) {
        var policy = name.make()
        for round in 0..<50 as Range<UInt32> {
            policy.begin(PolicyRequest(now: UInt64(round) * 1_000_000_000, length: 1))
            if round >= 10 {
                let victim = policy.victim(in: 0)!
                policy.remove(victim, wasEvicted: true)
            }
            let new = NewChunk(group: 0, parent: nil, fingerprint: UInt64(round) << 40)
            policy.insert(round, new)
            policy.setEvictable(round, true)
            let (worth, now) = (policy.worth(of: round), policy.worthNow)
            #expect(worth <= now && now - worth < 1 << 41, "\(round): \(worth), not \(now)")
        }
    }

    @Test(
        "What was matched and loaded just now is not the next to go",
        arguments: PolicyName.allCases)
    func loadedJustNow(name: PolicyName) {
        var policy = name.make()
        for chunk in 0..<4 as Range<UInt32> {
            policy.begin(PolicyRequest(now: UInt64(chunk) * 1_000_000_000, length: 1))
            policy.insert(
                chunk, NewChunk(group: 0, parent: nil, fingerprint: UInt64(chunk + 1) << 50))
            policy.setEvictable(chunk, true)
        }
        policy.setResident(0, false)
        policy.begin(PolicyRequest(now: 10_000_000_000, length: 1))
        policy.touch(0)
        policy.setResident(0, true)
        policy.setEvictable(0, true)
        #expect(policy.victim(in: 0) != 0)
    }

    @Test("Shadow caches are bounded, also where nothing is ever evicted")
    func shadowsAreBounded() {
        var policy = Adaptive()
        for round in 0..<20_000 as Range<UInt64> {
            policy.begin(PolicyRequest(now: round * 1_000_000, length: 1))
            let fingerprint = round &* 0x9E37_79B9 << 20
            policy.insert(0, NewChunk(group: 0, parent: nil, fingerprint: fingerprint))
            policy.remove(0, wasEvicted: false)
        }
        let chunks = policy.figures.first { $0.name == "group-0-shadow-chunks" }!.value
        #expect(chunks <= 3 * 8_192 && chunks > 0)
    }

    @Test("Many layouts cost no more than a few: those beyond the first go by recency")
    func manyGroups() {
        var policy = Adaptive()
        for group in 0..<1_000 as Range<UInt32> {
            policy.begin(PolicyRequest(now: UInt64(group) * 200_000_000, length: 2))
            for place in 0..<2 as Range<UInt32> {
                policy.insert(
                    2 * group + place,
                    NewChunk(
                        group: group, parent: nil, fingerprint: UInt64(2 * group + place) << 40))
                policy.setEvictable(2 * group + place, true)
            }
        }
        #expect(policy.victim(in: 999) == 1_998)
        #expect(policy.figures.count { $0.name.hasSuffix("-winner") } == 8)
        policy.begin(PolicyRequest(now: 1 << 50, length: 1))
        policy.touch(1_998)
        #expect(policy.victim(in: 999) == 1_999)
        policy.remove(1_999, wasEvicted: true)
        #expect(policy.victim(in: 999) == 1_998)
    }

    @Test("Ghosts are bounded", arguments: PolicyName.allCases)
    func ghostsAreBounded(name: PolicyName) {
        var driver = PolicyDriver(name.make(), capacity: 100)
        for round in 0..<700 {
            let keys = (0..<30).map { UInt64(round * 30 + $0 + 1) }
            driver.run(keys, PolicyRequest(now: UInt64(round) * 1_000_000_000, length: 30))
        }
        let ghosts = driver.policy.figures.first { $0.name == "ghosts" }?.value ?? 0
        #expect(ghosts <= 16_384)
        #expect(name != .arc || ghosts <= 200)
        #expect(name != .s3fifo || ghosts <= 90)
    }

    @Test(
        "A saved request is no second use", arguments: [PolicyName.arc, .lfuda, .s3fifo, .adaptive])
    func refreshIsNoUse(name: PolicyName) {
        // With and without a refresh after each request, the same chunks go in the same order.
        let requests = SampleTraffic.make(.chats, seed: 3)
        var plain = PolicyDriver(name.make(), capacity: 160)
        plain.run(requests)
        var refreshed = PolicyDriver(Refreshing(name.make()), capacity: 160)
        refreshed.run(requests)
        #expect(plain.victims == refreshed.victims)
        #expect(plain.victims.count > 500)
    }

    @Test("Names make policies, and default is one of them")
    func names() {
        for name in PolicyName.allCases { #expect(PolicyName(named: name.rawValue) == name) }
        #expect(PolicyName(named: "default") == .default)
        #expect(PolicyName(named: "lru2") == nil)
    }
}

/// Does what the store does: after the chunks of a request were touched, a save begins and touches
/// them once more before it inserts.
private struct Refreshing: EvictionPolicy {
    var policy: any EvictionPolicy
    private var request = PolicyRequest(now: 0)
    private var touched: [UInt32] = []
    private var isSaving = false

    init(_ policy: any EvictionPolicy) { self.policy = policy }

    mutating func begin(_ request: PolicyRequest) {
        self.request = request
        touched = []
        isSaving = false
        policy.begin(request)
    }

    mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        save()
        policy.insert(chunk, facts)
    }

    private mutating func save() {
        if isSaving { return }
        isSaving = true
        var refresh = request
        refresh.isRefresh = true
        policy.begin(refresh)
        for chunk in touched { policy.touch(chunk) }
    }

    mutating func touch(_ chunk: UInt32) -> UInt64 {
        touched.append(chunk)
        return policy.touch(chunk)
    }

    mutating func victim(in group: UInt32) -> UInt32? {
        save()
        return policy.victim(in: group)
    }

    mutating func setEvictable(_ chunk: UInt32, _ flag: Bool) { policy.setEvictable(chunk, flag) }
    mutating func setResident(_ chunk: UInt32, _ flag: Bool) { policy.setResident(chunk, flag) }
    mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        policy.remove(chunk, wasEvicted: wasEvicted)
    }
    func worth(of chunk: UInt32) -> UInt64 { policy.worth(of: chunk) }
    var worthNow: UInt64 { policy.worthNow }
}
