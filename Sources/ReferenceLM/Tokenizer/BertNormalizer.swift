/// What BERT's tokenizer does to text: control characters away, spaces around Chinese characters,
/// accents away, lower case.
struct BertNormalizer: Sendable {
    let cleansText: Bool
    let separatesChinese: Bool
    let stripsAccents: Bool
    let lowercases: Bool

    /// Reads the normalizer; accents are stripped with lower case unless the file says.
    init(_ field: TokenizerField) throws(ModelError) {
        cleansText = try field.boolean("clean_text", standard: true)
        separatesChinese = try field.boolean("handle_chinese_chars", standard: true)
        lowercases = try field.boolean("lowercase", standard: true)
        stripsAccents = try field.boolean("strip_accents", standard: lowercases)
    }

    func apply(_ text: String) -> String {
        var text = text
        if cleansText { text = Self.clean(text) }
        if separatesChinese { text = Self.separateChinese(text) }
        if stripsAccents {
            text = UnicodeForm.canonicalDecomposition.apply(text).filteringScalars {
                $0.properties.generalCategory != .nonspacingMark
            }
        }
        return lowercases ? text.lowercasedByScalar() : text
    }

    private static func clean(_ text: String) -> String {
        var scalars = String.UnicodeScalarView()
        for scalar in text.unicodeScalars where !isRemoved(scalar) {
            scalars.append(scalar.properties.isWhitespace ? " " : scalar)
        }
        return String(scalars)
    }

    private static func isRemoved(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar {
        case "\t", "\n", "\r": return false
        case "\u{0}", "\u{FFFD}": return true
        default: break
        }
        switch scalar.properties.generalCategory {
        case .control, .format, .privateUse, .surrogate: return true
        default: return false
        }
    }

    private static func separateChinese(_ text: String) -> String {
        var scalars = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            if isChinese(scalar) {
                scalars.append(contentsOf: [" ", scalar, " "])
            } else {
                scalars.append(scalar)
            }
        }
        return String(scalars)
    }

    /// The blocks of ideographs as BERT lists them.
    private static func isChinese(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F,
            0x2B740...0x2B81F, 0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
            true
        default: false
        }
    }
}
