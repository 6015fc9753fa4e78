/// What least-recently-used gives at every capacity, from one pass over a trace.
///
/// Requests refresh their chunks tail first, so that the head of a prompt is the most recent chunk.
/// Then the cache of any capacity holds the top of one and the same stack, and a chunk is found if
/// its place in the stack is within the capacity. The places of a prompt's chunks grow with depth, so
/// that what is found is a leading run.
///
/// Source: Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 1970.
/// Sampling: Waldspurger et al., "Efficient MRC construction with SHARDS", FAST 2015.
///
/// O(log n) a reference, n being the different chunks; 24 bytes a chunk.
package struct StackDistances {
    /// The independent samples that the error of a sampled curve is estimated from.
    package static let sampleGroups = 16

    /// In which order a request refreshes its chunks.
    package enum Order: Sendable {
        /// The head of a prompt becomes the most recent chunk: how Kvasir and vLLM do it.
        case tailFirst
        /// The tail does: the plain cache of blocks that surveys simulate. What is found is still a
        /// leading run.
        case headFirst
    }

    private let asked: ReplayResult
    private let chunkTokens: Int
    /// Of the chunks, the share that was looked at; 1 is exact.
    package let sample: Double
    /// By place in the stack (0 the top), sums up to and including it.
    private var cumulative: [Sums] = []
    /// By group of the sample and place: chunks found, sums up to and including it.
    private var groups: [[Double]] = []

    private struct Sums {
        var chunks = 0.0
        var tokens = 0.0
        var tokensSquared = 0.0
        var requests = 0.0

        /// A chunk that begins at token `before` of a prompt, and ends before `after`.
        init(before: Double, after: Double) {
            chunks = 1
            tokens = after - before
            tokensSquared = after * after - before * before
            requests = before == 0 ? 1 : 0
        }

        init() {}

        static func += (left: inout Sums, right: Sums) {
            left.chunks += right.chunks
            left.tokens += right.tokens
            left.tokensSquared += right.tokensSquared
            left.requests += right.requests
        }

        static func * (left: Sums, factor: Double) -> Sums {
            var product = left
            product.chunks *= factor
            product.tokens *= factor
            product.tokensSquared *= factor
            product.requests *= factor
            return product
        }
    }

    /// Replays a trace.
    ///
    /// - Parameters:
    ///   - storesPartial: whether the partial last chunks that have names are stored, too.
    ///   - sample: the share of the chunks that are looked at, above 0 and up to 1. The chunks that a
    ///     sample has too few or too many references of are taken for popular ones, which are found
    ///     at any capacity (SHARDS-adj).
    ///   - capacities: those of which `found` is told what each request finds, by their place here;
    ///     not for samples.
    package init(
        _ trace: Trace, storesPartial: Bool = false, order: Order = .tailFirst, sample: Double = 1,
        progress: (Double) -> Void = { _ in }, capacities: [Int] = [],
        found: (_ place: Int, _ request: Int, _ hits: Hits) -> Void = { _, _, _ in }
    ) {
        asked = ReplayResult(trace)
        chunkTokens = trace.chunkTokens
        self.sample = min(1, sample)
        if sample >= 1 {
            replay(trace, storesPartial, order, isSampled: nil, progress, capacities, found)
        } else {
            precondition(capacities.isEmpty, "a sample can't tell what one request finds")
            let threshold = UInt64(sample * 0x1p64)
            replay(
                trace, storesPartial, order,
                isSampled: trace.fingerprints.map { ChunkName.mix($0) <= threshold }, progress, [],
                found)
        }
    }

    private mutating func replay(
        _ trace: Trace, _ storesPartial: Bool, _ order: Order, isSampled: [Bool]?,
        _ progress: (Double) -> Void, _ capacities: [Int], _ found: (Int, Int, Hits) -> Void
    ) {
        // The chunks of one request that are in the stack: the capacity that finds each, less one.
        var run: [Int] = []
        var stack = RecencyStack(chunkCount: trace.distinctCount)
        var sums: [Sums] = []
        // What all references add up to, and those of the sample, by group.
        var all = Sums()
        var seen = Sums()
        var seenByGroup: [Double] = []
        if isSampled != nil {
            groups = Array(repeating: [], count: Self.sampleGroups)
            seenByGroup = Array(repeating: 0, count: Self.sampleGroups)
        }
        for (number, request) in trace.requests.enumerated() {
            if number % 4096 == 0 { progress(Double(number) / Double(trace.requests.count)) }
            let chunks = trace.chunks(of: request, storesPartial: storesPartial)
            var before = 0.0
            var deepestPlace: Int? = -1
            run.removeAll(keepingCapacity: true)
            for chunk in chunks {
                let after = min(before + Double(chunkTokens), Double(request.tokens))
                let sum = Sums(before: before, after: after)
                before = after
                if let isSampled {
                    all += sum
                    if !isSampled[Int(chunk)] { continue }
                    seen += sum
                    seenByGroup[group(of: chunk, trace)] += 1
                }
                // What follows a chunk that was never stored was never stored, either; what follows
                // one that is deep in the stack is found only where that one is.
                guard let limit = deepestPlace, let place = stack.place(of: chunk) else {
                    deepestPlace = nil
                    if isSampled == nil { break }
                    continue
                }
                let needed = max(limit, place)
                deepestPlace = needed
                while sums.count <= needed { sums.append(Sums()) }
                sums[needed] += sum
                if !capacities.isEmpty { run.append(needed) }
                if isSampled != nil {
                    let group = group(of: chunk, trace)
                    while groups[group].count <= needed { groups[group].append(0) }
                    groups[group][needed] += 1
                }
            }
            for (place, capacity) in capacities.enumerated() {
                found(place, number, Hits(all: Self.length(of: run, within: capacity)))
            }
            func push(_ chunk: UInt32) {
                if isSampled?[Int(chunk)] ?? true { stack.push(chunk) }
            }
            switch order {
            case .tailFirst: for chunk in chunks.reversed() { push(chunk) }
            case .headFirst: for chunk in chunks { push(chunk) }
            }
        }
        if isSampled != nil, !sums.isEmpty {
            sums[0] += all * sample
            sums[0] += seen * -1
            let expected = all.chunks * sample / Double(Self.sampleGroups)
            for group in groups.indices {
                if groups[group].isEmpty { groups[group] = [0] }
                groups[group][0] += expected - seenByGroup[group]
            }
        }
        for place in sums.indices.dropFirst() { sums[place] += sums[place - 1] }
        for group in groups.indices {
            for place in groups[group].indices.dropFirst() {
                groups[group][place] += groups[group][place - 1]
            }
        }
        cumulative = sums
    }

    /// How many leading elements are below the capacity; none is smaller than the one before it.
    private static func length(of run: [Int], within capacity: Int) -> Int {
        var low = 0
        var high = run.count
        while low < high {
            let middle = (low + high) / 2
            if run[middle] < capacity { low = middle + 1 } else { high = middle }
        }
        return low
    }

    private func group(of chunk: UInt32, _ trace: Trace) -> Int {
        Int(ChunkName.mix(trace.fingerprints[Int(chunk)]) % UInt64(Self.sampleGroups))
    }

    /// What a cache of so many chunks gives. O(1).
    package func result(capacity: Int) -> ReplayResult {
        var result = asked
        let depth = depth(capacity)
        if depth == 0 { return result }
        let sums = cumulative[depth - 1] * (1 / sample)
        // A sample may overshoot.
        result.hitChunks = min(max(0, sums.chunks), Double(asked.chunks))
        result.hitTokens = min(max(0, sums.tokens), Double(asked.tokens))
        result.hitTokensSquared = min(max(0, sums.tokensSquared), asked.tokensSquared)
        result.hitRequests = min(max(0, sums.requests), Double(asked.requests))
        return result
    }

    private func depth(_ capacity: Int) -> Int {
        Int(min(Double(cumulative.count), (Double(capacity) * sample).rounded()))
    }

    /// The standard error of the share of chunks found, which is 0 for an exact curve: from how much
    /// the groups of the sample differ. It does not see what they have in common.
    package func chunkShareError(capacity: Int) -> Double {
        let depth = depth(capacity)
        if groups.isEmpty || depth == 0 { return 0 }
        let hits = groups.map { $0.isEmpty ? 0 : $0[min(depth, $0.count) - 1] }
        let count = Double(hits.count)
        let mean = hits.reduce(0, +) / count
        let variance = hits.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / (count - 1)
        return (count * variance).squareRoot() / sample / Double(max(1, asked.chunks))
    }

    /// The capacity beyond which nothing more is found.
    package var saturation: Int { Int((Double(cumulative.count) / sample).rounded(.up)) }
}

