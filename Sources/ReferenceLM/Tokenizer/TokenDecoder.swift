/// How tokens become text again.
enum TokenDecoder: Sendable {
    /// Tokens are bytes in ``ByteAlphabet``.
    case byteLevel
    /// Tokens are words; one that begins with the prefix continues the word before it.
    case wordPiece(prefix: [UInt8], cleansUp: Bool)
    /// Tokens are words: what the library does without a decoder.
    case spaced

    static let supported = "ByteLevel, WordPiece, or a Sequence of one of them and Fuse"

    init(_ field: TokenizerField?) throws(ModelError) {
        guard let field else {
            self = .spaced
            return
        }
        switch try field.type() {
        case "ByteLevel": self = .byteLevel
        case "WordPiece":
            self = .wordPiece(
                prefix: try field.optional("prefix")?.bytes() ?? Array("##".utf8),
                cleansUp: try field.boolean("cleanup", standard: true))
        case "Sequence": self = try Self.sequence(field)
        case let type:
            throw field.unsupported(
                "is a decoder of type \(type.quoted)", supported: Self.supported)
        }
    }

    /// A decoder followed by any number of `Fuse`, which join what is joined in the end anyway.
    private static func sequence(_ field: TokenizerField) throws(ModelError) -> TokenDecoder {
        let elements = try field.required("decoders").elements()
        guard let first = elements.first else { throw field.malformed("has no decoders") }
        for element in elements.dropFirst() where try element.type() != "Fuse" {
            throw element.unsupported(
                "is a decoder of type \(try element.type().quoted) after another",
                supported: Self.supported)
        }
        return try TokenDecoder(first)
    }

    /// The UTF-8 bytes that a token adds to a text; with ``byteLevel`` they may begin or end within
    /// a character.
    func bytes(of token: [UInt8], isFirst: Bool) -> [UInt8] {
        switch self {
        case .byteLevel: return ByteAlphabet.decode(token)
        case .spaced: return isFirst ? token : [0x20] + token
        case .wordPiece(let prefix, let cleansUp):
            var text = token
            if !isFirst {
                text =
                    text.starts(with: prefix) ? Array(text.dropFirst(prefix.count)) : [0x20] + text
            }
            return cleansUp ? Self.cleanUp(text) : text
        }
    }

    /// Spaces that English does not write, as they come from splitting at punctuation.
    private static let cleanUps: [(wrong: [UInt8], right: [UInt8])] = [
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
        (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    ].map { (Array($0.0.utf8), Array($0.1.utf8)) }

    private static func cleanUp(_ text: [UInt8]) -> [UInt8] {
        guard text.contains(0x20) else { return text }
        return cleanUps.reduce(text) { replacing($1.wrong, by: $1.right, in: $0) }
    }

    private static func replacing(
        _ wrong: [UInt8], by right: [UInt8], in text: [UInt8]
    ) -> [UInt8] {
        var result: [UInt8] = []
        var rest = text[...]
        while let byte = rest.first {
            if rest.starts(with: wrong) {
                result += right
                rest = rest.dropFirst(wrong.count)
            } else {
                result.append(byte)
                rest = rest.dropFirst()
            }
        }
        return result
    }
}
