/// The tokens of a model: a table from id to token and one back, both by bytes.
struct Vocabulary: Sendable {
    private var tokens: [ByteString?] = []
    private var ids: [ByteString: UInt32] = [:]

    /// 1 + the largest id.
    var size: Int { tokens.count }

    /// Reads `vocab`: an object from token to id.
    init(
        _ field: TokenizerField, tokenBytesMaximum: Int = TokenizerLimits.tokenBytes
    ) throws(ModelError) {
        let entries = try field.entries()
        ids.reserveCapacity(entries.count)
        tokens.reserveCapacity(entries.count)
        for (token, id) in entries {
            guard token.bytes.count <= tokenBytesMaximum else {
                throw id.malformed("is a token of more than \(tokenBytesMaximum) bytes")
            }
            try insert(token, id: try id.tokenID(), field: field)
        }
        guard !tokens.isEmpty else { throw field.malformed("is empty") }
    }

    private mutating func insert(
        _ token: ByteString, id: UInt32, field: TokenizerField
    ) throws(ModelError) {
        let index = Int(id)
        while tokens.count <= index { tokens.append(nil) }
        guard tokens[index] == nil else {
            throw field.malformed("gives the id \(id) to two tokens")
        }
        ids[token] = id
        tokens[index] = token
    }

    /// The bytes of a token; nil when no token has that id.
    func token(_ id: UInt32) -> ByteString? {
        id < tokens.count ? tokens[Int(id)] : nil
    }

    func id(of token: ByteString) -> UInt32? { ids[token] }

    /// The tokens and their ids in the order of these.
    var byID: some Sequence<(token: ByteString, id: UInt32)> {
        tokens.enumerated().lazy.compactMap { id, token in token.map { ($0, UInt32(id)) } }
    }

    /// The ids of the tokens that are one Unicode scalar, by the scalar.
    func singleScalars() -> [Unicode.Scalar: UInt32] {
        var table: [Unicode.Scalar: UInt32] = [:]
        for (token, id) in byID where (1...4).contains(token.bytes.count) {
            let scalars = token.text.unicodeScalars
            if scalars.count == 1, let scalar = scalars.first { table[scalar] = id }
        }
        return table
    }
}
