/// LFU with dynamic aging: a chunk's key is its number of uses, plus the key of what was evicted
/// last when it was used; the leaf with the least key goes, the least recently used of equals.
///
/// Source: Arlitt et al., *Evaluating Content Management Techniques for Web Proxy Caches*, 1999.
/// Uses are forgotten with the chunk.
///
/// Metadata: 36 bytes a chunk, 16 more for each leaf, no ghosts.
public struct LeastFrequentlyUsedAging: EvictionPolicy {
    private static let keyBits: UInt64 = 24
    private static let orderBits = 64 - keyBits

    private struct Entry: Sendable {
        var rank: UInt64 = 0
        var uses: UInt32 = 0
        var depth: UInt32 = 0
        var group: UInt32 = 0
        var isResident = false
    }

    private struct Group: Sendable {
        var leaves = LeafHeap()
        /// The key of what was evicted last.
        var age: UInt64 = 0
    }

    private var entries = BlockArray<Entry>()
    private var places = BlockArray<UInt32>()
    private var groups: [Group] = []
    private var order = RequestOrder()
    private var isRefresh = false

    /// An empty policy.
    public init() {}

    public var worthNow: UInt64 { ((groups.map(\.age).max() ?? 0) + 2) << Self.orderBits - 1 }

    public mutating func begin(_ request: PolicyRequest) {
        order.advance()
        isRefresh = request.isRefresh
    }

    public mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        entries.extend(to: Int(chunk), with: Entry())
        places.extend(to: Int(chunk), with: LeafHeap.none)
        while groups.count <= Int(facts.group) { groups.append(Group()) }
        let depth = facts.parent.map { entries[Int($0)].depth + 1 } ?? 0
        entries[Int(chunk)] = Entry(
            uses: 1, depth: depth, group: facts.group, isResident: facts.isResident)
        entries[Int(chunk)].rank = rank(of: chunk)
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        let index = Int(chunk)
        if !isRefresh { entries[index].uses = min(1 << 23, entries[index].uses + 1) }
        entries[index].rank = rank(of: chunk)
        if places[index] != LeafHeap.none {
            let group = Int(entries[index].group)
            groups[group].leaves.update(chunk, rank: entries[index].rank, &places)
        }
        return entries[index].rank
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        if evictable == (places[Int(chunk)] != LeafHeap.none) { return }
        let group = Int(entries[Int(chunk)].group)
        if evictable {
            groups[group].leaves.insert(chunk, rank: entries[Int(chunk)].rank, &places)
        } else {
            groups[group].leaves.remove(chunk, &places)
        }
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        let index = Int(chunk)
        if resident == entries[index].isResident { return }
        if resident {
            entries[index].uses = 1
            entries[index].rank = rank(of: chunk)
        } else {
            leave(chunk, wasEvicted: true)
        }
        entries[index].isResident = resident
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        if entries[Int(chunk)].isResident { leave(chunk, wasEvicted: wasEvicted) }
        entries[Int(chunk)].isResident = false
    }

    public mutating func victim(in group: UInt32) -> UInt32? {
        Int(group) < groups.count ? groups[Int(group)].leaves.first?.chunk : nil
    }

    public func worth(of chunk: UInt32) -> UInt64 { entries[Int(chunk)].rank }

    private mutating func leave(_ chunk: UInt32, wasEvicted: Bool) {
        let entry = entries[Int(chunk)]
        setEvictable(chunk, false)
        if wasEvicted {
            let key = entry.rank >> Self.orderBits
            groups[Int(entry.group)].age = max(groups[Int(entry.group)].age, key)
        }
    }

    private func rank(of chunk: UInt32) -> UInt64 {
        let entry = entries[Int(chunk)]
        let key = min(1 << Self.keyBits - 1, groups[Int(entry.group)].age + UInt64(entry.uses))
        let mask = UInt64(1) << Self.orderBits - 1
        return key << Self.orderBits | order.rank(depth: entry.depth) & mask
    }
}
