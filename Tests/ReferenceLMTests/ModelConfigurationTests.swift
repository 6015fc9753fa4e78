import Testing

@testable import ReferenceLM

@Suite("Model configurations")
struct ModelConfigurationTests {
    @Test("say what a Llama is built like")
    func llama() throws {
        let configuration = try read([
            "head_dim": "16", "rms_norm_eps": "1e-05", "rope_theta": "500000.0",
            "hidden_act": #""silu""#, "tie_word_embeddings": "true", "bos_token_id": "1",
            "eos_token_id": "2", "attention_bias": "false", "mlp_bias": "false",
            "torch_dtype": #""bfloat16""#, "rope_scaling": "null",
        ])
        #expect(
            configuration
                == ModelConfiguration(
                    architecture: .llama, vocabularySize: 100, hiddenSize: 64, feedForwardSize: 96,
                    layerCount: 2, headCount: 8, kvHeadCount: 2, headSize: 16, contextLength: 2048,
                    rmsNormEpsilon: 1e-5, ropeTheta: 500_000, ropeScaling: .none,
                    hasTiedEmbeddings: true, hasQueryKeyValueBias: false, hasOutputBias: false,
                    hasFeedForwardBias: false, beginTokenID: 1, endTokenIDs: [2]))
    }

    @Test("have the defaults of transformers")
    func defaults() throws {
        let configuration = try read(["num_key_value_heads": nil])
        #expect(configuration.kvHeadCount == 8)
        #expect(configuration.headSize == 8)
        #expect(configuration.rmsNormEpsilon == 1e-6)
        #expect(configuration.ropeTheta == 10_000)
        #expect(configuration.ropeScaling == .none)
        #expect(!configuration.hasTiedEmbeddings)
        #expect(!configuration.hasQueryKeyValueBias && !configuration.hasOutputBias)
        #expect(!configuration.hasFeedForwardBias)
        #expect(configuration.beginTokenID == nil && configuration.endTokenIDs.isEmpty)
        let nulls = try read([
            "num_key_value_heads": "null", "head_dim": "null", "rms_norm_eps": "null",
            "rope_theta": "null", "rope_scaling": "null", "rope_parameters": "null",
            "tie_word_embeddings": "null", "attention_bias": "null", "bos_token_id": "null",
            "eos_token_id": "null", "hidden_act": "null", "quantization_config": "null",
        ])
        #expect(nulls == configuration)
    }

    @Test("know which projections have biases")
    func biases() throws {
        let llama = try read(["attention_bias": "true", "mlp_bias": "true"])
        #expect(llama.hasQueryKeyValueBias && llama.hasOutputBias && llama.hasFeedForwardBias)
        let qwen2 = try read(["architectures": Self.qwen2, "attention_bias": "false"])
        #expect(qwen2.hasQueryKeyValueBias && !qwen2.hasOutputBias && !qwen2.hasFeedForwardBias)
        let mistral = try read(["architectures": Self.mistral, "attention_bias": "true"])
        #expect(!mistral.hasQueryKeyValueBias && !mistral.hasOutputBias)
    }

    @Test("refuse architectures that are not built in, and list those that are")
    func architectures() {
        let accepted = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM"
        refuse(
            .unsupported, ["architectures": #"["GPT2LMHeadModel", "LlamaForCausalLM"]"#],
            "the architecture \"GPT2LMHeadModel\" is not built in", accepted)
        for value in ["[]", "null", nil] {
            refuse(.configuration, ["architectures": value], "is missing or empty", accepted)
        }
        refuse(.configuration, ["architectures": "\"LlamaForCausalLM\""], "an array of strings")
        refuse(.configuration, ["architectures": "[1]"], "the number 1", "strings only")
    }

    @Test("need every size, as an integer within its limits")
    func sizes() {
        let limits: [(name: String, greatest: Int)] = [
            ("vocab_size", 1 << 22), ("hidden_size", 1 << 17), ("intermediate_size", 1 << 20),
            ("num_hidden_layers", 1024), ("num_attention_heads", 4096),
            ("max_position_embeddings", 1 << 24),
        ]
        for (name, greatest) in limits {
            let expected = "expected an integer from 1 to \(greatest)"
            for value in [nil, "null"] {
                refuse(.configuration, [name: value], "\"\(name)\" is missing, \(expected)")
            }
            for value in [
                "0", "-1", "1.5", "8.0", "1e1", "\(greatest + 1)", "99999999999999999999",
            ] {
                refuse(
                    .configuration, [name: value],
                    "\"\(name)\" has the number \(value), \(expected)")
            }
            refuse(.configuration, [name: "true"], "\"\(name)\" has true, \(expected)")
            refuse(.configuration, [name: "\"8\""], "\"\(name)\" has the string \"8\", \(expected)")
            refuse(.configuration, [name: "[8]"], "\"\(name)\" has an array of 1, \(expected)")
        }
        refuse(.configuration, ["num_key_value_heads": "0"], "\"num_key_value_heads\"", "1 to 4096")
        refuse(.configuration, ["head_dim": "0"], "\"head_dim\" has the number 0", "1 to 4096")
        refuse(.configuration, ["head_dim": "4098"], "\"head_dim\" has the number 4098")
        refuse(
            .configuration, ["hidden_size": "65536", "num_attention_heads": "2"],
            "is 32768, expected a head of 2 to 4096")
    }

    @Test("refuse heads that can't be")
    func heads() {
        refuse(
            .unsupported, ["num_key_value_heads": "3"],
            "\"num_attention_heads\" is 8, no multiple of \"num_key_value_heads\", which is 3")
        refuse(.unsupported, ["num_key_value_heads": "16"], "which is 16")
        refuse(.unsupported, ["head_dim": "7"], "the heads have 7 elements", "even")
        refuse(.unsupported, ["num_attention_heads": "64"], "the heads have 1 elements", "even")
        refuse(
            .configuration, ["num_attention_heads": "10"],
            "\"hidden_size\" is 64, no multiple of \"num_attention_heads\", which is 10")
    }

    @Test("may name a head size that is not hidden by heads")
    func headSize() throws {
        #expect(try read(["head_dim": "80", "num_attention_heads": "10"]).headSize == 80)
    }

    @Test("refuse other activations and quantized weights")
    func others() {
        refuse(.unsupported, ["hidden_act": #""gelu""#], "\"hidden_act\" is \"gelu\"; only silu")
        refuse(.configuration, ["hidden_act": "1"], "\"hidden_act\" has the number 1")
        refuse(
            .unsupported, ["quantization_config": #"{"bits": 4}"#],
            "\"quantization_config\" is there", "F32, F16 or BF16")
        refuse(.unsupported, ["compression_config": "{}"], "\"compression_config\" is there")
    }

    @Test("refuse values of another type, and say which")
    func types() {
        refuse(.configuration, ["tie_word_embeddings": "1"], "has the number 1, expected true or")
        refuse(.configuration, ["attention_bias": "\"no\""], "has the string \"no\", expected true")
        refuse(.configuration, ["mlp_bias": "0"], "\"mlp_bias\" has the number 0")
        refuse(
            .configuration, ["rms_norm_eps": "true"], "\"rms_norm_eps\" has true, expected a num")
        refuse(.configuration, ["rms_norm_eps": "0"], "\"rms_norm_eps\" has the number 0")
        refuse(.configuration, ["rms_norm_eps": "-1e-6"], "\"rms_norm_eps\"")
        refuse(.configuration, ["rms_norm_eps": "1e999"], "\"rms_norm_eps\" has the number 1e999")
        refuse(.configuration, ["rope_theta": "0"], "\"rope_theta\" has the number 0")
        refuse(.configuration, ["rope_theta": "1"], "\"rope_theta\" has the number 1")
        refuse(.configuration, ["rope_scaling": "2"], "\"rope_scaling\" has the number 2", "object")
    }

    @Test("refuse a file that is no JSON object, or that names a field twice")
    func notJSON() {
        for (text, part) in [
            ("", "it ends too early at byte 0"), ("[]", "holds an array of 0, expected an object"),
            ("{\"a\": NaN}", "a value is expected at byte 6"), ("{\"a\": 01}", "',' or '}' is exp"),
            ("{\"a\": 1, \"a\": 2}", "the name \"a\" appears twice"),
            ("{\"a\": \"\\ud800\"}", "half a surrogate pair"),
            ("{\"a\": \"\\x\"}", "an unknown esc"),
            ("{\"a\": tru}", "'true' is expected"), ("{\"a\" 1}", "':' is expected"),
            ("{1: 1}", "a name is expected"), ("{\"a\": -}", "a digit is expected"),
            ("{\"a\": 1.}", "a digit is expected"), ("{\"a\": 1e}", "a digit is expected"),
            ("{\"a\": \"", "a string has no end"), ("{\"a\": \"\\u12g4\"}", "four hexadecimal"),
        ] {
            expectError(.configuration, [part, "/m/config.json", "as it was published"]) {
                () throws(ModelError) in
                _ = try ModelConfiguration(parsing: Array(text.utf8), file: "/m/config.json")
            }
        }
    }

    // MARK: - Tokens

    @Test("may have one end token, several, or those of generation_config.json, which win")
    func endTokens() throws {
        #expect(try read(["eos_token_id": "[5, 6]"]).endTokenIDs == [5, 6])
        #expect(try read(["eos_token_id": "5"], generation: "{}").endTokenIDs == [5])
        let null = #"{"eos_token_id": null}"#
        #expect(try read(["eos_token_id": "5"], generation: null).endTokenIDs == [5])
        let several = #"{"eos_token_id": [8, 9]}"#
        #expect(try read(["eos_token_id": "5"], generation: several).endTokenIDs == [8, 9])
        #expect(try read([:], generation: #"{"eos_token_id": 7}"#).endTokenIDs == [7])
    }

    @Test("refuse tokens outside the vocabulary")
    func tokens() {
        let expected = "expected an integer from 0 to 99"
        refuse(
            .configuration, ["bos_token_id": "100"], "\"bos_token_id\" has the number 100", expected
        )
        refuse(.configuration, ["bos_token_id": "[1]"], "\"bos_token_id\" has an array of 1")
        refuse(
            .configuration, ["eos_token_id": "-1"], "\"eos_token_id\" has the number -1", expected)
        refuse(.configuration, ["eos_token_id": "[1, true]"], "\"eos_token_id\" has true", expected)
        let many = "[" + Array(repeating: "1", count: 257).joined(separator: ",") + "]"
        refuse(.configuration, ["eos_token_id": many], "expected at most 256 integers")
        expectError(.configuration, ["/m/generation_config.json", expected]) {
            () throws(ModelError) in
            _ = try read([:], generation: #"{"eos_token_id": 100}"#)
        }
        expectError(.configuration, ["/m/generation_config.json is not valid JSON"]) {
            () throws(ModelError) in
            _ = try read([:], generation: "{")
        }
    }

    // MARK: - Windows

    @Test("refuse a sliding window that would matter")
    func slidingWindow() throws {
        let message = "over a window of 1024 tokens (\"sliding_window\"), less than"
        refuse(
            .unsupported, ["architectures": Self.mistral, "sliding_window": "1024"], message,
            "set \"max_position_embeddings\" to 1024")
        let used: KeyValuePairs<String, String?> = [
            "architectures": Self.qwen2, "use_sliding_window": "true", "sliding_window": "1024",
            "max_window_layers": "1",
        ]
        refuse(.unsupported, used, message)
        // Without the field, transformers takes 4096.
        refuse(
            .unsupported, ["architectures": Self.mistral, "max_position_embeddings": "4097"],
            "over a window of 4096 tokens")
        refuse(
            .unsupported,
            [
                "architectures": Self.qwen2, "use_sliding_window": "true",
                "sliding_window": "1024",
                "layer_types": #"["full_attention", "sliding_attention"]"#,
            ], message)
        refuse(
            .configuration, ["architectures": Self.mistral, "sliding_window": "0"],
            "\"sliding_window\" has the number 0")
    }

    @Test("accept a sliding window that doesn't matter")
    func harmlessWindow() throws {
        let accepted: [KeyValuePairs<String, String?>] = [
            ["architectures": Self.mistral, "sliding_window": "null"],
            ["architectures": Self.mistral, "sliding_window": "2048"],
            ["architectures": Self.mistral],
            ["architectures": Self.qwen2, "sliding_window": "1024"],
            [
                "architectures": Self.qwen2, "sliding_window": "1024",
                "use_sliding_window": "false",
            ],
            // Only the layers from this one on would have a window.
            [
                "architectures": Self.qwen2, "sliding_window": "1024",
                "use_sliding_window": "true", "max_window_layers": "2",
            ],
            [
                "architectures": Self.qwen2, "sliding_window": "1024",
                "use_sliding_window": "true", "max_window_layers": "0",
                "layer_types": #"["full_attention", "full_attention"]"#,
            ],
            ["sliding_window": "1024"],
        ]
        for changes in accepted { #expect(try read(changes).contextLength == 2048) }
    }

    // MARK: - Rotary parameters

    @Test("read the rotary parameters in the old way and in the new one")
    func rope() throws {
        let body = #""factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#
        let length = #""original_max_position_embeddings": 1024"#
        let expected = RopeScaling.llama3(
            RopeScaling.Llama3(
                factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 4,
                originalContextLength: 1024))
        let old = #"{"type": "llama3", \#(body), \#(length)}"#
        let new = #"{"rope_type": "llama3", "rope_theta": 5000, \#(body), \#(length)}"#
        let both = #"{"rope_type": "llama3", "type": "x", \#(body)}"#
        for changes: KeyValuePairs<String, String?> in [
            ["rope_scaling": old, "rope_theta": "5000"], ["rope_parameters": new],
            ["rope_parameters": new, "rope_theta": "777", "rope_scaling": "{}"],
            ["rope_parameters": new, "rope_scaling": new],
            [
                "rope_scaling": both, "rope_theta": "5000",
                "original_max_position_embeddings": "1024",
            ],
        ] {
            let configuration = try read(changes)
            #expect(configuration.ropeTheta == 5000)
            #expect(configuration.ropeScaling == expected)
        }
    }

    @Test("read every kind of rotary scaling")
    func scalings() throws {
        let linear = try read(["rope_scaling": #"{"type": "linear", "factor": 2.5}"#])
        #expect(linear.ropeScaling == .linear(factor: 2.5))
        for text in [#"{"type": "dynamic", "factor": 2.0}"#, #"{"rope_type": "default"}"#, "{}"] {
            #expect(try read(["rope_scaling": text]).ropeScaling == .none)
        }
        let implied = #"{"type": "yarn", "original_max_position_embeddings": 512, "beta_fast": 0}"#
        #expect(
            try read(["rope_scaling": implied]).ropeScaling
                == .yarn(
                    RopeScaling.Yarn(
                        factor: 4, betaFast: 32, betaSlow: 1, attentionFactor: nil, mscale: nil,
                        mscaleAllDim: nil, originalContextLength: 512, truncate: true)))
        let all = """
            {"rope_type": "yarn", "factor": 40, "beta_fast": 64, "beta_slow": 2, "mscale": 0.7,
             "mscale_all_dim": 1, "attention_factor": 1.5, "truncate": false}
            """
        #expect(
            try read(["rope_parameters": all]).ropeScaling
                == .yarn(
                    RopeScaling.Yarn(
                        factor: 40, betaFast: 64, betaSlow: 2, attentionFactor: 1.5, mscale: 0.7,
                        mscaleAllDim: 1, originalContextLength: 2048, truncate: false)))
    }

    @Test("refuse rotary scalings that are not built in")
    func unsupportedRope() {
        for type in ["longrope", "su", "mrope", "proportional"] {
            refuse(
                .unsupported, ["rope_scaling": #"{"type": "\#(type)", "factor": 2}"#],
                "the rotary type \"\(type)\" is not built in", "llama3 or yarn")
        }
        refuse(
            .unsupported, ["partial_rotary_factor": "0.5"], "\"partial_rotary_factor\" is 0.5")
        refuse(
            .unsupported, ["rope_parameters": #"{"partial_rotary_factor": 0.25}"#],
            "\"rope_parameters.partial_rotary_factor\" is 0.25")
        refuse(
            .unsupported, ["rope_parameters": #"{"full_attention": {"rope_type": "default"}}"#],
            "\"rope_parameters.full_attention\"", "differ by layer")
        #expect(throws: Never.self) { try read(["partial_rotary_factor": "1.0"]) }
    }

    @Test("refuse rotary parameters that contradict each other or are missing")
    func brokenRope() {
        func refuseScaling(_ text: String, _ parts: String...) {
            expectError(.configuration, parts) { () throws(ModelError) in
                _ = try read(["rope_scaling": text])
            }
        }
        refuseScaling(
            #"{"type": "linear"}"#, "\"rope_scaling.factor\" is missing, expected a number")
        refuseScaling(
            #"{"type": "linear", "factor": 0}"#, "\"rope_scaling.factor\" has the number 0")
        refuseScaling(#"{"type": "linear", "factor": true}"#, "\"rope_scaling.factor\" has true")
        refuseScaling(#"{"type": 1}"#, "\"rope_scaling.type\" has the number 1, expected a string")
        refuseScaling(
            #"{"type": "llama3", "factor": 8}"#, "\"rope_scaling.low_freq_factor\" is miss")
        refuseScaling(
            #"{"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}"#,
            "\"rope_scaling.low_freq_factor\" is 4.0, it must be less than")
        refuseScaling(#"{"type": "yarn", "beta_fast": 0.5}"#, "must not be above \"beta_fast\"")
        refuseScaling(
            #"{"type": "yarn", "truncate": 1}"#, "\"rope_scaling.truncate\" has the number")
        refuseScaling(
            #"{"type": "yarn", "mscale": -1}"#, "\"rope_scaling.mscale\" has the number -1")
        refuseScaling(
            #"{"type": "yarn", "original_max_position_embeddings": 1.5}"#,
            "\"rope_scaling.original_max_position_embeddings\" has the number 1.5")
        refuse(
            .configuration,
            ["rope_scaling": #"{"type": "yarn"}"#, "rope_parameters": #"{"rope_type": "yarn"}"#],
            "\"rope_scaling\" and \"rope_parameters\" differ")
    }

    @Test("damaged at random never crash")
    func mutations() {
        let seed: UInt64 = 0xC0F1_6001
        var random = SeededRandom(seed: seed)
        let whole = Array(
            configurationText([
                "rope_scaling": #"{"type": "yarn", "factor": 4.0, "beta_fast": 32}"#,
                "eos_token_id": "[1, 2]", "hidden_act": #""silu""#,
            ]).utf8)
        let interesting = Array("0123456789{}[]\",:-.eE\\u tfn".utf8)
        var refused = 0
        for number in 0..<20_000 {
            var text = whole
            for _ in 0..<(1 + random.below(3)) {
                let place = random.below(text.count)
                switch random.below(4) {
                case 0: text[place] = UInt8(truncatingIfNeeded: random.next())
                case 1: text[place] = interesting[random.below(interesting.count)]
                case 2: text.insert(interesting[random.below(interesting.count)], at: place)
                default: text.remove(at: place)
                }
            }
            do throws(ModelError) {
                let configuration = try ModelConfiguration(parsing: text, file: "config.json")
                let frequencies = RotaryFrequencies(configuration).inverse
                #expect(
                    frequencies.count == configuration.headSize / 2, "seed \(seed), case \(number)")
            } catch {
                refused += 1
            }
        }
        #expect((1..<20_000).contains(refused), "seed \(seed)")
    }

    // MARK: - Helpers

    private static let mistral = #"["MistralForCausalLM"]"#
    private static let qwen2 = #"["Qwen2ForCausalLM"]"#

    @discardableResult
    private func read(
        _ changes: KeyValuePairs<String, String?>, generation: String? = nil
    ) throws(ModelError) -> ModelConfiguration {
        try ModelConfiguration(
            parsing: Array(configurationText(changes).utf8), file: "/m/config.json",
            generation: generation.map { (Array($0.utf8), "/m/generation_config.json") })
    }

    private func refuse(
        _ code: ModelError.Code, _ changes: KeyValuePairs<String, String?>, _ parts: String...,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectError(code, parts + ["/m/config.json"], sourceLocation: sourceLocation) {
            () throws(ModelError) in
            _ = try read(changes)
        }
    }
}
