/// How long prompts take: a model without queues, in which nothing waits for anything else.
///
/// Computing tokens `h` to `n` of a prompt takes `a·(n − h) + b·(n² − h²)` seconds; loading the `h` that
/// were found takes `t₀ + h·c`. Both are paid before the first token.
package struct ServiceModel: Sendable, Equatable {
    /// `a`.
    package var secondsPerToken: Double
    /// `b`: attention.
    package var secondsPerTokenSquared = 0.0
    /// `c`: bytes of a token over the bandwidth.
    package var loadSecondsPerToken = 0.0
    /// `t₀`.
    package var loadSecondsPerRequest = 0.0

    package init(secondsPerToken: Double) {
        self.secondsPerToken = secondsPerToken
    }

    /// Seconds to compute a prompt of which nothing was found.
    package func prefillSeconds(tokens: Double) -> Double {
        secondsPerToken * tokens + secondsPerTokenSquared * tokens * tokens
    }

    /// What a replay took under this model.
    package func outcome(of result: ReplayResult) -> Outcome {
        let without =
            secondsPerToken * Double(result.tokens) + secondsPerTokenSquared * result.tokensSquared
        let saved =
            secondsPerToken * result.hitTokens + secondsPerTokenSquared * result.hitTokensSquared
        let load =
            loadSecondsPerToken * result.hitTokens + loadSecondsPerRequest * result.hitRequests
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
