import Foundation
import KVSimulator

/// What `kvasir plan` says.
struct PlanReport {
    /// Lengths of prompts for which rates are shown.
    private static let lengths = [1024, 8192, 32_768, 131_072]
    /// Share of what a cache without bound finds that the working set is to find.
    private static let workingShares = [0.9, 0.99]

    private let model: ModelShape
    private let gpu: String?
    private let rate: ComputeRate
    private let elementBytes: Double?
    private var traffic: Traffic?

    private struct Traffic {
        var name: String
        var trace: Trace
        var plan: CapacityPlan
        var rows: [CapacityPlan.Row]
        var assumesNoLoadTime: Bool
    }

    init(model: ModelShape, gpu: String?, rate: ComputeRate, elementBytes: Double?) {
        self.model = model
        self.gpu = gpu
        self.rate = rate
        self.elementBytes = elementBytes
    }

    mutating func add(
        _ plan: CapacityPlan, trace: Trace, name: String, memories: [Double], disks: [Double],
        assumesNoLoadTime: Bool
    ) {
        let rows = disks.flatMap { disk in
            memories.map { plan.row(memoryBytes: $0, diskBytes: disk) }
        }
        traffic = Traffic(
            name: name, trace: trace, plan: plan, rows: rows, assumesNoLoadTime: assumesNoLoadTime)
    }

    private var bytesPerToken: Double { model.bytesPerToken(elementBytes: elementBytes) }

    // MARK: Text

    var text: String {
        var parts = [modelText, rateTable]
        if let traffic { parts += [heading(traffic), table(traffic)] }
        parts += model.notes.map { "Note: \($0)." }
        return parts.joined(separator: "\n\n")
    }

    private var modelText: String {
        let windows = model.layers.count { if case .window = $0 { true } else { false } }
        let states = model.layers.count { $0 == .state }
        var layers = "\(model.layers.count) layers"
        if windows > 0 { layers += ", \(windows) with a window" }
        if states > 0 { layers += ", \(states) without a KV cache" }
        let active =
            model.activeParameters < model.parameters
            ? ", \(weights(model.activeParameters)) of them for a token" : ""
        return """
            \(model.name): \(weights(model.parameters)) parameters\(active), \(model.attention.rawValue), \(layers)
              \(Format.whole(bytesPerToken)) bytes of KV a token, \
            \(Format.quantity(bytesPerToken * 256))B a chunk of 256 tokens
            \(rate.gpuCount) × \(gpu ?? "a GPU") at \(Format.quantity(rate.flops))FLOPS, of which a prefill gets \
            \(Format.fixed(rate.utilization * 100, 0)) % (modelled, not measured)
            """
    }

    private func weights(_ count: Double) -> String {
        count < 1e9
            ? "\(Format.fixed(count / 1e6, 0)) million" : "\(Format.fixed(count / 1e9, 2)) billion"
    }

    private var rateTable: String {
        var table = TextTable(
            "prompt", "prefill tokens/s", "prefill time", "KV", "loading pays above")
        table.rows.append([
            "short", Format.whole(rate.prefillRateShort(model)), "–", "–",
            perSecond(bytesPerToken * rate.prefillRateShort(model)),
        ])
        for length in Self.lengths {
            let speed = rate.prefillRate(model, tokens: Double(length))
            table.rows.append([
                Format.number(length), Format.whole(speed),
                Format.duration(Double(length) / speed * 1e9),
                Format.quantity(bytesPerToken * Double(length)) + "B",
                perSecond(
                    rate.breakEvenBandwidth(
                        model, tokens: Double(length), elementBytes: elementBytes)),
            ])
        }
        return table.text
    }

    private func heading(_ traffic: Traffic) -> String {
        let trace = traffic.trace
        let plan = traffic.plan
        let sets = Self.workingShares.map { share in
            "\(Format.quantity(plan.workingSetBytes(share: share)))B for "
                + "\(Format.fixed(share * 100, 0)) % of that"
        }
        return """
            \(traffic.name): \(Format.count(trace.requests.count, "request")) in \
            \(Format.age(Int(trace.seconds * 1000))), \(Format.quantity(Double(trace.tokenCount))) tokens
              all that is ever stored: \(Format.quantity(plan.storedBytes))B; it finds \
            \(Format.fixed(plan.unbounded.tokenShare * 100, 1)) % of the tokens
              working set: \(sets.joined(separator: ", "))
              prefill without a cache: \
            \(Format.whole(traffic.rows.first?.outcome.prefillSecondsWithout ?? 0)) s\
            \(load(traffic))
            """
    }

    /// How many groups of GPUs prefills alone keep busy.
    private func load(_ traffic: Traffic) -> String {
        guard let outcome = traffic.rows.first?.outcome, traffic.trace.seconds > 0 else {
            return ""
        }
        let groups = outcome.prefillSecondsWithout / traffic.trace.seconds
        let what = rate.gpuCount == 1 ? "GPUs" : "group of \(rate.gpuCount) GPUs"
        return " (keeps \(Format.fixed(groups, 2)) \(what) busy)"
    }

