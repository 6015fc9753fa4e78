internal import CKernels

/// A weight matrix as the kernels want it: several tensors one under the other, with their biases.
final class PackedMatrix: Sendable {
    /// Outputs.
    let columns: Int
    /// Inputs.
    let depth: Int
    private let weights: Floats
    /// One value for each output; nil without biases.
    private let bias: Floats?

    /// Reads `name`.weight and, if asked to, `name`.bias for each part.
    init(
        _ parts: [(name: String, columns: Int, hasBias: Bool)], depth: Int,
        from source: some WeightSource
    ) throws(ModelError) {
        for part in parts {
            try source.check("\(part.name).weight", shape: [part.columns, depth])
            if part.hasBias { try source.check("\(part.name).bias", shape: [part.columns]) }
        }
        columns = parts.reduce(0) { $0 + $1.columns }
        self.depth = depth
        weights = try Floats(kvk_packed_bytes(columns, depth) / 4)
        bias = parts.contains { $0.hasBias } ? try Floats(columns) : nil
        let plain = try Floats((parts.map(\.columns).max() ?? 0) * depth)
        var first = 0
        for part in parts {
            let buffer = UnsafeMutableBufferPointer(
                start: plain.pointer, count: part.columns * depth)
            try source.read("\(part.name).weight", shape: [part.columns, depth], into: buffer)
            kvk_pack(weights.pointer, depth, first, plain.pointer, part.columns)
            if part.hasBias, let bias {
                try source.read(
                    "\(part.name).bias", shape: [part.columns],
                    into: UnsafeMutableBufferPointer(
                        start: bias.pointer + first, count: part.columns))
            }
            first += part.columns
        }
    }

    /// output = input × weights + bias, for `rows` rows that lie side by side.
    func multiply(
        _ input: UnsafePointer<Float>, rows: Int, into output: UnsafeMutablePointer<Float>,
        _ kernels: Kernels, _ pool: ComputePool
    ) {
        kvk_matmul(
            pool.pointer, kernels.pointer, input, depth, rows, weights.pointer, columns, depth,
            output, columns)
        if let bias {
            kvk_add(
                pool.pointer, kernels.pointer, output, columns, bias.pointer, 0, rows, columns)
        }
    }

    /// The weights of one output: a row of the tensor.
    func copyRow(_ column: Int, into destination: UnsafeMutablePointer<Float>) {
        kvk_unpack(weights.pointer, depth, column, destination)
    }
}
