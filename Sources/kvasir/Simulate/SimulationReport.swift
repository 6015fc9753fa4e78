import Foundation
import KVSimulator

/// What `kvasir simulate` says, as a table, JSON and CSV.
struct SimulationReport {
    let simulation: Simulation
    let files: [String]
    let points: [Simulation.Point]
    let tokenBytes: Double?
    /// What a cache without bound finds.
    let unbounded: ReplayResult
    /// When there is no cache; nil if nothing is said of queues.
    let timesWithout: QueueOutcome?

    /// Characters of a line of the table, at most.
    private static let lineWidth = 80
    /// Lines of the table of times, at most; more are shown by policy and size.
    private static let timeRowsMaximum = 24
    /// Of requests with the time of the one before them: more are a coarse clock.
    private static let equalTimesMaximum = 0.5

    init(
        simulation: Simulation, files: [String], points: [Simulation.Point], tokenBytes: Double?
    ) {
        self.simulation = simulation
        self.files = files
        self.points = points
        self.tokenBytes = tokenBytes
        timesWithout = simulation.timesWithout()
        unbounded = .unbounded(simulation.trace, storesPartial: simulation.storesPartial)
    }

    private var trace: Trace { simulation.trace }
    private var service: ServiceModel? { simulation.timing?.service }

    private func outcome(_ point: Simulation.Point, _ service: ServiceModel) -> ServiceModel.Outcome
    {
        service.outcome(of: point.result, diskHitTokens: point.tiers?.diskHitTokens ?? 0)
    }

    var title: String {
        files.map { $0 == "-" ? "standard input" : URL(fileURLWithPath: $0).lastPathComponent }
            .joined(separator: ", ")
    }

    // MARK: Table

    var text: String {
        var parts = [heading]
        if points.contains(where: { $0.tiers != nil }) {
            parts.append("Tokens found, in % of those of all prompts\n\n" + tierTable)
        } else {
            parts.append(
                "Tokens found, in % of those of all prompts\n\n"
                    + grid { Format.fixed($0.result.tokenShare * 100, 1) })
        }
        if let service {
            let without = service.outcome(of: unbounded)
            if timesWithout == nil {
                let mean = milliseconds(without.meanFirstTokenSecondsWithout)
                parts.append(
                    "Mean time to the first token, in ms (\(mean) without a cache; no queues)\n\n"
                        + grid { milliseconds(outcome($0, service).meanFirstTokenSeconds) })
            } else {
                parts += times
            }
            parts.append(
                "Seconds of prefill saved, of \(Format.whole(without.prefillSecondsWithout))\n\n"
                    + grid { Format.whole(outcome($0, service).prefillSecondsSaved) })
        }
        parts.append(contentsOf: notes)
        return parts.joined(separator: "\n\n")
    }

    private var heading: String {
        let trace = trace
        var lines = [
            "\(title): \(Format.count(trace.requests.count, "request")) in "
                + "\(Format.age(Int(trace.seconds * 1000))),",
            "  \(Format.quantity(Double(trace.tokenCount))) tokens in "
                + "\(Format.number(trace.chunkCount)) chunks of \(trace.chunkTokens), "
                + "\(Format.number(trace.storableCount)) different full ones;",
            "  a cache without bound finds \(Format.fixed(unbounded.tokenShare * 100, 1)) % of the "
                + "tokens",
        ]
        if simulation.cluster.servers > 1 {
            let cluster = simulation.cluster
            let count = cluster.servers
            let what =
                switch cluster.sharing {
                case .none: "sizes are of each"
                case .disk: "memory of that size each, and one disk of \(count) times the size"
                case .all: "one cache of \(count) times the size"
                }
            lines.append(
                "  \(count) servers, requests by \(cluster.routing.rawValue);\n  \(what)")
        }
        return lines.joined(separator: "\n")
    }

