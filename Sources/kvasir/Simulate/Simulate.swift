import ArgumentParser
import Foundation
import KVPolicy
import KVSimulator
import KVStore

struct Simulate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract:
            "Replay a log of requests: what caches of other sizes and policies would have found.",
        discussion: """
            All policies at ten sizes; two of them and a plot; memory and disk in bytes; how long users wait; \
            a compressed log:

              kvasir simulate trace.jsonl
              kvasir simulate trace.jsonl --policy lru,optimum --svg curve.svg
              kvasir simulate trace.jsonl --model config.json --memory 500GB --disk 4TB
              kvasir simulate trace.jsonl --policy lru --prefill-rate 30k
              gzip -dc trace.jsonl.gz | kvasir simulate - --json -

            Several files are one trace, in the order given. Formats, semantics and limits: docs/simulator.md.
            """)

    @Argument(help: "The files; - is standard input.", completion: .file())
    var traces: [String]

    @OptionGroup(title: "Trace") var traceOptions: TraceOptions

    @Option(
        help: ArgumentHelp(
            "Policies: \(Simulation.Contender.names.joined(separator: ", ")).",
            valueName: "names"))
    var policy: ListOption<String>?

    @Option(help: ArgumentHelp("Sizes of the memory, in chunks.", valueName: "list"))
    var capacityChunks: ListOption<Quantity>?

    @Option(help: ArgumentHelp("Sizes of the memory, in tokens: 3M,10M.", valueName: "list"))
    var capacityTokens: ListOption<Quantity>?

    @Option(
        name: [.customLong("capacity-bytes"), .customLong("memory")],
        help: ArgumentHelp(
            "Sizes of the memory: 256GiB,1TB; needs --model or --bytes-per-token.",
            valueName: "list"))
    var capacityBytes: ListOption<ByteCount>?

    @Option(
        help: ArgumentHelp(
            "Sizes of the disk behind it, in chunks: one, or one for each size of the memory.",
            valueName: "list"))
    var diskChunks: ListOption<Quantity>?

    @Option(help: ArgumentHelp("The same in tokens.", valueName: "list"))
    var diskTokens: ListOption<Quantity>?

    @Option(
        name: [.customLong("disk-bytes"), .customLong("disk")],
        help: ArgumentHelp("The same in bytes.", valueName: "list"))
    var diskBytes: ListOption<ByteCount>?

    @Option(
        help: ArgumentHelp(
            "Which chunks go to disk: \(DiskAdmission.allCases.map(\.rawValue).joined(separator: ", ")) "
                + "(all).", valueName: "rule"))
    var diskAdmission: String?

    @Option(help: ArgumentHelp("Bytes of a token's KV.", valueName: "n"))
    var bytesPerToken: Quantity?

    @Flag(help: "Store partial last chunks, too, which Kvasir never does.")
    var storePartial = false

    @Option(
        help: ArgumentHelp(
            "Give each request a hint, whether it will be continued, that is right so often.",
            valueName: "share"))
    var hintAccuracy: Share?

    @Option(help: ArgumentHelp("Of hints and random routing.", valueName: "n"))
    var seed: UInt64 = 1

    @Option(
        help: ArgumentHelp(
            "Look at this share of the chunks for the curve of lru, which has an error then.",
            valueName: "share"))
    var sample: Share?

    @OptionGroup(title: "Servers") var servers: ClusterOptions

    @OptionGroup(title: "Times") var times: TimeOptions

    @OptionGroup(title: "Model and GPU") var compute: ComputeOptions

    @Option(help: ArgumentHelp("Write JSON to this file; - is standard output.", valueName: "file"))
    var json: String?

    @Option(help: ArgumentHelp("Write CSV to this file; - is standard output.", valueName: "file"))
    var csv: String?

    @Option(
        help: ArgumentHelp(
            "Draw the share found over the size to this file; - is standard output.",
            valueName: "file"))
    var svg: String?

    func validate() throws {
        if let policy {
            for name in policy.values where Simulation.Contender(named: name) == nil {
                throw ValidationError(
                    "--policy \(name) is not known; there are "
                        + Simulation.Contender.names.joined(separator: ", "))
            }
        }
        let sizes = [capacityChunks != nil, capacityTokens != nil, capacityBytes != nil]
        if sizes.count(where: { $0 }) > 1 {
            throw ValidationError(
                "take one of --capacity-chunks, --capacity-tokens and --capacity-bytes")
        }
        let disks = [diskChunks != nil, diskTokens != nil, diskBytes != nil]
        if disks.count(where: { $0 }) > 1 {
            throw ValidationError("take one of --disk-chunks, --disk-tokens and --disk-bytes")
        }
        let hasDisk = disks.contains(true)
        if hasDisk, !sizes.contains(true) {
            throw ValidationError("a disk needs a memory in front: say --capacity-chunks, too")
        }
        if !hasDisk, diskAdmission != nil {
            throw ValidationError("--disk-admission needs a disk: say --disk-chunks, too")
        }
        if let diskAdmission, DiskAdmission(rawValue: diskAdmission) == nil {
            throw ValidationError(
                "--disk-admission takes "
                    + DiskAdmission.allCases.map(\.rawValue).joined(separator: ", "))
        }
        if hasDisk, svg != nil {
            throw ValidationError("--svg draws a memory alone; leave the disk away")
        }
        if capacityBytes != nil || diskBytes != nil, bytesPerToken == nil, compute.model == nil {
            throw ValidationError(
                "sizes in bytes need the size of a token: --model config.json or --bytes-per-token")
        }
        if bytesPerToken != nil, compute.model != nil {
            throw ValidationError("take either --model or --bytes-per-token")
        }
        if servers.share == .disk {
            if !hasDisk {
                throw ValidationError("--share disk needs a disk: say --disk-chunks, too")
            }
            if diskAdmission ?? "all" != "all" {
                throw ValidationError(
                    "what a shared disk gets is all that is stored; leave --disk-admission away")
            }
        }
        if let hintAccuracy, hintAccuracy.value < 0.5 {
            throw ValidationError("--hint-accuracy takes 0.5 (useless) to 1 (always right)")
        }
        if let sample, sample.value < 0.0001 {
            throw ValidationError("--sample takes 0.0001 to 1")
        }
        if traces.count(where: { $0 == "-" }) > 1 {
            throw ValidationError("standard input can be read only once")
        }
        if outputs.count(where: { $0 == "-" }) > 1 {
            throw ValidationError(
                "only one of --json, --csv and --svg can go to standard output; give the others a "
                    + "file")
        }
        let hasRate = compute.gpu != nil || compute.flops != nil
        if hasRate, compute.model == nil {
            throw ValidationError("--gpu and --flops need the model: --model config.json")
        }
        try times.validate(
            hasRate: hasRate, hasTokenSize: compute.model != nil || bytesPerToken != nil,
            hasDisk: hasDisk)
    }

    private var outputs: [String] { [json, csv, svg].compactMap { $0 } }

    /// Whether the tables are printed, which something else has standard output for otherwise.
    var printsText: Bool { !outputs.contains("-") }

    func run() throws {
        let bar = StageProgress()
        let shape = try compute.shape()
        let trace = try traceOptions.read(traces, bar)
        var simulation = Simulation(trace)
        simulation.storesPartial = storePartial
        simulation.cluster = servers.cluster
        simulation.hintAccuracy = hintAccuracy?.value
        simulation.seed = seed
        simulation.sample = sample?.value ?? 1
        simulation.admission = diskAdmission.flatMap { DiskAdmission(rawValue: $0) } ?? .all
        let tokenBytes =
            bytesPerToken.map { Double($0.value) }
            ?? shape.map { $0.bytesPerToken(elementBytes: compute.kvDtype?.bytes) }
        if let service = try service(shape) {
            let timing = times.timing(service, tokenBytes: tokenBytes)
            simulation.timing = timing
            if trace.seconds == 0 {
                Output.tell(
                    "Warning: no time passes from the first request of the trace to the last, so "
                        + "nothing can be said of queues; times are those of requests that wait for "
                        + "nobody. A log needs the times of its requests.\n")
            }
        }
        let contenders = self.contenders()
        let capacities = try self.capacities(simulation, tokenBytes)
        let disks = try self.disks(capacities.count, trace, tokenBytes)
        let points = try run(simulation, contenders, capacities, disks, bar)
        let report = SimulationReport(
            simulation: simulation, files: traces, points: points, tokenBytes: tokenBytes)
        if let svg {
            simulation.timing = nil
            let ladder = simulation.ladder(CurvePlot.pointCount)
            let plot = CurvePlot(
                title: report.title, chunkTokens: trace.chunkTokens, tokenBytes: tokenBytes,
                points: try run(simulation, contenders, ladder, [], bar),
                unboundedShare: report.unbounded.tokenShare, cluster: simulation.cluster)
            try Self.write(plot.svg, to: svg)
        }
        if let csv { try Self.write(report.csv, to: csv) }
        if let json { try Self.write(try report.json(), to: json) }
        if printsText { print(report.text) }
    }

    private func run(
        _ simulation: Simulation, _ contenders: [Simulation.Contender], _ capacities: [Int],
        _ disks: [Int], _ bar: StageProgress
    ) throws -> [Simulation.Point] {
        defer { bar.done() }
        return try contenders.flatMap { contender in
            try simulation.run(contender, capacities: capacities, disks: disks) {
                bar.show("replaying \(contender.name)", $0)
            }
        }
    }

    private func contenders() -> [Simulation.Contender] {
        let names = policy?.values ?? PolicyName.allCases.map(\.rawValue) + ["optimum"]
        var seen: Set<String> = []
        return names.filter { seen.insert($0).inserted }.compactMap {
            Simulation.Contender(named: $0)
        }
    }

    /// Chunks of each size of memory.
    private func capacities(_ simulation: Simulation, _ tokenBytes: Double?) throws -> [Int] {
        let size = simulation.trace.chunkTokens
        if let capacityChunks { return try Self.sizes(capacityChunks.values.map(\.value), size) }
        if let capacityTokens {
            return try Self.sizes(capacityTokens.values.map { $0.value / size }, size)
        }
        if let capacityBytes, let tokenBytes {
            let chunkBytes = tokenBytes * Double(size)
            return try Self.sizes(
                capacityBytes.values.map { Int(clamping: Double($0.bytes) / chunkBytes) }, size)
        }
        return simulation.ladder(10)
    }

    /// Chunks of the disk behind each size of memory.
    private func disks(_ count: Int, _ trace: Trace, _ tokenBytes: Double?) throws -> [Int] {
        let size = trace.chunkTokens
        var disks: [Int]
        if let diskChunks {
            disks = diskChunks.values.map(\.value)
        } else if let diskTokens {
            disks = diskTokens.values.map { $0.value / size }
        } else if let diskBytes, let tokenBytes {
            let chunkBytes = tokenBytes * Double(size)
            disks = diskBytes.values.map { Int(clamping: Double($0.bytes) / chunkBytes) }
        } else {
            return []
        }
        disks = try Self.sizes(disks, size)
        if disks.count == 1 { disks = Array(repeating: disks[0], count: count) }
        if disks.count != count {
            throw ValidationError(
                "\(disks.count) sizes of the disk for \(count) of the memory: give one, or as many")
        }
        if let small = disks.first(where: { $0 < 256 }) {
            throw ValidationError("a disk of \(small) chunks is too small; 256 are the least")
        }
        return disks
    }

    private static func sizes(_ chunks: [Int], _ chunkTokens: Int) throws -> [Int] {
        for count in chunks where !(1...Int(Int32.max)).contains(count) {
            throw ValidationError(
                count < 1
                    ? "a size is less than one chunk of \(chunkTokens) tokens"
                    : "a size of \(count) chunks is more than the \(Int32.max) that are possible")
        }
        return chunks
    }

    /// What computing takes; nil if nothing is said of times.
    private func service(_ shape: ModelShape?) throws -> ServiceModel? {
        if let rate = times.prefillRate {
            return ServiceModel(secondsPerToken: 1 / Double(rate.value))
        }
        guard let shape, let rate = try compute.rate() else { return nil }
        return rate.serviceModel(shape)
    }

    /// - Parameter path: `-` is standard output.
    static func write(_ text: String, to path: String) throws {
        if path == "-" { return Output.write(text) }
        do {
            try Data(text.utf8).write(to: URL(fileURLWithPath: path))
        } catch {
            throw CommandFailure("can't write \(path) (\(FileProblem.reason(path, error)))")
        }
    }
}
