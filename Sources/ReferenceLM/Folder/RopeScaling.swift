/// How rotary position embeddings are stretched beyond the context that a model was first trained
/// with.
///
/// The names are those of `rope_type` in `config.json`.
public enum RopeScaling: Hashable, Sendable {
    /// The frequencies as they are ("default"). Also "dynamic", which is the same up to the
    /// context length of the model, and longer contexts are refused.
    case none
    /// Every frequency is divided by a factor.
    case linear(factor: Double)
    /// Low frequencies are divided by a factor, high ones stay, and those between are blended.
    case llama3(Llama3)
    /// Low frequencies are divided by a factor, high ones stay, a ramp over the dimensions lies
    /// between, and queries and keys are scaled. Source: YaRN, <https://arxiv.org/abs/2309.00071>.
    case yarn(Yarn)

    /// The numbers of the "llama3" scaling.
    public struct Llama3: Hashable, Sendable {
        /// What low frequencies are divided by.
        public let factor: Double
        /// Waves longer than the original context divided by this are of low frequency.
        public let lowFrequencyFactor: Double
        /// Waves shorter than the original context divided by this are of high frequency.
        public let highFrequencyFactor: Double
        /// The context length, in tokens, of the first training.
        public let originalContextLength: Int
    }

    /// The numbers of the "yarn" scaling.
    public struct Yarn: Hashable, Sendable {
        /// What low frequencies are divided by.
        public let factor: Double
        /// Rotations over the original context from where on frequencies stay.
        public let betaFast: Double
        /// Rotations over the original context up to where frequencies are divided.
        public let betaSlow: Double
        /// The scale of sines and cosines, where the model gives it.
        public let attentionFactor: Double?
        /// The numerator's coefficient where the scale of sines and cosines is a quotient.
        public let mscale: Double?
        /// The denominator's coefficient where the scale of sines and cosines is a quotient.
        public let mscaleAllDim: Double?
        /// The context length, in tokens, of the first training.
        public let originalContextLength: Int
        /// Whether the ends of the ramp are rounded to whole dimensions.
        public let truncate: Bool
    }
}

/// Reads the rotary parameters of a `config.json`, written in the old way (`rope_scaling` and
/// `rope_theta`) or in the new one (`rope_parameters`).
struct RopeReader {
    let fields: ConfigurationFields
    let contextLength: Int

    /// What `rope_theta` is where the file doesn't say.
    static let defaultTheta = 10_000.0

    func read() throws(ModelError) -> (theta: Double, scaling: RopeScaling) {
        let parameters = try parameters()
        try checkRotaryPart(fields)
        let outerTheta = try fields.number("rope_theta", in: FolderLimits.ropeTheta)
        guard let parameters else { return (outerTheta ?? Self.defaultTheta, .none) }
        try checkRotaryPart(parameters)
        let theta = try parameters.number("rope_theta", in: FolderLimits.ropeTheta)
        return (theta ?? outerTheta ?? Self.defaultTheta, try scaling(parameters))
    }

    /// The object that holds the parameters, if there is one.
    private func parameters() throws(ModelError) -> ConfigurationFields? {
        let old = try fields.object("rope_scaling")
        let new = try fields.object("rope_parameters")
        if let old, let new, !old.isEmpty, !new.isEmpty {
            guard fields.value("rope_scaling") == fields.value("rope_parameters") else {
                throw fields.invalid(
                    "\"rope_scaling\" and \"rope_parameters\" differ, only one may be there")
            }
        }
        let isOld = old.map { !$0.isEmpty } ?? false
        guard let parameters = isOld ? old : new else { return nil }
        for kind in ["full_attention", "sliding_attention"]
        where parameters.value(kind) != nil {
            throw fields.unsupported(
                "\"\(parameters.prefix)\(kind)\" asks for rotary parameters that differ by layer, "
                    + "which are not built in; use a model with one set of them")
        }
        return parameters
    }

    private func checkRotaryPart(_ fields: ConfigurationFields) throws(ModelError) {
        let name = "partial_rotary_factor"
        guard let part = try fields.number(name, in: 0...1), part != 1 else { return }
        throw fields.unsupported(
            "\"\(fields.prefix)\(name)\" is \(part); only heads that rotate as a whole are built "
                + "in, use a model with 1")
    }

    private func scaling(_ parameters: ConfigurationFields) throws(ModelError) -> RopeScaling {
        let named = try parameters.string("rope_type")
        let namedInOldWay = try parameters.string("type")
        let type = named ?? namedInOldWay ?? "default"
        switch type {
        // "dynamic" changes the frequencies only beyond max_position_embeddings.
        case "default", "dynamic": return .none
        case "linear":
            return .linear(factor: try parameters.required("factor", in: FolderLimits.ropeFactor))
        case "llama3": return .llama3(try llama3(parameters))
        case "yarn": return .yarn(try yarn(parameters))
        default:
            throw parameters.unsupported(
                "the rotary type \(type.quoted) is not built in; use a model with default, linear, "
                    + "dynamic, llama3 or yarn")
        }
    }

    private func llama3(_ parameters: ConfigurationFields) throws(ModelError) -> RopeScaling.Llama3
    {
        let factors = FolderLimits.ropeFactor
        let low = try parameters.required("low_freq_factor", in: factors)
        let high = try parameters.required("high_freq_factor", in: factors)
        guard low < high else {
            throw parameters.invalid(
                "\"\(parameters.prefix)low_freq_factor\" is \(low), it must be less than "
                    + "\"high_freq_factor\", which is \(high)")
        }
        return RopeScaling.Llama3(
            factor: try parameters.required("factor", in: factors), lowFrequencyFactor: low,
            highFrequencyFactor: high, originalContextLength: try originalLength(parameters))
    }

    private func yarn(_ parameters: ConfigurationFields) throws(ModelError) -> RopeScaling.Yarn {
        let factors = FolderLimits.ropeFactor
        let length = try originalLength(parameters)
        let implied = Double(contextLength) / Double(length)
        let fast = try orDefault("beta_fast", 32, parameters)
        let slow = try orDefault("beta_slow", 1, parameters)
        guard slow <= fast else {
            throw parameters.invalid(
                "\"\(parameters.prefix)beta_slow\" is \(slow), it must not be above "
                    + "\"beta_fast\", which is \(fast)")
        }
        return RopeScaling.Yarn(
            factor: try parameters.number("factor", in: factors) ?? implied,
            betaFast: fast, betaSlow: slow,
            attentionFactor: try parameters.number("attention_factor", in: factors),
            mscale: try parameters.number("mscale", in: 0...factors.upperBound),
            mscaleAllDim: try parameters.number("mscale_all_dim", in: 0...factors.upperBound),
            originalContextLength: length,
            truncate: try parameters.boolean("truncate") ?? true)
    }

    /// A number for which 0 means its default, too.
    private func orDefault(_ name: String, _ value: Double, _ parameters: ConfigurationFields)
        throws(ModelError) -> Double
    {
        let number = try parameters.number(name, in: 0...FolderLimits.ropeFactor.upperBound)
        return number.flatMap { $0 == 0 ? nil : $0 } ?? value
    }

    /// The length of the first training: some models say it outside the rotary parameters, which
    /// then counts; where nothing is said it is the context length.
    private func originalLength(_ parameters: ConfigurationFields) throws(ModelError) -> Int {
        let name = "original_max_position_embeddings"
        let outer = try fields.integer(name, in: FolderLimits.context)
        let inner = try parameters.integer(name, in: FolderLimits.context)
        return outer ?? inner ?? contextLength
    }
}