    private var notes: [String] {
        var notes: [String] = []
        var seen: Set<String> = []
        let renamed = points.map(\.contender).filter {
            $0.runs != $0.name && seen.insert($0.name).inserted
        }
        if !renamed.isEmpty {
            notes.append(renamed.map { "\($0.name) is \($0.runs)" }.joined(separator: "; "))
        }
        let error = points.map(\.error).max() ?? 0
        if error > 0 {
            notes.append(
                "lru is from \(Format.fixed(simulation.sample * 100, 2)) % of the chunks; standard "
                    + "error up to \(Format.fixed(error * 100, 2)) points")
        }
        if timesWithout != nil { notes += timeNotes }
        return notes
    }

    // MARK: Times

    private var isOverloaded: Bool {
        timesWithout?.isOverloaded == true || points.contains { $0.times?.isOverloaded == true }
    }

    /// Behind figures that depend on the length of the trace; as wide where they don't.
    private func marked(_ text: String, _ times: QueueOutcome) -> String {
        isOverloaded ? text + (times.isOverloaded ? "*" : " ") : text
    }

    private func percent(_ share: Double) -> String { Format.fixed(share * 100, 1) }

    /// One table where it isn't too long, else one for each figure.
    private var times: [String] {
        guard let without = timesWithout else { return [] }
        let title = "from a request's arrival to its first token, in ms, waiting included"
        if points.count <= Self.timeRowsMaximum {
            return ["Time \(title)\n\n" + timeTable(without)]
        }
        func grid(_ cell: (QueueOutcome) -> String) -> String {
            self.grid { $0.times.map { marked(cell($0), $0) } ?? "–" }
        }
        func bare(_ text: String) -> String { text + (without.isOverloaded ? "*" : "") }
        return [
            "Median time \(title) (\(bare(milliseconds(without.firstToken.p50))) without a cache)\n\n"
                + grid { milliseconds($0.firstToken.p50) },
            "99th percentile of it (\(bare(milliseconds(without.firstToken.p99))) without a cache)\n\n"
                + grid { milliseconds($0.firstToken.p99) },
            "How busy the engines are, in % (\(bare(percent(without.utilization))) without a cache)\n\n"
                + grid { percent($0.utilization) },
            "The 90th percentile, means and waits: --json, --csv, or fewer sizes or policies.",
        ]
    }

    private func timeTable(_ without: QueueOutcome) -> String {
        let hasDisk = points.contains { $0.diskCapacity > 0 }
        let isCluster = simulation.cluster.servers > 1
        let header = sizeHeader(hasDisk: hasDisk)
        var table = TextTable(
            columns: ["policy"] + header + ["mean", "p50", "p90", "p99", "waiting", "busy, %"]
                + (isCluster ? ["busiest"] : []))
        func cells(_ times: QueueOutcome) -> [String] {
            let first = times.firstToken
            return [first.mean, first.p50, first.p90, first.p99, times.wait.mean].map(milliseconds)
                + (isCluster
                    ? [
                        percent(times.utilization),
                        marked(percent(times.busiestUtilization), times),
                    ]
                    : [marked(percent(times.utilization), times)])
        }
        table.rows.append(["no cache"] + header.map { _ in "–" } + cells(without))
        for point in points {
            table.rows.append(
                [point.contender.name] + sizeCells(point.capacity, point.diskCapacity)
                    + (point.times.map(cells) ?? cells(without).map { _ in "–" }))
        }
        return table.text
    }

    private var timeNotes: [String] {
        guard let timing = simulation.timing else { return [] }
        var notes: [String] = []
        let cluster = simulation.cluster
        let engines = Format.count(timing.engines, "engine")
        var model =
            (cluster.servers > 1 ? "Each of \(cluster.servers) servers has \(engines)" : engines)
            + "; first come, first served, one prompt at a time"
        if timing.speedup != 1 {
            model += "; requests come \(Format.fixed(timing.speedup, 3)) times as fast"
        }
        notes.append(model + ".")
        let service = timing.service
        let hasDisk = points.contains { $0.diskCapacity > 0 }
        let load = max(
            service.loadSecondsPerToken, hasDisk ? service.diskLoadSecondsPerToken : 0)
        if load > service.secondsPerToken {
            notes.append(
                "A token is computed in \(Format.fixed(service.secondsPerToken * 1e6, 1)) µs and "
                    + "loaded in \(Format.fixed(load * 1e6, 1)) µs: loading at that bandwidth costs "
                    + "time.\nAll that is found is loaded here; an engine that chooses computes it."
            )
        }
        if isOverloaded {
            notes.append(
                "* More work comes than "
                    + (cluster.servers > 1 ? "the busiest server" : "the server")
                    + " can do: the queue grows to the end of the trace, and\n"
                    + "  times with it, so that a longer trace would have longer ones.")
        }
        let equal = trace.shareWithEqualTimes
        if equal >= Self.equalTimesMaximum, !timing.spreadsArrivals {
            notes.append(
                "\(Format.fixed(equal * 100, 0)) % of the requests have the very time of the one before "
                    + "them: the log's clock is coarse,\nand so requests come in bunches and wait for "
                    + "each other. --spread-arrivals spreads them evenly.")
        }
        if points.contains(where: { $0.times == nil }) {
            notes.append("A sample (--sample) says nothing of queues.")
        }
        return notes
    }