/// A stack in the order of last use that can tell the place of each member.
///
/// Each push takes the next slot of a bit set; a tree of counts (Fenwick) over its words tells how many
/// members stand above one. When the slots run out, the members move together.
struct RecencyStack {
    private static let nowhere = UInt32.max

    /// By chunk: its slot.
    private var slots: [UInt32]
    /// By slot: its chunk, which may have moved on.
    private var chunks: [UInt32]
    private var words: [UInt64]
    private var tree: [UInt32]
    private var next = 0
    private(set) var count = 0

    init(chunkCount: Int) {
        slots = Array(repeating: Self.nowhere, count: chunkCount)
        let capacity = max(1 << 12, 2 * chunkCount + 64) / 64 * 64
        chunks = Array(repeating: 0, count: capacity)
        words = Array(repeating: 0, count: capacity / 64)
        tree = Array(repeating: 0, count: capacity / 64 + 1)
    }

    /// How many members stand above this one; nil if it isn't a member. O(log n).
    @inline(__always)
    func place(of chunk: UInt32) -> Int? {
        let slot = slots[Int(chunk)]
        if slot == Self.nowhere { return nil }
        let word = Int(slot) / 64
        var below = 0
        var node = word
        while node > 0 {
            below += Int(tree[node])
            node &= node - 1
        }
        let mask: UInt64 = (1 << (UInt64(slot) & 63)) << 1 &- 1
        return count - below - (words[word] & mask).nonzeroBitCount
    }

