/// Evicts the leaf whose memory place can expect the fewest hits a second, by what was learnt of
/// chunks like it: those that as many requests used, of requests that brought as much new and said
/// the same of what comes after them, and that have waited as long.
///
/// ``ReuseHazard`` has the estimate, ``UseHistory`` the leaves by class and age, ``ReuseClass`` the
/// classes. What was evicted is remembered as ghosts, so that the estimate learns from what comes
/// back. A hint is a class of its own: what it tells is learnt, not believed.
///
/// Metadata: 72 bytes a chunk, about 64 for each ghost, of which there are eight for each resident
/// chunk, or 16,384 if that is more; and less than a megabyte for each group.
/// - Complexity: O(log n) a call; a victim is looked for among all lists (some hundreds) when time
///   has moved on, else O(1).
public struct LeastExpectedHits: EvictionPolicy {
    private static let ghostsPerChunk = 8
    private static let leastGhosts = 16_384
    /// The estimate is worked out anew after so many uses, but not more often than the first time
    /// says, and after the second time in any case.
    private static let leastRefitNs: UInt64 = 1_000_000_000
    private static let mostRefitNs: UInt64 = 20_000_000_000
    private static let refitUses = 256.0
    /// What is remembered is halved when it has grown to so many uses, or so many for each chunk.
    private static let mostUses = 100_000.0
    private static let mostUsesPerChunk = 16.0

    private struct Entry: Sendable {
        var lastUse: UInt64 = 0
        var rank: UInt64 = 0
        var fingerprint: UInt64 = 0
        var depth: UInt32 = 0
        var group: UInt32 = 0
        var kind: UInt16 = 0
        var uses: UInt8 = 0
        var level: UInt8 = 0
        var isQueued = false
        var isResident = false
    }

    private struct Ghost: Sendable {
        var lastUse: UInt64
        var kind: UInt16
        var uses: UInt8
    }

    /// Chunks that left alike, not yet counted.
    private struct Leaving: Sendable {
        var lastUse: UInt64 = 0
        var kind = 0
        var group = 0
        var isUse = false
        var count: Int32 = 0
    }

    private struct Group: Sendable {
        var history = UseHistory(
            classCount: ReuseClass.parents.count,
            listCount: ReuseClass.parents.count * ReuseClass.levels)
        var hazard = ReuseHazard(parents: ReuseClass.parents)
        var ghosts = GhostQueue<Ghost>()
        var residents = 0
        var nextPass: UInt64 = 0
        var nextRefit: UInt64 = 0
        var learnedAtRefit = 0.0
        var refits = 0
        /// The list with the least worth, until time moves on.
        var best: (place: Int, worth: Double)?
    }

    private var entries = BlockArray<Entry>()
    private var groups: [Group] = []
    private var order = RequestOrder()
    private var now: UInt64 = 0
    private var request = PolicyRequest(now: 0)
    /// How many chunks the request found; what it asked for beyond that is new.
    private var hits = 0
    private var isFirst = true
    private var leaving = Leaving()
    /// What it knows comes from another one.
    private var isTaught = false

    /// An empty policy.
    public init() {}

    /// Uses what another one knows of a group for its only group, and learns nothing itself from
    /// now on.
    mutating func adopt(_ other: LeastExpectedHits, group: Int) {
        if groups.isEmpty { appendGroup() }
        isTaught = true
        groups[0].hazard.adopt(other.groups[group].hazard)
        groups[0].best = nil
    }

    /// How often the estimate for a group was worked out anew.
    func refitCount(group: Int) -> Int { group < groups.count ? groups[group].refits : 0 }

    public var worthNow: UInt64 { order.latest }

    public var figures: [(name: String, value: Double)] {
        return [
            ("ghosts", Double(groups.reduce(0) { $0 + $1.ghosts.count })),
            ("spans", Double(groups.reduce(0) { $0 + $1.history.spans.count })),
        ]
    }

    public mutating func begin(_ request: PolicyRequest) {
        // Before time moves on.
        countLeaving()
        order.advance()
        now = max(now, request.now)
        self.request = request
        hits = 0
        isFirst = true
        for group in groups.indices where now >= groups[group].nextPass { pass(group) }
    }

