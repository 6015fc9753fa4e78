/// S3-FIFO: new chunks stand in a small queue, and only what is used again there, or comes back
/// soon after its eviction, gets into the main one, where use earns another round.
///
/// Source: Yang et al., *FIFO Queues Are All You Need for Cache Eviction*, SOSP 2023. The small
/// queue has a tenth of the memory, ghosts are as many as the main queue has room for, uses are
/// counted up to three, and more than one use moves a chunk to the main queue. Only leaves go: the
/// first leaf of a queue stands for its head. The memory is as large as what is resident when
/// something is evicted.
///
/// Metadata: 40 bytes a chunk, 16 more for each leaf, and at most as many ghosts as chunks are
/// resident.
public struct SmallMainFIFO: EvictionPolicy {
    private static let smallShare = 0.1
    private static let mostUses: UInt8 = 3

    private struct Entry: Sendable {
        var rank: UInt64 = 0
        var fingerprint: UInt64 = 0
        var depth: UInt32 = 0
        var group: UInt32 = 0
        var uses: UInt8 = 0
        var isMain = false
        var isResident = false
    }

    private struct Group: Sendable {
        /// Of the small queue, and of the main one.
        var leaves = LeafHeapPair()
        var smallCount = 0
        var mainCount = 0
        var ghosts = GhostQueue<Void>()
    }

    private let usesForMain: UInt8
    private var entries = BlockArray<Entry>()
    private var places = BlockArray<UInt32>()
    private var groups: [Group] = []
    private var order = RequestOrder()
    private var isRefresh = false

    /// An empty policy.
    /// - Parameter usesForMain: how many uses in the small queue earn a place in the main one.
    public init(usesForMain: UInt8 = 2) {
        self.usesForMain = usesForMain
    }

    public var worthNow: UInt64 { order.latest }

    public var figures: [(name: String, value: Double)] {
        [("ghosts", Double(groups.reduce(0) { $0 + $1.ghosts.count }))]
    }

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
            fingerprint: facts.fingerprint, depth: depth, group: facts.group)
        if facts.isResident { becomeResident(chunk) }
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        let index = Int(chunk)
        if !isRefresh, entries[index].uses < Self.mostUses { entries[index].uses += 1 }
        return entries[index].rank
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        let entry = entries[Int(chunk)]
        if evictable == (places[Int(chunk)] != LeafHeap.none) { return }
        groups[Int(entry.group)].leaves.set(
            chunk, rank: entry.rank, isSecond: entry.isMain, evictable, &places)
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        if resident == entries[Int(chunk)].isResident { return }
        if resident { becomeResident(chunk) } else { leave(chunk, asGhost: true) }
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        if entries[Int(chunk)].isResident { leave(chunk, asGhost: wasEvicted) }
        if !wasEvicted {
            let group = Int(entries[Int(chunk)].group)
            _ = groups[group].ghosts.take(entries[Int(chunk)].fingerprint)
        }
    }

    public mutating func victim(in group: UInt32) -> UInt32? {
        guard Int(group) < groups.count else { return nil }
        let index = Int(group)
        while true {
            let state = groups[index]
            let (small, main) = (state.leaves.first.first, state.leaves.second.first)
            let room = Double(state.smallCount + state.mainCount) * Self.smallShare
            let prefersSmall = Double(state.smallCount) >= room
            let fromSmall = prefersSmall ? small != nil : main == nil
            if fromSmall {
                guard let head = small else { return nil }
                if entries[Int(head.chunk)].uses < usesForMain { return head.chunk }
                move(head.chunk, toMain: true)
            } else {
                guard let head = main else { return nil }
                if entries[Int(head.chunk)].uses == 0 { return head.chunk }
                entries[Int(head.chunk)].uses -= 1
                move(head.chunk, toMain: false)
            }
        }
    }

    public mutating func leastWorth(in group: UInt32) -> UInt64? {
        Int(group) < groups.count ? groups[Int(group)].leaves.leastRank : nil
    }

    public func worth(of chunk: UInt32) -> UInt64 { entries[Int(chunk)].rank }

    // MARK: Queues and ghosts

    /// Puts a leaf at the end of the main queue.
    private mutating func move(_ chunk: UInt32, toMain isFromSmall: Bool) {
        let group = Int(entries[Int(chunk)].group)
        setEvictable(chunk, false)
        if isFromSmall {
            entries[Int(chunk)].isMain = true
            entries[Int(chunk)].uses = 0
            groups[group].smallCount -= 1
            groups[group].mainCount += 1
        }
        order.advance()
        entries[Int(chunk)].rank = order.rank(depth: entries[Int(chunk)].depth)
        setEvictable(chunk, true)
    }

    private mutating func becomeResident(_ chunk: UInt32) {
        let group = Int(entries[Int(chunk)].group)
        let isMain = groups[group].ghosts.take(entries[Int(chunk)].fingerprint) != nil
        entries[Int(chunk)].isMain = isMain
        entries[Int(chunk)].isResident = true
        entries[Int(chunk)].uses = 0
        entries[Int(chunk)].rank = order.rank(depth: entries[Int(chunk)].depth)
        if isMain { groups[group].mainCount += 1 } else { groups[group].smallCount += 1 }
    }

    private mutating func leave(_ chunk: UInt32, asGhost: Bool) {
        let entry = entries[Int(chunk)]
        let group = Int(entry.group)
        let capacity = groups[group].smallCount + groups[group].mainCount
        setEvictable(chunk, false)
        entries[Int(chunk)].isResident = false
        if entry.isMain {
            groups[group].mainCount -= 1
        } else {
            groups[group].smallCount -= 1
            if asGhost { groups[group].ghosts.append(entry.fingerprint, ()) }
        }
        groups[group].ghosts.trim(to: Int(Double(capacity) * (1 - Self.smallShare)))
    }
}
