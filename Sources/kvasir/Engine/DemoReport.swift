import Foundation

/// All passes of the demo over the same requests.
struct DemoOutcome {
    let labels: [String]
    let isChat: [Bool]
    /// Without Kvasir.
    let cold: [DemoAnswer]
    /// The engine that filled Kvasir.
    let filling: [DemoAnswer]
    /// A new one after that one's end.
    let restarted: [DemoAnswer]
    /// A second one beside it.
    let beside: [DemoAnswer]
    /// A third one, after all engines and the daemon were killed and the daemon was started again.
    let revived: [DemoAnswer]
    /// What was asked again while the daemon was dead.
    let afterDeath: [Again]
    /// Where what engines matched was: up to the daemon's death, and after its restart.
    let tiers: Tiers
    let revivedTiers: Tiers

    /// Chunks that matched, by where they were, and those that a daemon found on disk at its start.
    struct Tiers {
        var memory: Int
        var disk: Int
        var recovered: Int
        var isRecovering: Bool
    }

    /// A request that is asked once more.
    struct Again {
        enum Wanted {
            case computes
            case reuses
        }

        /// Who answers, and why.
        let pass: String
        /// The request.
        let number: Int
        /// What the engine must do for the demo to show what it says.
        let wanted: Wanted
        let answer: DemoAnswer
    }

    /// Whether all engines answered this request alike: every token, and every bit of the logits.
    func same(_ number: Int) -> Bool {
        let wanted = cold[number]
        let others =
            [filling[number], restarted[number], beside[number], revived[number]]
            + afterDeath.filter { $0.number == number }.map(\.answer)
        return others.allSatisfy { $0.tokens == wanted.tokens && $0.logits == wanted.logits }
    }

    var isIdentical: Bool { labels.indices.allSatisfy(same) }

    /// Whether engines took from Kvasir what they had not computed, and only then.
    var hasReused: Bool {
        Self.reused(restarted) > 0 && Self.reused(beside) > 0 && Self.reused(revived) > 0
            && revivedTiers.disk > 0
            && afterDeath.allSatisfy { ($0.answer.reusedTokens > 0) == ($0.wanted == .reuses) }
    }

    static func reused(_ answers: [DemoAnswer]) -> Int {
        answers.reduce(0) { $0 + $1.reusedTokens }
    }

    static func ttftMs(_ answers: [DemoAnswer]) -> Double { answers.map(\.ttftMs).median }

    // MARK: For people

    var table: String {
        var table = TextTable(
            "request", "tokens", "reused", "without", "new engine", "second one", "after crash",
            "same output")
        for number in labels.indices {
            let (cold, new, second) = (cold[number], restarted[number], beside[number])
            let third = revived[number]
            table.rows.append([
                labels[number], Format.number(cold.promptTokens),
                Format.number([new, second, third].map(\.reusedTokens).min()!),
                Self.ms(cold.ttftMs), Self.ms(new.ttftMs), Self.ms(second.ttftMs),
                Self.ms(third.ttftMs),
                same(number) ? "yes" : "NO",
            ])
        }
        return table.text
    }

    private static func ms(_ value: Double) -> String {
        Format.milliseconds(value)
    }

    /// Median time to the first token, a bar for each kind of request and engine.
    var chart: String {
        let passes = [
            ("without Kvasir", cold), ("new engine", restarted), ("second one", beside),
            ("after the crash", revived),
        ]
        let kinds = [("documents", false), ("chat", true)]
        let longest =
            passes.flatMap { pass in
                kinds.map { kind in Self.ttftMs(of(pass.1, isChat: kind.1)) }
            }.max() ?? 1
        let width = 48.0
        var lines = ["time to the first token, median"]
        for (kind, isChat) in kinds {
            for (index, pass) in passes.enumerated() {
                let value = Self.ttftMs(of(pass.1, isChat: isChat))
                let title = index == 0 ? kind : ""
                lines.append(
                    "  \(title.padding(toLength: 10, withPad: " ", startingAt: 0))"
                        + "\(pass.0.padding(toLength: 17, withPad: " ", startingAt: 0))"
                        + Self.bar(value / longest * width) + " \(Self.ms(value))")
            }
        }
        return lines.joined(separator: "\n")
    }

