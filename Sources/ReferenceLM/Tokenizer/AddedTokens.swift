/// The tokens that are found in a text before the model sees it: `<|im_start|>`, `[MASK]`.
struct AddedTokens: Sendable {
    /// One token of the list `added_tokens`.
    struct Entry: Sendable {
        let id: UInt32
        let content: ByteString
        /// What is looked for and what the token decodes to: the content, in its normal form where
        /// ``isNormalized`` says so.
        let text: [UInt8]
        /// Control tokens, which ``Tokenizer/decode(_:skipSpecialTokens:)`` may leave out.
        let isSpecial: Bool
        /// Counts only where no letter or digit touches it.
        let isSingleWord: Bool
        /// Takes the white space before it along.
        let stripsLeft: Bool
        /// Takes the white space after it along.
        let stripsRight: Bool
        /// Is looked for in the normalized text.
        let isNormalized: Bool
    }

    /// A part of a text: a token that was found, or what lies between.
    enum Segment {
        case token(UInt32)
        case text(Range<Int>)
    }

    private var entries: [UInt32: Entry] = [:]
    private var ids: [ByteString: UInt32] = [:]
    private var raw = ByteTrie()
    private var normalized = ByteTrie()

    /// 1 + the largest id; 0 when there are none.
    private(set) var size = 0

    /// Reads `added_tokens`, whose ids must not contradict the model's vocabulary.
    init(
        _ field: TokenizerField?, vocabulary: Vocabulary, normalizer: Normalizer?
    ) throws(ModelError) {
        guard let field else { return }
        for element in try field.elements() {
            let entry = try Entry(element, normalizer: normalizer)
            try check(entry, vocabulary: vocabulary, field: element)
            guard !entry.content.bytes.isEmpty else { continue }
            entries[entry.id] = entry
            ids[entry.content] = entry.id
            size = max(size, Int(entry.id) + 1)
            // Of two tokens with the same normal form the first is found.
            if entry.isNormalized {
                normalized.insert(entry.text, id: entry.id)
            } else {
                raw.insert(entry.text, id: entry.id)
            }
        }
    }

    private func check(
        _ entry: Entry, vocabulary: Vocabulary, field: TokenizerField
    ) throws(ModelError) {
        let other = entries[entry.id]?.content ?? vocabulary.token(entry.id)
        if let other, other != entry.content {
            throw field.malformed("has the id \(entry.id), which another token has too")
        }
        if let id = ids[entry.content] ?? vocabulary.id(of: entry.content), id != entry.id {
            throw field.malformed("has the id \(entry.id), but the same token has the id \(id) too")
        }
    }

    func entry(_ id: UInt32) -> Entry? { entries[id] }

    func id(of token: ByteString) -> UInt32? { ids[token] }

    /// Splits text as it was given at the tokens that are looked for there.
    func splitRaw(_ bytes: [UInt8]) -> [Segment] { split(bytes, raw) }

    /// Splits normalized text at the tokens that are looked for there.
    func splitNormalized(_ bytes: [UInt8]) -> [Segment] { split(bytes, normalized) }

    /// Splits at the tokens of a trie; of those that begin at the same place the longest counts.
    private func split(_ bytes: [UInt8], _ trie: ByteTrie) -> [Segment] {
        guard !bytes.isEmpty else { return [] }
        guard !trie.isEmpty else { return [.text(0..<bytes.count)] }
        var segments: [Segment] = []
        var end = 0
        var position = 0
        var stripped = 0
        while let (match, id) = trie.firstMatch(in: bytes, from: position) {
            position = match.upperBound
            guard let entry = entries[id],
                let range = Self.extent(of: entry, at: match, in: bytes, after: end, &stripped)
            else { continue }
            if end < range.lowerBound { segments.append(.text(end..<range.lowerBound)) }
            segments.append(.token(id))
            end = range.upperBound
        }
        if end < bytes.count { segments.append(.text(end..<bytes.count)) }
        return segments
    }

    /// What a token takes at a match; nil when it does not count there.
    ///
    /// - Parameter stripped: where white space ends that an earlier match has taken along; it is
    ///   not looked through again, which would take the square of its length.
    private static func extent(
        of entry: Entry, at match: Range<Int>, in bytes: [UInt8], after end: Int,
        _ stripped: inout Int
    ) -> Range<Int>? {
        if entry.isSingleWord {
            let touches =
                bytes.scalar(before: match.lowerBound)?.isWord ?? false
                || bytes.scalar(at: match.upperBound)?.isWord ?? false
            if touches { return nil }
        }
        var (lower, upper) = (match.lowerBound, match.upperBound)
        if entry.stripsLeft {
            while lower > end, let scalar = bytes.scalar(before: lower),
                scalar.properties.isWhitespace
            { lower -= UTF8.width(scalar) }
        }
        if entry.stripsRight {
            upper = max(upper, stripped)
            while let scalar = bytes.scalar(at: upper), scalar.properties.isWhitespace {
                upper += UTF8.width(scalar)
            }
            stripped = upper
        }
        return min(max(lower, end), upper)..<upper
    }
}

extension AddedTokens.Entry {
    init(_ field: TokenizerField, normalizer: Normalizer?) throws(ModelError) {
        id = try field.required("id").tokenID()
        content = ByteString(try field.required("content").bytes())
        isSpecial = try field.boolean("special", standard: false)
        isSingleWord = try field.boolean("single_word", standard: false)
        stripsLeft = try field.boolean("lstrip", standard: false)
        stripsRight = try field.boolean("rstrip", standard: false)
        isNormalized = try field.boolean("normalized", standard: true)
        if isNormalized, let normalizer {
            text = Array(normalizer.apply(content.text).utf8)
        } else {
            text = content.bytes
        }
        guard max(text.count, content.bytes.count) <= TokenizerLimits.searchedTokenBytes else {
            throw field.malformed("has more than \(TokenizerLimits.searchedTokenBytes) bytes")
        }
    }
}

extension [UInt8] {
    /// The scalar that begins at `index` in valid UTF-8; nil at the end.
    fileprivate func scalar(at index: Int) -> Unicode.Scalar? {
        guard index < count else { return nil }
        let end = Swift.min(index + 4, count)
        return String(decoding: self[index..<end], as: UTF8.self).unicodeScalars.first
    }

    /// The scalar that ends at `index` in valid UTF-8; nil at the start.
    fileprivate func scalar(before index: Int) -> Unicode.Scalar? {
        var start = index - 1
        while start > 0, self[start] & 0xC0 == 0x80 { start -= 1 }
        return start < 0 ? nil : scalar(at: start)
    }
}
