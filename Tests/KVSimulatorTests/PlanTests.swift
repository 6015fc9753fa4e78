import Foundation
import KVSimulator
import Testing

/// Expected values are those of published tables and of docs/planning.md.
@Suite("Plans")
struct PlanTests {
    private func model(_ json: String) throws -> ModelShape {
        try ModelShape(config: Data(json.utf8))
    }

    private func llama(layers: Int, hidden: Int, heads: Int, feedForward: Int) throws -> ModelShape
    {
        try model(
            """
            {"model_type": "llama", "num_hidden_layers": \(layers), "hidden_size": \(hidden),
             "num_attention_heads": \(heads), "num_key_value_heads": 8, "vocab_size": 128256,
             "intermediate_size": \(feedForward), "torch_dtype": "bfloat16",
             "tie_word_embeddings": false, "max_position_embeddings": 131072}
            """)
    }

    private func near(_ value: Double, _ expected: Double, _ tolerance: Double = 0.01) -> Bool {
        abs(value / expected - 1) < tolerance
    }

    @Test("Llama 3.1 8B and 70B: bytes a token, weights, and rates on H100")
    func llamas() throws {
        let small = try llama(layers: 32, hidden: 4096, heads: 32, feedForward: 14_336)
        #expect(small.bytesPerToken() == 131_072)
        #expect(small.bytesPerToken(elementBytes: 1) == 65_536)
        #expect(small.attention == .groupedQuery)
        #expect(near(small.parameters, 8.03e9, 0.001))
        let h100 = try ComputeRate(try #require(Accelerator.named("h100")))
        #expect(near(h100.prefillRateShort(small), 33_900, 0.002))
        #expect(near(h100.prefillRate(small, tokens: 32_768), 22_100, 0.002))
        #expect(near(small.bytesPerToken() * h100.prefillRateShort(small), 4.4e9))
        #expect(near(h100.breakEvenBandwidth(small, tokens: 32_768), 2.9e9))
        #expect(near(h100.breakEvenBandwidth(small, tokens: 32_768, elementBytes: 1), 1.45e9))
        let in8 = try ComputeRate(try #require(Accelerator.named("H100")), isIn8Bits: true)
        #expect(near(in8.prefillRateShort(small), 55_500, 0.002))
        #expect(near(in8.prefillRate(small, tokens: 32_768), 36_100, 0.002))
        #expect(near(small.bytesPerToken() * in8.prefillRateShort(small), 7.3e9))

        let large = try llama(layers: 80, hidden: 8192, heads: 64, feedForward: 28_672)
        #expect(large.bytesPerToken() == 327_680)
        #expect(near(large.parameters, 70.55e9, 0.001))
        #expect(near(h100.prefillRateShort(large), 3850, 0.002))
        #expect(near(h100.prefillRate(large, tokens: 32_768), 2950, 0.002))
        #expect(near(large.bytesPerToken() * h100.prefillRateShort(large), 1.26e9))
        let four = try ComputeRate(try #require(Accelerator.named("H100")), gpuCount: 4)
        #expect(near(four.prefillRateShort(large), 12_600, 0.002))
        #expect(near(four.prefillRate(large, tokens: 32_768), 9670, 0.002))
        #expect(near(large.bytesPerToken() * four.prefillRateShort(large), 4.1e9))
        // Mooncake's "1 TB of memory holds 3 M tokens".
        #expect(near(3e6 * large.bytesPerToken(), 983e9))
    }

    @Test("Sums over prompts are those of the prompts")
    func serviceModel() throws {
        let model = try llama(layers: 32, hidden: 4096, heads: 32, feedForward: 14_336)
        let rate = try ComputeRate(try #require(Accelerator.named("H100")))
        let service = rate.serviceModel(model)
        for tokens in [100.0, 5000, 100_000] {
            let expected = tokens / rate.prefillRate(model, tokens: tokens)
            #expect(near(service.prefillSeconds(tokens: tokens), expected, 1e-9))
        }
    }

    @Test("Multi-head and multi-query attention")
    func heads() throws {
        let gpt2 = try model(
            """
            {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257,
             "tie_word_embeddings": true}
            """)
        #expect(gpt2.attention == .multiHead)
        #expect(gpt2.bytesPerToken() == 2 * 12 * 768 * 2)
        #expect(near(gpt2.parameters, 124e6, 0.01))
        let starcoder = try model(
            """
            {"model_type": "gpt_bigcode", "n_layer": 40, "n_embd": 6144, "n_head": 48, "n_inner": 24576,
             "multi_query": true, "vocab_size": 49152, "tie_word_embeddings": true}
            """)
        #expect(starcoder.attention == .multiQuery)
        #expect(starcoder.bytesPerToken() == 40 * 2 * 128 * 2)
        #expect(near(starcoder.parameters, 15.5e9, 0.02))
    }

    @Test("Latent attention and experts: DeepSeek-V3")
    func deepSeek() throws {
        let model = try model(
            """
            {"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168,
             "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512,
             "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
             "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
             "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
             "vocab_size": 129280, "torch_dtype": "bfloat16"}
            """)
        #expect(model.attention == .latent)
        #expect(model.bytesPerToken() == 61 * 576 * 2)
        #expect(near(model.parameters, 671e9))
        #expect(near(model.activeParameters, 37e9, 0.03))
    }

    @Test("Experts: Mixtral 8x7B")
    func mixtral() throws {
        let model = try model(
            """
            {"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096,
             "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
             "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
             "sliding_window": null}
            """)
        #expect(near(model.parameters, 46.7e9))
        #expect(near(model.activeParameters, 12.9e9))
        #expect(model.layers.allSatisfy { $0 == .full })
    }

    @Test("Windows: all layers of Mistral 7B v0.1, half of Gemma 2's, none of Qwen 2.5's")
    func windows() throws {
        let mistral = try model(
            """
            {"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096,
             "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
             "sliding_window": 4096, "max_position_embeddings": 32768, "vocab_size": 32000}
            """)
        #expect(mistral.bytesPerToken() == 131_072)
        #expect(mistral.bytesNeeded(tokens: 1000) == 131_072_000)
        #expect(mistral.bytesNeeded(tokens: 100_000) == 131_072 * 4096)
        #expect(!mistral.notes.isEmpty)
        let gemma = try model(
            """
            {"model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
             "intermediate_size": 14336, "sliding_window": 4096, "max_position_embeddings": 8192,
             "vocab_size": 256000}
            """)
        #expect(gemma.layers.count { $0 == .full } == 21)
        #expect(gemma.bytesPerToken() == 42 * 2 * 8 * 256 * 2)
        #expect(gemma.bytesNeeded(tokens: 8192) == 21 * (8192 + 4096) * 8192)
        #expect(near(gemma.parameters, 9.24e9))
        let qwen = try model(
            """
            {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584,
             "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
             "sliding_window": 131072, "use_sliding_window": false, "max_window_layers": 28,
             "max_position_embeddings": 32768, "vocab_size": 152064}
            """)
        #expect(qwen.layers.allSatisfy { $0 == .full })
        #expect(qwen.bytesPerToken() == 57_344)
        #expect(near(qwen.parameters, 7.62e9))
    }

    @Test("Hybrids: layers that keep a state are not counted, and that is said")
    func hybrids() throws {
        let rest =
            "\"hidden_size\": 2048, \"num_attention_heads\": 16, \"num_key_value_heads\": 2, "
            + "\"head_dim\": 256, \"intermediate_size\": 5120, \"vocab_size\": 151936"
        for (text, count) in [
            ("\"num_hidden_layers\": 48, \"full_attention_interval\": 4", 12),
            ("\"num_hidden_layers\": 32, \"attn_layer_period\": 8, \"attn_layer_offset\": 4", 4),
            (
                "\"num_hidden_layers\": 4, \"layer_types\": [\"mamba\", \"attention\", \"mamba\", \"mamba\"]",
                1
            ),
            ("\"num_hidden_layers\": 6, \"hybrid_override_pattern\": \"M-M*-M\"", 1),
            ("\"num_hidden_layers\": 9, \"attn_layer_indices\": [2, 5]", 2),
        ] {
            let model = try model("{\(text), \(rest)}")
            #expect(model.cachedLayerCount == count, "\(text)")
            #expect(model.bytesPerToken() == Double(count * 2 * 2 * 256 * 2), "\(text)")
            #expect(model.notes.contains { $0.contains("state of fixed size") })
        }
        let mixed = try model(
            "{\"num_hidden_layers\": 2, \"sliding_window\": 128, "
                + "\"layer_types\": [\"sliding_attention\", \"full_attention\"], \(rest)}")
        #expect(mixed.bytesNeeded(tokens: 1000) == 1128 * 2048)
        #expect(throws: PlanError.self) {
            try self.model("{\"num_hidden_layers\": 1, \"layer_types\": [\"mamba\"], \(rest)}")
        }
        #expect(throws: PlanError.self) {
            try self.model("{\"num_hidden_layers\": 1, \"layer_types\": [\"odd\"], \(rest)}")
        }
    }

    @Test("The language model's part of a larger one; what is missing is named")
    func configs() throws {
        let nested = try model(
            """
            {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 2,
             "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}}
            """)
        #expect(nested.bytesPerToken() == 2 * 2 * 64 * 2)
        for (text, word) in [
            ("{}", "num_hidden_layers"), ("[]", "no object"), ("{", "not valid JSON"),
            ("{\"num_hidden_layers\": \"two\"}", "whole number"),
            (
                "{\"num_hidden_layers\": 2, \"hidden_size\": 64, \"num_attention_heads\": 4, "
                    + "\"num_key_value_heads\": 8, \"vocab_size\": 9}", "8 KV heads"
            ),
        ] {
            do {
                _ = try model(text)
                Issue.record("\(text) was taken")
            } catch {
                #expect("\(error)".contains(word), "\(error)")
            }
        }
    }

    @Test("Sizes: more is never worse, and the working set finds what it says")
    func sizes() throws {
        var profile = SessionProfile()
        profile.sessionsPerHour = 300
        let trace = try profile.trace(chunkTokens: 256)
        let model = try llama(layers: 32, hidden: 4096, heads: 32, feedForward: 14_336)
        let rate = try ComputeRate(try #require(Accelerator.named("H100")))
        var prices = CapacityPlan.Prices()
        prices.gpuHour = 2
        prices.memoryGBMonth = 3
        var bandwidths = CapacityPlan.Bandwidths()
        bandwidths.disk = 5e9
        let plan = CapacityPlan(
            trace, model: model, rate: rate, bandwidths: bandwidths, prices: prices)
        var last = 0.0
        for memory in [1e9, 1e10, 1e11, 1e12] {
            let row = plan.row(memoryBytes: memory, diskBytes: 0)
            #expect(row.share >= last && row.memoryShare == row.share)
            #expect(row.outcome.loadSeconds == 0)
            let gpuMonth = row.outcome.prefillSecondsSaved / trace.seconds * 730 * 2
            #expect(
                abs(row.savedPerMonth! - (gpuMonth - memory / 1e9 * 3)) < 1e-6 * gpuMonth + 1e-6)
            let both = plan.row(memoryBytes: memory, diskBytes: 1e11)
            #expect(both.share >= row.share && both.memoryShare == row.memoryShare)
            let loaded = (both.share - both.memoryShare) * Double(trace.tokenCount)
            #expect(abs(both.outcome.loadSeconds - loaded * 131_072 / 5e9) < 1e-6)
            last = row.share
        }
        #expect(last == plan.unbounded.tokenShare)
        let working = plan.workingSetBytes(share: 0.9)
        #expect(plan.row(memoryBytes: working, diskBytes: 0).share >= 0.9 * last)
        let chunk = 131_072.0 * 256
        #expect(plan.row(memoryBytes: working - chunk, diskBytes: 0).share < 0.9 * last)
    }

    @Test("Made-up traffic is repeatable, and is what its description says")
    func profiles() throws {
        for (name, profile) in SessionProfile.named {
            let trace = try profile.trace(chunkTokens: 256, seed: 3)
            #expect(try profile.trace(chunkTokens: 256, seed: 3).requests == trace.requests)
            #expect(try profile.trace(chunkTokens: 256, seed: 4).requests != trace.requests)
            #expect(
                trace.requests.allSatisfy { Int($0.tokens) <= profile.longestTokens }, "\(name)")
            #expect(
                zip(trace.requests, trace.requests.dropFirst()).allSatisfy {
                    $0.nanoseconds <= $1.nanoseconds
                })
            let found = StackDistances(trace).result(capacity: .max).tokenShare
            #expect(found > 0.3 && found < 1, "\(name) \(found)")
        }
        var single = SessionProfile()
        single.turns = 1
        single.systemTokens = 0
        let trace = try single.trace(chunkTokens: 256)
        #expect(StackDistances(trace).result(capacity: .max).hitChunks == 0)
        let expected = single.sessionsPerHour * single.hours
        #expect(abs(Double(trace.requests.count) - expected) < 5 * expected.squareRoot())
        let read = try SessionProfile(json: Data("{\"turns\": 9, \"gap_seconds\": 2.5}".utf8))
        #expect(read.turns == 9 && read.gapSeconds == 2.5 && read.hours == SessionProfile().hours)
        #expect(throws: PlanError.self) { try SessionProfile(json: Data("{\"turn\": 9}".utf8)) }
        #expect(throws: PlanError.self) { try SessionProfile(json: Data("{\"turns\": -1}".utf8)) }
    }
}
