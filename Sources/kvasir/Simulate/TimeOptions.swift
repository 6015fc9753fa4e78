import ArgumentParser
import KVSimulator

/// How long prompts take, and when they come.
struct TimeOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Tokens a second of a prefill; or say --model and --gpu.", valueName: "n"))
    var prefillRate: Quantity?

    @Option(
        help: ArgumentHelp(
            "Bytes a second at which an engine loads KV from memory: 25GB.", valueName: "size"))
    var loadBandwidth: ByteCount?

    @Option(
        help: ArgumentHelp(
            "The same from disk; that of memory by default.", valueName: "size"))
    var diskBandwidth: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Engines of a server, each with one prompt at a time.", valueName: "n"))
    var engines: Int?

    @Option(
        help: ArgumentHelp("Requests come so many times as fast: 2.", valueName: "factor"))
    var speedup: Factor?

    @Flag(
        help: """
            Spread requests that have the same time evenly over the time to the next one, where the \
            log's clock is coarse.
            """)
    var spreadArrivals = false

    private var bandwidths: [(name: String, value: ByteCount?)] {
        [("load-bandwidth", loadBandwidth), ("disk-bandwidth", diskBandwidth)]
    }

    /// - Parameters:
    ///   - hasRate: a GPU or its rate is named.
    ///   - hasTokenSize: the size of a token is known.
    func validate(hasRate: Bool, hasTokenSize: Bool, hasDisk: Bool) throws {
        if prefillRate != nil, hasRate {
            throw ValidationError("take either --prefill-rate or --gpu (or --flops)")
        }
        let given = bandwidths.filter { $0.value != nil }.map(\.name)
        let others = [
            (engines != nil, "engines"), (speedup != nil, "speedup"),
            (spreadArrivals, "spread-arrivals"),
        ].filter(\.0).map(\.1)
        if let name = (given + others).first, prefillRate == nil, !hasRate {
            throw ValidationError(
                "--\(name) is for times, which need --prefill-rate or --model and --gpu")
        }
        for (name, value) in bandwidths {
            if let value, value.bytes < 1 { throw ValidationError("--\(name) must be above 0") }
        }
        if let name = given.first, !hasTokenSize {
            throw ValidationError(
                "--\(name) needs the size of a token: --model or --bytes-per-token")
        }
        if diskBandwidth != nil, !hasDisk {
            throw ValidationError("--disk-bandwidth needs a disk: say --disk-chunks, too")
        }
        if let engines, !(1...QueueReplay.enginesMaximum).contains(engines) {
            throw ValidationError(
                "--engines takes 1 to \(QueueReplay.enginesMaximum), not \(engines)")
        }
    }

    /// Adds what loading takes, and when requests come.
    func timing(_ service: ServiceModel, tokenBytes: Double?) -> Timing {
        var timing = Timing(service)
        func seconds(_ bandwidth: ByteCount?) -> Double? {
            guard let bandwidth, let tokenBytes else { return nil }
            return tokenBytes / Double(bandwidth.bytes)
        }
        timing.service.loadSecondsPerToken = seconds(loadBandwidth) ?? 0
        timing.service.diskLoadSecondsPerToken =
            seconds(diskBandwidth) ?? timing.service.loadSecondsPerToken
        timing.engines = engines ?? 1
        timing.speedup = speedup?.value ?? 1
        timing.spreadsArrivals = spreadArrivals
        return timing
    }
}

/// A factor from a thousandth to a thousand: `2`, `1.5`.
struct Factor: ExpressibleByArgument {
    var value: Double

    init?(argument: String) {
        guard let value = Double(argument), (0.001...1000).contains(value) else { return nil }
        self.value = value
    }
}
