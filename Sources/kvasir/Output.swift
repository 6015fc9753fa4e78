import Foundation
import KVClient
import KVSimulator

/// Columns of text, the first to the left and the others to the right.
struct TextTable {
    var header: [String]
    var rows: [[String]] = []
    /// Columns that are text and so stand to the left.
    var leftColumns: Set<Int> = [0]

    init(_ header: String...) {
        self.header = header
    }

    init(columns: [String]) {
        header = columns
    }

    var text: String {
        let all = [header] + rows
        let widths = header.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        let lines = all.map { row in
            row.enumerated().map { column, cell in
                let space = String(repeating: " ", count: widths[column] - cell.count)
                return leftColumns.contains(column) ? cell + space : space + cell
            }.joined(separator: "  ").trimmingTrailingSpaces
        }
        let rule = String(repeating: "─", count: widths.reduce(0, +) + 2 * (widths.count - 1))
        return ([lines[0], rule] + lines.dropFirst()).joined(separator: "\n")
    }
}

extension String {
    var trimmingTrailingSpaces: String {
        var text = self
        while text.hasSuffix(" ") { text.removeLast() }
        return text
    }
}

/// Text as it comes, without a buffer in between.
enum Output {
    /// To standard output. Where that fails (a full disk, say), the program ends with a sentence.
    static func write(_ text: String) {
        do {
            try FileHandle.standardOutput.write(contentsOf: Data(text.utf8))
        } catch {
            tell("Error: can't write to standard output (\(String(cString: strerror(errno))))\n")
            exit(1)
        }
    }

    /// To standard error, for people. Where that fails there is nobody to tell.
    static func tell(_ text: String) {
        try? FileHandle.standardError.write(contentsOf: Data(text.utf8))
    }
}

/// Prints values as JSON, keys in a fixed order.
enum JSONOutput {
    static func print(_ value: some Encodable, isPretty: Bool = true) throws {
        Swift.print(String(decoding: try encoder(isPretty).encode(value), as: UTF8.self))
    }

    /// The same as text, with the names of members in snake case, and a line feed behind it.
    static func snakeCase(_ value: some Encodable) throws -> String {
        let encoder = encoder(true)
        encoder.keyEncodingStrategy = .convertToSnakeCase
        return String(decoding: try encoder.encode(value), as: UTF8.self) + "\n"
    }

    private static func encoder(_ isPretty: Bool) -> JSONEncoder {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        if isPretty { encoder.outputFormatting.insert(.prettyPrinted) }
        return encoder
    }
}

/// Tells on standard error what is going on: in place on a terminal, else a line every two seconds.
final class Progress {
    private let isTerminal = isatty(2) == 1
    private var lastTold = Date()

    func tell(_ text: String) {
        if isTerminal { return write("\r\u{1B}[K\(text)") }
        if Date().timeIntervalSince(lastTold) < 2 { return }
        lastTold = Date()
        write("\(text)\n")
    }

    func done() {
        if isTerminal { write("\r\u{1B}[K") }
    }

    private func write(_ text: String) {
        Output.tell(text)
    }
}

enum Format {
    /// Thousands apart.
    static func number(_ value: Int) -> String {
        let digits = String(value.magnitude)
        var result = ""
        for (place, digit) in digits.enumerated() {
            if place > 0, (digits.count - place).isMultiple(of: 3) { result += "," }
            result.append(digit)
        }
        return value < 0 ? "-" + result : result
    }

    /// The whole part, thousands apart; the nearest integer that there is where it is beyond them.
    static func whole(_ value: Double) -> String { number(Int(clamping: value)) }

    /// About three digits and a unit of a thousand: `3.00 M`, `512 k`, `144 M`.
    static func quantity(_ value: Double) -> String {
        var value = value
        for unit in ["", "k", "M", "G", "T"] {
            let digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0
            if value < 999.5 {
                return unit.isEmpty ? fixed(value, 0) : "\(fixed(value, digits)) \(unit)"
            }
            value /= 1000
        }
        return "\(fixed(value, 0)) P"
    }

    /// `1 token`, `2,000 tokens`.
    static func count(_ value: Int, _ noun: String) -> String {
        "\(number(value)) \(noun)\(value == 1 ? "" : "s")"
    }

    /// A time as precise as it is worth.
    static func milliseconds(_ value: Double) -> String {
        value < 10 ? "\(fixed(value, 1)) ms" : "\(whole(value.rounded())) ms"
    }

    static func fixed(_ value: Double, _ digits: Int) -> String {
        String(format: "%.\(digits)f", value)
    }

    /// A time in nanoseconds with a fitting unit.
    static func duration(_ nanoseconds: Double) -> String {
        switch nanoseconds {
        case ..<1e3: "\(fixed(nanoseconds, 0)) ns"
        case ..<1e5: "\(fixed(nanoseconds / 1e3, 1)) µs"
        case ..<1e6: "\(fixed(nanoseconds / 1e3, 0)) µs"
        case ..<1e9: "\(fixed(nanoseconds / 1e6, 2)) ms"
        default: "\(fixed(nanoseconds / 1e9, 1)) s"
        }
    }

    static func age(_ ms: Int) -> String {
        let seconds = ms / 1000
        switch seconds {
        case ..<60: return "\(seconds) s"
        case ..<3600: return "\(seconds / 60) min \(seconds % 60) s"
        case ..<86_400: return "\(seconds / 3600) h \(seconds % 3600 / 60) min"
        default: return "\(seconds / 86_400) d \(seconds % 86_400 / 3600) h"
        }
    }
}

/// What a command says when it can't go on: one sentence that tells what to do.
struct CommandFailure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }

    init(_ error: ClientError) {
        description = error.message
    }
}
