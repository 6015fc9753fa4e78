internal import Glibc
internal import KVIdentity
internal import KVStore
internal import Logging
public import ReferenceLM

/// What reuse of keys and values costs a model: perplexity, divergence and agreement beside the exact run.
///
/// Each window of text is run exactly. Then the keys and values of its first half are taken on the way that is judged, and the
/// second half is computed on them; both runs' predictions of the second half are compared, position by position.
public struct Evaluation {
    /// The way that keys and values take.
    public enum Reuse: String, Sendable, CaseIterable {
        /// Through a Kvasir store and back: must change no bit.
        case store
        /// Rounded to bfloat16.
        case bfloat16
        /// Rounded to IEEE half precision.
        case float16
    }

    /// What was found at one context length.
    public struct Result: Sendable, Codable {
        /// Tokens of a window.
        public var context: Int
        /// Windows that were run.
        public var windows = 0
        /// Predictions that the perplexity is of: context - 1 for each window.
        public var tokens = 0
        /// e to the mean negative log likelihood of each next token, in the exact run.
        public var perplexity = 0.0
        /// The way that was judged.
        public var reuse: String
        /// Tokens of each window whose keys and values were reused.
        public var reusedTokens = 0
        /// Positions, over all windows, at which the two runs were compared.
        public var comparedTokens = 0
        /// Perplexity of the exact run over the second halves.
        public var perplexityExact = 0.0
        /// Perplexity of the run on reused keys and values over the same.
        public var perplexityReused = 0.0
        /// Kullback–Leibler divergence of the reused run's predictions from the exact one's, in nats: the mean,
        public var klMean = 0.0
        /// and the largest.
        public var klMax = 0.0
        /// The share of positions at which both find the same token likeliest.
        public var greedyAgreement = 0.0

        enum CodingKeys: String, CodingKey {
            case context, windows, tokens, perplexity, reuse
            case reusedTokens = "reused_tokens"
            case comparedTokens = "compared_tokens"
            case perplexityExact = "perplexity_exact"
            case perplexityReused = "perplexity_reused"
            case klMean = "kl_mean"
            case klMax = "kl_max"
            case greedyAgreement = "greedy_agreement"
        }
    }

    /// The shortest context: half of it must be a page.
    public static let contextTokensMin = 2 * KVLayout.pageTokens
    /// Tokens that both runs compute before they are compared.
    private static let stepTokens = 128

    private let model: Model
    private let reuse: Reuse
    private let pool: PagePool
    private let cache: PrefixCache?
    private let store: Store?

    /// An evaluation of contexts of up to `contextTokens` tokens.
    public init(_ model: Model, reuse: Reuse, contextTokens: Int) throws {
        self.model = model
        self.reuse = reuse
        try Self.check(context: contextTokens, model)
        pool = try PagePool(for: model, tokens: 2 * (contextTokens + KVLayout.pageTokens))
        guard reuse == .store else {
            (store, cache) = (nil, nil)
            return
        }
        // Weights need no identity: nobody else has this store.
        let space = try ModelIdentity.space(
            of: model, weights: .init(words: (0, 0, 0, 0)), chunkTokens: KVLayout.pageTokens)
        let bytes = (contextTokens / space.chunkTokens + 2) * space.chunkBytes * 5 / 4
        var logger = Logger(label: "kvasir.eval")
        logger.logLevel = .error
        let store = try Store(
            .init(memoryBytes: max(64 << 20, bytes), verifyOneIn: 1, logger: logger))
        _ = store.waitUntilReady()
        self.store = store
        cache = PrefixCache(EmbeddedStore(store), space: space)
    }

