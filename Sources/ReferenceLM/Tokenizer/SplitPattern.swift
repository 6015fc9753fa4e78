import Foundation

/// A regular expression that splits text, in ICU's dialect (`NSRegularExpression`).
///
/// Where a pattern takes far more steps than characters, as only one made to hang does, the rest of
/// the text counts as having no match.
struct SplitPattern: Sendable {
    /// Where the engine runs out of its own stack, the next so many UTF-16 units are searched
    /// alone: a match that goes on is cut there.
    private static let windowUnits = 16_384

    private let expression: NSRegularExpression

    /// Compiles a pattern; `field` is where it stands.
    init(_ pattern: String, field: TokenizerField) throws(ModelError) {
        do {
            // Lines end at "\n" alone, and `^` and `$` mean lines, as in Oniguruma.
            expression = try NSRegularExpression(
                pattern: Self.withSpaceAsSet(pattern),
                options: [.useUnixLineSeparators, .anchorsMatchLines])
        } catch {
            throw field.unsupported(
                "holds the regular expression \(pattern.quoted), which can't be read",
                supported: "what ICU's regular expressions can say")
        }
    }

    /// Compiles what finds `text` itself.
    init(literal text: String, field: TokenizerField) throws(ModelError) {
        try self.init(NSRegularExpression.escapedPattern(for: text), field: field)
    }

    /// Writes `\s` outside brackets as `[\s]`.
    ///
    /// It means the same, but ICU repeats a set without using its stack, while `\s+` overflows it
    /// after a few hundred thousand spaces.
    static func withSpaceAsSet(_ pattern: String) -> String {
        var result = String.UnicodeScalarView()
        var depth = 0
        var scalars = pattern.unicodeScalars.makeIterator()
        while let scalar = scalars.next() {
            if scalar == "\\", let next = scalars.next() {
                if next == "Q" { return pattern }
                let isBareSpace = depth == 0 && (next == "s" || next == "S")
                result.append(contentsOf: isBareSpace ? ["[", "\\", next, "]"] : ["\\", next])
                continue
            }
            if scalar == "[" { depth += 1 }
            if scalar == "]", depth > 0 { depth -= 1 }
            result.append(scalar)
        }
        return String(result)
    }

    /// The matches in `bytes`, which must be valid UTF-8; in order and without overlap.
    func matches(in bytes: ArraySlice<UInt8>) -> [Range<Int>] {
        let text = String(decoding: bytes, as: UTF8.self)
        let units = text.utf16.count
        let matches = search(text, units: units)
        guard units != bytes.count else {
            let offset = bytes.startIndex
            return matches.map { offset + $0.lowerBound..<offset + $0.upperBound }
        }
        var cursor = UnitCursor(bytes)
        return matches.map { match in
            let start = cursor.advance(to: match.lowerBound)
            return start..<cursor.advance(to: match.upperBound)
        }
    }

    /// The matches in UTF-16 units.
    private func search(_ text: String, units: Int) -> [Range<Int>] {
        var matches: [Range<Int>] = []
        var start = 0
        var reportsLeft = Self.reports(units: units)
        while start < units {
            let rest = enumerate(text, start..<units, &reportsLeft)
            matches += rest.matches
            guard rest.end == .outOfStack else { break }
            start = max(start, rest.matches.last?.upperBound ?? start)
            let window = start..<min(start + Self.windowUnits, units)
            let cut = enumerate(text, window, &reportsLeft)
            matches += cut.matches
            if cut.end == .outOfSteps { break }
            start = max(cut.matches.last?.upperBound ?? window.upperBound, start + 1)
        }
        return matches
    }

    /// Why a search ended.
    private enum End {
        case complete
        case outOfStack
        case outOfSteps
    }

    /// The matches in a range, or those before the place where the engine gave up.
    private func enumerate(
        _ text: String, _ range: Range<Int>, _ reportsLeft: inout Int
    ) -> (matches: [Range<Int>], end: End) {
        var matches: [Range<Int>] = []
        var end = End.complete
        var left = reportsLeft
        expression.enumerateMatches(
            in: text,
            options: [
                .reportProgress, .reportCompletion, .withTransparentBounds, .withoutAnchoringBounds,
            ],
            range: NSRange(location: range.lowerBound, length: range.count)
        ) { match, flags, stop in
            if let match {
                let range = match.range
                matches.append(range.location..<range.location + range.length)
            } else if flags.contains(.internalError) {
                end = .outOfStack
            } else if flags.contains(.progress) {
                left -= 1
                guard left < 0 else { return }
                end = .outOfSteps
                stop.pointee = true
            }
        }
        reportsLeft = left
        return (matches, end)
    }

    /// How often the engine may report before it has taken too long: it does so after each 10,000
    /// steps of one attempt, and after each attempt at some place. Patterns in use take some ten
    /// steps for each character; one made to hang takes any number.
    private static func reports(units: Int) -> Int { 16 + units + units / 50 }
}

/// Turns offsets in UTF-16 units, asked for in rising order, into offsets of UTF-8 bytes.
private struct UnitCursor {
    private let bytes: ArraySlice<UInt8>
    private var index: Int
    private var units = 0

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        index = bytes.startIndex
    }

    mutating func advance(to target: Int) -> Int {
        while units < target, index < bytes.endIndex {
            switch bytes[index] {
            case ..<0x80: index += 1
            case ..<0xE0: index += 2
            case ..<0xF0: index += 3
            default:
                index += 4
                units += 1
            }
            units += 1
        }
        return index
    }
}
