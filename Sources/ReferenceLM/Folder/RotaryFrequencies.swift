internal import Glibc

/// The frequencies that rotary position embeddings turn a head's pairs of elements by.
///
/// The operations, their order and their precision (float32 but for the ends of YaRN's ramp) are
/// those of `modeling_rope_utils.py` in Hugging Face transformers.
struct RotaryFrequencies: Hashable, Sendable {
    /// Radians that each pair turns by for each position; half as many as a head has elements.
    let inverse: [Float]
    /// What sines and cosines are multiplied by.
    let attentionFactor: Float

    init(_ configuration: ModelConfiguration) {
        let periods = Self.periods(
            theta: Float(configuration.ropeTheta), headSize: configuration.headSize)
        switch configuration.ropeScaling {
        case .none:
            inverse = periods.map { 1 / $0 }
            attentionFactor = 1
        case .linear(let factor):
            inverse = periods.map { 1 / $0 / Float(factor) }
            attentionFactor = 1
        case .llama3(let scaling):
            inverse = periods.map { scaling.stretched(1 / $0) }
            attentionFactor = 1
        case .yarn(let scaling):
            inverse = scaling.stretched(periods, theta: configuration.ropeTheta)
            attentionFactor = scaling.scale
        }
    }

    /// theta^(2i/d), positions for each radian.
    private static func periods(theta: Float, headSize: Int) -> [Float] {
        stride(from: 0, to: headSize, by: 2).map { powf(theta, Float($0) / Float(headSize)) }
    }
}

extension RopeScaling.Llama3 {
    /// A frequency after the scaling.
    fileprivate func stretched(_ frequency: Float) -> Float {
        let length = Double(originalContextLength)
        let wavelength = 1 / frequency * Float(2 * Double.pi)
        if wavelength < Float(length / highFrequencyFactor) { return frequency }
        if wavelength > Float(length / lowFrequencyFactor) { return frequency / Float(factor) }
        let rotations = 1 / wavelength * Float(length)
        let part =
            (rotations - Float(lowFrequencyFactor))
            / Float(highFrequencyFactor - lowFrequencyFactor)
        return (1 - part) * frequency / Float(factor) + part * frequency
    }
}

extension RopeScaling.Yarn {
    /// The frequencies after the scaling, from the periods before it.
    fileprivate func stretched(_ periods: [Float], theta: Double) -> [Float] {
        let (low, high) = ramp(headSize: periods.count * 2, theta: theta)
        return periods.indices.map { index in
            let position = (Float(index) - Float(low)) / Float(high - low)
            let unchanged = 1 - min(max(position, 0), 1)
            let stretched = 1 / (Float(factor) * periods[index])
            return stretched * (1 - unchanged) + 1 / periods[index] * unchanged
        }
    }

    /// The pairs between which the frequencies go from unchanged to divided.
    private func ramp(headSize: Int, theta: Double) -> (low: Double, high: Double) {
        var low = dimension(rotations: betaFast, headSize: headSize, theta: theta)
        var high = dimension(rotations: betaSlow, headSize: headSize, theta: theta)
        if truncate { (low, high) = (low.rounded(.down), high.rounded(.up)) }
        low = max(low, 0)
        high = min(high, Double(headSize - 1))
        return (low, low == high ? high + 0.001 : high)
    }

    /// The pair that turns so many times over the original context.
    private func dimension(rotations: Double, headSize: Int, theta: Double) -> Double {
        let period = Double(originalContextLength) / (rotations * 2 * Double.pi)
        return Double(headSize) * log(period) / (2 * log(theta))
    }

    /// What sines and cosines are multiplied by.
    fileprivate var scale: Float {
        if let attentionFactor { return Float(attentionFactor) }
        if let mscale, let mscaleAllDim, mscale != 0, mscaleAllDim != 0 {
            return Float(scale(by: mscale) / scale(by: mscaleAllDim))
        }
        return Float(scale(by: 1))
    }

    private func scale(by coefficient: Double) -> Double {
        factor <= 1 ? 1 : 0.1 * coefficient * log(factor) + 1
    }
}