    private func of(_ answers: [DemoAnswer], isChat wanted: Bool) -> [DemoAnswer] {
        answers.indices.filter { isChat[$0] == wanted }.map { answers[$0] }
    }

    /// Eighths of a character.
    private static func bar(_ length: Double) -> String {
        let eighths = max(1, Int((length * 8).rounded()))
        let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8]
        return String(repeating: "█", count: eighths / 8) + rest
    }

    var summary: String {
        let (cold, warm, second) = (
            Self.ttftMs(cold), Self.ttftMs(restarted), Self.ttftMs(beside)
        )
        let total = restarted.reduce(0) { $0 + $1.promptTokens }
        let reused = Self.reused(restarted)
        let share = Format.fixed(Double(reused) / Double(total) * 100, 1)
        return """
              time to the first token, median of \(labels.count): \(Self.ms(cold)) without Kvasir,
                  \(Self.ms(warm)) from the new engine (\(Self.times(cold / warm)) shorter), \
            \(Self.ms(second)) from the second (\(Self.times(cold / second)))
              the new engine's prompts had \(Format.number(total)) tokens; \(Format.number(reused)) (\(share) %) came from Kvasir
              the second engine took \(Format.number(Self.reused(beside))) from Kvasir; it had computed none
              after engines and daemon were killed, the third took \(Format.number(Self.reused(revived))), \
            with a median of \(Self.ms(Self.ttftMs(revived)))
              chunks that matched: \(Format.number(tiers.memory)) in memory, \(Format.number(tiers.disk)) on disk; \
            after the crash \(Format.number(revivedTiers.memory)) and \(Format.number(revivedTiers.disk))
              \(isIdentical ? "all outputs identical: every token, and every bit of the logits" : "OUTPUTS DIFFER")
            """
    }

    private static func times(_ ratio: Double) -> String {
        "\(Format.fixed(ratio, ratio < 10 ? 1 : 0)) times"
    }

    /// The requests whose answers are not alike.
    var differences: String {
        labels.indices.filter { !same($0) }.map { number in
            let passes = [
                ("without", cold), ("filling", filling), ("new", restarted), ("second", beside),
                ("third", revived),
            ]
            let all =
                passes.map { ($0.0, $0.1[number]) }
                + afterDeath.filter { $0.number == number }.map { ($0.pass, $0.answer) }
            let lines = all.map { name, answer in
                "  \(name): tokens \(answer.tokens), logits \(answer.logits.prefix(16))…"
            }
            return ([labels[number]] + lines).joined(separator: "\n")
        }.joined(separator: "\n")
    }

    // MARK: For programs

    /// The last line: figures of the new engine against the one without Kvasir.
    struct Line: Encodable {
        let demo = "builtin"
        let requests: Int
        let identical: Bool
        let ttftColdMs: Double
        let ttftWarmMs: Double
        let tokensReused: Int
        let tokensTotal: Int
        let ttftRevivedMs: Double
        let tokensRevived: Int
        let chunksFromDisk: Int

        enum CodingKeys: String, CodingKey {
            case demo, requests, identical
            case ttftColdMs = "ttft_cold_ms_p50"
            case ttftWarmMs = "ttft_warm_ms_p50"
            case tokensReused = "tokens_reused"
            case tokensTotal = "tokens_total"
            case ttftRevivedMs = "ttft_after_crash_ms_p50"
            case tokensRevived = "tokens_reused_after_crash"
            case chunksFromDisk = "chunks_matched_on_disk"
        }
    }

    var line: Line {
        func rounded(_ value: Double) -> Double { (value * 10).rounded() / 10 }
        return Line(
            requests: labels.count, identical: isIdentical,
            ttftColdMs: rounded(Self.ttftMs(cold)), ttftWarmMs: rounded(Self.ttftMs(restarted)),
            tokensReused: Self.reused(restarted),
            tokensTotal: restarted.reduce(0) { $0 + $1.promptTokens },
            ttftRevivedMs: rounded(Self.ttftMs(revived)), tokensRevived: Self.reused(revived),
            chunksFromDisk: tiers.disk + revivedTiers.disk)
    }
}
