internal import Glibc
public import KVIdentity
public import KVPolicy
public import ReferenceLM

/// Answers prompts with a model, and reuses what is stored of them.
///
/// Belongs to one thread at a time.
public final class Engine {
    /// The model that computes.
    public let model: Model
    /// Its store; nil computes everything.
    public let cache: PrefixCache?
    private let pool: PagePool

    /// An engine with room for the keys and values of `tokens` tokens; nil for the model's whole context.
    public init(_ model: Model, cache: PrefixCache? = nil, tokens: Int? = nil) throws(ModelError) {
        self.model = model
        self.cache = cache
        let context = model.configuration.contextLength
        pool = try PagePool(for: model, tokens: min(tokens ?? context, context))
    }

    /// A sequence that can be given to ``answer(_:with:maximum:sampler:hint:onToken:)`` again and again, for a prompt that grows.
    public func sequence() -> TokenSequence { TokenSequence(model, pool: pool) }

    /// Computes what follows a prompt.
    ///
    /// - Parameters:
    ///   - prompt: the tokens; at least one.
    ///   - sequence: what is there of them already, and of which the common prefix is used; nil for nothing. Holds
    ///     prompt and answer afterwards, but for the last token.
    ///   - maximum: new tokens at most.
    ///   - hint: what is known of the time after this request, for the store's eviction.
    ///   - onToken: told each token as it comes; false stops.
    /// - Throws: `input` when prompt and answer are longer than the model's context or the engine's room. Trouble with the store is
    ///   no error.
    public func answer(
        _ prompt: [UInt32], with sequence: TokenSequence? = nil, maximum: Int,
        sampler: Sampler = Sampler(), hint: ReuseHint = .none,
        onToken: (UInt32) -> Bool = { _ in true }
    ) throws(ModelError) -> Answer {
        let started = Self.seconds()
        let sequence = sequence ?? self.sequence()
        try check(prompt, maximum)
        var answer = Answer(promptTokens: prompt.count)
        keepCommonPrefix(of: prompt, in: sequence)
        answer.reusedTokens = cache?.load(prompt, into: sequence, hint: hint) ?? 0
        answer.keptTokens = sequence.tokens.count - answer.reusedTokens
        var saved = PrefixCache.Saved()
        var logits = try prefill(prompt, sequence, &saved, hint)
        var sampler = sampler
        var digest = LogitsDigest()
        let ends = Set(model.configuration.endTokenIDs.map(UInt32.init))
        while true {
            digest.add(logits)
            let token = sampler.next(logits)
            if answer.tokens.isEmpty { answer.ttftSeconds = Self.seconds() - started }
            answer.tokens.append(token)
            let goesOn = onToken(token) && !ends.contains(token) && answer.tokens.count < maximum
            cache?.save(sequence, &saved, hint: hint)
            if !goesOn { break }
            logits = try sequence.append(CollectionOfOne(token))
        }
        answer.totalSeconds = Self.seconds() - started
        answer.logits = digest.value
        return answer
    }

    private func check(_ prompt: [UInt32], _ maximum: Int) throws(ModelError) {
        if prompt.isEmpty {
            throw ModelError(.input, "the prompt is empty; give at least one token")
        }
        if maximum < 1 {
            throw ModelError(.input, "an answer has at least one token, not \(maximum)")
        }
        let context = model.configuration.contextLength
        if maximum > context - prompt.count {
            throw ModelError(
                .input,
                "the prompt has \(prompt.count) tokens and the answer up to \(maximum), together more than the "
                    + "model's context of \(context); shorten the prompt or ask for fewer new tokens"
            )
        }
        let tokens = prompt.count + maximum
        if KVLayout.pages(forTokens: tokens) > pool.capacity {
            throw ModelError(
                .input,
                "prompt and answer need room for \(tokens) tokens, and the engine has room for "
                    + "\(pool.capacity * KVLayout.pageTokens); give it more")
        }
        let vocabulary = model.configuration.vocabularySize
        if let unknown = prompt.first(where: { Int($0) >= vocabulary }) {
            throw ModelError(
                .input,
                "token \(unknown) is not in the model's vocabulary of \(vocabulary); "
                    + "is this the model's own tokenizer?")
        }
    }

    /// Leaves at least one token of the prompt to be computed.
    private func keepCommonPrefix(of prompt: [UInt32], in sequence: TokenSequence) {
        let common = zip(prompt, sequence.tokens).prefix { $0 == $1 }.count
        sequence.truncate(to: min(common, prompt.count - 1))
    }

    /// Computes what is missing of the prompt; saves all but the last batch, which would delay the first token.
    private func prefill(
        _ prompt: [UInt32], _ sequence: TokenSequence, _ saved: inout PrefixCache.Saved,
        _ hint: ReuseHint
    ) throws(ModelError) -> [Float] {
        while true {
            let next = sequence.tokens.count
            let end = min(prompt.count, next + TokenSequence.batchTokens)
            let logits = try sequence.append(prompt[next..<end])
            if end == prompt.count { return logits }
            cache?.save(sequence, &saved, hint: hint)
        }
    }

    private static func seconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
    }
}

/// What an engine answered, and what it cost.
public struct Answer: Sendable {
    /// The new tokens.
    public internal(set) var tokens: [UInt32] = []
    /// Tokens of the prompt.
    public let promptTokens: Int
    /// Tokens of the prompt that came from the store.
    public internal(set) var reusedTokens = 0
    /// Tokens of the prompt that the sequence held already.
    public internal(set) var keptTokens = 0
    /// Until the first new token, tokenizing apart.
    public internal(set) var ttftSeconds = 0.0
    /// Until the last.
    public internal(set) var totalSeconds = 0.0
    /// SHA-256 over the bits of all logits that the tokens were chosen from: equal only if every bit is.
    public internal(set) var logits = Digest(words: (0, 0, 0, 0))

    init(promptTokens: Int) {
        self.promptTokens = promptTokens
    }

    /// New tokens a second, after the first; 0 if there is but one.
    public var tokensPerSecond: Double {
        let seconds = totalSeconds - ttftSeconds
        return tokens.count > 1 && seconds > 0 ? Double(tokens.count - 1) / seconds : 0
    }
}

/// A digest of rows of logits, each chained to those before it.
struct LogitsDigest {
    private(set) var value = Digest(words: (0, 0, 0, 0))

    mutating func add(_ logits: [Float]) {
        let row = logits.withUnsafeBytes { Digest.sha256(of: $0) }
        value = Digest.sha256(of: value.bytes + row.bytes)
    }
}
