/// The classes of characters that pre-tokenizers and added tokens ask for.
extension Unicode.Scalar {
    /// Of the general category M.
    var isCombiningMark: Bool {
        switch properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark: true
        default: false
        }
    }

    /// Of the general category N.
    var isNumber: Bool {
        switch properties.generalCategory {
        case .decimalNumber, .letterNumber, .otherNumber: true
        default: false
        }
    }

    /// What BERT takes for punctuation: the general category P and all ASCII symbols.
    var isPunctuation: Bool {
        if isASCII {
            switch value {
            case 0x21...0x2F, 0x3A...0x40, 0x5B...0x60, 0x7B...0x7E: return true
            default: return false
            }
        }
        switch properties.generalCategory {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation,
            .initialPunctuation, .finalPunctuation, .otherPunctuation:
            return true
        default: return false
        }
    }

    /// What a regular expression calls `\w`.
    var isWord: Bool {
        properties.isAlphabetic || isCombiningMark || properties.isJoinControl
            || properties.generalCategory == .decimalNumber
            || properties.generalCategory == .connectorPunctuation
    }
}
