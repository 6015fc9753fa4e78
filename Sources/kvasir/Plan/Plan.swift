import ArgumentParser
import Foundation
import KVSimulator

struct Plan: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "What to buy: sizes of memory and disk for a model, a GPU and a log of requests.",
        discussion: """
            kvasir plan --model config.json --gpu H100 --trace trace.jsonl
            kvasir plan --model config.json --gpu H100 --gpus 4 --profile chat --gpu-hour 2.50 \
            --memory-price 3 --disk-price 0.08

            Times are modelled from peak rates, not measured; docs/planning.md has the formulas and their sources.
            """)

    @OptionGroup(title: "Model and GPU") var compute: ComputeOptions

    @Option(
        help: ArgumentHelp(
            "A log of requests, as 'kvasir simulate' reads them; several times for several files.",
            valueName: "file"))
    var trace: [String] = []

    @Option(
        help: ArgumentHelp(
            "Made-up traffic instead: chat, agents, documents, or a JSON file (docs/planning.md).",
            valueName: "name"))
    var profile: String?

    @OptionGroup(title: "Trace") var traceOptions: TraceOptions

    @Option(help: ArgumentHelp("Sizes of the memory (64GiB,256GiB,1TiB).", valueName: "list"))
    var memory: ListOption<ByteCount>?

    @Option(help: ArgumentHelp("Sizes of the disk (0,2TB,8TB).", valueName: "list"))
    var disk: ListOption<ByteCount>?

    @Option(
        help: ArgumentHelp(
            "Bytes a second from memory to the GPU; without limit unless given.", valueName: "size")
    )
    var memoryBandwidth: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Bytes a second from disk to the GPU; without limit unless given.", valueName: "size"))
    var diskBandwidth: ByteCount?

    @Option(help: ArgumentHelp("Price of a GPU for an hour.", valueName: "money"))
    var gpuHour: Double?

    @Option(help: ArgumentHelp("Price of a GB of memory for a month.", valueName: "money"))
    var memoryPrice: Double?

    @Option(help: ArgumentHelp("Price of a GB of disk for a month.", valueName: "money"))
    var diskPrice: Double?

    @Option(help: ArgumentHelp("Of made-up traffic.", valueName: "n"))
    var seed: UInt64 = 1

    @Option(help: ArgumentHelp("Write JSON to this file; - is standard output.", valueName: "file"))
    var json: String?

    func validate() throws {
        if compute.model == nil { throw ValidationError("say which model: --model config.json") }
        if compute.gpu == nil, compute.flops == nil {
            throw ValidationError("say what computes: --gpu H100, or --flops 989T --mfu 0.55")
        }
        if !trace.isEmpty, profile != nil {
            throw ValidationError("take either --trace or --profile")
        }
        if profile != nil, traceOptions.format != nil {
            throw ValidationError("--format is for --trace")
        }
        for (name, price) in [
            ("gpu-hour", gpuHour), ("memory-price", memoryPrice), ("disk-price", diskPrice),
        ] {
            if let price, !(0...1e6).contains(price) {
                throw ValidationError("--\(name) takes 0 to 1000000, not \(price)")
            }
        }
        if gpuHour == nil, memoryPrice != nil || diskPrice != nil {
            throw ValidationError("prices of memory and disk need that of a GPU: --gpu-hour")
        }
        for (name, value) in [
            ("memory-bandwidth", memoryBandwidth), ("disk-bandwidth", diskBandwidth),
        ] {
            if let value, value.bytes < 1 { throw ValidationError("--\(name) must be above 0") }
        }
        if let memory, memory.values.contains(where: { $0.bytes < 1 }) {
            throw ValidationError("--memory takes sizes above 0")
        }
    }

    func run() throws {
        guard let model = try compute.shape(), let rate = try compute.rate() else { return }
        let bar = StageProgress()
        var report = PlanReport(
            model: model, gpu: compute.gpu, rate: rate, elementBytes: compute.kvDtype?.bytes)
        if let trace = try readTrace(bar) {
            var bandwidths = CapacityPlan.Bandwidths()
            if let memoryBandwidth { bandwidths.memory = Double(memoryBandwidth.bytes) }
            if let diskBandwidth { bandwidths.disk = Double(diskBandwidth.bytes) }
            var prices = CapacityPlan.Prices()
            prices.gpuHour = gpuHour
            prices.memoryGBMonth = memoryPrice
            prices.diskGBMonth = diskPrice
            let plan = CapacityPlan(
                trace, model: model, rate: rate, elementBytes: compute.kvDtype?.bytes,
                bandwidths: bandwidths, prices: prices)
            bar.done()
            report.add(
                plan, trace: trace,
                name: profile.map { "profile \($0)" } ?? traceNames,
                memories: sizes(memory, standard: [64 << 30, 256 << 30, 1 << 40]),
                disks: sizes(disk, standard: [0, 2_000_000_000_000, 8_000_000_000_000]),
                assumesNoLoadTime: memoryBandwidth == nil && diskBandwidth == nil)
        }
        if let json { try Simulate.write(try JSONOutput.snakeCase(report.object), to: json) }
        if json != "-" { print(report.text) }
    }

    private var traceNames: String {
        trace.map { URL(fileURLWithPath: $0).lastPathComponent }.joined(separator: ", ")
    }

    private func sizes(_ list: ListOption<ByteCount>?, standard: [Int]) -> [Double] {
        (list?.values.map(\.bytes) ?? standard).map(Double.init)
    }

    private func readTrace(_ bar: StageProgress) throws -> Trace? {
        if !trace.isEmpty { return try traceOptions.read(trace, bar) }
        guard let profile else { return nil }
        let description: SessionProfile
        if let known = SessionProfile.named[profile] {
            description = known
        } else {
            let data: Data
            do {
                data = try Data(contentsOf: URL(fileURLWithPath: profile))
            } catch {
                throw CommandFailure(
                    "there is no profile \(profile) "
                        + "(\(SessionProfile.named.keys.sorted().joined(separator: ", "))), and no "
                        + "file of that name (\(FileProblem.reason(profile, error)))")
            }
            description = try SessionProfile(json: data)
        }
        return try description.trace(chunkTokens: traceOptions.chunkTokens ?? 256, seed: seed)
    }
}