    /// Sizes down, policies across, in as many tables as the width needs.
    private func grid(_ cell: (Simulation.Point) -> String) -> String {
        var names: [String] = []
        var sizes: [(chunks: Int, disk: Int)] = []
        var cells: [String: [String]] = [:]
        for point in points {
            let name = point.contender.name
            if cells[name] == nil { names.append(name) }
            cells[name, default: []].append(cell(point))
            if names.count == 1 { sizes.append((point.capacity, point.diskCapacity)) }
        }
        let left = sizes.map { sizeCells($0.chunks, $0.disk) }
        let leftHeader = sizeHeader(hasDisk: sizes.contains { $0.disk > 0 })
        let leftWidth = leftHeader.indices.reduce(0) { sum, column in
            sum + 2 + max(leftHeader[column].count, left.map { $0[column].count }.max() ?? 0)
        }
        var groups: [[String]] = [[]]
        var width = leftWidth
        for name in names {
            let needed = 2 + max(name.count, cells[name]!.map(\.count).max() ?? 0)
            if width + needed > Self.lineWidth + 2, !groups.last!.isEmpty {
                groups.append([])
                width = leftWidth
            }
            groups[groups.count - 1].append(name)
            width += needed
        }
        return groups.map { group in
            var table = TextTable(columns: leftHeader + group)
            table.leftColumns = []
            for (row, size) in left.enumerated() {
                table.rows.append(size + group.map { cells[$0]![row] })
            }
            return table.text
        }.joined(separator: "\n\n")
    }

    private func sizeHeader(hasDisk: Bool) -> [String] {
        var header = ["chunks", "tokens"]
        if tokenBytes != nil { header.append("bytes") }
        if hasDisk { header.append("disk") }
        return header
    }

    private func sizeCells(_ chunks: Int, _ disk: Int) -> [String] {
        var cells = [
            Format.number(chunks), Format.quantity(Double(chunks * trace.chunkTokens)),
        ]
        if tokenBytes != nil { cells.append(bytes(chunks)) }
        if disk > 0 { cells.append(tokenBytes == nil ? Format.number(disk) : bytes(disk)) }
        return cells
    }

    private func bytes(_ chunks: Int) -> String {
        Format.quantity(Double(chunks * trace.chunkTokens) * (tokenBytes ?? 0)) + "B"
    }

    private var tierTable: String {
        var table = TextTable(
            columns: ["policy"] + sizeHeader(hasDisk: true) + [
                "found", "in memory", "on disk", "written",
            ])
        for point in points {
            let cells =
                [point.contender.name] + sizeCells(point.capacity, point.diskCapacity) + [
                    Format.fixed(point.result.tokenShare * 100, 1)
                ]
            guard let tiers = point.tiers else {
                table.rows.append(cells + ["–", "–", "–"])
                continue
            }
            let onDisk = tiers.diskHitTokens / Double(max(1, point.result.tokens))
            let inMemory = point.result.tokenShare - onDisk
            table.rows.append(
                cells + [
                    Format.fixed(inMemory * 100, 1),
                    Format.fixed(onDisk * 100, 1),
                    Format.quantity(
                        Double(tiers.writtenChunks * trace.chunkTokens) * (tokenBytes ?? 1))
                        + (tokenBytes == nil ? "" : "B"),
                ])
        }
        return table.text
    }

