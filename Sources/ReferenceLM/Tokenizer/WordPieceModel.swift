/// WordPiece as BERT has it: from the left, always the longest token that fits.
struct WordPieceModel: Sendable {
    let vocabulary: Vocabulary
    private let unknownID: UInt32
    private let wordCharactersMaximum: Int
    private let tokens: ByteTrie
    /// Where the tokens that continue a word begin among the others; nil when there are none.
    private let continuations: ByteTrie.Node?

    init(_ field: TokenizerField) throws(ModelError) {
        let vocab = try field.required("vocab")
        vocabulary = try Vocabulary(vocab, tokenBytesMaximum: TokenizerLimits.searchedTokenBytes)
        let unknown = try field.required("unk_token")
        guard let id = vocabulary.id(of: ByteString(try unknown.bytes())) else {
            throw unknown.malformed("is not in the vocabulary")
        }
        unknownID = id
        let prefix = try field.required("continuing_subword_prefix").bytes()
        wordCharactersMaximum = try field.required("max_input_chars_per_word")
            .integer(atMost: TokenizerLimits.wordCharacters, "the longest word")
        var tokens = ByteTrie()
        for (token, id) in vocabulary.byID { tokens.insert(token.bytes, id: id) }
        continuations = tokens.node(after: prefix)
        self.tokens = tokens
    }

    /// Appends the tokens of a word; the unknown token alone when it is too long or when a part of
    /// it is in no token.
    func encode(_ word: ArraySlice<UInt8>, into ids: inout [UInt32]) {
        let characters = word.reduce(0) { $0 + ($1 & 0xC0 == 0x80 ? 0 : 1) }
        let count = ids.count
        var start = word.startIndex
        var node: ByteTrie.Node? = ByteTrie.root
        var isKnown = characters <= wordCharactersMaximum
        while isKnown, start < word.endIndex {
            if let node, let (end, id) = tokens.longestMatch(in: word[start...], from: node) {
                ids.append(id)
                start = end
            } else {
                isKnown = false
            }
            node = continuations
        }
        guard !isKnown else { return }
        ids.removeSubrange(count...)
        ids.append(unknownID)
    }
}
