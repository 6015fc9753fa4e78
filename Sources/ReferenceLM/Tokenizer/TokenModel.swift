/// What turns a piece of text into tokens.
enum TokenModel: Sendable {
    case bytePair(BytePairModel)
    case wordPiece(WordPieceModel)

    static let supported = "BPE (byte-level) and WordPiece"

    init(_ field: TokenizerField) throws(ModelError) {
        switch try Self.type(field) {
        case "BPE": self = .bytePair(try BytePairModel(field))
        case "WordPiece": self = .wordPiece(try WordPieceModel(field))
        case let type:
            throw field.unsupported(
                "is a model of type \(type.quoted)", supported: Self.supported)
        }
    }

    /// The type of a model; old files leave it to be seen by what else is there.
    private static func type(_ field: TokenizerField) throws(ModelError) -> String {
        if let type = try field.optional("type") { return try type.string() }
        if try field.optional("merges") != nil { return "BPE" }
        if try field.optional("max_input_chars_per_word") != nil { return "WordPiece" }
        throw field.malformed("has no `type`")
    }

    var vocabulary: Vocabulary {
        switch self {
        case .bytePair(let model): model.vocabulary
        case .wordPiece(let model): model.vocabulary
        }
    }

    /// Appends the tokens of a piece, which must be valid UTF-8.
    func encode(_ piece: ArraySlice<UInt8>, into ids: inout [UInt32]) {
        switch self {
        case .bytePair(let model): model.encode(piece, into: &ids)
        case .wordPiece(let model): model.encode(piece, into: &ids)
        }
    }
}
