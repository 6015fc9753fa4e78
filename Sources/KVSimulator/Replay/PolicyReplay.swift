package import KVPolicy

/// A cache of so many chunks in front of a policy, with the very calls that the store's core makes: a
/// request touches what it finds, tail first, and reads it; then a second call keeps its path from
/// eviction and inserts what is missing, parents first. Only leaves go. What doesn't fit beside the path
/// is not stored.
///
/// Its index is a few arrays, so that a replay costs little more than the policy.
package struct PolicyReplay {
    private static let none = UInt32.max

    private let trace: Trace
    private let capacity: Int
    private let storesPartial: Bool
    private var policy: any EvictionPolicy

    /// By chunk of the trace: its slot, or `none`.
    private var slots: [UInt32]
    /// By slot: the chunk of the trace.
    private var chunks: [UInt32] = []
    /// By slot: children in the cache.
    private var childCounts: [UInt32] = []
    /// Reused last in, first out, as the core does.
    private var vacantSlots: [UInt32] = []
    private var count = 0
    /// The slot of the path's end, which must stay.
    private var held = none
    private var hints: [ReuseHint]?

    package private(set) var result: ReplayResult

    /// An empty cache.
    ///
    /// - Parameter capacity: chunks that it holds.
    package init(
        _ trace: Trace, policy: any EvictionPolicy, capacity: Int, storesPartial: Bool = false
    ) {
        self.trace = trace
        self.policy = policy
        self.capacity = capacity
        self.storesPartial = storesPartial
        slots = Array(repeating: Self.none, count: trace.distinctCount)
        result = ReplayResult(trace)
    }

    /// What the policy says of itself.
    package var figures: [(name: String, value: Double)] { policy.figures }

    /// Replays the whole trace.
    ///
    /// - Parameters:
    ///   - hints: by request what it says of the time after it; nil for what the trace has.
    ///   - found: is told of each request that could find anything.
    package mutating func run(
        hints: [ReuseHint]? = nil, progress: (Double) -> Void = { _ in },
        found: OnFound = { _, _ in }
    ) {
        self.hints = hints
        for number in trace.requests.indices {
            if number % 1024 == 0 { progress(Double(number) / Double(trace.requests.count)) }
            let request = trace.requests[number]
            let path = trace.chunks(of: request, storesPartial: storesPartial)
            if path.isEmpty { continue }
            begin(number, length: path.count, isRefresh: false)
            found(number, Hits(all: replay(number, path)))
        }
    }

    private mutating func begin(_ number: Int, length: Int, isRefresh: Bool) {
        let request = trace.requests[number]
        // The core's clock begins at 1 in CoreReplay.
        policy.begin(
            PolicyRequest(
                now: request.nanoseconds + 1, hint: hints?[number] ?? ReuseHint(request.hint),
                length: length, isRefresh: isRefresh))
    }

    /// Tail first.
    private mutating func touch(_ run: ArraySlice<UInt32>) {
        for chunk in run.reversed() { policy.touch(slots[Int(chunk)]) }
    }

    /// - Returns: chunks found.
    private mutating func replay(_ number: Int, _ path: ArraySlice<UInt32>) -> Int {
        let request = trace.requests[number]
        var missing = path.startIndex
        while missing < path.endIndex, slots[Int(trace.references[missing])] != Self.none {
            missing += 1
        }
        let hits = missing - path.startIndex
        result.count(hits: hits, of: request, chunkTokens: trace.chunkTokens)
        touch(path[..<missing])
        var tip = hits > 0 ? slots[Int(trace.references[missing - 1])] : Self.none
        let tipIsLeaf = tip != Self.none && childCounts[Int(tip)] == 0
        if tipIsLeaf {
            // Held while it is read.
            policy.setEvictable(tip, false)
            policy.setEvictable(tip, true)
        }
        if missing == path.endIndex { return hits }
        // Then what is missing is saved, which is a call of its own.
        if tipIsLeaf { policy.setEvictable(tip, false) }
        begin(number, length: path.count, isRefresh: true)
        touch(path[..<missing])
        held = tip
        for place in missing..<path.endIndex {
            guard let slot = insert(trace.references[place], parent: tip) else { break }
            tip = slot
            held = slot
        }
        held = Self.none
        if tip != Self.none, childCounts[Int(tip)] == 0 { policy.setEvictable(tip, true) }
        return hits
    }

    private mutating func insert(_ chunk: UInt32, parent: UInt32) -> UInt32? {
        let slot: UInt32
        if let vacant = vacantSlots.popLast() {
            slot = vacant
        } else {
            slot = UInt32(chunks.count)
            chunks.append(Self.none)
            childCounts.append(0)
        }
        if count >= capacity, !evict() {
            vacantSlots.append(slot)
            return nil
        }
        chunks[Int(slot)] = chunk
        childCounts[Int(slot)] = 0
        slots[Int(chunk)] = slot
        if parent != Self.none { childCounts[Int(parent)] += 1 }
        count += 1
        policy.insert(
            slot,
            NewChunk(
                group: 0, parent: parent == Self.none ? nil : parent,
                fingerprint: trace.fingerprints[Int(chunk)]))
        return slot
    }

    private mutating func evict() -> Bool {
        guard let victim = policy.victim(in: 0) else { return false }
        let chunk = chunks[Int(victim)]
        let parentChunk = trace.parents[Int(chunk)]
        if parentChunk != Trace.none {
            let parent = slots[Int(parentChunk)]
            childCounts[Int(parent)] -= 1
            if childCounts[Int(parent)] == 0, parent != held { policy.setEvictable(parent, true) }
        }
        policy.remove(victim, wasEvicted: true)
        slots[Int(chunk)] = Self.none
        chunks[Int(victim)] = Self.none
        vacantSlots.append(victim)
        count -= 1
        return true
    }
}

extension ReuseHint {
    /// What a log says, as policies take it.
    package init(_ hint: Trace.Hint) {
        self =
            switch hint {
            case .none: .none
            case .closed: .closed
            case .pending(let seconds?): .pending(seconds: seconds)
            case .pending(nil): .pending
            }
    }
}
