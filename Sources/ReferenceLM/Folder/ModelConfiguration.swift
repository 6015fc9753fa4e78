/// What a model is built like, read from its `config.json`.
///
/// Defaults are those of Hugging Face transformers. What the model would need and isn't built in is
/// refused when the configuration is read, so that no model runs with wrong results.
public struct ModelConfiguration: Hashable, Sendable {
    /// The architectures that are built in, by their names in `config.json`.
    public enum Architecture: String, CaseIterable, Hashable, Sendable {
        /// Llama 1 to 3 and what is built like them.
        case llama = "LlamaForCausalLM"
        /// Mistral; without its sliding window.
        case mistral = "MistralForCausalLM"
        /// Qwen2 and Qwen2.5.
        case qwen2 = "Qwen2ForCausalLM"
    }

    /// The architecture.
    public let architecture: Architecture
    /// The number of tokens in the vocabulary, and of rows of the embedding.
    public let vocabularySize: Int
    /// The width of the residual stream.
    public let hiddenSize: Int
    /// The width inside the feed-forward part of a layer.
    public let feedForwardSize: Int
    /// The number of layers.
    public let layerCount: Int
    /// The number of query heads; a multiple of ``kvHeadCount``.
    public let headCount: Int
    /// The number of key and value heads.
    public let kvHeadCount: Int
    /// The width of a head; even.
    public let headSize: Int
    /// The longest sequence that the model is made for, in tokens.
    public let contextLength: Int
    /// What is added to the mean square in RMS normalization.
    public let rmsNormEpsilon: Float
    /// The base of the rotary frequencies.
    public let ropeTheta: Double
    /// How the rotary frequencies are stretched.
    public let ropeScaling: RopeScaling
    /// Whether the output projection is the embedding.
    public let hasTiedEmbeddings: Bool
    /// Whether the query, key and value projections have biases.
    public let hasQueryKeyValueBias: Bool
    /// Whether the output projection of attention has a bias.
    public let hasOutputBias: Bool
    /// Whether the gate, up and down projections have biases.
    public let hasFeedForwardBias: Bool
    /// The token that begins a text, where the model has one.
    public let beginTokenID: Int?
    /// The tokens that end a text, of `generation_config.json` where it names some.
    public let endTokenIDs: [Int]
}

extension ModelConfiguration {
    /// Reads a configuration.
    ///
    /// - Parameters:
    ///   - text: the bytes of `config.json`.
    ///   - file: its path, for messages.
    ///   - generation: bytes and path of `generation_config.json`, where it is there.
    /// - Throws: ``ModelError`` with the code `configuration`, or `unsupported` if the file is fine
    ///   but the model needs what isn't built in.
    public init(
        parsing text: [UInt8], file: String, generation: (text: [UInt8], file: String)? = nil
    ) throws(ModelError) {
        let fields = try ConfigurationFields(parsing: text, file: file)
        let architecture = try Self.architecture(fields)
        try Self.checkQuantization(fields)
        let activation = try fields.string("hidden_act") ?? "silu"
        if activation != "silu" {
            throw fields.unsupported(
                "\"hidden_act\" is \(activation.quoted); only silu is built in, use a model with it"
            )
        }
        let sizes = try Sizes(fields)
        try SlidingWindow(fields, architecture).check(sizes)
        let rope = try RopeReader(fields: fields, contextLength: sizes.context).read()
        let isLlama = architecture == .llama
        let hasAttentionBias = isLlama ? try fields.boolean("attention_bias") ?? false : false
        let hasFeedForwardBias = isLlama ? try fields.boolean("mlp_bias") ?? false : false
        let epsilon = try fields.number("rms_norm_eps", in: FolderLimits.normEpsilon)
        self.init(
            architecture: architecture, vocabularySize: sizes.vocabulary, hiddenSize: sizes.hidden,
            feedForwardSize: sizes.feedForward, layerCount: sizes.layers, headCount: sizes.heads,
            kvHeadCount: sizes.kvHeads, headSize: sizes.head, contextLength: sizes.context,
            rmsNormEpsilon: Float(epsilon ?? 1e-6), ropeTheta: rope.theta,
            ropeScaling: rope.scaling,
            hasTiedEmbeddings: try fields.boolean("tie_word_embeddings") ?? false,
            hasQueryKeyValueBias: architecture == .qwen2 || hasAttentionBias,
            hasOutputBias: hasAttentionBias, hasFeedForwardBias: hasFeedForwardBias,
            beginTokenID: try fields.integer("bos_token_id", in: 0...sizes.vocabulary - 1),
            endTokenIDs: try Self.endTokens(fields, generation, sizes.vocabulary))
    }

    private static func architecture(_ fields: ConfigurationFields) throws(ModelError)
        -> Architecture
    {
        let accepted = Architecture.allCases.map(\.rawValue).joined(separator: ", ")
        guard let name = try fields.strings("architectures")?.first else {
            throw fields.invalid(
                "\"architectures\" is missing or empty, expected one of \(accepted)")
        }
        guard let architecture = Architecture(rawValue: name) else {
            throw fields.unsupported(
                "the architecture \(name.quoted) is not built in; use a model of one of \(accepted)"
            )
        }
        return architecture
    }

