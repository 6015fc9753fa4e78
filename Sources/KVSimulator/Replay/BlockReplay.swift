package import KVPolicy

/// A policy as its paper has it: a cache of blocks that knows nothing of prefixes, and may drop a
/// chunk that others follow. A request finds its longest run of leading chunks that are there, then uses
/// all its full ones, the last first.
package struct BlockReplay {
    private let trace: Trace
    private let storesPartial: Bool
    private var cache: any BlockCache

    package private(set) var result: ReplayResult

    /// - Parameter cache: is empty, and has the capacity that is asked about.
    package init(_ trace: Trace, cache: any BlockCache, storesPartial: Bool = false) {
        self.trace = trace
        self.cache = cache
        self.storesPartial = storesPartial
        result = ReplayResult(trace)
    }

    /// Replays the whole trace.
    package mutating func run(
        progress: (Double) -> Void = { _ in }, found: OnFound = { _, _ in }
    ) {
        for (number, request) in trace.requests.enumerated() {
            if number % 1024 == 0 { progress(Double(number) / Double(trace.requests.count)) }
            let path = trace.chunks(of: request, storesPartial: storesPartial)
            let missing = path.firstIndex { !cache.contains($0) } ?? path.endIndex
            result.count(
                hits: missing - path.startIndex, of: request, chunkTokens: trace.chunkTokens)
            found(number, Hits(all: missing - path.startIndex))
            for chunk in path.reversed() { cache.access(chunk) }
        }
    }
}
