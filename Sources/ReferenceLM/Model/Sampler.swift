internal import Glibc

/// Chooses the next token from logits.
public struct Sampler: Sendable {
    /// 0 takes the likeliest token always; higher values spread further.
    public let temperature: Double
    /// Of the likeliest tokens, those that have this share of the probability together; 1 for all.
    public let topShare: Double
    private var random: SeededRandom

    /// A sampler; the same seed chooses the same tokens.
    public init(temperature: Double = 0, topShare: Double = 1, seed: UInt64 = 0) {
        self.temperature = temperature
        self.topShare = topShare
        random = SeededRandom(seed: seed)
    }

    /// The index of the chosen logit. Of equal ones the first.
    public mutating func next(_ logits: [Float]) -> UInt32 {
        if temperature <= 0 { return Self.likeliest(logits) }
        let order = logits.indices.sorted {
            (logits[$0], $1) > (logits[$1], $0)
        }
        let top = Double(logits[order[0]])
        let weights = order.map { exp((Double(logits[$0]) - top) / temperature) }
        let whole = weights.reduce(0, +)
        var kept = 0.0
        var count = 0
        while count < weights.count, count == 0 || kept < topShare * whole {
            kept += weights[count]
            count += 1
        }
        var left = random.unit() * kept
        for index in 0..<count {
            left -= weights[index]
            if left < 0 { return UInt32(order[index]) }
        }
        return UInt32(order[count - 1])
    }

    /// The index of the largest logit, of equal ones the first.
    public static func likeliest(_ logits: some Sequence<Float>) -> UInt32 {
        var best = (index: 0, value: -Float.infinity)
        for (index, value) in logits.enumerated() where value > best.value {
            best = (index, value)
        }
        return UInt32(best.index)
    }
}
