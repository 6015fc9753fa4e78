/// Where a model's weights come from.
public protocol WeightSource {
    /// Looks whether a tensor is there and of this shape, before memory is taken for it.
    ///
    /// - Throws: `weights` if it is not.
    func check(_ name: String, shape: [Int]) throws(ModelError)

    /// Puts a tensor's elements, row by row, into `destination`, which has exactly as many.
    ///
    /// - Parameter shape: what the tensor's must be.
    /// - Throws: `weights` if it is missing, damaged or of another shape.
    func read(
        _ name: String, shape: [Int], into destination: UnsafeMutableBufferPointer<Float>
    ) throws(ModelError)

    /// All has been read: makes sure that it belongs together.
    func finish() throws(ModelError)
}

extension WeightSource {
    public func finish() {}
}

extension ModelFolder: WeightSource {
    public func check(_ name: String, shape: [Int]) throws(ModelError) {
        _ = try tensor(name, shape: shape)
    }

    public func read(
        _ name: String, shape: [Int], into destination: UnsafeMutableBufferPointer<Float>
    ) throws(ModelError) {
        try tensor(name, shape: shape).read(into: destination)
    }

    public func finish() throws(ModelError) {
        for file in weightFiles { try file.checkUnchanged() }
    }
}

/// Weights of no sense, the same for the same seed: for tests and measurements.
public struct RandomWeights: WeightSource, Sendable {
    /// What they are made from.
    public let seed: UInt64

    /// Weights for a seed.
    public init(seed: UInt64) {
        self.seed = seed
    }

    /// Every tensor is there.
    public func check(_ name: String, shape: [Int]) {}

    /// Uniform, of variance 1 / depth, so that activations keep their size; norms are around 1.
    public func read(
        _ name: String, shape: [Int], into destination: UnsafeMutableBufferPointer<Float>
    ) {
        var random = SeededRandom(seed: seed)
        for byte in name.utf8 { random = SeededRandom(seed: random.next() ^ UInt64(byte)) }
        let isNorm = shape.count == 1 && name.hasSuffix(".weight")
        let spread = isNorm ? 0.1 : (3 / Double(shape.last ?? 1)).squareRoot()
        for index in destination.indices {
            let value = (2 * random.unit() - 1) * spread
            destination[index] = Float(isNorm ? 1 + value : value)
        }
    }
}

/// Repeatable pseudo-random numbers (splitmix64). Source: Vigna, <https://prng.di.unimi.it/>.
public struct SeededRandom: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// The sequence of a seed.
    public init(seed: UInt64) {
        state = seed
    }

    /// The next 64 bits.
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// A number in [0, 1).
    mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }
}
