import FoundationEssentials
import Testing

@testable import ReferenceLM

@Suite("Models and sequences")
struct ModelTests {
    private func model(_ changes: KeyValuePairs<String, String?> = [:]) throws -> Model {
        try Model(.small(changes), weights: RandomWeights(seed: 1), threads: 1)
    }

    // MARK: What is refused

    @Test("refuse tokens that are not in the vocabulary, and stay as they were")
    func unknownTokens() throws {
        let model = try model()
        let pool = try PagePool(for: model, tokens: 128)
        let sequence = TokenSequence(model, pool: pool)
        let expected = try Computed(model, [1, 2, 99], batches: [3])
        for unknown in [100, 101, UInt32.max] {
            expectError(.input, ["token \(unknown) is not", "vocabulary of 100"]) {
                () throws(ModelError) in try sequence.append([3, unknown, 5])
            }
            expectError(.input, ["token \(unknown) is not"]) {
                () throws(ModelError) in
                try sequence.append([unknown]) { _, _ in Issue.record("it was computed") }
            }
        }
        #expect(sequence.tokens.isEmpty)
        #expect(pool.freeCount == pool.capacity)
        #expect(bitDifference(try sequence.logits([1, 2, 99]), expected.logits) == nil)
    }

    @Test("refuse to append nothing")
    func nothing() throws {
        let model = try model()
        let sequence = TokenSequence(model, pool: try PagePool(for: model, tokens: 64))
        expectError(.input, ["there is nothing to compute"]) {
            () throws(ModelError) in try sequence.append([])
        }
        expectError(.input, ["there is nothing to compute"]) {
            () throws(ModelError) in
            try sequence.append([]) { _, _ in Issue.record("it was computed") }
        }
        #expect(try sequence.append([1]).count == 100)
    }

    @Test("compute as many tokens as the context has, and refuse one more", arguments: [1, 64, 70])
    func context(_ context: Int) throws {
        let model = try model(["max_position_embeddings": "\(context)"])
        let pool = try PagePool(for: model, tokens: 1000)
        let tokens = [UInt32](repeating: 7, count: context + 1)
        let whole = TokenSequence(model, pool: pool)
        expectError(
            .input, ["\(context + 1) tokens are more than the model's context of \(context)"]
        ) { () throws(ModelError) in try whole.append(tokens) }
        expectError(.input, ["more than the model's context"]) {
            () throws(ModelError) in try whole.makeRoom(forTokens: context + 1)
        }
        #expect(whole.tokens.isEmpty)
        #expect(pool.freeCount == pool.capacity)
        let last = try whole.append(tokens.dropLast())
        #expect(whole.tokens.count == context)
        expectError(.input, ["more than the model's context"]) {
            () throws(ModelError) in try whole.append([7])
        }
        // What is refused changes nothing: the last token can be computed once more.
        whole.truncate(to: context - 1)
        #expect(bitDifference(try whole.append([7]), last) == nil)
    }

    @Test("compute as many tokens as the pool has room for, and refuse one more")
    func poolSize() throws {
        let model = try model()
        let pool = try PagePool(for: model, tokens: 129)
        #expect(pool.capacity == 3)
        var random = SeededRandom(seed: 5)
        let tokens = random.tokens(193, 100)
        let expected = try Computed(model, tokens, batches: [193])
        let sequence = TokenSequence(model, pool: pool)
        try sequence.append(tokens[..<60])
        expectError(.input, ["193 tokens need 3 more pages of 64 tokens", "2 are free"]) {
            () throws(ModelError) in try sequence.append(tokens[60...])
        }
        #expect(sequence.tokens == Array(tokens[..<60]))
        #expect(pool.freeCount == 2)
        // It still works, up to the last place of the last page.
        let logits = try sequence.logits(tokens[60..<192])
        #expect(bitDifference(logits, expected.logits[6000..<19200]) == nil)
        #expect(pool.freeCount == 0)
        expectError(.input, ["193 tokens need 1 more pages", "0 are free"]) {
            () throws(ModelError) in try sequence.append(tokens[192...])
        }
        let other = TokenSequence(model, pool: pool)
        expectError(.input, ["1 tokens need 1 more pages"]) {
            () throws(ModelError) in try other.append([1])
        }
        sequence.truncate(to: 128)
        #expect(pool.freeCount == 1)
        let alone = try Computed(model, [1], batches: [1])
        #expect(bitDifference(try other.append([1]), alone.logits) == nil)
    }

