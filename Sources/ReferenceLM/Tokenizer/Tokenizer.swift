/// Turns text into tokens and back, as a model's `tokenizer.json` says.
///
/// Two kinds can be read (Hugging Face `tokenizers`, file version 1.0): byte-level BPE, as GPT-2,
/// Llama 3 and Qwen 2 have it, and WordPiece, as BERT has it. Everything in the file is followed to
/// the letter or refused with ``ModelError/Code/unsupported``; only `truncation` and `padding` are
/// ignored, for they are a matter of batches, not of text.
///
/// Regular expressions are ICU's and Unicode is the platform's, which may differ from other
/// implementations for characters that were assigned lately. Where a regular expression needs more
/// stack than ICU has, which takes a match of some 100,000 characters, the match is cut.
public struct Tokenizer: Sendable {
    let model: TokenModel
    let addedTokens: AddedTokens
    let normalizer: Normalizer?
    let preTokenizer: PreTokenizer?
    let postProcessor: PostProcessor
    let decoder: TokenDecoder

    /// Reads a `tokenizer.json`.
    ///
    /// - Throws: ``ModelError`` with the code `unreadable` when there is no such file, `tokenizer`
    ///   when it is damaged, and `unsupported` when it is of a kind that can't be followed.
    public init(path: String) throws(ModelError) {
        let file = try MappedFile(path: path)
        let text = try file.contents(.tokenizer, atMost: TokenizerLimits.fileBytes)
        try self.init(json: text, name: path)
    }

    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// - Parameters:
    ///   - json: UTF-8 text.
    ///   - name: what error messages call the file.
    /// - Throws: ``ModelError`` with the code `tokenizer` or `unsupported`.
    public init(json: [UInt8], name: String) throws(ModelError) {
        let root = try TokenizerField(parsing: json, file: name)
        if let version = try root.optional("version"), try version.string() != "1.0" {
            throw version.unsupported("is \(try version.string().quoted)", supported: "1.0")
        }
        model = try TokenModel(try root.required("model"))
        normalizer = try root.optional("normalizer").map(Normalizer.init)
        preTokenizer = try root.optional("pre_tokenizer").map(PreTokenizer.init)
        postProcessor = try PostProcessor(try root.optional("post_processor"))
        decoder = try TokenDecoder(try root.optional("decoder"))
        addedTokens = try AddedTokens(
            try root.optional("added_tokens"), vocabulary: model.vocabulary, normalizer: normalizer)
    }

    /// 1 + the largest id of a token.
    public var vocabularySize: Int { max(model.vocabulary.size, addedTokens.size) }

    /// The token of an id as the vocabulary writes it (`Ġthe`, `##ing`); nil when there is none.
    public func token(_ id: UInt32) -> String? {
        let bytes = addedTokens.entry(id)?.content ?? model.vocabulary.token(id)
        return bytes?.text
    }

    /// The id of a token as the vocabulary writes it; nil when there is none.
    ///
    /// Tokens are told apart by their bytes: `é` in one scalar is another token than `é` in two.
    public func id(of token: String) -> UInt32? {
        let key = ByteString(token)
        return addedTokens.id(of: key) ?? model.vocabulary.id(of: key)
    }

    /// Whether a token is a control token, such as the one that begins a text.
    public func isSpecial(_ id: UInt32) -> Bool { addedTokens.entry(id)?.isSpecial ?? false }
}
