/// What a model folder may hold at most. Real models stay far below; files that don't are damaged.
enum FolderLimits {
    /// The header of a safetensors file; the limit of the reference library.
    static let safetensorsHeaderBytes = 100_000_000
    /// `model.safetensors.index.json`.
    static let indexBytes = 100_000_000
    /// `config.json` and `generation_config.json`.
    static let configurationBytes = 4 << 20

    /// The range of `num_hidden_layers`.
    static let layers = 1...1024
    /// The range of `vocab_size`.
    static let vocabulary = 1...(1 << 22)
    /// The range of `hidden_size`.
    static let hidden = 1...(1 << 17)
    /// The range of `intermediate_size`.
    static let feedForward = 1...(1 << 20)
    /// The range of `num_attention_heads` and `num_key_value_heads`.
    static let heads = 1...4096
    /// The range of `head_dim`.
    static let headSize = 2...4096
    /// The range of `max_position_embeddings` and of the lengths in the rotary parameters.
    static let context = 1...(1 << 24)
    /// The range of `rope_theta`.
    static let ropeTheta = 1.001...1e15
    /// The range of the factors in the rotary parameters.
    static let ropeFactor = 1e-6...1e6
    /// The range of `rms_norm_eps`; its least value is still a normal float32.
    static let normEpsilon = 1e-30...1.0
    /// How many `eos_token_id` there may be.
    static let endTokens = 256
}