    /// Puts a chunk on top. O(log n).
    @inline(__always)
    mutating func push(_ chunk: UInt32) {
        if next == chunks.count { compact() }
        let old = slots[Int(chunk)]
        if old == Self.nowhere {
            count += 1
        } else {
            words[Int(old) / 64] &= ~(1 << (UInt64(old) & 63))
            add(-1, word: Int(old) / 64)
        }
        slots[Int(chunk)] = UInt32(next)
        chunks[next] = chunk
        words[next / 64] |= 1 << (UInt64(next) & 63)
        add(1, word: next / 64)
        next += 1
    }

    @inline(__always)
    private mutating func add(_ change: Int32, word: Int) {
        var node = word + 1
        while node < tree.count {
            tree[node] = UInt32(bitPattern: Int32(bitPattern: tree[node]) &+ change)
            node += node & -node
        }
    }

    private mutating func compact() {
        var kept = 0
        for slot in 0..<next where slots[Int(chunks[slot])] == UInt32(slot) {
            chunks[kept] = chunks[slot]
            slots[Int(chunks[kept])] = UInt32(kept)
            kept += 1
        }
        next = kept
        for word in words.indices {
            let members = min(64, max(0, kept - 64 * word))
            words[word] = members == 64 ? .max : (1 << UInt64(members)) - 1
        }
        for node in tree.indices { tree[node] = 0 }
        for word in words.indices {
            tree[word + 1] += UInt32(words[word].nonzeroBitCount)
            let above = (word + 1) + ((word + 1) & -(word + 1))
            if above < tree.count { tree[above] += tree[word + 1] }
        }
    }
}