    private static func checkQuantization(_ fields: ConfigurationFields) throws(ModelError) {
        for name in ["quantization_config", "compression_config"]
        where fields.value(name) != nil {
            throw fields.unsupported(
                "\"\(name)\" is there: the weights are quantized, which is not built in; use the "
                    + "model with F32, F16 or BF16 weights that it was made from")
        }
    }

    private static func endTokens(
        _ fields: ConfigurationFields, _ generation: (text: [UInt8], file: String)?,
        _ vocabulary: Int
    ) throws(ModelError) -> [Int] {
        let name = "eos_token_id"
        let count = FolderLimits.endTokens
        if let generation {
            let fields = try ConfigurationFields(parsing: generation.text, file: generation.file)
            if let tokens = try fields.integers(name, in: 0...vocabulary - 1, atMost: count) {
                return tokens
            }
        }
        return try fields.integers(name, in: 0...vocabulary - 1, atMost: count) ?? []
    }
}

/// The sizes in a configuration, each within its limits and all consistent.
private struct Sizes {
    let vocabulary: Int
    let hidden: Int
    let feedForward: Int
    let layers: Int
    let heads: Int
    let kvHeads: Int
    let head: Int
    let context: Int

    init(_ fields: ConfigurationFields) throws(ModelError) {
        vocabulary = try fields.required("vocab_size", in: FolderLimits.vocabulary)
        hidden = try fields.required("hidden_size", in: FolderLimits.hidden)
        feedForward = try fields.required("intermediate_size", in: FolderLimits.feedForward)
        layers = try fields.required("num_hidden_layers", in: FolderLimits.layers)
        heads = try fields.required("num_attention_heads", in: FolderLimits.heads)
        kvHeads = try fields.integer("num_key_value_heads", in: FolderLimits.heads) ?? heads
        context = try fields.required("max_position_embeddings", in: FolderLimits.context)
        head = try Self.headSize(fields, hidden: hidden, heads: heads)
        if heads % kvHeads != 0 {
            throw fields.unsupported(
                "\"num_attention_heads\" is \(heads), no multiple of \"num_key_value_heads\", "
                    + "which is \(kvHeads); use a model where equally many query heads share each "
                    + "KV head")
        }
    }

    private static func headSize(_ fields: ConfigurationFields, hidden: Int, heads: Int)
        throws(ModelError) -> Int
    {
        // One that is 1 is odd, which is told apart from one that is no size at all.
        let range = 1...FolderLimits.headSize.upperBound
        let named = try fields.integer("head_dim", in: range)
        if named == nil, hidden % heads != 0 {
            throw fields.invalid(
                "\"hidden_size\" is \(hidden), no multiple of \"num_attention_heads\", which is "
                    + "\(heads), and \"head_dim\" doesn't say how large a head is")
        }
        let size = named ?? hidden / heads
        if size % 2 != 0 {
            throw fields.unsupported(
                "the heads have \(size) elements (\"head_dim\", or \"hidden_size\" by "
                    + "\"num_attention_heads\"); rotary embeddings need an even number, use a "
                    + "model with one")
        }
        guard FolderLimits.headSize.contains(size) else {
            throw fields.invalid(
                "\"hidden_size\" by \"num_attention_heads\" is \(size), expected a head of "
                    + "\(FolderLimits.headSize.lowerBound) to \(FolderLimits.headSize.upperBound)")
        }
        return size
    }
}

/// The window that attention is limited to; it isn't built in, so it must not matter.
private struct SlidingWindow {
    private let fields: ConfigurationFields
    /// In tokens; nil if attention is not limited.
    private let length: Int?
    /// The first of the layers that have the window.
    private let firstLayer: Int

    init(_ fields: ConfigurationFields, _ architecture: ModelConfiguration.Architecture)
        throws(ModelError)
    {
        self.fields = fields
        let named = try fields.integer("sliding_window", in: 1...Int.max)
        switch architecture {
        case .llama:
            (length, firstLayer) = (nil, 0)
        case .mistral:
            // A file without the field means 4096, as in transformers; null means no window.
            (length, firstLayer) = (fields.isMissing("sliding_window") ? 4096 : named, 0)
        case .qwen2:
            let isUsed = try fields.boolean("use_sliding_window") ?? false
            let kinds = try fields.strings("layer_types")
            let firstOfKind = kinds.map { $0.firstIndex(of: "sliding_attention") ?? Int.max }
            let first = try fields.integer("max_window_layers", in: 0...Int.max) ?? 28
            length = !isUsed ? nil : fields.isMissing("sliding_window") ? 4096 : named
            firstLayer = firstOfKind ?? first
        }
    }

    func check(_ sizes: Sizes) throws(ModelError) {
        guard let length, firstLayer < sizes.layers, length < sizes.context else { return }
        throw fields.unsupported(
            "the attention of this model slides over a window of \(length) tokens "
                + "(\"sliding_window\"), less than \"max_position_embeddings\", which is "
                + "\(sizes.context); that is not built in; set \"max_position_embeddings\" to "
                + "\(length) to use the model up to there")
    }
}
