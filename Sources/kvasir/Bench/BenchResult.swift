/// One line of a benchmark: what the machine can, what Kvasir reaches, and what was aimed at.
struct BenchResult: Codable {
    /// Which benchmark.
    var bench: String
    /// What was done.
    var what: String
    /// Of the figures: `ns` or `bytes`.
    var unit: String
    /// The machine's own limit; 0 where it could not be measured, and then so is the ratio.
    var limit: Double
    /// What Kvasir reaches.
    var kvasir: Double
    /// CPU time of all processes that took part, in nanoseconds.
    var limitCPU: Double?
    var kvasirCPU: Double?
    /// As the aim has it: time of Kvasir by the limit's, or the limit's speed reached.
    var ratio: Double
    /// The same of CPU times, which other work on the machine changes less.
    var ratioCPU: Double?
    /// In words.
    var aim: String
    /// Whether the aim was reached; nil where there is none.
    var reached: Bool?
    /// More figures, by name.
    var details: [String: Double] = [:]
}

struct BenchReport: Codable {
    var version: String
    var machine: [String: String]
    var results: [BenchResult]

    var text: String {
        var lines = machine.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }
        var seen: [String] = []
        for result in results where !seen.contains(result.bench) { seen.append(result.bench) }
        for bench in seen {
            var table = TextTable(
                "ratio", bench, "limit", "Kvasir", "CPU limit", "CPU Kvasir", "of CPU", "aim", "")
            table.leftColumns = [1, 7, 8]
            for result in results where result.bench == bench {
                table.rows.append([
                    Format.fixed(result.ratio, 2), result.what,
                    Self.figure(result.limit, result.unit),
                    Self.figure(result.kvasir, result.unit), Self.figure(result.limitCPU, "ns"),
                    Self.figure(result.kvasirCPU, "ns"),
                    result.ratioCPU.map { Format.fixed($0, 2) } ?? "", result.aim,
                    result.reached.map { $0 ? "reached" : "missed" } ?? "",
                ])
            }
            lines += ["", table.text]
        }
        return lines.joined(separator: "\n")
    }

    private static func figure(_ value: Double?, _ unit: String) -> String {
        guard let value, value > 0 else { return "–" }
        return unit == "ns" ? Format.duration(value) : "\(Format.fixed(value, 1)) \(unit)"
    }
}
