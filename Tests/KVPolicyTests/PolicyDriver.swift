import KVPolicy
import TestRandom

/// A request of a made-up trace: when, and for which chunks, the first of the prompt first.
struct SampleRequest {
    var seconds: Double
    var keys: [UInt64]
    /// Whether its session goes on, for hints.
    var isContinued = false
}

/// A cache in which a policy decides, leaves first, as the store drives it.
struct PolicyDriver {
    struct Slot {
        var key: UInt64
        var parent: UInt32?
        var children = 0
        var isHeld = false
        var isEvictable = false
    }

    var policy: any EvictionPolicy
    let capacity: Int
    /// Every victim's key, in order.
    private(set) var victims: [UInt64] = []
    private(set) var hits = 0
    private(set) var asked = 0
    /// What a policy did that it must not.
    private(set) var faults: [String] = []
    private var slots: [UInt32: Slot] = [:]
    private var index: [UInt64: UInt32] = [:]
    private var vacant: [UInt32] = []

    var hitPercent: Double { 100 * Double(hits) / Double(max(1, asked)) }

    init(_ policy: any EvictionPolicy, capacity: Int) {
        self.policy = policy
        self.capacity = capacity
    }

    mutating func run(_ requests: [SampleRequest], hintRight: Double? = nil, seed: UInt64 = 1) {
        var random = SeededGenerator(seed: seed)
        for request in requests {
            var hint = ReuseHint.none
            if let hintRight {
                let isRight = Double(random.below(1_000_000)) < hintRight * 1e6
                hint = request.isContinued == isRight ? .pending : .closed
            }
            run(
                request.keys,
                PolicyRequest(
                    now: UInt64(request.seconds * 1e9), hint: hint, length: request.keys.count))
        }
    }

    mutating func run(_ keys: [UInt64], _ request: PolicyRequest) {
        policy.begin(request)
        asked += keys.count
        var held: [UInt32] = []
        for key in keys {
            guard let slot = index[key] else { break }
            held.append(slot)
        }
        hits += held.count
        for slot in held.reversed() {
            policy.touch(slot)
            slots[slot]!.isHeld = true
        }
        if let last = held.last { setEvictable(last, false) }
        for key in keys[held.count...] {
            guard makeRoom() else { break }
            let slot = vacant.popLast() ?? UInt32(slots.count)
            slots[slot] = Slot(key: key, parent: held.last, isHeld: true)
            index[key] = slot
            if let parent = held.last { slots[parent]!.children += 1 }
            policy.insert(
                slot, NewChunk(group: 0, parent: held.last, fingerprint: Self.fingerprint(key)))
            held.append(slot)
        }
        for slot in held { slots[slot]!.isHeld = false }
        if let last = held.last, slots[last]!.children == 0 { setEvictable(last, true) }
    }

    /// Drops a leaf that nobody holds, chosen by a number.
    mutating func drop(_ number: Int) {
        let leaves = index.values.filter { slots[$0]!.isEvictable }.sorted()
        if !leaves.isEmpty { remove(leaves[number % leaves.count], wasEvicted: false) }
    }

    private mutating func makeRoom() -> Bool {
        while index.count >= capacity {
            guard let victim = policy.victim(in: 0) else { return false }
            if policy.victim(in: 0) != victim { faults.append("two answers for one question") }
            guard index[slots[victim]!.key] == victim, slots[victim]!.isEvictable else {
                faults.append("chunk \(victim) isn't evictable")
                return false
            }
            victims.append(slots[victim]!.key)
            remove(victim, wasEvicted: true)
        }
        return true
    }

    private mutating func remove(_ slot: UInt32, wasEvicted: Bool) {
        let gone = slots[slot]!
        index[gone.key] = nil
        if let parent = gone.parent {
            slots[parent]!.children -= 1
            if slots[parent]!.children == 0, !slots[parent]!.isHeld { setEvictable(parent, true) }
        }
        policy.remove(slot, wasEvicted: wasEvicted)
        slots[slot]!.isEvictable = false
        vacant.append(slot)
    }

