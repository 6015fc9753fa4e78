/// Evicts what can expect the fewest hits, as long as shadow caches on a sample of the
/// traffic don't show that LRU or ARC would do better; then it does as they do.
///
/// It is ``LeastExpectedHits`` and ``AdaptiveReplacement`` side by side, both told of everything,
/// with a ``PolicyContest`` in each group to choose whose victim goes. LRU's is the least recently
/// used leaf of ARC's two queues.
///
/// Metadata: 130 bytes a chunk, ghosts as the two have, and three shadow caches of at most 8,192
/// chunks for each of the first eight groups. Further groups are served by recency alone: what is
/// learnt costs time and memory for each, and clients choose how many there are.
public struct Adaptive: EvictionPolicy {
    private static let contests = 8
    private static let learned = 0
    private static let recency = 1
    private static let arc = 2

    private struct Entry: Sendable {
        /// Fingerprint that the chunk's branch begins with.
        var branch: UInt64 = 0
        var fingerprint: UInt64 = 0
        var children: UInt32 = 0
        var parent = UInt32.max
        var group: UInt32 = 0
        var isResident = false
    }

    /// The chunks of the request, as far as they are told.
    private struct Path: Sendable {
        var request = PolicyRequest(now: 0)
        var group = 0
        /// Tail first.
        var touched: [UInt64] = []
        var inserted: [UInt64] = []
        /// The first chunk that was touched, in the sample or not.
        var deepest: UInt32?
        /// The last chunk of it, in the sample or not.
        var end: UInt32?
        /// A refresh that goes on from where this request ended.
        var isContinued = false

        var isEmpty: Bool { touched.isEmpty && inserted.isEmpty }
    }

    private struct Group: Sendable {
        var contest: PolicyContest?
        var residents = 0
        var refits = 0
    }

    private var hits = LeastExpectedHits()
    private var queues = AdaptiveReplacement()
    private var entries = BlockArray<Entry>()
    private var groups: [Group] = []
    private var path = Path()
    /// A refresh of which nothing is known yet.
    private var refresh: PolicyRequest?

    /// An empty policy.
    public init() {}

    public var worthNow: UInt64 { queues.worthNow }

    public var figures: [(name: String, value: Double)] {
        var figures = hits.figures
        for (number, group) in groups.enumerated() {
            guard let contest = group.contest else { continue }
            figures.append(("group-\(number)-winner", Double(contest.winner)))
            figures.append(("group-\(number)-changes", Double(contest.changes)))
            figures.append(("group-\(number)-sampled-one-in", Double(contest.stride)))
            figures.append(("group-\(number)-shadow-chunks", Double(contest.count)))
            for (name, value) in zip(["learned", "lru", "arc"], contest.hits) {
                figures.append(("group-\(number)-hits-\(name)", value))
            }
        }
        return figures
    }

    public mutating func begin(_ request: PolicyRequest) {
        if request.isRefresh {
            refresh = request
        } else {
            refresh = nil
            finishPath()
            path.request = request
        }
        hits.begin(request)
        queues.begin(request)
    }

