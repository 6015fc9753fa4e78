internal import CKernels
internal import Glibc

/// A transformer of the Llama family, in float32, on the processor.
///
/// RMSNorm, rotary positions, grouped-query attention, SwiGLU. Immutable after it was loaded, so
/// any number of sequences may use it from any thread; their computations take turns on its
/// threads.
///
/// The same tokens give the same bits of KV and logits whatever they are computed together with:
/// each element is one chain of multiply-adds in an order that depends on its position alone
/// (`CKernels.h` says how). Only ``numerics`` and the weights change them.
public final class Model: Sendable {
    /// What it is made of.
    public let configuration: ModelConfiguration
    /// How its keys and values lie in memory.
    public let layout: KVLayout
    /// The code that it runs on.
    public let kernels: Kernels

    /// What attention may need for itself, for each thread; real models need less than one MiB.
    static let scratchBytesMax = 64 << 20
    /// The most threads that a model computes with.
    public static let threadsMax = 1_024

    /// Raised whenever the order or the kind of an operation changes that keys and values depend on.
    static let arithmetic = 1

    /// What the bits of a result depend on besides weights, configuration and tokens: the operations and their order, how a
    /// multiply-add rounds, and the rotary frequencies (the one thing that is taken from the C library's functions).
    public var numerics: String {
        let rounding = kernels.areFused ? "fused" : "\(kernels)"
        let bits = (rotary.inverse + [rotary.attentionFactor]).map {
            String($0.bitPattern, radix: 16)
        }
        return "float32/\(Self.arithmetic)/\(rounding)/\(bits.joined(separator: " "))"
    }

    /// Threads that compute, the caller's included.
    public var threads: Int { pool.threads }

    let pool: ComputePool
    let rotary: RotaryFrequencies
    let layers: [Layer]
    let finalNorm: Floats
    /// Embeddings of tokens, row by row; nil where they are ``head``'s.
    let embeddings: Floats?
    let head: PackedMatrix

    struct Layer: Sendable {
        let attentionNorm: Floats
        let queryKeyValue: PackedMatrix
        let output: PackedMatrix
        let feedForwardNorm: Floats
        let gateUp: PackedMatrix
        let down: PackedMatrix
    }

    /// Reads a model from a Hugging Face folder.
    ///
    /// - Parameters:
    ///   - threads: nil for one for each processor.
    ///   - progress: called with the share of layers that are read, from 0 to 1.
    /// - Throws: `weights` for what is missing or of another shape.
    public convenience init(
        _ folder: ModelFolder, threads: Int? = nil, kernels: Kernels = .best,
        progress: (Double) -> Void = { _ in }
    ) throws(ModelError) {
        try self.init(
            folder.configuration, weights: folder, threads: threads, kernels: kernels,
            progress: progress)
    }

    /// Makes a model of a configuration and weights from anywhere.
    public init(
        _ configuration: ModelConfiguration, weights: some WeightSource, threads: Int? = nil,
        kernels: Kernels = .best, progress: (Double) -> Void = { _ in }
    ) throws(ModelError) {
        self.configuration = configuration
        self.kernels = kernels
        layout = KVLayout(configuration)
        let scratch = kvk_attention_scratch_bytes(
            configuration.headCount / configuration.kvHeadCount, configuration.headSize)
        if scratch > Self.scratchBytesMax {
            throw ModelError(
                .unsupported,
                "\(configuration.headCount / configuration.kvHeadCount) heads of \(configuration.headSize) for "
                    + "one KV head need \(scratch >> 20) MiB a thread, built in are up to "
                    + "\(Self.scratchBytesMax >> 20); use a model with smaller heads")
        }
        pool = try ComputePool(threads: threads ?? sysconf(Int32(_SC_NPROCESSORS_ONLN)))
        rotary = RotaryFrequencies(configuration)
        let (hidden, vocabulary) = (configuration.hiddenSize, configuration.vocabularySize)
        var layers: [Layer] = []
        for index in 0..<configuration.layerCount {
            progress(Double(index) / Double(configuration.layerCount))
            layers.append(try Layer(index, configuration, weights))
        }
        self.layers = layers
        finalNorm = try Self.vector("model.norm.weight", hidden, weights)
        let table = "model.embed_tokens"
        if configuration.hasTiedEmbeddings {
            embeddings = nil
            head = try PackedMatrix([(table, vocabulary, false)], depth: hidden, from: weights)
        } else {
            try weights.check("\(table).weight", shape: [vocabulary, hidden])
            let rows = try Floats(vocabulary * hidden)
            try weights.read("\(table).weight", shape: [vocabulary, hidden], into: rows.buffer)
            embeddings = rows
            head = try PackedMatrix([("lm_head", vocabulary, false)], depth: hidden, from: weights)
        }
        try weights.finish()
        progress(1)
    }

    static func vector(
        _ name: String, _ count: Int, _ weights: some WeightSource
    ) throws(ModelError) -> Floats {
        try weights.check(name, shape: [count])
        let floats = try Floats(count)
        try weights.read(name, shape: [count], into: floats.buffer)
        return floats
    }

    func copyEmbedding(of token: UInt32, into destination: UnsafeMutablePointer<Float>) {
        let hidden = configuration.hiddenSize
        if let embeddings {
            destination.update(from: embeddings.pointer + Int(token) * hidden, count: hidden)
        } else {
            head.copyRow(Int(token), into: destination)
        }
    }
}

extension Model.Layer {
    init(
        _ index: Int, _ configuration: ModelConfiguration, _ weights: some WeightSource
    ) throws(ModelError) {
        let name = "model.layers.\(index)"
        let hidden = configuration.hiddenSize
        let queries = configuration.headCount * configuration.headSize
        let keys = configuration.kvHeadCount * configuration.headSize
        let inputBias = configuration.hasQueryKeyValueBias
        let forwardBias = configuration.hasFeedForwardBias
        attentionNorm = try Model.vector("\(name).input_layernorm.weight", hidden, weights)
        queryKeyValue = try PackedMatrix(
            [
                ("\(name).self_attn.q_proj", queries, inputBias),
                ("\(name).self_attn.k_proj", keys, inputBias),
                ("\(name).self_attn.v_proj", keys, inputBias),
            ], depth: hidden, from: weights)
        output = try PackedMatrix(
            [("\(name).self_attn.o_proj", hidden, configuration.hasOutputBias)], depth: queries,
            from: weights)
        feedForwardNorm = try Model.vector(
            "\(name).post_attention_layernorm.weight", hidden, weights)
        gateUp = try PackedMatrix(
            [
                ("\(name).mlp.gate_proj", configuration.feedForwardSize, forwardBias),
                ("\(name).mlp.up_proj", configuration.feedForwardSize, forwardBias),
            ], depth: hidden, from: weights)
        down = try PackedMatrix(
            [("\(name).mlp.down_proj", hidden, forwardBias)],
            depth: configuration.feedForwardSize, from: weights)
    }
}
