/// Turns tokens into text as they come.
///
/// A character may be spread over several tokens; its bytes are held back until it is complete, so
/// that a reader never sees half of one. All that ``append(_:)`` and ``finish()`` give out, put
/// together, is what ``Tokenizer/decode(_:skipSpecialTokens:)`` gives for all the tokens.
public struct StreamingDecoder: Sendable {
    private let tokenizer: Tokenizer
    private let skipSpecialTokens: Bool
    private var isFirst = true
    /// The beginning of a character, three bytes at most.
    private var pending: [UInt8] = []

    /// Makes a decoder at the start of a text.
    ///
    /// - Parameters:
    ///   - tokenizer: whose tokens will come.
    ///   - skipSpecialTokens: leaves out the control tokens.
    public init(_ tokenizer: Tokenizer, skipSpecialTokens: Bool = true) {
        self.tokenizer = tokenizer
        self.skipSpecialTokens = skipSpecialTokens
    }

    /// The text that a token completes; often empty where characters take several tokens.
    public mutating func append(_ token: UInt32) -> String {
        guard
            let bytes = tokenizer.textBytes(
                of: token, isFirst: isFirst, skipSpecialTokens: skipSpecialTokens)
        else { return "" }
        isFirst = false
        pending += bytes
        let count = pending.count - Self.incompleteSuffixBytes(pending)
        defer { pending.removeFirst(count) }
        return String(decoding: pending[..<count], as: UTF8.self)
    }

    /// What was held back, at the end of the text: U+FFFD for a character that never became
    /// complete, otherwise nothing. The decoder is then at the start of a text again.
    public mutating func finish() -> String {
        defer {
            pending = []
            isFirst = true
        }
        return String(decoding: pending, as: UTF8.self)
    }

    /// How many bytes at the end begin a character that more bytes could complete.
    private static func incompleteSuffixBytes(_ bytes: [UInt8]) -> Int {
        for length in 1...3 where length <= bytes.count {
            let byte = bytes[bytes.count - length]
            if byte & 0xC0 == 0x80 { continue }
            return isIncomplete(bytes.suffix(length)) ? length : 0
        }
        return 0
    }

    /// Whether bytes, the first of which is no continuation byte and all others are, can become a
    /// character by more continuation bytes (The Unicode Standard, table 3-7).
    private static func isIncomplete(_ bytes: ArraySlice<UInt8>) -> Bool {
        guard let lead = bytes.first else { return false }
        let expected: Int
        var second: ClosedRange<UInt8> = 0x80...0xBF
        switch lead {
        case 0xC2...0xDF: expected = 2
        case 0xE0: (expected, second) = (3, 0xA0...0xBF)
        case 0xED: (expected, second) = (3, 0x80...0x9F)
        case 0xE1...0xEF: expected = 3
        case 0xF0: (expected, second) = (4, 0x90...0xBF)
        case 0xF1...0xF3: expected = 4
        case 0xF4: (expected, second) = (4, 0x80...0x8F)
        default: return false
        }
        guard bytes.count < expected else { return false }
        return bytes.count < 2 || second.contains(bytes[bytes.startIndex + 1])
    }
}