    /// Runs windows of `context` tokens, one after the other from the start of `text`.
    ///
    /// - Parameters:
    ///   - windows: how many at most.
    ///   - progress: told after each step how many tokens are done, of how many.
    ///   - logits: gets, of the exact run, the window, the position in it and the logits.
    /// - Throws: `input` for contexts that the model or the text can't give.
    public func run(
        _ text: [UInt32], context: Int, windows: Int, progress: (Int, Int) -> Void = { _, _ in },
        logits: (Int, Int, UnsafeBufferPointer<Float>) -> Void = { _, _, _ in }
    ) throws -> Result {
        try check(text, context)
        let count = min(windows, text.count / context)
        var sums = Sums()
        for window in 0..<count {
            let tokens = Array(text[(window * context)..<((window + 1) * context)])
            try run(
                tokens, &sums, logits: { logits(window, $0, $1) },
                progress: { progress(window * context + $0, count * context) })
        }
        try sums.checkFinite(reuse)
        var result = Result(context: context, reuse: reuse.rawValue)
        result.windows = count
        result.reusedTokens = reusedTokens(of: context)
        sums.fill(&result)
        return result
    }

    private static func check(context: Int, _ model: Model) throws(ModelError) {
        if context < contextTokensMin || context > model.configuration.contextLength {
            throw ModelError(
                .input,
                "a context of \(context) tokens can't be run: this model takes \(contextTokensMin) to "
                    + "\(model.configuration.contextLength)")
        }
    }

    private func check(_ text: [UInt32], _ context: Int) throws(ModelError) {
        try Self.check(context: context, model)
        if text.count < context {
            throw ModelError(
                .input,
                "the text has \(text.count) tokens, fewer than a context of \(context); give a longer text or a "
                    + "shorter context")
        }
    }

    private func reusedTokens(of context: Int) -> Int {
        context / 2 / KVLayout.pageTokens * KVLayout.pageTokens
    }

    private func run(
        _ tokens: [UInt32], _ sums: inout Sums,
        logits: (Int, UnsafeBufferPointer<Float>) -> Void, progress: (Int) -> Void
    ) throws {
        let exact = TokenSequence(model, pool: pool)
        let half = reusedTokens(of: tokens.count)
        while exact.tokens.count < half {
            let first = exact.tokens.count
            try exact.append(tokens[first..<min(half, first + Self.stepTokens)]) { index, row in
                logits(first + index, row)
                sums.addExact(row, next: tokens[first + index + 1])
            }
            progress(exact.tokens.count)
        }
        let reused = TokenSequence(model, pool: pool)
        try take(exact, into: reused, tokens)
        let width = model.configuration.vocabularySize
        var rows = [Float](repeating: 0, count: Self.stepTokens * width)
        while exact.tokens.count < tokens.count {
            let first = exact.tokens.count
            let step = tokens[first..<min(tokens.count, first + Self.stepTokens)]
            try exact.append(step) { index, row in
                logits(first + index, row)
                let next = first + index + 1 < tokens.count ? tokens[first + index + 1] : nil
                if let next { sums.addExact(row, next: next) }
                rows.withUnsafeMutableBufferPointer {
                    _ = UnsafeMutableBufferPointer(rebasing: $0[(index * width)...]).update(
                        from: row)
                }
            }
            try reused.append(step) { index, row in
                let next = first + index + 1 < tokens.count ? tokens[first + index + 1] : nil
                rows.withUnsafeBufferPointer { rows in
                    let part = rows[(index * width)..<((index + 1) * width)]
                    sums.compare(UnsafeBufferPointer(rebasing: part), row, next: next)
                }
            }
            progress(exact.tokens.count)
        }
    }

    /// Brings what `exact` has to `reused`, on the way that is judged.
    private func take(
        _ exact: TokenSequence, into reused: TokenSequence, _ tokens: [UInt32]
    ) throws {
        let count = exact.tokens.count
        if let cache {
            var saved = PrefixCache.Saved()
            cache.save(exact, &saved)
            guard cache.load(Array(tokens[...count]), into: reused) == count else {
                throw ModelError(
                    .input,
                    "the store did not give back what was saved; run 'kvasir doctor' to see what is "
                        + "amiss with this machine's memory")
            }
            return
        }
        try reused.makeRoom(forTokens: count)
        for page in 0..<(count / KVLayout.pageTokens) {
            exact.withPage(page) { from in
                reused.withPage(page) { to in
                    to.copyMemory(from: UnsafeRawBufferPointer(from))
                    round(to.bindMemory(to: Float.self))
                }
            }
        }
        reused.adopt(tokens[..<count])
    }