    public mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        entries.extend(to: Int(chunk), with: Entry())
        while groups.count <= Int(facts.group) {
            groups.append(Group(contest: groups.count < Self.contests ? Self.contest() : nil))
        }
        var branch = facts.fingerprint
        if let parent = facts.parent {
            if entries[Int(parent)].children == 0 { branch = entries[Int(parent)].branch }
            entries[Int(parent)].children += 1
        }
        entries[Int(chunk)] = Entry(
            branch: branch, fingerprint: facts.fingerprint, parent: facts.parent ?? .max,
            group: facts.group, isResident: facts.isResident)
        settleRefresh(deepest: nil)
        let group = Int(facts.group)
        if isLearned(group) { hits.insert(chunk, facts) }
        queues.insert(chunk, facts)
        if path.end != facts.parent {
            // Several requests may be computed at a time; each has a path of its own.
            let request = path.request
            finishPath()
            path.request = request
        }
        path.end = chunk
        if facts.isResident { groups[group].residents += 1 }
        if let contest = groups[group].contest, contest.isSampled(branch: branch),
            facts.isResident
        {
            path.group = group
            path.inserted.append(facts.fingerprint)
        }
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        let entry = entries[Int(chunk)]
        let group = Int(entry.group)
        settleRefresh(deepest: chunk)
        if path.deepest == nil {
            path.deepest = chunk
            path.end = chunk
        }
        let isSampled = groups[group].contest?.isSampled(branch: entry.branch) ?? false
        if isSampled, !path.isContinued {
            path.group = group
            path.touched.append(entry.fingerprint)
        }
        if isLearned(group) { hits.touch(chunk) }
        return queues.touch(chunk)
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        if isLearned(Int(entries[Int(chunk)].group)) { hits.setEvictable(chunk, evictable) }
        queues.setEvictable(chunk, evictable)
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        if resident == entries[Int(chunk)].isResident { return }
        entries[Int(chunk)].isResident = resident
        let group = Int(entries[Int(chunk)].group)
        groups[group].residents += resident ? 1 : -1
        if isLearned(group) { hits.setResident(chunk, resident) }
        queues.setResident(chunk, resident)
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        let entry = entries[Int(chunk)]
        if entry.isResident { groups[Int(entry.group)].residents -= 1 }
        entries[Int(chunk)].isResident = false
        if entry.parent != .max { entries[Int(entry.parent)].children -= 1 }
        if isLearned(Int(entry.group)) { hits.remove(chunk, wasEvicted: wasEvicted) }
        queues.remove(chunk, wasEvicted: wasEvicted)
    }

    public mutating func victim(in group: UInt32) -> UInt32? {
        guard Int(group) < groups.count else { return nil }
        let residents = groups[Int(group)].residents
        groups[Int(group)].contest?.setCapacity(residents, isFull: true)
        switch groups[Int(group)].contest?.winner ?? Self.recency {
        case Self.recency: return queues.leastRecentlyUsed(in: group)
        case Self.arc: return queues.victim(in: group)
        default: return hits.victim(in: group)
        }
    }

    public mutating func leastWorth(in group: UInt32) -> UInt64? { queues.leastWorth(in: group) }

    public func worth(of chunk: UInt32) -> UInt64 { queues.worth(of: chunk) }

    private func isLearned(_ group: Int) -> Bool { group < Self.contests }

    private static func contest() -> PolicyContest {
        PolicyContest([
            { LeastExpectedHits() }, { LeastRecentlyUsed() }, { AdaptiveReplacement() },
        ])
    }

    /// A refresh that touches what the last request touched goes on with it; else it is a path of
    /// its own.
    private mutating func settleRefresh(deepest: UInt32?) {
        guard let request = refresh else { return }
        refresh = nil
        if deepest == path.deepest {
            path.isContinued = true
        } else {
            finishPath()
            path.request = request
        }
    }

    /// The request is over: the shadow caches see it too.
    private mutating func finishPath() {
        defer {
            path.touched.removeAll(keepingCapacity: true)
            path.inserted.removeAll(keepingCapacity: true)
            path.deepest = nil
            path.end = nil
            path.isContinued = false
        }
        if path.isEmpty { return }
        let group = path.group
        let known = path.request.isRefresh ? path.touched.count : 0
        var request = path.request
        request.isRefresh = false
        let refits = hits.refitCount(group: group)
        if refits != groups[group].refits {
            groups[group].refits = refits
            groups[group].contest?.teach(hits, group: group)
        }
        let residents = groups[group].residents
        groups[group].contest?.setCapacity(residents, isFull: false)
        groups[group].contest?.run(
            path.touched.reversed() + path.inserted, known: known, request)
    }
}
