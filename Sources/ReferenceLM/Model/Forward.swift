internal import CKernels

/// One pass of some tokens of a sequence through the model.
struct Forward {
    let model: Model
    /// Tokens of this pass.
    let rows: Int
    /// The position of the first of them.
    let first: Int
    let space: Workspace

    /// Computes keys and values of `tokens` into the pages. `space.states` then holds the last
    /// hidden states.
    func run(_ tokens: ArraySlice<UInt32>, pages: [Int], of memory: PagePool) {
        let configuration = model.configuration
        let hidden = configuration.hiddenSize
        for (row, token) in tokens.enumerated() {
            model.copyEmbedding(of: token, into: space.states.pointer + row * hidden)
        }
        setAngles()
        var addresses: [UnsafeMutablePointer<Float>?] = []
        for (index, layer) in model.layers.enumerated() {
            addresses = pages.map { memory.address(of: $0, layer: index) }
            addresses.withUnsafeBufferPointer { pages in
                var kv = kvk_kv(
                    kv_heads: configuration.kvHeadCount, head_size: configuration.headSize,
                    pages: pages.baseAddress)
                attend(layer, &kv)
            }
            feedForward(layer)
        }
    }

    /// Logits of the last `count` rows, into `logits`.
    func project(last count: Int, into logits: UnsafeMutablePointer<Float>) {
        let hidden = model.configuration.hiddenSize
        normalize(
            space.states.pointer + (rows - count) * hidden, model.finalNorm, rows: count)
        model.head.multiply(
            space.normed.pointer, rows: count, into: logits, model.kernels, model.pool)
    }

    private func attend(_ layer: Model.Layer, _ kv: inout kvk_kv) {
        let configuration = model.configuration
        let size = configuration.headSize
        let (queries, keys) = (configuration.headCount * size, configuration.kvHeadCount * size)
        let stride = queries + 2 * keys
        let inputs = space.wide.pointer
        normalize(space.states.pointer, layer.attentionNorm, rows: rows)
        layer.queryKeyValue.multiply(
            space.normed.pointer, rows: rows, into: inputs, model.kernels, model.pool)
        kvk_rotate(
            model.pool.pointer, model.kernels.pointer, inputs, stride, rows,
            configuration.headCount + configuration.kvHeadCount, size, space.cosine.pointer,
            space.sine.pointer)
        kvk_store_kv(
            &kv, first, inputs + queries, inputs + queries + keys, stride, rows)
        kvk_attention(
            model.pool.pointer, model.kernels.pointer, &kv, configuration.headCount, inputs, stride,
            first, rows, space.narrow.pointer, queries)
        layer.output.multiply(
            space.narrow.pointer, rows: rows, into: space.normed.pointer, model.kernels, model.pool)
        addToStates()
    }

    private func feedForward(_ layer: Model.Layer) {
        normalize(space.states.pointer, layer.feedForwardNorm, rows: rows)
        layer.gateUp.multiply(
            space.normed.pointer, rows: rows, into: space.wide.pointer, model.kernels, model.pool)
        kvk_swiglu(
            model.pool.pointer, model.kernels.pointer, space.wide.pointer, rows,
            model.configuration.feedForwardSize, space.narrow.pointer)
        layer.down.multiply(
            space.narrow.pointer, rows: rows, into: space.normed.pointer, model.kernels, model.pool)
        addToStates()
    }

    private func normalize(_ from: UnsafePointer<Float>, _ weight: Floats, rows: Int) {
        kvk_rms_norm(
            model.pool.pointer, model.kernels.pointer, from, weight.pointer, rows,
            model.configuration.hiddenSize, model.configuration.rmsNormEpsilon,
            space.normed.pointer)
    }

    private func addToStates() {
        let hidden = model.configuration.hiddenSize
        kvk_add(
            model.pool.pointer, model.kernels.pointer, space.states.pointer, hidden,
            space.normed.pointer, hidden, rows, hidden)
    }

    /// The angle of a position is a float32 product, as in the models' own code.
    private func setAngles() {
        kvk_angles(
            first, rows, model.rotary.inverse, model.configuration.headSize / 2,
            model.rotary.attentionFactor, space.cosine.pointer, space.sine.pointer)
    }
}

/// The memory of a pass: activations of up to `rows` tokens.
final class Workspace {
    let rows: Int
    /// Hidden states.
    let states: Floats
    /// Normalized states, and what is to be added to the states.
    let normed: Floats
    /// Queries, keys and values; gates and ups.
    let wide: Floats
    /// Attention's output; the feed-forward's inner values.
    let narrow: Floats
    let cosine: Floats
    let sine: Floats

    init(_ configuration: ModelConfiguration, rows: Int) throws(ModelError) {
        let queries = configuration.headCount * configuration.headSize
        let keys = configuration.kvHeadCount * configuration.headSize
        let inner = configuration.feedForwardSize
        self.rows = rows
        states = try Floats(rows * configuration.hiddenSize)
        normed = try Floats(rows * configuration.hiddenSize)
        wide = try Floats(rows * max(queries + 2 * keys, 2 * inner))
        narrow = try Floats(rows * max(queries, inner))
        cosine = try Floats(rows * configuration.headSize / 2)
        sine = try Floats(rows * configuration.headSize / 2)
    }
}
