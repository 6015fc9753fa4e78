extension Tokenizer {
    /// The tokens of a text.
    ///
    /// Added tokens, such as `<|im_start|>`, are found in the text whether or not
    /// `addSpecialTokens` is set: take them out of text that is not to be trusted first.
    ///
    /// Takes time in proportion to the text, and n log n within a piece that the pre-tokenizer
    /// leaves whole; words that come again are looked up.
    ///
    /// - Parameters:
    ///   - text: any text of less than 2 GiB.
    ///   - addSpecialTokens: puts the model's special tokens around the text, such as the one that
    ///     begins it.
    public func encode(_ text: String, addSpecialTokens: Bool = true) -> [UInt32] {
        var run = EncodingRun(tokenizer: self)
        run.append(text)
        return addSpecialTokens ? postProcessor.apply(run.ids) : run.ids
    }
}

/// One call of ``Tokenizer/encode(_:addSpecialTokens:)``: the tokens so far, and those of the
/// pieces it has met.
private struct EncodingRun {
    /// Longer pieces are not remembered: they hardly come again.
    private static let rememberedBytesMaximum = 128

    let tokenizer: Tokenizer
    private(set) var ids: [UInt32] = []
    private var known: [ByteString: [UInt32]] = [:]

    init(tokenizer: Tokenizer) { self.tokenizer = tokenizer }

    mutating func append(_ text: String) {
        let bytes = Array(text.utf8)
        for segment in tokenizer.addedTokens.splitRaw(bytes) {
            switch segment {
            case .token(let id): ids.append(id)
            case .text(let range): appendRaw(bytes[range])
            }
        }
    }

    private mutating func appendRaw(_ text: ArraySlice<UInt8>) {
        var bytes = Array(text)
        if let normalizer = tokenizer.normalizer {
            bytes = Array(normalizer.apply(String(decoding: text, as: UTF8.self)).utf8)
        }
        for segment in tokenizer.addedTokens.splitNormalized(bytes) {
            switch segment {
            case .token(let id): ids.append(id)
            case .text(let range): appendNormalized(Array(bytes[range]))
            }
        }
    }

    private mutating func appendNormalized(_ bytes: [UInt8]) {
        var text = SplitText(bytes)
        tokenizer.preTokenizer?.apply(&text)
        for piece in text.pieces { appendPiece(text.bytes[piece]) }
    }

    private mutating func appendPiece(_ piece: ArraySlice<UInt8>) {
        guard piece.count <= Self.rememberedBytesMaximum else {
            tokenizer.model.encode(piece, into: &ids)
            return
        }
        let key = ByteString(piece)
        if let tokens = known[key] {
            ids += tokens
            return
        }
        var tokens: [UInt32] = []
        tokenizer.model.encode(piece, into: &tokens)
        ids += tokens
        known[key] = tokens
    }
}
