/// ARC: what was used once and what was used more often stand in two queues, whose shares of the
/// memory follow the ghosts that are asked for again.
///
/// Source: Megiddo and Modha, *ARC: A Self-Tuning, Low Overhead Replacement Cache*, FAST 2003.
/// Three things differ. Only leaves go: the least recently used leaf of the queue that is over its
/// share, or of the other where that has none. The memory is as large as what is resident when
/// something is evicted. And room is made before it is known what for, so that the share is
/// compared without the paper's special case of a ghost of the second queue.
///
/// Metadata: 40 bytes a chunk, 16 more for each leaf, and as many ghosts as chunks are resident.
public struct AdaptiveReplacement: EvictionPolicy {
    private struct Entry: Sendable {
        var rank: UInt64 = 0
        var fingerprint: UInt64 = 0
        var depth: UInt32 = 0
        var group: UInt32 = 0
        var isFrequent = false
        var isResident = false
    }

    private struct Group: Sendable {
        /// Of what was used once, and of what was used more often.
        var leaves = LeafHeapPair()
        var recentCount = 0
        var frequentCount = 0
        var recentGhosts = GhostQueue<Void>()
        var frequentGhosts = GhostQueue<Void>()
        /// How many chunks the queue of what was used once should have.
        var share = 0.0
    }

    private var entries = BlockArray<Entry>()
    private var places = BlockArray<UInt32>()
    private var groups: [Group] = []
    private var order = RequestOrder()
    private var isRefresh = false

    /// An empty policy.
    public init() {}

    public var worthNow: UInt64 { order.latest }

    public var figures: [(name: String, value: Double)] {
        [
            ("ghosts", Double(ghostCount)),
            ("recent-share", groups.reduce(0) { $0 + $1.share }),
        ]
    }

    private var ghostCount: Int {
        groups.reduce(0) { $0 + $1.recentGhosts.count + $1.frequentGhosts.count }
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
            rank: order.rank(depth: depth), fingerprint: facts.fingerprint, depth: depth,
            group: facts.group)
        if facts.isResident { becomeResident(chunk, wasFrequent: false) }
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        let index = Int(chunk)
        if !entries[index].isResident {
            // It may be on its way into memory, and is not the oldest there then.
            entries[index].rank = order.rank(depth: entries[index].depth)
            return entries[index].rank
        }
        let isQueued = places[index] != LeafHeap.none
        if isQueued { setEvictable(chunk, false) }
        if !isRefresh, !entries[index].isFrequent {
            entries[index].isFrequent = true
            let group = Int(entries[index].group)
            groups[group].recentCount -= 1
            groups[group].frequentCount += 1
        }
        entries[index].rank = order.rank(depth: entries[index].depth)
        if isQueued { setEvictable(chunk, true) }
        return entries[index].rank
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        let entry = entries[Int(chunk)]
        if evictable == (places[Int(chunk)] != LeafHeap.none) { return }
        groups[Int(entry.group)].leaves.set(
            chunk, rank: entry.rank, isSecond: entry.isFrequent, evictable, &places)
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        let entry = entries[Int(chunk)]
        if resident == entry.isResident { return }
        if resident {
            becomeResident(chunk, wasFrequent: entry.isFrequent)
        } else {
            leave(chunk, asGhost: true)
        }
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        if entries[Int(chunk)].isResident { leave(chunk, asGhost: wasEvicted) }
        if !wasEvicted {
            let group = Int(entries[Int(chunk)].group)
            _ = groups[group].recentGhosts.take(entries[Int(chunk)].fingerprint)
            _ = groups[group].frequentGhosts.take(entries[Int(chunk)].fingerprint)
        }
    }

    public mutating func victim(in group: UInt32) -> UInt32? {
        guard Int(group) < groups.count else { return nil }
        let state = groups[Int(group)]
        let (recent, frequent) = (state.leaves.first.first, state.leaves.second.first)
        let isRecentOver = Double(state.recentCount) > state.share
        return (isRecentOver ? recent ?? frequent : frequent ?? recent)?.chunk
    }

    /// The evictable chunk of the group that was used least recently; nil when there is none.
    func leastRecentlyUsed(in group: UInt32) -> UInt32? {
        guard Int(group) < groups.count else { return nil }
        let leaves = groups[Int(group)].leaves
        guard let recent = leaves.first.first else { return leaves.second.first?.chunk }
        guard let frequent = leaves.second.first else { return recent.chunk }
        return recent.rank <= frequent.rank ? recent.chunk : frequent.chunk
    }

    public mutating func leastWorth(in group: UInt32) -> UInt64? {
        Int(group) < groups.count ? groups[Int(group)].leaves.leastRank : nil
    }

    public func worth(of chunk: UInt32) -> UInt64 { entries[Int(chunk)].rank }

    // MARK: Queues and ghosts

    /// Puts a chunk into a queue, and learns from the ghost it may have left.
    private mutating func becomeResident(_ chunk: UInt32, wasFrequent: Bool) {
        let fingerprint = entries[Int(chunk)].fingerprint
        let group = Int(entries[Int(chunk)].group)
        let recentGhosts = Double(groups[group].recentGhosts.count)
        let frequentGhosts = Double(groups[group].frequentGhosts.count)
        let capacity = Double(groups[group].recentCount + groups[group].frequentCount + 1)
        var isFrequent = wasFrequent
        if groups[group].recentGhosts.take(fingerprint) != nil {
            let step = max(1, frequentGhosts / recentGhosts)
            groups[group].share = min(capacity, groups[group].share + step)
            isFrequent = true
        } else if groups[group].frequentGhosts.take(fingerprint) != nil {
            groups[group].share = max(
                0, groups[group].share - max(1, recentGhosts / frequentGhosts))
            isFrequent = true
        }
        entries[Int(chunk)].isFrequent = isFrequent
        entries[Int(chunk)].isResident = true
        if isFrequent { groups[group].frequentCount += 1 } else { groups[group].recentCount += 1 }
    }

    private mutating func leave(_ chunk: UInt32, asGhost: Bool) {
        let entry = entries[Int(chunk)]
        let group = Int(entry.group)
        let capacity = groups[group].recentCount + groups[group].frequentCount
        setEvictable(chunk, false)
        entries[Int(chunk)].isResident = false
        if entry.isFrequent {
            groups[group].frequentCount -= 1
            if asGhost { groups[group].frequentGhosts.append(entry.fingerprint, ()) }
        } else {
            groups[group].recentCount -= 1
            if asGhost { groups[group].recentGhosts.append(entry.fingerprint, ()) }
        }
        groups[group].recentGhosts.trim(to: capacity - groups[group].recentCount)
        groups[group].frequentGhosts.trim(to: capacity - groups[group].recentGhosts.count)
    }
}
