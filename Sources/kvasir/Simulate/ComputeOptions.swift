import ArgumentParser
import Foundation
import KVSimulator

/// The model and the GPUs that compute; `simulate` and `plan` share it.
struct ComputeOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The model: its config.json, or the folder that has it.", valueName: "file"))
    var model: String?

    @Option(
        help: ArgumentHelp(
            "Type of the KV cache: bf16, fp16, fp32, fp8, int8; that of the weights by default.",
            valueName: "type"))
    var kvDtype: KVType?

    @Option(
        help: ArgumentHelp(
            "The GPU: \(Accelerator.known.map(\.name).joined(separator: ", ")).", valueName: "name")
    )
    var gpu: String?

    @Option(help: ArgumentHelp("GPUs that compute one prompt together.", valueName: "n"))
    var gpus = 1

    @Flag(help: "The GPU computes in 8 bits.")
    var fp8Compute = false

    @Option(
        help: ArgumentHelp(
            "Peak FLOPS of one GPU, instead of the table's: 989T.", valueName: "flops"))
    var flops: Quantity?

    @Option(
        help: ArgumentHelp(
            "Share of the peak that a prefill reaches (0.55; 0.45 in 8 bits or with several GPUs).",
            valueName: "share"))
    var mfu: Share?

    enum KVType: String, ExpressibleByArgument, CaseIterable {
        case bf16, fp16, fp32, fp8, int8

        var bytes: Double {
            switch self {
            case .bf16, .fp16: 2
            case .fp32: 4
            case .fp8, .int8: 1
            }
        }
    }

    func validate() throws {
        if !(1...1024).contains(gpus) {
            throw ValidationError("--gpus takes 1 to 1024, not \(gpus)")
        }
        if let gpu, Accelerator.named(gpu) == nil {
            throw ValidationError(
                "--gpu \(gpu) is not known (\(Accelerator.known.map(\.name).joined(separator: ", "))); "
                    + "give --flops and --mfu instead")
        }
        if flops != nil, gpu != nil {
            throw ValidationError("take either --gpu or --flops, not both")
        }
        do {
            // The rates of known GPUs are in bounds; then this is about --mfu only.
            let peak = flops.map { Double($0.value) } ?? ComputeRate.flopsMinimum
            try ComputeRate(flops: peak, gpuCount: gpus, utilization: mfu?.value ?? 1).check()
        } catch {
            throw ValidationError(error.description)
        }
    }

    /// The shape of the model; nil if none is named.
    func shape() throws -> ModelShape? {
        guard let model else { return nil }
        var isDirectory: ObjCBool = false
        let isFolder =
            FileManager.default.fileExists(atPath: model, isDirectory: &isDirectory)
            && isDirectory.boolValue
        let path = isFolder ? model + "/config.json" : model
        let data: Data
        do {
            data = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw CommandFailure("can't read \(path) (\(FileProblem.reason(path, error)))")
        }
        return try ModelShape(config: data)
    }

    /// What computes; nil if neither a GPU nor a rate is named.
    func rate() throws -> ComputeRate? {
        var rate: ComputeRate
        if let gpu = gpu.flatMap({ Accelerator.named($0) }) {
            rate = try ComputeRate(gpu, gpuCount: gpus, isIn8Bits: fp8Compute)
        } else if let flops {
            rate = ComputeRate(
                flops: Double(flops.value), gpuCount: gpus,
                utilization: fp8Compute || gpus > 1 ? 0.45 : 0.55)
        } else {
            return nil
        }
        if let mfu { rate.utilization = mfu.value }
        return rate
    }
}
