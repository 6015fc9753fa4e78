import ArgumentParser

/// A span of time as people write it: `90s`, `30m`, `1h`, `2d`.
struct Age: ExpressibleByArgument, CustomStringConvertible {
    let milliseconds: Int
    let description: String

    /// A year: the longest that the server takes.
    static let mostMs = 31_536_000_000

    init?(argument: String) {
        let digits = argument.prefix { $0.isNumber || $0 == "." }
        let factors: [String: Double] = [
            "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800,
        ]
        guard let number = Double(digits),
            let factor = factors[argument.dropFirst(digits.count).lowercased()],
            number * factor * 1_000 <= Double(Self.mostMs)
        else { return nil }
        milliseconds = Int(number * factor * 1_000)
        description = argument
    }
}