    @Test("refuse pools that no memory has room for")
    func hugePool() throws {
        let model = try model()
        for tokens in [1 << 44, 1 << 58, Int.max] {
            expectError(.input, ["no room for the keys and values of \(tokens) tokens"]) {
                () throws(ModelError) in _ = try PagePool(for: model, tokens: tokens)
            }
        }
        for tokens in [-1, 0, 1, 64] {
            #expect(try PagePool(for: model, tokens: tokens).capacity == 1)
        }
    }

    // MARK: Loading

    @Test("have the threads and the code that they were asked to have")
    func settings() throws {
        for (asked, given) in [(-3, 1), (0, 1), (1, 1), (3, 3)] {
            let model = try Model(.small(), weights: RandomWeights(seed: 1), threads: asked)
            #expect(model.threads == given)
        }
        #expect(try Model(.small(), weights: RandomWeights(seed: 1)).threads >= 1)
        for kernels in Kernels.available {
            let model = try Model(.small(), weights: RandomWeights(seed: 1), kernels: kernels)
            #expect(model.kernels.description == kernels.description)
            let rounding = kernels.areFused ? "fused" : kernels.description
            #expect(model.numerics.hasPrefix("float32/\(Model.arithmetic)/\(rounding)/"))
        }
    }

    @Test("say how much of them is read")
    func progress() throws {
        var shares: [Double] = []
        _ = try Model(.small(["num_hidden_layers": "4"]), weights: RandomWeights(seed: 1)) {
            shares.append($0)
        }
        #expect(shares == [0, 0.25, 0.5, 0.75, 1])
    }

    @Test("lay pages out as documented")
    func layout() throws {
        for (heads, size, padded) in [(1, 2, 16), (2, 16, 16), (3, 18, 32), (1, 80, 80)] {
            let layout = KVLayout(
                try .small([
                    "num_attention_heads": "\(heads)", "num_key_value_heads": "\(heads)",
                    "head_dim": "\(size)", "num_hidden_layers": "3",
                ]))
            #expect(layout.pageBytes == 3 * heads * (size + padded) * 64 * 4)
        }
        for (tokens, pages) in [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)] {
            #expect(KVLayout.pages(forTokens: tokens) == pages)
        }
        #expect(KVLayout.pages(forTokens: .max) == 1 << 57)
    }

    @Test("with tied embeddings use the one table for both")
    func tied() throws {
        // The same table in two places gives the same as in one.
        struct Twice: WeightSource {
            func check(_ name: String, shape: [Int]) {}

            func read(
                _ name: String, shape: [Int], into destination: UnsafeMutableBufferPointer<Float>
            ) {
                let source = name == "lm_head.weight" ? "model.embed_tokens.weight" : name
                RandomWeights(seed: 9).read(source, shape: shape, into: destination)
            }
        }
        let tokens: [UInt32] = [5, 99, 0, 31, 32, 33]
        let results = try ["true", "false"].map {
            let configuration = try ModelConfiguration.small(["tie_word_embeddings": $0])
            return try Computed(Model(configuration, weights: Twice()), tokens, batches: [6])
        }
        #expect(results[0].difference(from: results[1]) == nil)
    }

    @Test(
        "take no memory for tensors that are not there, however large the configuration says they are"
    )
    func hugeConfiguration() throws {
        struct Nothing: WeightSource {
            func check(_ name: String, shape: [Int]) throws(ModelError) {
                if shape.reduce(1, *) > 1 << 20 { throw ModelError(.weights, "\(name) is smaller") }
            }
            func read(
                _ name: String, shape: [Int], into destination: UnsafeMutableBufferPointer<Float>
            ) {
                precondition(destination.count <= 1 << 20, "memory was taken before the check")
                destination.initialize(repeating: 0)
            }
        }
        for field in ["vocab_size", "intermediate_size"] {
            let configuration = try ModelConfiguration.small([field: "131072"])
            let error = try #require(throws: ModelError.self) {
                try Model(configuration, weights: Nothing())
            }
            #expect(error.code == .weights)
        }
    }

    @Test("compute with a bounded number of threads")
    func threads() throws {
        let configuration = try ModelConfiguration.small([:])
        let weights = RandomWeights(seed: 1)
        let error = try #require(throws: ModelError.self) {
            try Model(configuration, weights: weights, threads: Model.threadsMax + 1)
        }
        #expect(error.code == .input)
    }
}
