import KVIdentity
import ReferenceLM
import Testing

@Suite("The arithmetic that stored keys and values depend on")
struct ArithmeticTests {
    private static let pinnedDigest =
        "aee98fbffb7e1f4dc9b8ef0a3fece0b05d4d6b3805327af1a1943a342d790e06"

    /// Whoever changes these bits makes what others have stored useless, or wrong: raise `Model.arithmetic` with the change, so
    /// that old chunks are not found any more, and put the new digest here.
    @Test("Keys, values and logits of a fixed model have the bits of arithmetic 1")
    func pinned() throws {
        for kernels in Kernels.available where kernels.areFused {
            let model = try Model(
                Small.configuration(), weights: RandomWeights(seed: 77), threads: 1,
                kernels: kernels)
            #expect(model.numerics.hasPrefix("float32/1/fused/"))
            var random = SeededRandom(seed: 78)
            let prompt = Small.prompt(200, &random)
            let pool = try PagePool(for: model, tokens: 256)
            let sequence = TokenSequence(model, pool: pool)
            let logits = try sequence.append(prompt)
            var bytes: [UInt8] = []
            for page in 0..<4 { sequence.withPage(page) { bytes += Array($0) } }
            logits.withUnsafeBytes { bytes += Array($0) }
            #expect(Digest.sha256(of: bytes).hex == Self.pinnedDigest, "\(kernels)")
        }
    }

    @Test("The numerics tell rotary frequencies and rounding apart")
    func numerics() throws {
        let json = """
            {"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "vocab_size": 61, "max_position_embeddings": 512,
            "rope_theta": 20000.0, "tie_word_embeddings": true}
            """
        let other = try Model(
            ModelConfiguration(parsing: Array(json.utf8), file: "test"),
            weights: RandomWeights(seed: 1), threads: 1)
        #expect(try Small.model().numerics != other.numerics)
        let all = try Kernels.available.map {
            try Model(
                Small.configuration(), weights: RandomWeights(seed: 1), threads: 1, kernels: $0
            ).numerics
        }
        let fused = Kernels.available.filter(\.areFused).count
        #expect(Set(all).count == (fused > 0 ? 1 : 0) + Kernels.available.count - fused)
    }
}