    private func table(_ traffic: Traffic) -> String {
        let hasPrices = traffic.rows.contains { $0.savedPerMonth != nil }
        let hasLoads = !traffic.assumesNoLoadTime
        var columns = ["memory", "disk", "found", "in memory", "prefill s", "saved s"]
        if hasLoads { columns.append("load s") }
        if hasPrices { columns.append("saved a month") }
        var table = TextTable(columns: columns)
        table.leftColumns = []
        for row in traffic.rows {
            var cells = [
                Format.quantity(row.memoryBytes) + "B",
                row.diskBytes == 0 ? "–" : Format.quantity(row.diskBytes) + "B",
                "\(Format.fixed(row.share * 100, 1)) %",
                "\(Format.fixed(row.memoryShare * 100, 1)) %",
                Format.whole(row.outcome.prefillSeconds),
                Format.whole(row.outcome.prefillSecondsSaved),
            ]
            if hasLoads { cells.append(Format.whole(row.outcome.loadSeconds)) }
            if hasPrices {
                cells.append(row.savedPerMonth.map { Format.whole($0.rounded()) } ?? "–")
            }
            table.rows.append(cells)
        }
        return table.text
    }

    private func perSecond(_ bytes: Double) -> String { Format.quantity(bytes) + "B/s" }

    // MARK: JSON

    struct Object: Encodable {
        struct Length: Encodable {
            /// 0 stands for short prompts.
            var tokens: Int
            var prefillTokensPerSecond: Double
            var kvBytes: Double
            var neededBytes: Double
            var breakEvenBytesPerSecond: Double
        }

        struct Size: Encodable {
            var memoryBytes: Double
            var diskBytes: Double
            var tokenHit: Double
            var memoryTokenHit: Double
            var prefillSeconds: Double
            var prefillSecondsSaved: Double
            var loadSeconds: Double
            var savedPerMonth: Double?
        }

        struct Traffic: Encodable {
            var name: String
            var requests: Int
            var seconds: Double
            var tokens: Int
            var storedBytes: Double
            var unboundedTokenHit: Double
            var workingSet90Bytes: Double
            var workingSet99Bytes: Double
            var prefillSecondsWithout: Double
            var sizes: [Size]
        }

        var model: String
        var attention: String
        var layers: Int
        var layersWithKV: Int
        var parameters: Double
        var activeParameters: Double
        var bytesPerToken: Double
        var gpu: String?
        var gpus: Int
        var flops: Double
        var utilization: Double
        var lengths: [Length]
        var notes: [String]
        var traffic: Traffic?
    }

    var object: Object {
        let short = Object.Length(
            tokens: 0, prefillTokensPerSecond: rate.prefillRateShort(model), kvBytes: 0,
            neededBytes: 0,
            breakEvenBytesPerSecond: bytesPerToken * rate.prefillRateShort(model))
        let lengths = Self.lengths.map { length in
            Object.Length(
                tokens: length,
                prefillTokensPerSecond: rate.prefillRate(model, tokens: Double(length)),
                kvBytes: bytesPerToken * Double(length),
                neededBytes: model.bytesNeeded(tokens: length, elementBytes: elementBytes),
                breakEvenBytesPerSecond: rate.breakEvenBandwidth(
                    model, tokens: Double(length), elementBytes: elementBytes))
        }
        return Object(
            model: model.name, attention: model.attention.rawValue, layers: model.layers.count,
            layersWithKV: model.cachedLayerCount, parameters: model.parameters,
            activeParameters: model.activeParameters, bytesPerToken: bytesPerToken, gpu: gpu,
            gpus: rate.gpuCount, flops: rate.flops, utilization: rate.utilization,
            lengths: [short] + lengths, notes: model.notes,
            traffic: traffic.map { object($0) })
    }

    private func object(_ traffic: Traffic) -> Object.Traffic {
        let plan = traffic.plan
        return Object.Traffic(
            name: traffic.name, requests: traffic.trace.requests.count,
            seconds: traffic.trace.seconds, tokens: traffic.trace.tokenCount,
            storedBytes: plan.storedBytes, unboundedTokenHit: plan.unbounded.tokenShare,
            workingSet90Bytes: plan.workingSetBytes(share: 0.9),
            workingSet99Bytes: plan.workingSetBytes(share: 0.99),
            prefillSecondsWithout: traffic.rows.first?.outcome.prefillSecondsWithout ?? 0,
            sizes: traffic.rows.map { row in
                Object.Size(
                    memoryBytes: row.memoryBytes, diskBytes: row.diskBytes, tokenHit: row.share,
                    memoryTokenHit: row.memoryShare, prefillSeconds: row.outcome.prefillSeconds,
                    prefillSecondsSaved: row.outcome.prefillSecondsSaved,
                    loadSeconds: row.outcome.loadSeconds, savedPerMonth: row.savedPerMonth)
            })
    }
}
