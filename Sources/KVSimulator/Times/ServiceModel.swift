/// How long an engine is busy with a prompt before its first token, if nothing else is in its way.
/// ``QueueReplay`` has prompts wait for each other.
///
/// Computing tokens `h` to `n` of a prompt takes `a·(n − h) + b·(n² − h²)` seconds; loading the `h` that
/// were found takes `t₀ + h·c`, with a `c` for memory and one for disk. Both are paid before the first
/// token, one after the other.
package struct ServiceModel: Sendable, Equatable {
    /// `a`.
    package var secondsPerToken: Double
    /// `b`: attention.
    package var secondsPerTokenSquared = 0.0
    /// `c` of what is found in memory: bytes of a token over the bandwidth.
    package var loadSecondsPerToken = 0.0
    /// `c` of what is found on disk.
    package var diskLoadSecondsPerToken = 0.0
    /// `t₀`.
    package var loadSecondsPerRequest = 0.0

    package init(secondsPerToken: Double) {
        self.secondsPerToken = secondsPerToken
    }

    /// Seconds to compute a prompt of which nothing was found.
    package func prefillSeconds(tokens: Double) -> Double {
        secondsPerToken * tokens + secondsPerTokenSquared * tokens * tokens
    }

    /// Seconds from when an engine takes up a prompt to its first token.
    ///
    /// - Parameters:
    ///   - tokens: of the prompt.
    ///   - found: of them, those that needn't be computed.
    ///   - onDisk: of those, the ones that come from a disk.
    package func firstTokenSeconds(tokens: Double, found: Double, onDisk: Double) -> Double {
        let computing = prefillSeconds(tokens: tokens) - prefillSeconds(tokens: found)
        if found == 0 { return computing }
        return computing + loadSecondsPerRequest + loadSecondsPerToken * (found - onDisk)
            + diskLoadSecondsPerToken * onDisk
    }

    /// What a replay took under this model.
    ///
    /// - Parameter diskHitTokens: of the tokens found, those that came from a disk.
    package func outcome(of result: ReplayResult, diskHitTokens: Double = 0) -> Outcome {
        let without =
            secondsPerToken * Double(result.tokens) + secondsPerTokenSquared * result.tokensSquared
        let saved =
            secondsPerToken * result.hitTokens + secondsPerTokenSquared * result.hitTokensSquared
        let load =
            loadSecondsPerToken * (result.hitTokens - diskHitTokens)
            + diskLoadSecondsPerToken * diskHitTokens + loadSecondsPerRequest * result.hitRequests
        return Outcome(
            prefillSecondsWithout: without, prefillSecondsSaved: saved, loadSeconds: load,
            requests: result.requests)
    }

    /// Sums over a trace.
    package struct Outcome: Sendable, Equatable {
        /// What computing everything takes.
        package var prefillSecondsWithout: Double
        /// What needed no computing.
        package var prefillSecondsSaved: Double
        /// What was spent on loading instead.
        package var loadSeconds: Double
        package var requests: Int

        /// What was computed all the same.
        package var prefillSeconds: Double { prefillSecondsWithout - prefillSecondsSaved }
        /// Mean time to the first token without a cache.
        package var meanFirstTokenSecondsWithout: Double {
            prefillSecondsWithout / Double(max(1, requests))
        }
        /// Mean time to the first token.
        package var meanFirstTokenSeconds: Double {
            (prefillSeconds + loadSeconds) / Double(max(1, requests))
        }
    }
}