    private func milliseconds(_ seconds: Double) -> String {
        seconds < 0.1 ? Format.fixed(seconds * 1000, 1) : Format.whole(seconds * 1000)
    }

    // MARK: JSON and CSV

    struct Object: Encodable {
        struct TraceObject: Encodable {
            var files: [String]
            var requests: Int
            var seconds: Double
            var tokens: Int
            var chunks: Int
            var distinctFullChunks: Int
            var chunkTokens: Int
            /// A cache without bound.
            var unboundedChunkHit: Double
            var unboundedTokenHit: Double
        }

        struct Result: Encodable {
            var policy: String
            var runs: String
            var capacityChunks: Int
            var capacityTokens: Int
            var capacityBytes: Int?
            var chunkHit: Double
            var tokenHit: Double
            var chunkHitError: Double?
            var diskChunks: Int?
            var memoryChunkHit: Double?
            var diskChunkHit: Double?
            var storedChunks: Int?
            var writtenChunks: Int?
            var prefillSecondsWithout: Double?
            var prefillSecondsSaved: Double?
            var loadSeconds: Double?
            /// Means of requests that wait for nobody.
            var unloadedFirstTokenMsWithout: Double?
            var unloadedFirstTokenMs: Double?
            var firstTokenMs: Times?
            var queueWaitMs: Times?
            var utilization: Double?
            var busiestUtilization: Double?
            var overloaded: Bool?
        }

        struct Times: Encodable {
            var mean: Double
            var p50: Double
            var p90: Double
            var p99: Double

            init(_ seconds: TimeSummary) {
                mean = seconds.mean * 1000
                p50 = seconds.p50 * 1000
                p90 = seconds.p90 * 1000
                p99 = seconds.p99 * 1000
            }
        }

        struct Queue: Encodable {
            var engines: Int
            var speedup: Double
            var spreadArrivals: Bool
            /// Of the requests, those that have the very time of the one before them.
            var equalTimes: Double
            /// What there is without a cache.
            var firstTokenMsWithout: Times
            var queueWaitMsWithout: Times
            var utilizationWithout: Double
            var busiestUtilizationWithout: Double
            var overloadedWithout: Bool
        }

        var trace: TraceObject
        var servers: Int
        var routing: String?
        /// `none`, `disk` or `all`.
        var share: String?
        var hintAccuracy: Double?
        var queue: Queue?
        var results: [Result]
    }

    private var object: Object {
        let trace = trace
        let isCluster = simulation.cluster.servers > 1
        return Object(
            trace: .init(
                files: files, requests: trace.requests.count, seconds: trace.seconds,
                tokens: trace.tokenCount, chunks: trace.chunkCount,
                distinctFullChunks: trace.storableCount, chunkTokens: trace.chunkTokens,
                unboundedChunkHit: unbounded.chunkShare, unboundedTokenHit: unbounded.tokenShare),
            servers: simulation.cluster.servers,
            routing: isCluster ? simulation.cluster.routing.rawValue : nil,
            share: isCluster ? simulation.cluster.sharing.rawValue : nil,
            hintAccuracy: simulation.hintAccuracy, queue: queue, results: points.map(result))
    }

    private var queue: Object.Queue? {
        guard let timing = simulation.timing, let without = timesWithout else { return nil }
        return Object.Queue(
            engines: timing.engines, speedup: timing.speedup,
            spreadArrivals: timing.spreadsArrivals, equalTimes: trace.shareWithEqualTimes,
            firstTokenMsWithout: .init(without.firstToken), queueWaitMsWithout: .init(without.wait),
            utilizationWithout: without.utilization,
            busiestUtilizationWithout: without.busiestUtilization,
            overloadedWithout: without.isOverloaded)
    }

