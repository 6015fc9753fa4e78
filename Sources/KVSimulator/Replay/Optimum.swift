/// The most that any cache of a capacity can find: Belady's MIN with bypass.
///
/// After each request the chunks whose next use is furthest away go, the deepest first among those
/// of one request; a chunk of the request itself may be one of them. A chunk's parent is used whenever
/// it is, so what stays is closed under "parent of", and finding a leading run is finding every chunk
/// that stayed: which is what MIN is optimal for. (The tests compare with all cache states of small
/// trees.) It is the optimum for the number of chunks found; that of tokens differs only where
/// partial chunks are stored.
///
/// Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems
/// Journal 1966; bypass: Michaud, "Some mathematical facts about optimal cache replacement", ACM TACO
/// 2016.
package struct Optimum {
    private let trace: Trace
    private let storesPartial: Bool
    /// By reference: the number of the next request that has its chunk, or `never`.
    private let nextUses: [UInt32]

    private static let never = UInt32.max

    /// Looks up the future. Linear in the references.
    package init(_ trace: Trace, storesPartial: Bool = false) {
        self.trace = trace
        self.storesPartial = storesPartial
        var uses = [UInt32](repeating: Self.never, count: trace.references.count)
        var next = [UInt32](repeating: Self.never, count: trace.distinctCount)
        for number in trace.requests.indices.reversed() {
            let request = trace.requests[number]
            let chunks = trace.chunks(of: request, storesPartial: storesPartial)
            for place in chunks.indices {
                uses[place] = next[Int(trace.references[place])]
            }
            for chunk in chunks { next[Int(chunk)] = UInt32(number) }
        }
        nextUses = uses
    }

    /// What the best cache of so many chunks gives. O(log n) a reference.
    package func result(
        capacity: Int, progress: (Double) -> Void = { _ in }, found: OnFound = { _, _ in }
    ) -> ReplayResult {
        var result = ReplayResult(trace)
        var isCached = [Bool](repeating: false, count: trace.distinctCount)
        var count = 0
        // By next use, then depth. Those of the past have sunk to the bottom and are never looked at.
        var queue = MaximumHeap()
        for (number, request) in trace.requests.enumerated() {
            if number % 4096 == 0 { progress(Double(number) / Double(trace.requests.count)) }
            let chunks = trace.chunks(of: request, storesPartial: storesPartial)
            let missing = chunks.firstIndex { !isCached[Int($0)] } ?? chunks.endIndex
            result.count(
                hits: missing - chunks.startIndex, of: request, chunkTokens: trace.chunkTokens)
            found(number, Hits(all: missing - chunks.startIndex))
            for place in chunks.indices {
                let chunk = Int(trace.references[place])
                let next = nextUses[place]
                if (next != Self.never) != isCached[chunk] {
                    isCached[chunk].toggle()
                    count += isCached[chunk] ? 1 : -1
                }
                if next == Self.never { continue }
                queue.push(UInt64(next) << 32 | UInt64(place - chunks.startIndex))
            }
            while count > capacity {
                let latest = queue.popMaximum()
                let user = trace.requests[Int(latest >> 32)]
                let chunk = trace.references[Int(user.first) + Int(latest & 0xFFFF_FFFF)]
                isCached[Int(chunk)] = false
                count -= 1
            }
        }
        return result
    }
}

/// A binary heap of numbers, the greatest on top.
struct MaximumHeap {
    private var values: [UInt64] = []

    var isEmpty: Bool { values.isEmpty }

    /// O(log n).
    mutating func push(_ value: UInt64) {
        values.append(value)
        var place = values.count - 1
        while place > 0 {
            let parent = (place - 1) / 2
            if values[parent] >= value { break }
            values[place] = values[parent]
            place = parent
        }
        values[place] = value
    }

    /// O(log n).
    mutating func popMaximum() -> UInt64 {
        let top = values[0]
        let last = values.removeLast()
        if values.isEmpty { return top }
        var place = 0
        while true {
            var child = 2 * place + 1
            if child >= values.count { break }
            if child + 1 < values.count, values[child + 1] > values[child] { child += 1 }
            if values[child] <= last { break }
            values[place] = values[child]
            place = child
        }
        values[place] = last
        return top
    }
}
