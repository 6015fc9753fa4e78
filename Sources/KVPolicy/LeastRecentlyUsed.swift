/// Evicts the leaf whose last use lies furthest back.
///
/// A touch is one store into an array, since most chunks have children and stand in no queue. The
/// leaves of each group form a heap ordered by last use, so that a parent whose last child went
/// takes its right place among the leaves.
///
/// Metadata: 20 bytes a chunk, and 16 more for each leaf.
public struct LeastRecentlyUsed: EvictionPolicy {
    private struct Entry {
        var lastUse: UInt64 = 0
        var group: UInt32 = 0
    }

    private var clock: UInt64 = 0
    private var entries = BlockArray<Entry>()
    private var places = BlockArray<UInt32>()
    private var leaves: [LeafHeap] = []

    /// An empty policy.
    public init() {}

    public var worthNow: UInt64 { clock }

    public mutating func begin(_ request: PolicyRequest) {}

    public mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        entries.extend(to: Int(chunk), with: Entry())
        places.extend(to: Int(chunk), with: LeafHeap.none)
        while leaves.count <= Int(facts.group) { leaves.append(LeafHeap()) }
        precondition(places[Int(chunk)] == LeafHeap.none, "chunk inserted twice")
        clock += 1
        entries[Int(chunk)] = Entry(lastUse: clock, group: facts.group)
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        clock += 1
        entries[Int(chunk)].lastUse = clock
        if places[Int(chunk)] != LeafHeap.none {
            leaves[Int(entries[Int(chunk)].group)].update(chunk, rank: clock, &places)
        }
        return clock
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        if evictable == (places[Int(chunk)] != LeafHeap.none) { return }
        let entry = entries[Int(chunk)]
        if evictable {
            leaves[Int(entry.group)].insert(chunk, rank: entry.lastUse, &places)
        } else {
            leaves[Int(entry.group)].remove(chunk, &places)
        }
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        setEvictable(chunk, false)
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        setEvictable(chunk, false)
    }

    public func victim(in group: UInt32) -> UInt32? {
        Int(group) < leaves.count ? leaves[Int(group)].first?.chunk : nil
    }

    public func worth(of chunk: UInt32) -> UInt64 { entries[Int(chunk)].lastUse }
}