    private func round(_ values: UnsafeMutableBufferPointer<Float>) {
        for index in values.indices {
            switch reuse {
            case .store: break
            case .bfloat16: values[index] = values[index].roundedToBFloat16
            case .float16: values[index] = Float(Float16(values[index]))
            }
        }
    }
}

extension Float {
    /// The nearest value of bfloat16's; of two as near, the one with an even last digit.
    var roundedToBFloat16: Float {
        if isNaN { return self }
        let odd = (bitPattern >> 16) & 1
        return Float(bitPattern: (bitPattern &+ 0x7FFF &+ odd) & 0xFFFF_0000)
    }
}

/// Sums over positions, in double precision.
private struct Sums {
    private var exactLoss = 0.0
    private var exactCount = 0
    private var halfLoss = (exact: 0.0, reused: 0.0)
    private var halfCount = 0
    private var divergence = (sum: 0.0, largest: 0.0)
    private var agreed = 0
    /// Positions at which a run's logits are no numbers.
    private var broken = (exact: 0, reused: 0)
    private var compared = 0

    mutating func addExact(_ row: UnsafeBufferPointer<Float>, next: UInt32) {
        let loss = row.logSumExp - Double(row[Int(next)])
        if !loss.isFinite { broken.exact += 1 }
        exactLoss += loss
        exactCount += 1
    }

    mutating func compare(
        _ exact: UnsafeBufferPointer<Float>, _ reused: UnsafeBufferPointer<Float>, next: UInt32?
    ) {
        let (a, b) = (exact.logSumExp, reused.logSumExp)
        if let next {
            halfLoss.exact += a - Double(exact[Int(next)])
            halfLoss.reused += b - Double(reused[Int(next)])
            halfCount += 1
        }
        var sum = 0.0
        for index in exact.indices {
            let (p, q) = (Double(exact[index]) - a, Double(reused[index]) - b)
            sum += exp(p) * (p - q)
        }
        if !sum.isFinite || !b.isFinite { broken.reused += 1 }
        let kl = Swift.max(0, sum)
        divergence = (divergence.sum + kl, Swift.max(divergence.largest, kl))
        if Sampler.likeliest(exact) == Sampler.likeliest(reused) { agreed += 1 }
        compared += 1
    }

    /// A run whose logits are no numbers has no perplexity, and must not pass for a good one.
    func checkFinite(_ reuse: Evaluation.Reuse) throws(ModelError) {
        if broken.exact > 0 {
            throw ModelError(
                .weights,
                "the model's logits are no numbers at \(broken.exact) positions; its weights are damaged, or "
                    + "overflow float32")
        }
        if broken.reused > 0 {
            throw ModelError(
                .unsupported,
                "\(reuse.rawValue) can't hold this model's keys and values: at \(broken.reused) positions the "
                    + "logits are no numbers; judge another way")
        }
    }

    func fill(_ result: inout Evaluation.Result) {
        result.tokens = exactCount
        result.perplexity = exp(exactLoss / Double(exactCount))
        result.comparedTokens = compared
        result.perplexityExact = exp(halfLoss.exact / Double(halfCount))
        result.perplexityReused = exp(halfLoss.reused / Double(halfCount))
        result.klMean = divergence.sum / Double(compared)
        result.klMax = divergence.largest
        result.greedyAgreement = Double(agreed) / Double(compared)
    }
}

extension UnsafeBufferPointer<Float> {
    /// ln Σ e^x.
    fileprivate var logSumExp: Double {
        var top = -Float.infinity
        for value in self where value > top { top = value }
        var sum = 0.0
        for value in self { sum += exp(Double(value) - Double(top)) }
        return Double(top) + log(sum)
    }
}
