/// A GPU as its maker describes it.
///
/// Peak rates are those of dense matrices, without sparsity; docs/planning.md names the data sheets.
package struct Accelerator: Sendable, Equatable {
    package let name: String
    /// Peak FLOPS in 16-bit floating point, accumulated in 32 bits.
    package let flops: Double
    /// Peak FLOPS in 8-bit floating point; nil where it has none.
    package let flops8: Double?
    /// Bytes of its own memory.
    package let memoryBytes: Double

    package static let known: [Accelerator] = [
        .init("A10", 125e12, nil, 24e9),
        .init("A100-40GB", 312e12, nil, 40e9),
        .init("A100-80GB", 312e12, nil, 80e9),
        .init("L4", 121e12, 242.5e12, 24e9),
        .init("L40S", 362e12, 733e12, 48e9),
        .init("RTX-4090", 165.2e12, 330.3e12, 24e9),
        .init("H20", 148e12, 296e12, 96e9),
        .init("H100-PCIe", 756e12, 1513e12, 80e9),
        .init("H100", 989e12, 1979e12, 80e9),
        .init("H200", 989e12, 1979e12, 141e9),
        .init("B200", 2250e12, 4500e12, 180e9),
        .init("MI300X", 1307.4e12, 2614.9e12, 192e9),
    ]

    private init(_ name: String, _ flops: Double, _ flops8: Double?, _ memoryBytes: Double) {
        self.name = name
        self.flops = flops
        self.flops8 = flops8
        self.memoryBytes = memoryBytes
    }

    /// The one of that name, whatever the case of its letters.
    package static func named(_ name: String) -> Accelerator? {
        known.first { $0.name.lowercased() == name.lowercased() }
    }
}

/// The machines that compute: a peak rate, and the share of it that a prefill reaches. Modelled, not
/// measured.
package struct ComputeRate: Sendable, Equatable {
    /// Peak of one GPU.
    package var flops: Double
    package var gpuCount: Int
    /// Model FLOPS utilisation.
    package var utilization: Double

    package init(flops: Double, gpuCount: Int, utilization: Double) {
        self.flops = flops
        self.gpuCount = gpuCount
        self.utilization = utilization
    }

    /// What is assumed of a known GPU: 0.55 of the peak in 16 bits, 0.45 in 8 bits or with tensor
    /// parallelism.
    package init(
        _ gpu: Accelerator, gpuCount: Int = 1, isIn8Bits: Bool = false
    ) throws(PlanError) {
        if isIn8Bits, gpu.flops8 == nil {
            throw PlanError("\(gpu.name) has no 8-bit floating point; leave --fp8-compute away")
        }
        self.init(
            flops: isIn8Bits ? gpu.flops8! : gpu.flops, gpuCount: gpuCount,
            utilization: isIn8Bits || gpuCount > 1 ? 0.45 : 0.55)
    }

    /// The least peak of a GPU: slower ones make figures that mean nothing.
    package static let flopsMinimum = 1e9
    /// The least share of the peak.
    package static let utilizationMinimum = 0.001

    /// - Throws: What is out of bounds, by the names of the options.
    package func check() throws(PlanError) {
        if !(flops >= Self.flopsMinimum && flops.isFinite) {
            throw PlanError("--flops must be at least \(Int(Self.flopsMinimum / 1e9))G")
        }
        if !(Self.utilizationMinimum...1).contains(utilization) {
            throw PlanError("--mfu must be from \(Self.utilizationMinimum) to 1")
        }
    }

    /// FLOPS of all together that a prefill gets.
    package var effectiveFLOPS: Double { flops * Double(gpuCount) * utilization }

    /// Tokens a second of a prefill of so many tokens.
    package func prefillRate(_ model: ModelShape, tokens: Double) -> Double {
        tokens * effectiveFLOPS / model.prefillFLOPs(tokens: tokens)
    }

    /// Tokens a second where attention's square is of no account.
    package func prefillRateShort(_ model: ModelShape) -> Double {
        effectiveFLOPS / model.prefillCoefficients.linear
    }

    /// Bytes a second above which loading a prefix of so many tokens is faster than computing it.
    package func breakEvenBandwidth(
        _ model: ModelShape, tokens: Double, elementBytes: Double? = nil
    ) -> Double {
        model.bytesPerToken(elementBytes: elementBytes) * prefillRate(model, tokens: tokens)
    }

    /// How long prompts take by this model.
    package func serviceModel(_ model: ModelShape) -> ServiceModel {
        let (linear, quadratic) = model.prefillCoefficients
        var service = ServiceModel(secondsPerToken: linear / effectiveFLOPS)
        service.secondsPerTokenSquared = quadratic / effectiveFLOPS
        return service
    }
}
