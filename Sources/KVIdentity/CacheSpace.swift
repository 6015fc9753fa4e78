/// Everything fixed for an engine that must be equal for KV bytes to be interchangeable.
///
/// Two spaces are equal when their ids are; the name for people does not count. A value of this
/// type is always valid: every way to make one checks every field. The format is that of
/// `docs/formats.md`.
public struct CacheSpace: Sendable {
    /// What the KV of a layer is.
    public enum Kind: String, Hashable, Sendable, CaseIterable {
        /// Keys and values of attention heads.
        case attention
        /// The latent of multi-head latent attention.
        case mla
        /// A state that only its engine understands.
        case opaque
    }

    /// The order of the bytes of a number in the KV.
    public enum ByteOrder: String, Hashable, Sendable, CaseIterable {
        /// The least significant byte first.
        case little
        /// The most significant byte first.
        case big
    }

    /// The largest values that fields may have.
    public enum Limits {
        /// Bytes of the JSON text.
        public static let jsonBytes = 256 << 10
        /// Bytes of `model_name`.
        public static let modelNameBytes = 256
        /// Bytes of `dtype`.
        public static let dtypeBytes = 64
        /// Bytes of `order`.
        public static let orderBytes = 256
        /// Bytes of `generation`.
        public static let generationBytes = 64
        /// Layers, KV heads, and elements of a head: what every JSON reader keeps exact.
        public static let count = (1 << 53) - 1
        /// Tokens of a block, and of a chunk.
        public static let tokens = 1 << 20
        /// Shards: stages × ranks.
        public static let shards = 4096
        /// Bytes of a shard.
        public static let shardBytes = 4 << 30
    }

    /// The version of the format: 1.
    public static let version = 1

    /// Identity of the weights.
    public let model: Digest
    /// The model's name for people; not part of the id.
    public let modelName: String?
    /// Data type of the KV: `bfloat16`, `float16`, `float32`, `fp8_e4m3`…
    public let dtype: String
    /// What the KV of a layer is.
    public let kind: Kind
    /// Layers that have KV, over all pipeline stages.
    public let layers: Int
    /// KV heads of the whole model; 1 for MLA.
    public let heads: Int
    /// Elements of one token in one head of one layer, K and V together.
    public let headSize: Int
    /// Physical order inside an extent, for instance `planes/LBHNC`.
    public let order: String
    /// Order of the bytes of a number.
    public let byteOrder: ByteOrder
    /// Tokens of an engine's block.
    public let blockTokens: Int
    /// Tokens of a chunk, a multiple of ``blockTokens``.
    public let chunkTokens: Int
    /// Pipeline stages of the shard grid.
    public let stages: Int
    /// Distinct tensor-parallel ranks of the shard grid.
    public let ranks: Int
    /// Bytes of a chunk in each shard, stage-major.
    public let shardBytes: [Int]
    /// Empty until the engine says that its weights changed.
    public let generation: String

    /// The identity: SHA-256 of ``canonicalEncoding``.
    public private(set) var id: Digest

    /// Makes a space of its fields.
    ///
    /// - Throws: what is wrong with the first field that is not as `docs/formats.md` has it.
    public init(
        model: Digest,
        modelName: String? = nil,
        dtype: String,
        kind: Kind,
        layers: Int,
        heads: Int,
        headSize: Int,
        order: String,
        byteOrder: ByteOrder = .little,
        blockTokens: Int,
        chunkTokens: Int,
        stages: Int = 1,
        ranks: Int = 1,
        shardBytes: [Int],
        generation: String = ""
    ) throws(IdentityError) {
        try Check.text("model_name", modelName ?? "", maximumBytes: Limits.modelNameBytes)
        try Check.word("dtype", dtype, maximumBytes: Limits.dtypeBytes)
        try Check.range("layers", layers, 1...Limits.count)
        try Check.range("heads", heads, 1...Limits.count)
        try Check.range("head_size", headSize, 1...Limits.count)
        try Check.word("order", order, maximumBytes: Limits.orderBytes)
        try Check.range("block_tokens", blockTokens, 1...Limits.tokens)
        try Check.range("chunk_tokens", chunkTokens, 1...Limits.tokens)
        try Check.range("stages", stages, 1...Limits.shards)
        try Check.range("ranks", ranks, 1...Limits.shards)
        try Check.text("generation", generation, maximumBytes: Limits.generationBytes)
        try Check.consistency(
            kind: kind, heads: heads, blockTokens: blockTokens, chunkTokens: chunkTokens)
        try Check.shards(stages: stages, ranks: ranks, shardBytes: shardBytes)
        self.model = model
        self.modelName = modelName
        self.dtype = dtype
        self.kind = kind
        self.layers = layers
        self.heads = heads
        self.headSize = headSize
        self.order = order
        self.byteOrder = byteOrder
        self.blockTokens = blockTokens
        self.chunkTokens = chunkTokens
        self.stages = stages
        self.ranks = ranks
        self.shardBytes = shardBytes
        self.generation = generation
        // The encoding is made of `self`, which must be whole first.
        id = Digest(words: (0, 0, 0, 0))
        id = encoder.sha256()
    }

    /// The bytes that the id is the digest of. O(shards).
    public var canonicalEncoding: [UInt8] { encoder.bytes }

    private var encoder: CanonicalEncoder {
        var encoder = CanonicalEncoder(domain: "kvasir.space.1")
        encoder.u64(Self.version)
        encoder.prefixed(model.bytes)
        encoder.prefixed(dtype.utf8)
        encoder.prefixed(kind.rawValue.utf8)
        encoder.u64(layers)
        encoder.u64(heads)
        encoder.u64(headSize)
        encoder.prefixed(order.utf8)
        encoder.prefixed(byteOrder.rawValue.utf8)
        encoder.u64(blockTokens)
        encoder.u64(chunkTokens)
        encoder.u64(stages)
        encoder.u64(ranks)
        encoder.u64(shardBytes.count)
        for bytes in shardBytes { encoder.u64(bytes) }
        encoder.prefixed(generation.utf8)
        return encoder
    }

    /// Shards of a chunk: stages × ranks.
    public var shardCount: Int { shardBytes.count }

    /// Bytes of a chunk, all its shards together.
    public var chunkBytes: Int { shardBytes.reduce(0, +) }

    /// The shard of one cell of the grid.
    ///
    /// - Precondition: `stage` and `rank` are inside the grid.
    public func shard(stage: Int, rank: Int) -> Int {
        precondition((0..<stages).contains(stage), "no such pipeline stage")
        precondition((0..<ranks).contains(rank), "no such rank")
        return stage * ranks + rank
    }
}

extension CacheSpace: Hashable {
    /// Whether the ids are equal; the name for people does not count. O(1).
    public static func == (left: CacheSpace, right: CacheSpace) -> Bool {
        left.id == right.id
    }

    /// Feeds the id to `hasher`. O(1).
    public func hash(into hasher: inout Hasher) {
        hasher.combine(id)
    }
}
