extension Tokenizer {
    /// The text of tokens.
    ///
    /// Bytes that are not UTF-8 become U+FFFD, as in `String(decoding:as:)`. Ids that no token has
    /// are skipped. An added token that is looked for in normalized text decodes to its normal
    /// form.
    ///
    /// - Parameters:
    ///   - tokens: any ids.
    ///   - skipSpecialTokens: leaves out the control tokens.
    public func decode(_ tokens: [UInt32], skipSpecialTokens: Bool = true) -> String {
        var bytes: [UInt8] = []
        var isFirst = true
        for token in tokens {
            guard
                let text = textBytes(
                    of: token, isFirst: isFirst, skipSpecialTokens: skipSpecialTokens)
            else { continue }
            bytes += text
            isFirst = false
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// What a token adds to a text; nil when it is left out.
    func textBytes(of id: UInt32, isFirst: Bool, skipSpecialTokens: Bool) -> [UInt8]? {
        if let entry = addedTokens.entry(id) {
            if entry.isSpecial, skipSpecialTokens { return nil }
            return decoder.bytes(of: entry.text, isFirst: isFirst)
        }
        return model.vocabulary.token(id).map { decoder.bytes(of: $0.bytes, isFirst: isFirst) }
    }
}
