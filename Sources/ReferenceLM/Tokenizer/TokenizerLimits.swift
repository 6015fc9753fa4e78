/// What a `tokenizer.json` may hold at most. Real ones stay far below; files that don't are
/// damaged, or made to take more time and memory than anybody has.
enum TokenizerLimits {
    /// The file.
    static let fileBytes = 256 << 20
    /// The largest token id; it bounds the table from id to token.
    static let tokenID = 4_194_303
    /// A token of the vocabulary.
    static let tokenBytes = 4096
    /// A token that is looked for in text: at each place as many bytes may have to be compared.
    static let searchedTokenBytes = 512
    /// `max_input_chars_per_word`.
    static let wordCharacters = 1 << 20
    /// The normalizers or pre-tokenizers in a sequence.
    static let steps = 64
    /// The special tokens around a text.
    static let specialTokens = 1024
}
