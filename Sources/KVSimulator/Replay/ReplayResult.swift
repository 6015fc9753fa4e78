/// What one request found, in chunks.
package struct Hits: Sendable, Equatable {
    /// The length of the leading run that was found.
    package var all: Int
    /// Of them, those that were on disk only: the last ones.
    package var onDisk = 0

    /// In tokens. A partial chunk at the end counts with what the prompt has of it.
    package func tokens(
        of request: Trace.Request, chunkTokens: Int
    ) -> (all: Double, onDisk: Double) {
        let found = min(all * chunkTokens, Int(request.tokens))
        let inMemory = min((all - onDisk) * chunkTokens, Int(request.tokens))
        return (Double(found), Double(found - inMemory))
    }
}

/// Who is told what each request found, by its number. Of requests without a chunk that could be stored
/// nothing is said.
package typealias OnFound = (_ request: Int, _ hits: Hits) -> Void

/// What a cache gave on a trace.
package struct ReplayResult: Sendable, Equatable {
    /// Chunks that requests asked for, partial ones included, and their tokens.
    package var chunks = 0
    package var tokens = 0
    package var requests = 0
    /// Sum over requests of the square of the prompt's tokens: attention is quadratic.
    package var tokensSquared = 0.0
    /// Chunks that were found.
    package var hitChunks = 0.0
    package var hitTokens = 0.0
    /// Sum over requests of the square of the tokens found.
    package var hitTokensSquared = 0.0
    /// Requests that found anything.
    package var hitRequests = 0.0

    package init() {}

    /// What a trace asks for, nothing of it found.
    package init(_ trace: Trace) {
        chunks = trace.chunkCount
        tokens = trace.tokenCount
        requests = trace.requests.count
        tokensSquared = trace.requests.reduce(0) { $0 + Double($1.tokens) * Double($1.tokens) }
    }

    /// What a cache without bound finds: all that was asked for before. Linear in the trace.
    package static func unbounded(_ trace: Trace, storesPartial: Bool = false) -> ReplayResult {
        var result = ReplayResult(trace)
        var isCached = [Bool](repeating: false, count: trace.distinctCount)
        for request in trace.requests {
            let path = trace.chunks(of: request, storesPartial: storesPartial)
            let missing = path.firstIndex { !isCached[Int($0)] } ?? path.endIndex
            result.count(
                hits: missing - path.startIndex, of: request, chunkTokens: trace.chunkTokens)
            for chunk in path[missing...] { isCached[Int(chunk)] = true }
        }
        return result
    }

    /// Share of the chunks that was found.
    package var chunkShare: Double { hitChunks / Double(max(1, chunks)) }
    /// Share of the tokens that was found.
    package var tokenShare: Double { hitTokens / Double(max(1, tokens)) }

    /// Counts a request of which the first `count` chunks were found.
    @inline(__always)
    mutating func count(hits count: Int, of request: Trace.Request, chunkTokens: Int) {
        if count == 0 { return }
        let found = Double(min(count * chunkTokens, Int(request.tokens)))
        hitChunks += Double(count)
        hitTokens += found
        hitTokensSquared += found * found
        hitRequests += 1
    }

    package static func + (left: ReplayResult, right: ReplayResult) -> ReplayResult {
        var sum = left
        sum.chunks += right.chunks
        sum.tokens += right.tokens
        sum.requests += right.requests
        sum.tokensSquared += right.tokensSquared
        sum.hitChunks += right.hitChunks
        sum.hitTokens += right.hitTokens
        sum.hitTokensSquared += right.hitTokensSquared
        sum.hitRequests += right.hitRequests
        return sum
    }
}
