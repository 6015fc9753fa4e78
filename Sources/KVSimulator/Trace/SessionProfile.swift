package import Foundation

/// Traffic that is described instead of logged: sessions of several turns, each of which repeats all
/// that was said before.
///
/// What comes out is made up by a seed. It is for rough plans; a log of one's own is worth more.
package struct SessionProfile: Codable, Sendable, Equatable {
    /// Sessions that begin in an hour; they come at random (Poisson).
    package var sessionsPerHour = 600.0
    package var hours = 2.0
    /// Turns of a session, on average; after each, another follows with the same probability.
    package var turns = 3.0
    /// Different system prompts, which sessions choose from at random, and their length.
    package var systemPrompts = 4
    package var systemTokens = 1000
    /// Median of the tokens that a session begins with, beside the system prompt.
    package var firstTokens = 1500.0
    /// Median of the tokens that a later turn adds, beside the answer before it.
    package var turnTokens = 200.0
    /// How far lengths are apart: standard deviation of their logarithm.
    package var tokensSpread = 1.0
    package var answerTokens = 400.0
    /// Median of the seconds between turns, and their spread.
    package var gapSeconds = 120.0
    package var gapSpread = 1.0
    /// Prompts don't get longer than this; a session that would ends.
    package var longestTokens = 131_072

    package init() {}

    /// The profiles that have a name.
    package static let named: [String: SessionProfile] = {
        var agents = SessionProfile()
        agents.sessionsPerHour = 120
        agents.turns = 40
        agents.systemPrompts = 2
        agents.systemTokens = 12_000
        agents.firstTokens = 3000
        agents.turnTokens = 600
        agents.answerTokens = 250
        agents.gapSeconds = 6
        agents.gapSpread = 1.8
        var documents = SessionProfile()
        documents.turns = 4
        documents.systemTokens = 300
        documents.firstTokens = 12_000
        documents.turnTokens = 60
        documents.answerTokens = 300
        documents.gapSeconds = 60
        return ["chat": SessionProfile(), "agents": agents, "documents": documents]
    }()

    /// Reads a JSON object; what it doesn't have stays as it is in `chat`.
    package init(json data: Data) throws(PlanError) {
        let fields: [String: ConfigValue]
        do {
            fields = try JSONDecoder().decode([String: ConfigValue].self, from: data)
        } catch {
            throw PlanError("the profile is not a JSON object")
        }
        self.init()
        for (name, value) in fields.sorted(by: { $0.key < $1.key }) {
            let number: Double
            switch value {
            case .integer(let integer): number = Double(integer)
            case .number(let double): number = double
            default: throw PlanError("the profile's '\(name)' must be a number")
            }
            try set(name, number)
        }
    }

    private mutating func set(_ name: String, _ value: Double) throws(PlanError) {
        let maximum = name == "hours" ? Self.hoursMaximum : 1e9
        if !(0...maximum).contains(value) {
            throw PlanError("the profile's '\(name)' must be from 0 to \(Int(maximum))")
        }
        switch name {
        case "sessions_per_hour": sessionsPerHour = value
        case "hours": hours = value
        case "turns": turns = max(1, value)
        case "system_prompts": systemPrompts = max(1, Int(value))
        case "system_tokens": systemTokens = Int(value)
        case "first_tokens": firstTokens = value
        case "turn_tokens": turnTokens = value
        case "tokens_spread": tokensSpread = min(value, 5)
        case "answer_tokens": answerTokens = value
        case "gap_seconds": gapSeconds = value
        case "gap_spread": gapSpread = min(value, 5)
        case "longest_tokens": longestTokens = max(1, Int(value))
        default:
            throw PlanError(
                "the profile has an unknown field '\(name)'; docs/planning.md lists them")
        }
    }

    /// At most so many sessions are made.
    package static let sessionsMaximum = 1_000_000
    /// At most so many prompts.
    package static let promptsMaximum = 2_000_000
    /// Chunks of all prompts together, at most.
    package static let chunksMaximum = 100_000_000
    /// Sessions begin within this: a year.
    package static let hoursMaximum = 8760.0
    /// From the beginning of the trace to its last prompt, at most: ten years.
    package static let secondsMaximum = 10 * 8760 * 3600.0

    /// Makes up a trace. Linear in its chunks.
    ///
    /// - Throws: What is too large about it, and what to change.
    package func trace(chunkTokens: Int, seed: UInt64 = 1) throws(TraceError) -> Trace {
        if hours > Self.hoursMaximum {
            throw TraceError(
                "the profile has more than \(Int(Self.hoursMaximum)) hours, a year; take fewer")
        }
        if sessionsPerHour * hours > Double(Self.sessionsMaximum) {
            throw TraceError(
                "the profile makes more than \(Self.sessionsMaximum) sessions; take fewer hours")
        }
        var random = ProfileRandom(state: seed)
        var prompts: [(nanoseconds: UInt64, session: UInt64, system: Int, tokens: Int)] = []
        var seconds = 0.0
        var chunkCount = 0
        var session: UInt64 = 0
        while sessionsPerHour > 0 {
            seconds -= log(1 - random.unit()) * 3600 / sessionsPerHour
            if seconds > hours * 3600 { break }
            session += 1
            let system = Int(random.unit() * Double(systemPrompts))
            var time = seconds
            var tokens = Double(systemTokens) + random.around(firstTokens, tokensSpread)
            while tokens <= Double(longestTokens) {
                let length = max(1, Int(tokens))
                chunkCount += (length + chunkTokens - 1) / chunkTokens
                try Self.check(prompts: prompts.count + 1, chunks: chunkCount, seconds: time)
                prompts.append((UInt64(time * 1e9), session, system, length))
                if random.unit() >= 1 - 1 / turns { break }
                tokens += random.around(answerTokens, tokensSpread)
                tokens += random.around(turnTokens, tokensSpread)
                time += random.around(gapSeconds, gapSpread)
            }
        }
        prompts.sort { ($0.nanoseconds, $0.session) < ($1.nanoseconds, $1.session) }
        var builder = try TraceBuilder(blockTokens: chunkTokens, chunkTokens: nil)
        for (number, prompt) in prompts.enumerated() {
            let shared = min(systemTokens, prompt.tokens) / chunkTokens
            let names = (0..<(prompt.tokens / chunkTokens)).map { chunk in
                chunk < shared
                    ? ChunkName(low: UInt64(chunk), high: UInt64(prompt.system))
                    : ChunkName(low: UInt64(chunk), high: prompt.session << 32)
            }
            do throws(LineProblem) {
                try builder.add(
                    nanoseconds: prompt.nanoseconds, tokens: prompt.tokens,
                    blockCount: (prompt.tokens + chunkTokens - 1) / chunkTokens, blocks: names,
                    line: number + 1)
            } catch {
                throw TraceError(error.message)
            }
        }
        if prompts.isEmpty { throw TraceError("the profile makes no request") }
        return builder.build()
    }

    private static func check(prompts: Int, chunks: Int, seconds: Double) throws(TraceError) {
        if prompts > promptsMaximum {
            throw TraceError(
                "the profile makes more than \(promptsMaximum) prompts; take fewer hours, sessions "
                    + "or turns")
        }
        if chunks > chunksMaximum {
            throw TraceError(
                "the profile's prompts have more than \(chunksMaximum) chunks; take fewer hours or "
                    + "sessions, shorter prompts, or larger chunks (--chunk-tokens)")
        }
        if seconds > secondsMaximum {
            throw TraceError(
                "a session of the profile lasts more than ten years; take a smaller 'gap_seconds' or "
                    + "'gap_spread', or fewer turns")
        }
    }
}

/// Repeatable numbers for made-up traffic (SplitMix64).
private struct ProfileRandom {
    var state: UInt64

    /// From 0 up to, but not, 1.
    mutating func unit() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        return Double(ChunkName.mix(state) >> 11) * 0x1p-53
    }

    /// Lognormal, by its median.
    mutating func around(_ median: Double, _ spread: Double) -> Double {
        let normal = (-2 * log(1 - unit())).squareRoot() * cos(2 * .pi * unit())
        return median * exp(spread * normal)
    }
}