    private func result(_ point: Simulation.Point) -> Object.Result {
        let tokens = point.capacity * trace.chunkTokens
        var result = Object.Result(
            policy: point.contender.name, runs: point.contender.runs,
            capacityChunks: point.capacity, capacityTokens: tokens,
            capacityBytes: tokenBytes.map { Int(clamping: Double(tokens) * $0) },
            chunkHit: point.result.chunkShare, tokenHit: point.result.tokenShare,
            chunkHitError: point.error > 0 ? point.error : nil,
            diskChunks: point.diskCapacity > 0 ? point.diskCapacity : nil)
        if let tiers = point.tiers {
            let chunks = Double(max(1, point.result.chunks))
            result.memoryChunkHit = Double(tiers.memoryHits) / chunks
            result.diskChunkHit = Double(tiers.diskHits) / chunks
            result.storedChunks = tiers.sealedChunks
            result.writtenChunks = tiers.writtenChunks
        }
        if let outcome = service.map({ outcome(point, $0) }) {
            result.prefillSecondsWithout = outcome.prefillSecondsWithout
            result.prefillSecondsSaved = outcome.prefillSecondsSaved
            result.loadSeconds = outcome.loadSeconds
            result.unloadedFirstTokenMsWithout = outcome.meanFirstTokenSecondsWithout * 1000
            result.unloadedFirstTokenMs = outcome.meanFirstTokenSeconds * 1000
        }
        if let times = point.times {
            result.firstTokenMs = .init(times.firstToken)
            result.queueWaitMs = .init(times.wait)
            result.utilization = times.utilization
            result.busiestUtilization = times.busiestUtilization
            result.overloaded = times.isOverloaded
        }
        return result
    }

    func json() throws -> String {
        try JSONOutput.snakeCase(object)
    }

    var csv: String {
        let columns: [(String, (Object.Result) -> String?)] = [
            ("policy", { $0.policy }), ("capacity_chunks", { "\($0.capacityChunks)" }),
            ("capacity_tokens", { "\($0.capacityTokens)" }),
            ("capacity_bytes", { $0.capacityBytes.map { "\($0)" } }),
            ("disk_chunks", { $0.diskChunks.map { "\($0)" } }),
            ("chunk_hit", { "\($0.chunkHit)" }), ("token_hit", { "\($0.tokenHit)" }),
            ("chunk_hit_error", { $0.chunkHitError.map { "\($0)" } }),
            ("memory_chunk_hit", { $0.memoryChunkHit.map { "\($0)" } }),
            ("disk_chunk_hit", { $0.diskChunkHit.map { "\($0)" } }),
            ("written_chunks", { $0.writtenChunks.map { "\($0)" } }),
            ("prefill_seconds_saved", { $0.prefillSecondsSaved.map { "\($0)" } }),
            ("load_seconds", { $0.loadSeconds.map { "\($0)" } }),
            ("unloaded_first_token_ms", { $0.unloadedFirstTokenMs.map { "\($0)" } }),
            ("first_token_ms_mean", { $0.firstTokenMs.map { "\($0.mean)" } }),
            ("first_token_ms_p50", { $0.firstTokenMs.map { "\($0.p50)" } }),
            ("first_token_ms_p90", { $0.firstTokenMs.map { "\($0.p90)" } }),
            ("first_token_ms_p99", { $0.firstTokenMs.map { "\($0.p99)" } }),
            ("queue_wait_ms_mean", { $0.queueWaitMs.map { "\($0.mean)" } }),
            ("queue_wait_ms_p50", { $0.queueWaitMs.map { "\($0.p50)" } }),
            ("queue_wait_ms_p90", { $0.queueWaitMs.map { "\($0.p90)" } }),
            ("queue_wait_ms_p99", { $0.queueWaitMs.map { "\($0.p99)" } }),
            ("utilization", { $0.utilization.map { "\($0)" } }),
            ("busiest_utilization", { $0.busiestUtilization.map { "\($0)" } }),
            ("overloaded", { $0.overloaded.map { "\($0)" } }),
        ]
        let rows = object.results
        // Columns that no row has anything in are left out.
        let used = columns.filter { column in rows.contains { column.1($0) != nil } }
        var lines = [used.map(\.0).joined(separator: ",")]
        for row in rows { lines.append(used.map { $0.1(row) ?? "" }.joined(separator: ",")) }
        return lines.joined(separator: "\n") + "\n"
    }
}
