import Testing

@testable import ReferenceLM

/// The same tokens give the same bits of KV and logits, whatever they are computed together with.
@Suite("The same tokens give the same bits")
struct BitEqualityTests {
    /// Lengths around the ends of pages.
    static let lengths = [1, 2, 63, 64, 65, 127, 128, 129, 192, 193, 257, 300]
    static let seeds = 0..<8 as Range<UInt64>

    /// A model of random sizes, tokens, and what they come to when they are computed at once.
    struct Case {
        let seed: UInt64
        let model: Model
        let tokens: [UInt32]
        let expected: Computed
        var random: SeededRandom
        let note: String

        init(_ seed: UInt64, kernels: Kernels = .best, minimum: Int = 1) throws {
            random = SeededRandom(seed: seed)
            let configuration = try ModelConfiguration.random(&random)
            self.seed = seed
            model = try Model(
                configuration, weights: RandomWeights(seed: seed), threads: 1, kernels: kernels)
            let lengths = BitEqualityTests.lengths.filter { $0 >= minimum }
            let length = random.below(2) == 0 ? random.pick(lengths) : minimum + random.below(200)
            tokens = random.tokens(length, configuration.vocabularySize)
            expected = try Computed(model, tokens, batches: [length])
            note = "seed \(seed), \(kernels), \(length) tokens, \(configuration.summary)"
        }
    }

    @Test("in any split into batches", arguments: seeds)
    func splits(_ seed: UInt64) throws {
        for kernels in Kernels.available {
            var some = try Case(seed, kernels: kernels)
            #expect(some.expected.logits.allSatisfy { $0.isFinite }, "\(some.note)")
            for _ in 0..<3 {
                let batches = (0..<300).map { _ in 1 + some.random.below(90) }
                let result = try Computed(some.model, some.tokens, batches: batches)
                let found = result.difference(from: some.expected)
                #expect(found == nil, "\(some.note), batches of \(batches.prefix(10))…")
            }
        }
    }

    @Test("one token at a time", arguments: seeds)
    func oneByOne(_ seed: UInt64) throws {
        let some = try Case(seed)
        let result = try Computed(some.model, some.tokens, batches: [1])
        let found = result.difference(from: some.expected)
        #expect(found == nil, "\(some.note)")
    }

    @Test("in batches inside of one call, and for the last token alone", arguments: seeds)
    func insideOneCall(_ seed: UInt64) throws {
        var some = try Case(seed)
        let pool = try PagePool(for: some.model, tokens: some.tokens.count)
        for batchTokens in [1 + some.random.below(70), 512, 0, -3] {
            let sequence = TokenSequence(some.model, pool: pool)
            let logits = try sequence.logits(some.tokens, batchTokens: batchTokens)
            let found = bitDifference(logits, some.expected.logits)
            #expect(found == nil, "\(some.note), batches of \(batchTokens)")
            sequence.truncate(to: 0)
            let last = try sequence.append(some.tokens, batchTokens: batchTokens)
            #expect(last.count == some.model.configuration.vocabularySize)
            let other = bitDifference(last, some.expected.logits.suffix(last.count))
            #expect(other == nil, "\(some.note), batches of \(batchTokens)")
            #expect(sequence.pageBytes == some.expected.pages, "\(some.note)")
        }
    }

    @Test("on all processors that fuse", arguments: seeds)
    func kinds(_ seed: UInt64) throws {
        let some = try Case(seed)
        for kernels in Kernels.available.dropFirst()
        where kernels.areFused == some.model.kernels.areFused {
            let other = try Case(seed, kernels: kernels)
            #expect(other.model.numerics == some.model.numerics)
            let found = other.expected.difference(from: some.expected)
            #expect(found == nil, "\(other.note)")
        }
    }

    @Test("on any number of threads", arguments: Kernels.available)
    func threads(_ kernels: Kernels) throws {
        // Large enough for products, attention and SwiGLU to wake the threads.
        let configuration = try ModelConfiguration.small([
            "hidden_size": "90", "intermediate_size": "800", "num_attention_heads": "6",
            "num_key_value_heads": "2", "head_dim": "18", "num_hidden_layers": "1",
        ])
        var random = SeededRandom(seed: 20)
        let tokens = random.tokens(300, configuration.vocabularySize)
        let weights = RandomWeights(seed: 20)
        let model = try Model(configuration, weights: weights, threads: 1, kernels: kernels)
        let expected = try Computed(model, tokens, batches: [300])
        for threads in [2, 3, 5] {
            let other = try Model(
                configuration, weights: weights, threads: threads, kernels: kernels)
            #expect(other.threads == threads)
            for batches in [[300], [270, 30]] {
                let found = try Computed(other, tokens, batches: batches)
                    .difference(from: expected)
                #expect(found == nil, "seed 20, \(kernels), \(threads) threads, \(batches)")
            }
        }
    }

