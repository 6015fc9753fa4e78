import Foundation
import KVSimulator

/// What `kvasir simulate` says, as a table, JSON and CSV.
struct SimulationReport {
    let simulation: Simulation
    let files: [String]
    let points: [Simulation.Point]
    let service: ServiceModel?
    let tokenBytes: Double?
    /// What a cache without bound finds.
    let unbounded: ReplayResult

    /// Characters of a line of the table, at most.
    private static let lineWidth = 80

    init(
        simulation: Simulation, files: [String], points: [Simulation.Point],
        service: ServiceModel?, tokenBytes: Double?
    ) {
        self.simulation = simulation
        self.files = files
        self.points = points
        self.service = service
        self.tokenBytes = tokenBytes
        unbounded = .unbounded(simulation.trace, storesPartial: simulation.storesPartial)
    }

    private var trace: Trace { simulation.trace }

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
            let without = service.outcome(of: unbounded).meanFirstTokenSecondsWithout
            parts.append(
                "Mean time to the first token, in ms (\(milliseconds(without)) without a cache; "
                    + "no queues)\n\n"
                    + grid {
                        milliseconds(service.outcome(of: $0.result).meanFirstTokenSeconds)
                    })
            parts.append(
                "Seconds of prefill saved, of "
                    + "\(Format.whole(service.outcome(of: unbounded).prefillSecondsWithout))"
                    + "\n\n"
                    + grid {
                        Format.whole(service.outcome(of: $0.result).prefillSecondsSaved)
                    })
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
            lines.append(
                "  \(cluster.servers) servers, "
                    + (cluster.isShared
                        ? "one cache of \(cluster.servers) times the size"
                        : "requests by \(cluster.routing.rawValue), sizes are of each"))
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
            let hits = Double(max(1, tiers.memoryHits + tiers.diskHits))
            let inMemory = point.result.tokenShare * Double(tiers.memoryHits) / hits
            table.rows.append(
                cells + [
                    Format.fixed(inMemory * 100, 1),
                    Format.fixed((point.result.tokenShare - inMemory) * 100, 1),
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
            var meanFirstTokenMsWithout: Double?
            var meanFirstTokenMs: Double?
        }

        var trace: TraceObject
        var servers: Int
        var routing: String?
        var sharedCache: Bool?
        var hintAccuracy: Double?
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
            sharedCache: isCluster ? simulation.cluster.isShared : nil,
            hintAccuracy: simulation.hintAccuracy, results: points.map(result))
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
        if let outcome = service?.outcome(of: point.result) {
            result.prefillSecondsWithout = outcome.prefillSecondsWithout
            result.prefillSecondsSaved = outcome.prefillSecondsSaved
            result.loadSeconds = outcome.loadSeconds
            result.meanFirstTokenMsWithout = outcome.meanFirstTokenSecondsWithout * 1000
            result.meanFirstTokenMs = outcome.meanFirstTokenSeconds * 1000
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
            ("mean_first_token_ms", { $0.meanFirstTokenMs.map { "\($0)" } }),
        ]
        let rows = object.results
        // Columns that no row has anything in are left out.
        let used = columns.filter { column in rows.contains { column.1($0) != nil } }
        var lines = [used.map(\.0).joined(separator: ",")]
        for row in rows { lines.append(used.map { $0.1(row) ?? "" }.joined(separator: ",")) }
        return lines.joined(separator: "\n") + "\n"
    }
}
