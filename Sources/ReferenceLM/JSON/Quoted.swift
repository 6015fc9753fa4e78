extension String {
    /// The text in quotes for a message: what is not printed is escaped, long texts are cut.
    var quoted: String {
        var result = "\""
        for scalar in shortened.unicodeScalars {
            result += scalar.isPrinted ? String(scalar) : scalar.escaped(asASCII: true)
        }
        return result + "\""
    }

    /// The text, cut after a length that a message can bear.
    var shortened: String {
        let limit = 160
        // Bytes are counted at once, and there are at least as many of them.
        guard utf8.count > limit, unicodeScalars.count > limit else { return self }
        return String(String.UnicodeScalarView(unicodeScalars.prefix(limit))) + "…"
    }
}

extension Unicode.Scalar {
    /// Whether a terminal or a log shows the character between quotes and nothing else happens.
    fileprivate var isPrinted: Bool {
        switch properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator, .privateUse, .unassigned:
            false
        default: self != "\"" && self != "\\"
        }
    }
}
