/// A small cache of fingerprints that runs a policy on a sample of the traffic, to see how many hits
/// it would have had.
struct ShadowCache: Sendable {
    private static let nobody = UInt32.max

    private struct Slot: Sendable {
        var fingerprint: UInt64
        var parent: UInt32
        var children: UInt32 = 0
        var isHeld = false
    }

    var policy: any EvictionPolicy
    /// Most chunks it keeps.
    var capacity: Int
    private var slots: [Slot] = []
    private var vacant: [UInt32] = []
    private var index: [UInt64: UInt32] = [:]

    var count: Int { index.count }

    init(_ policy: any EvictionPolicy, capacity: Int) {
        self.policy = policy
        self.capacity = capacity
    }

    /// A request for a run of chunks, of which the first `known` are only kept as recent.
    /// - Returns: how many of the others were found.
    mutating func run(_ path: [UInt64], known: Int, _ request: PolicyRequest) -> Int {
        var held: [UInt32] = []
        held.reserveCapacity(path.count)
        for fingerprint in path {
            guard let slot = index[fingerprint],
                slots[Int(slot)].parent == held.last ?? Self.nobody
            else { break }
            held.append(slot)
        }
        let hits = max(0, held.count - known)
        if known > 0, hits == 0 {
            var refresh = request
            refresh.isRefresh = true
            policy.begin(refresh)
        } else {
            policy.begin(request)
        }
        for slot in held.reversed() {
            policy.touch(slot)
            slots[Int(slot)].isHeld = true
        }
        if let last = held.last { policy.setEvictable(last, false) }
        for fingerprint in path[held.count...] {
            if index[fingerprint] != nil { break }
            guard makeRoom() else { break }
            held.append(insert(fingerprint, after: held.last))
        }
        for slot in held { slots[Int(slot)].isHeld = false }
        if let last = held.last, slots[Int(last)].children == 0 { policy.setEvictable(last, true) }
        return hits
    }

    /// Evicts until one more chunk has room. - Returns: false if nothing can go.
    private mutating func makeRoom() -> Bool {
        while index.count >= max(1, capacity) {
            guard let victim = policy.victim(in: 0) else { return false }
            let slot = slots[Int(victim)]
            index[slot.fingerprint] = nil
            if slot.parent != Self.nobody {
                let parent = Int(slot.parent)
                slots[parent].children -= 1
                if slots[parent].children == 0, !slots[parent].isHeld {
                    policy.setEvictable(slot.parent, true)
                }
            }
            policy.remove(victim, wasEvicted: true)
            vacant.append(victim)
        }
        return true
    }

    private mutating func insert(_ fingerprint: UInt64, after parent: UInt32?) -> UInt32 {
        let new = Slot(fingerprint: fingerprint, parent: parent ?? Self.nobody, isHeld: true)
        let slot = vacant.popLast() ?? UInt32(slots.count)
        if Int(slot) == slots.count { slots.append(new) } else { slots[Int(slot)] = new }
        index[fingerprint] = slot
        if let parent { slots[Int(parent)].children += 1 }
        policy.insert(slot, NewChunk(group: 0, parent: parent, fingerprint: fingerprint))
        return slot
    }
}