    public mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        entries.extend(to: Int(chunk), with: Entry())
        while groups.count <= Int(facts.group) { appendGroup() }
        let group = Int(facts.group)
        let depth = facts.parent.map { entries[Int($0)].depth + 1 } ?? 0
        var uses: UInt8 = 1
        if let ghost = groups[group].ghosts.take(facts.fingerprint) {
            leave(ghost.lastUse, Int(ghost.kind), group, isUse: true)
            uses = ghost.uses < 200 ? ghost.uses + 1 : ghost.uses
        }
        entries[Int(chunk)] = Entry(
            fingerprint: facts.fingerprint, depth: depth, group: facts.group, uses: uses,
            isResident: facts.isResident)
        if facts.isResident { groups[group].residents += 1 }
        arrive(chunk, elder: facts.parent)
    }

    @discardableResult
    public mutating func touch(_ chunk: UInt32) -> UInt64 {
        let entry = entries[Int(chunk)]
        if isFirst {
            hits = Int(entry.depth) + 1
            isFirst = false
        }
        if entry.isQueued { setEvictable(chunk, false) }
        leave(entry.lastUse, Int(entry.kind), Int(entry.group), isUse: !request.isRefresh)
        if !request.isRefresh, entry.uses < 200 { entries[Int(chunk)].uses += 1 }
        arrive(chunk, elder: chunk)
        if entry.isQueued { setEvictable(chunk, true) }
        return entries[Int(chunk)].rank
    }

    public mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        let entry = entries[Int(chunk)]
        if evictable == entry.isQueued { return }
        let group = Int(entry.group)
        entries[Int(chunk)].isQueued = evictable
        let list = Int(entry.level) * ReuseClass.parents.count + Int(entry.kind)
        if !evictable {
            groups[group].history.unlink(chunk, list, at: entry.lastUse)
            return
        }
        // A parent whose last child went goes next: better one prompt whole than the ends of many.
        let place = groups[group].history.link(
            chunk, list, at: entry.lastUse, inFront: entry.lastUse < now)
        if let best = groups[group].best, place != best.place {
            let worth = worth(ofList: place, group)
            if worth < best.worth { groups[group].best = (place, worth) }
        }
    }

    public mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        if resident == entries[Int(chunk)].isResident { return }
        setEvictable(chunk, false)
        entries[Int(chunk)].isResident = resident
        groups[Int(entries[Int(chunk)].group)].residents += resident ? 1 : -1
    }

    public mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        let entry = entries[Int(chunk)]
        let group = Int(entry.group)
        setEvictable(chunk, false)
        if entry.isResident { groups[group].residents -= 1 }
        entries[Int(chunk)].isResident = false
        if !wasEvicted {
            leave(entry.lastUse, Int(entry.kind), group, isUse: false)
            return
        }
        let limit = max(Self.leastGhosts, Self.ghostsPerChunk * groups[group].residents)
        groups[group].ghosts.append(
            entry.fingerprint, Ghost(lastUse: entry.lastUse, kind: entry.kind, uses: entry.uses))
        while groups[group].ghosts.count > limit, let old = groups[group].ghosts.popOldest() {
            leave(old.lastUse, Int(old.kind), group, isUse: false)
        }
    }

    public mutating func victim(in group: UInt32) -> UInt32? {
        guard Int(group) < groups.count else { return nil }
        let index = Int(group)
        if let best = groups[index].best, let first = groups[index].history.first(best.place) {
            return first
        }
        var best: (place: Int, worth: Double)?
        let state = groups[index]
        state.history.forEachList { span, list in
            let place = span * state.history.listCount + list
            let worth = worth(ofList: place, index)
            if best.map({ worth < $0.worth }) ?? true { best = (place, worth) }
        }
        groups[index].best = best
        return best.flatMap { groups[index].history.first($0.place) }
    }

    public func worth(of chunk: UInt32) -> UInt64 { entries[Int(chunk)].rank }

    private mutating func appendGroup() {
        groups.append(Group())
        pass(groups.count - 1)
    }

    // MARK: Uses

    /// The chunk begins to wait for its next use.
    /// - Parameter elder: the chunk itself, or its parent, that knows the hint of a request which
    ///   says nothing because it was told of already.
    private mutating func arrive(_ chunk: UInt32, elder: UInt32?) {
        let index = Int(chunk)
        let group = Int(entries[index].group)
        var hintClass = ReuseClass.hintClass(request.hint)
        var level = UInt8(ReuseClass.level(request.hint))
        if let elder, request.isRefresh, request.hint == .none {
            hintClass = ReuseClass.hintClass(ofClass: Int(entries[Int(elder)].kind))
            level = entries[Int(elder)].level
        }
        let kind = ReuseClass.of(
            hintClass: hintClass, uses: Int(entries[index].uses), newChunks: request.length - hits)
        entries[index].kind = UInt16(kind)
        entries[index].level = level
        entries[index].lastUse = now
        entries[index].rank = order.rank(depth: entries[index].depth)
        let span = groups[group].history.span(of: now)
        groups[group].history.count(kind, inSpan: span, 1)
    }

    /// A chunk or ghost that was used last at `lastUse` waits no longer: it is used, or nobody
    /// watches it any more. The chunks of a prompt mostly have waited alike, so they are counted
    /// together.
    private mutating func leave(_ lastUse: UInt64, _ kind: Int, _ group: Int, isUse: Bool) {
        if leaving.count > 0, leaving.lastUse == lastUse, leaving.kind == kind,
            leaving.group == group, leaving.isUse == isUse
        {
            leaving.count += 1
            return
        }
        countLeaving()
        leaving = Leaving(lastUse: lastUse, kind: kind, group: group, isUse: isUse, count: 1)
    }

    private mutating func countLeaving() {
        let (kind, group, count) = (leaving.kind, leaving.group, leaving.count)
        if count == 0 { return }
        leaving.count = 0
        let span = groups[group].history.span(of: leaving.lastUse)
        groups[group].history.count(kind, inSpan: span, -count)
        if !leaving.isUse || isTaught { return }
        let age = now - leaving.lastUse
        groups[group].hazard.recordUse(kind, bin: AgeBins.bin(ofNs: age), count: Double(count))
        groups[group].hazard.recordExposure(
            kind, from: groups[group].history.spans[span].position,
            to: AgeBins.position(ofNs: age), count: Double(count))
    }

    private func worth(ofList place: Int, _ group: Int) -> Double {
        let history = groups[group].history
        let list = place % history.listCount
        let start = history.spans[place / history.listCount].start
        let worth = groups[group].hazard.worth(
            list % ReuseClass.parents.count, ageNs: now - min(now, start))
        return worth * ReuseClass.factor(level: list / ReuseClass.parents.count)
    }

    // MARK: Time

    /// Time has moved on: chunks have grown older without a use.
    private mutating func pass(_ group: Int) {
        groups[group].nextPass = now + UseHistory.shortestNs
        groups[group].best = nil
        if isTaught {
            groups[group].history.advance(to: now)
            return
        }
        let isRefit =
            now >= groups[group].nextRefit
            && (groups[group].hazard.learned - groups[group].learnedAtRefit >= Self.refitUses
                || now >= groups[group].nextRefit + Self.mostRefitNs)
        expose(group)
        groups[group].history.advance(to: now)
        if !isRefit { return }
        let limit = max(Self.mostUses, Self.mostUsesPerChunk * Double(groups[group].residents))
        if groups[group].hazard.learned > limit { groups[group].hazard.fade(0.5) }
        groups[group].hazard.refit()
        groups[group].refits += 1
        groups[group].learnedAtRefit = groups[group].hazard.learned
        groups[group].nextRefit = now + Self.leastRefitNs
    }

    /// Counts the time that chunks went without a use; for spans that have moved on enough.
    private mutating func expose(_ group: Int) {
        let classCount = groups[group].history.classCount
        for span in groups[group].history.spans.indices {
            let state = groups[group].history.spans[span]
            let position = AgeBins.position(ofNs: now - min(now, state.start))
            if position - state.position < 0.1 { continue }
            for kind in 0..<classCount {
                let count = groups[group].history.counts[span * classCount + kind]
                if count <= 0 { continue }
                groups[group].hazard.recordExposure(
                    kind, from: state.position, to: position, count: Double(count))
            }
            groups[group].history.setPosition(position, ofSpan: span)
        }
    }
}
