package import Foundation

/// What of a model decides how large its KV cache is, and how long a prefill takes.
///
/// docs/planning.md has the formulas and their sources.
package struct ModelShape: Sendable, Equatable {
    /// What a layer keeps of the tokens before.
    package enum Layer: Sendable, Equatable {
        /// Keys and values of all tokens.
        case full
        /// Those of the last so many.
        case window(Int)
        /// A state of fixed size (Mamba, linear attention), which is not counted.
        case state
    }

    package enum Attention: String, Sendable {
        case multiHead = "MHA"
        case groupedQuery = "GQA"
        case multiQuery = "MQA"
        case latent = "MLA"
    }

    package var name: String
    package var attention: Attention
    package var layers: [Layer]
    /// Numbers that a layer keeps of a token.
    package var elementsPerTokenAndLayer: Int
    /// Width of queries times keys plus that of values, of all heads; FLOPs of attention are this times
    /// the square of the tokens.
    package var attentionWidth: Int
    /// All weights.
    package var parameters: Double
    /// Those that a token meets: fewer for mixtures of experts.
    package var activeParameters: Double
    /// Bytes of a number of the KV cache unless something else is said: those of the weights' type.
    package var elementBytes: Double
    /// What was assumed, for people.
    package var notes: [String] = []

    /// Reads a Hugging Face `config.json`.
    package init(config data: Data) throws(PlanError) {
        let value: ConfigValue
        do {
            value = try JSONDecoder().decode(ConfigValue.self, from: data)
        } catch {
            throw PlanError("config.json is not valid JSON")
        }
        guard case .object(let members) = value else {
            throw PlanError("config.json holds no object")
        }
        let outer = Config(members: members)
        // Models that also see or hear keep the language model's part apart.
        let nested = ["text_config", "llm_config", "language_config", "thinker_config"]
        let inner = nested.lazy.compactMap { outer.object($0) }.first
        try self.init(inner ?? outer, outer: outer)
    }

    private init(_ config: Config, outer: Config) throws(PlanError) {
        let type = config.string("model_type") ?? outer.string("model_type") ?? ""
        name = outer.string("_name_or_path") ?? ""
        if name.isEmpty { name = type.isEmpty ? "a model" : type }
        let layerCount = try config.required(
            "num_hidden_layers", "n_layer", "n_layers", "num_layers", of: "the number of layers")
        let hidden = try config.required(
            "hidden_size", "n_embd", "d_model", "dim", of: "the width of the model")
        let heads = try config.required(
            "num_attention_heads", "n_head", "n_heads", of: "the number of attention heads")
        if layerCount > 10_000 || hidden > 1 << 20 || heads > 1 << 16 {
            throw PlanError("config.json: layers, width or heads are larger than any model's")
        }
        let headSize = try config.size("head_dim") ?? (hidden / heads)
        if !Config.sizes.contains(headSize) {
            throw PlanError(
                "config.json: a width of \(hidden) for \(heads) heads makes heads of \(headSize) "
                    + "numbers; give 'head_dim', from \(Config.sizes.lowerBound) to "
                    + "\(Config.sizes.upperBound)")
        }
        layers = try Self.layers(config, type: type, count: layerCount)
        if !layers.contains(where: { $0 != .state }) {
            throw PlanError(
                "the model has no attention layers, so there is no KV cache to keep outside")
        }
        let kvHeads = try Self.kvHeads(config, type: type, heads: heads)
        if let latent = try config.rank("kv_lora_rank") {
            attention = .latent
            let rope = try config.size("qk_rope_head_dim") ?? 64
            let nope = try config.size("qk_nope_head_dim") ?? 128
            let value = try config.size("v_head_dim") ?? 128
            elementsPerTokenAndLayer = latent + rope
            attentionWidth = heads * (nope + rope + value)
        } else {
            attention =
                kvHeads == heads ? .multiHead : kvHeads == 1 ? .multiQuery : .groupedQuery
            elementsPerTokenAndLayer = 2 * kvHeads * headSize
            attentionWidth = 2 * heads * headSize
        }
        elementBytes = Self.bytes(
            ofType: config.string("torch_dtype") ?? config.string("dtype")
                ?? outer.string("torch_dtype") ?? outer.string("dtype") ?? "bfloat16")
        (parameters, activeParameters) = try Self.parameterCounts(
            config, type: type, hidden: hidden, heads: heads, kvHeads: kvHeads,
            headSize: headSize, layers: layerCount)
        if layers.contains(.state) {
            notes.append(
                "\(layers.count { $0 == .state }) of \(layerCount) layers keep a state of fixed size "
                    + "instead of keys and values; it is not counted, and a prefix can be used only "
                    + "where the engine has stored that state")
        }
        if layers.contains(where: { if case .window = $0 { true } else { false } }) {
            notes.append(
                "layers with a window need only its last tokens to go on; Kvasir stores all layers "
                    + "for all tokens, so the full figure counts for capacity")
        }
    }

    // MARK: Layers

    private static func layers(
        _ config: Config, type: String, count: Int
    ) throws(PlanError) -> [Layer] {
        let longest = try config.count("max_position_embeddings") ?? .max
        var window = try config.count("sliding_window", "attention_chunk_size")
        if window == 0 || window ?? 0 >= longest { window = nil }
        if let types = config.strings("layer_types") ?? config.strings("layers_block_type") {
            if types.count != count {
                throw PlanError(
                    "config.json: 'layer_types' names \(types.count) layers of \(count)")
            }
            var layers: [Layer] = []
            for type in types { layers.append(try layer(type, window: window)) }
            return layers
        }
        if let pattern = config.string("hybrid_override_pattern") {
            if pattern.count != count {
                throw PlanError(
                    "config.json: 'hybrid_override_pattern' names \(pattern.count) layers of "
                        + "\(count)")
            }
            // Nemotron-H: * is attention, M Mamba, - a feed-forward layer.
            return pattern.map { $0 == "*" ? .full : .state }
        }
        if let indices = config.counts("attn_layer_indices") {
            return (0..<count).map { indices.contains($0) ? .full : .state }
        }
        if let period = try config.count("attn_layer_period"), period > 0 {
            let offset = try config.count("attn_layer_offset") ?? 0
            return (0..<count).map { $0 % period == offset ? .full : .state }
        }
        if let interval = try config.count("full_attention_interval"), interval > 0 {
            return (0..<count).map { ($0 + 1) % interval == 0 ? .full : .state }
        }
        guard let window, config.flag("use_sliding_window") ?? true else {
            return Array(repeating: .full, count: count)
        }
        // One layer in so many sees everything.
        var pattern = try config.count("sliding_window_pattern")
        if type == "gemma2" { pattern = pattern ?? 2 }
        if type.hasPrefix("gemma3") { pattern = pattern ?? 6 }
        if type == "cohere2" { pattern = pattern ?? 4 }
        if type.hasPrefix("llama4") { pattern = pattern ?? 4 }
        if let pattern, pattern > 0 {
            return (0..<count).map { ($0 + 1) % pattern == 0 ? .full : .window(window) }
        }
        if config.flag("use_sliding_window") == true {
            // Qwen2: the first layers see everything.
            let full = try config.count("max_window_layers") ?? 0
            return (0..<count).map { $0 < full ? .full : .window(window) }
        }
        return Array(repeating: .window(window), count: count)
    }

    private static func layer(_ type: String, window: Int?) throws(PlanError) -> Layer {
        switch type {
        case "full_attention", "attention": return .full
        case "sliding_attention", "chunked_attention": return window.map { .window($0) } ?? .full
        case "linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp":
            return .state
        case "hybrid": return .full
        default: throw PlanError("config.json: a layer of the type '\(type)' is not known here")
        }
    }

    private static func kvHeads(
        _ config: Config, type: String, heads: Int
    ) throws(PlanError) -> Int {
        if type == "falcon", config.flag("new_decoder_architecture") != true {
            return config.flag("multi_query") == false ? heads : 1
        }
        if config.flag("multi_query") == true, type != "falcon" { return 1 }
        let count = try config.count("num_key_value_heads", "num_kv_heads", "n_head_kv") ?? heads
        if count == 0 || count > heads {
            throw PlanError("config.json: \(count) KV heads for \(heads) heads can't be")
        }
        return count
    }

    private static func bytes(ofType type: String) -> Double {
        switch type {
        case "float32": 4
        case _ where type.contains("float8") || type == "int8": 1
        default: 2
        }
    }

    // MARK: Weights

    /// Types whose feed-forward layers have two matrices; the others' have three.
    private static let ungatedTypes: Set = [
        "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt",
        "nemotron", "opt", "phi", "starcoder2",
    ]

    /// Weights of matrices and embeddings; norms and biases are left out (less than 0.1 %).
    private static func parameterCounts(
        _ config: Config, type: String, hidden: Int, heads: Int, kvHeads: Int, headSize: Int,
        layers: Int
    ) throws(PlanError) -> (all: Double, active: Double) {
        let matrices = ungatedTypes.contains(type) ? 2.0 : 3.0
        let width = Double(hidden)
        let feedForward = Double(
            try config.count("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
                ?? (4 * hidden))
        let isTied = config.flag("tie_word_embeddings") ?? type.hasPrefix("gemma")
        let vocabulary = Double(try config.required("vocab_size", of: "the size of the vocabulary"))
        let embeddings = vocabulary * width * (isTied ? 1 : 2)
        let attention = try attentionParameters(
            config, width: width, heads: Double(heads), kvHeads: Double(kvHeads),
            headSize: Double(headSize))
        let dense = matrices * width * feedForward
        var all = embeddings + Double(layers) * attention
        var active = all
        let experts = Double(
            try config.count("n_routed_experts", "num_local_experts", "num_experts") ?? 0)
        if experts < 2 {
            all += Double(layers) * dense
            return (all, all)
        }
        let perToken = Double(
            try config.required(
                "num_experts_per_tok", "num_experts_per_token", "moe_topk",
                of: "the experts of a token"))
        let expertWidth = Double(try config.count("moe_intermediate_size") ?? Int(feedForward))
        let expert = matrices * width * expertWidth
        var shared = Double(try config.count("n_shared_experts") ?? 0) * expert
        if let sharedWidth = try config.count("shared_expert_intermediate_size") {
            shared = matrices * width * Double(sharedWidth)
        }
        let denseLayers = Double(min(layers, try config.count("first_k_dense_replace") ?? 0))
        let sparseLayers = Double(layers) - denseLayers
        let router = width * experts
        all += denseLayers * dense + sparseLayers * (experts * expert + shared + router)
        active += denseLayers * dense + sparseLayers * (perToken * expert + shared + router)
        return (all, active)
    }

    private static func attentionParameters(
        _ config: Config, width: Double, heads: Double, kvHeads: Double, headSize: Double
    ) throws(PlanError) -> Double {
        guard let latentCount = try config.rank("kv_lora_rank") else {
            return width * headSize * (2 * heads + 2 * kvHeads)
        }
        let latent = Double(latentCount)
        let rope = Double(try config.size("qk_rope_head_dim") ?? 64)
        let nope = Double(try config.size("qk_nope_head_dim") ?? 128)
        let value = Double(try config.size("v_head_dim") ?? 128)
        let queries = heads * (nope + rope)
        let rank = Double(try config.rank("q_lora_rank") ?? 0)
        let query = rank > 0 ? width * rank + rank * queries : width * queries
        return query + width * (latent + rope) + latent * heads * (nope + value)
            + heads * value * width
    }
}

// MARK: - Sizes and work

extension ModelShape {
    /// Layers that keep keys and values.
    package var cachedLayerCount: Int { layers.count { $0 != .state } }

    /// Bytes of KV that a token adds to what Kvasir stores: all layers with keys and values.
    package func bytesPerToken(elementBytes: Double? = nil) -> Double {
        Double(cachedLayerCount * elementsPerTokenAndLayer) * (elementBytes ?? self.elementBytes)
    }

    /// Bytes that an engine needs to go on after so many tokens: layers with a window keep only that.
    package func bytesNeeded(tokens: Int, elementBytes: Double? = nil) -> Double {
        let kept = layers.reduce(0.0) { sum, layer in
            switch layer {
            case .full: sum + Double(tokens)
            case .window(let window): sum + Double(min(tokens, window))
            case .state: sum
            }
        }
        return kept * Double(elementsPerTokenAndLayer) * (elementBytes ?? self.elementBytes)
    }

    /// Work of a prefill of so many tokens, by `2·P·n` for the weights and `D·n²` for causal attention
    /// in each layer, `D` being ``attentionWidth``.
    package func prefillFLOPs(tokens: Double) -> Double {
        let attention = layers.reduce(0.0) { sum, layer in
            switch layer {
            case .full: return sum + tokens * tokens
            case .window(let width):
                let window = Double(width)
                return sum
                    + (tokens <= window ? tokens * tokens : window * (2 * tokens - window))
            case .state: return sum
            }
        }
        return 2 * activeParameters * tokens + Double(attentionWidth) * attention
    }

    /// The same as coefficients of the tokens and of their square, for sums over many prompts. Layers
    /// with a window count as if each token saw a full one: too much for shorter prompts.
    package var prefillCoefficients: (linear: Double, quadratic: Double) {
        var linear = 2 * activeParameters
        var quadratic = 0.0
        for layer in layers {
            switch layer {
            case .full: quadratic += Double(attentionWidth)
            case .window(let window): linear += 2 * Double(window) * Double(attentionWidth)
            case .state: break
            }
        }
        return (linear, quadratic)
    }
}