    private mutating func setEvictable(_ slot: UInt32, _ evictable: Bool) {
        slots[slot]!.isEvictable = evictable
        policy.setEvictable(slot, evictable)
    }

    private static func fingerprint(_ key: UInt64) -> UInt64 {
        var generator = SeededGenerator(seed: key)
        return generator.next()
    }
}

/// Seeded traffic of several kinds.
struct SampleTraffic {
    private var random: SeededGenerator
    private var lastKey: UInt64 = 0
    private var requests: [SampleRequest] = []

    private init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
    }

    enum Kind: String, CaseIterable, Sendable {
        case chats, scan, loop, flood, popular, agents, drift
    }

    static func make(_ kind: Kind, seed: UInt64) -> [SampleRequest] {
        var traffic = SampleTraffic(seed: seed)
        traffic.add(kind, from: 0)
        return traffic.requests.sorted { $0.seconds < $1.seconds }
    }

    private mutating func add(_ kind: Kind, from start: Double) {
        switch kind {
        case .chats: addChats(from: start, count: 120)
        case .scan: addFlood(from: start, count: 200)
        case .flood:
            addChats(from: start, count: 80)
            addFlood(from: start, count: 240)
        case .loop:
            let prompts = (0..<50).map { _ in fresh(8) }
            for step in 0..<500 {
                add(start + Double(step), prompts[step % prompts.count], true)
            }
        case .popular:
            let prompts = (0..<250).map { _ in fresh(3 + random.below(10)) }
            for step in 0..<700 {
                // Prompt n is asked for in proportion to 1/n.
                let octave = random.below(8)
                let number = min(249, (1 << octave) - 1 + random.below(1 << octave))
                add(start + Double(step) * 0.5, prompts[number], true)
            }
        case .agents: addAgents(from: start)
        case .drift:
            let phases: [Kind] = [.chats, .loop, .popular]
            for (number, phase) in phases.enumerated() { add(phase, from: Double(number) * 900) }
        }
    }

    private mutating func addChats(from start: Double, count: Int) {
        for _ in 0..<count {
            var seconds = start + unit() * 900
            var keys = fresh(4 + random.below(25))
            var isContinued = true
            while isContinued {
                isContinued = unit() < 0.6
                add(seconds, keys, isContinued)
                keys += fresh(1 + random.below(3))
                seconds += spread(median: 40)
            }
        }
    }

    private mutating func addFlood(from start: Double, count: Int) {
        for _ in 0..<count { add(start + unit() * 900, fresh(10 + random.below(40)), false) }
    }

    /// Sessions that share a beginning and grow by a turn each second while a tool is out; people
    /// answer after two minutes, many after more than five.
    private mutating func addAgents(from start: Double) {
        let beginning = fresh(4)
        for _ in 0..<6 {
            var seconds = start + unit() * 300
            var keys = beginning + fresh(5 + random.below(20))
            let turns = 10 + random.below(50)
            for turn in 0..<turns {
                add(seconds, keys, turn + 1 < turns)
                if random.below(2) == 0 { keys += fresh(1) }
                seconds += unit() < 0.1 ? spread(median: 120) : 2 + spread(median: 1)
            }
        }
    }

    private mutating func add(_ seconds: Double, _ keys: [UInt64], _ isContinued: Bool) {
        requests.append(SampleRequest(seconds: seconds, keys: keys, isContinued: isContinued))
    }

    private mutating func fresh(_ count: Int) -> [UInt64] {
        lastKey += UInt64(count)
        return (0..<UInt64(count)).map { lastKey - UInt64(count) + 1 + $0 }
    }

    private mutating func unit() -> Double { Double(random.below(1 << 30)) / Double(1 << 30) }

    /// Between an eighth and eight times the median, evenly in octaves.
    private mutating func spread(median: Double) -> Double {
        let octaves = unit() * 6 - 3
        var value = median
        for _ in 0..<Int(abs(octaves)) { value *= octaves < 0 ? 0.5 : 2 }
        return value * (1 + (abs(octaves) - abs(octaves).rounded(.down)) * (octaves < 0 ? -0.5 : 1))
    }
}