    @Test("whatever other sequences of the same pool compute in between", arguments: seeds)
    func others(_ seed: UInt64) throws {
        var some = try Case(seed)
        let pool = try PagePool(for: some.model, tokens: 3 * 400)
        let sequence = TokenSequence(some.model, pool: pool)
        var other = TokenSequence(some.model, pool: pool)
        var (next, logits) = (0, [Float]())
        while next < some.tokens.count {
            let end = min(some.tokens.count, next + 1 + some.random.below(60))
            logits += try sequence.logits(some.tokens[next..<end])
            next = end
            if other.tokens.count > 200 || some.random.below(4) == 0 {
                other = TokenSequence(some.model, pool: pool)
            }
            let vocabulary = some.model.configuration.vocabularySize
            try other.append(some.random.tokens(1 + some.random.below(60), vocabulary))
        }
        let found = bitDifference(logits, some.expected.logits)
        #expect(found == nil, "\(some.note)")
        #expect(sequence.fullPageBytes == Array(some.expected.pages.prefix(next / 64)))
    }

    @Test("after tokens were forgotten and others came in between", arguments: seeds)
    func truncation(_ seed: UInt64) throws {
        var some = try Case(seed)
        let vocabulary = some.model.configuration.vocabularySize
        let pool = try PagePool(for: some.model, tokens: 400)
        let sequence = TokenSequence(some.model, pool: pool)
        try sequence.append(some.tokens)
        for _ in 0..<4 {
            let kept = some.random.below(some.tokens.count)
            sequence.truncate(to: kept)
            #expect(sequence.tokens == Array(some.tokens[..<kept]))
            if some.random.below(2) == 0 {
                try sequence.append(some.random.tokens(1 + some.random.below(90), vocabulary))
                sequence.truncate(to: kept)
            }
            let note = "\(some.note), again from \(kept)"
            let logits = try sequence.logits(some.tokens[kept...])
            let found = bitDifference(logits, some.expected.logits[(kept * vocabulary)...])
            #expect(found == nil, "\(note)")
            let full = some.tokens.count / KVLayout.pageTokens
            #expect(sequence.fullPageBytes == Array(some.expected.pages[..<full]), "\(note)")
        }
    }

    @Test("after pages that somebody copied, from every end of a page", arguments: seeds)
    func adoption(_ seed: UInt64) throws {
        var some = try Case(seed, minimum: 64)
        let vocabulary = some.model.configuration.vocabularySize
        let pool = try PagePool(for: some.model, tokens: some.tokens.count)
        for pages in 1...some.tokens.count / KVLayout.pageTokens {
            let note = "\(some.note), \(pages) pages"
            let sequence = TokenSequence(some.model, pool: pool)
            try sequence.makeRoom(forTokens: some.tokens.count)
            for page in 0..<pages {
                sequence.withPage(page) { $0.copyBytes(from: some.expected.pages[page]) }
            }
            // At once, or in two parts.
            let part = some.random.below(pages + 1) * KVLayout.pageTokens
            var kept = pages * KVLayout.pageTokens
            sequence.adopt(some.tokens[..<part])
            sequence.adopt(some.tokens[part..<kept])
            #expect(sequence.tokens == Array(some.tokens[..<kept]), "\(note)")
            if kept == some.tokens.count {
                // The logits of the last token have to be computed all the same.
                kept -= 1
                sequence.truncate(to: kept)
            }
            let logits = try sequence.logits(some.tokens[kept...])
            let found = bitDifference(logits, some.expected.logits[(kept * vocabulary)...])
            #expect(found == nil, "\(note)")
            #expect(sequence.pageBytes == some.expected.pages, "\(note)")
        }
    }

    @Test("and other tokens, or other weights, give others")
    func sensitivity() throws {
        let some = try Case(3, minimum: 64)
        var tokens = some.tokens
        tokens[0] = tokens[0] == 0 ? 1 : 0
        let changed = try Computed(some.model, tokens, batches: [tokens.count])
        #expect(changed.pages != some.expected.pages)
        let vocabulary = some.model.configuration.vocabularySize
        #expect(changed.logits.suffix(vocabulary) != some.expected.logits.suffix(vocabulary))
        let model = try Model(some.model.configuration, weights: RandomWeights(seed: 4))
        let other = try Computed(model, some.tokens, batches: [tokens.count])
        #expect(other.pages != some.expected.pages)
    }
}
