/// Evicts the leaf whose last use lies furthest back.
///
/// A touch is one store into an array, since most chunks have children and stand in no queue. The
/// leaves of each group form a binary heap ordered by last use, so that a parent whose last child
/// went takes its right place among the leaves.
///
/// Metadata: 16 bytes a chunk, and 4 more for each leaf.
public struct LeastRecentlyUsed: EvictionPolicy {
    private struct Entry {
        var lastUse: UInt64 = 0
        var group: UInt32 = 0
        /// Place in the group's heap, or `notQueued`.
        var place: UInt32 = notQueued
    }

    private static let notQueued = UInt32.max

    private var clock: UInt64 = 0
    private var entries = BlockArray<Entry>()
    private var heaps: [[UInt32]] = []

    /// An empty policy.
    public init() {}

    public var worthNow: UInt64 { clock }

    public mutating func begin(_ request: PolicyRequest) {}

    public mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        let group = facts.group
        entries.extend(to: Int(chunk), with: Entry())
        while heaps.count <= Int(group) { heaps.append([]) }
        precondition(entries[Int(chunk)].place == Self.notQueued, "chunk inserted twice")
        clock += 1
        entries[Int(chunk)] = Entry(lastUse: clock, group: group, place: Self.notQueued)
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        clock += 1
        entries[Int(chunk)].lastUse = clock
        let place = entries[Int(chunk)].place
        if place != Self.notQueued {
            siftDown(Int(place), group: Int(entries[Int(chunk)].group))
        }
        return clock
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        let place = entries[Int(chunk)].place
        if evictable == (place != Self.notQueued) { return }
        let group = Int(entries[Int(chunk)].group)
        if evictable {
            heaps[group].append(chunk)
            entries[Int(chunk)].place = UInt32(heaps[group].count - 1)
            siftUp(heaps[group].count - 1, group: group)
        } else {
            takeOut(Int(place), group: group)
        }
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        setEvictable(chunk, false)
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        setEvictable(chunk, false)
    }

    public func victim(in group: UInt32) -> UInt32? {
        Int(group) < heaps.count ? heaps[Int(group)].first : nil
    }

    public func worth(of chunk: UInt32) -> UInt64 { entries[Int(chunk)].lastUse }

    // MARK: The heap of a group: the least recently used leaf first

    private mutating func takeOut(_ place: Int, group: Int) {
        let last = heaps[group].count - 1
        entries[Int(heaps[group][place])].place = Self.notQueued
        if place != last {
            let moved = heaps[group][last]
            heaps[group][place] = moved
            entries[Int(moved)].place = UInt32(place)
        }
        heaps[group].removeLast()
        if place < heaps[group].count {
            siftDown(place, group: group)
            siftUp(place, group: group)
        }
    }

    private func isBefore(_ a: UInt32, _ b: UInt32) -> Bool {
        entries[Int(a)].lastUse < entries[Int(b)].lastUse
    }

    private mutating func siftUp(_ start: Int, group: Int) {
        var place = start
        while place > 0 {
            let parent = (place - 1) / 2
            if !isBefore(heaps[group][place], heaps[group][parent]) { return }
            exchange(place, parent, group: group)
            place = parent
        }
    }

    private mutating func siftDown(_ start: Int, group: Int) {
        var place = start
        let count = heaps[group].count
        while true {
            var least = place
            for child in (2 * place + 1)...(2 * place + 2) where child < count {
                if isBefore(heaps[group][child], heaps[group][least]) { least = child }
            }
            if least == place { return }
            exchange(place, least, group: group)
            place = least
        }
    }

    private mutating func exchange(_ a: Int, _ b: Int, group: Int) {
        heaps[group].swapAt(a, b)
        entries[Int(heaps[group][a])].place = UInt32(a)
        entries[Int(heaps[group][b])].place = UInt32(b)
    }
}
