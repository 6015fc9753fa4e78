/// Byte-pair encoding: pieces begin as single characters, and the pair that comes first in the list
/// of merges is joined until none is left (Sennrich, Haddow, Birch 2016).
struct BytePairModel: Sendable {
    /// What a pair of tokens becomes, and how early its turn is.
    struct Merge: Sendable {
        let rank: UInt32
        let id: UInt32
    }

    let vocabulary: Vocabulary
    private let merges: [UInt64: Merge]
    private let singles: [Unicode.Scalar: UInt32]
    private let unknownID: UInt32?
    private let fusesUnknown: Bool
    private let ignoresMerges: Bool

    init(_ field: TokenizerField) throws(ModelError) {
        try Self.refuseUnsupported(field)
        vocabulary = try Vocabulary(try field.required("vocab"))
        merges = try BytePairMerges.read(try field.required("merges"), vocabulary: vocabulary)
        singles = vocabulary.singleScalars()
        unknownID = try Self.unknown(field, vocabulary)
        fusesUnknown = try field.boolean("fuse_unk", standard: false)
        ignoresMerges = try field.boolean("ignore_merges", standard: false)
    }

    private static func refuseUnsupported(_ field: TokenizerField) throws(ModelError) {
        if try field.boolean("byte_fallback", standard: false) {
            throw field.unsupported(
                "falls back to bytes (`byte_fallback`), as SentencePiece-style tokenizers do",
                supported: "byte-level BPE, as GPT-2, Llama 3 and Qwen 2 have it")
        }
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if let affix = try field.optional(name), try !affix.bytes().isEmpty {
                throw affix.unsupported("marks parts of words", supported: "null or empty")
            }
        }
        if let dropout = try field.optional("dropout") {
            guard dropout.value.double == 0 else {
                throw dropout.unsupported("drops merges at random", supported: "null or 0")
            }
        }
    }

    private static func unknown(
        _ field: TokenizerField, _ vocabulary: Vocabulary
    ) throws(ModelError) -> UInt32? {
        guard let token = try field.optional("unk_token") else { return nil }
        let bytes = try token.bytes()
        if bytes.isEmpty { return nil }
        guard let id = vocabulary.id(of: ByteString(bytes)) else {
            throw token.malformed("is not in the vocabulary")
        }
        return id
    }

    /// Key of a pair in the table of merges.
    static func key(_ left: UInt32, _ right: UInt32) -> UInt64 {
        UInt64(left) << 32 | UInt64(right)
    }

    /// Appends the tokens of a piece; O(n log n) in its length.
    func encode(_ piece: ArraySlice<UInt8>, into ids: inout [UInt32]) {
        if ignoresMerges, let id = vocabulary.id(of: ByteString(piece)) {
            ids.append(id)
            return
        }
        var word = BytePairWord(characters(of: piece))
        word.mergeAll(merges)
        word.append(to: &ids)
    }

    /// The tokens of the single characters.
    ///
    /// One that is not in the vocabulary becomes the unknown token; without such a token it is left
    /// out, as the library does.
    private func characters(of piece: ArraySlice<UInt8>) -> [UInt32] {
        var ids: [UInt32] = []
        ids.reserveCapacity(piece.count)
        var followsUnknown = false
        for scalar in String(decoding: piece, as: UTF8.self).unicodeScalars {
            if let id = singles[scalar] {
                ids.append(id)
                followsUnknown = false
            } else if let unknownID {
                if !(followsUnknown && fusesUnknown) { ids.append(unknownID) }
                followsUnknown = true
            }
        }
        return ids
    }
}

/// Reads the list of merges.
enum BytePairMerges {
    /// The merges by pair; each is written `"a b"` or `["a", "b"]`, and both its tokens and what
    /// they join to must be in the vocabulary.
    static func read(
        _ field: TokenizerField, vocabulary: Vocabulary
    ) throws(ModelError) -> [UInt64: BytePairModel.Merge] {
        let values = try field.array()
        var merges: [UInt64: BytePairModel.Merge] = [:]
        merges.reserveCapacity(values.count)
        for (rank, value) in values.enumerated() {
            guard let (left, right) = pair(value) else {
                throw field.malformed("holds something else than a pair of tokens at \(rank)")
            }
            guard let leftID = vocabulary.id(of: left), let rightID = vocabulary.id(of: right),
                let id = vocabulary.id(of: ByteString(left.bytes + right.bytes))
            else {
                throw field.malformed(
                    "names a token that is not in the vocabulary, at \(rank): "
                        + "\(left.text) \(right.text)".quoted)
            }
            merges[BytePairModel.key(leftID, rightID)] = .init(rank: UInt32(rank), id: id)
        }
        return merges
    }

    private static func pair(_ value: JSON) -> (left: ByteString, right: ByteString)? {
        switch value {
        case .string(let string):
            let bytes = string.bytes
            guard let space = bytes.firstIndex(of: 0x20),
                bytes.lastIndex(of: 0x20) == space
            else { return nil }
            return (ByteString(bytes[..<space]), ByteString(bytes[(space + 1)...]))
        case .array(let values):
            guard values.count == 2, case .string(let left) = values[0],
                case .string(let right) = values[1]
            else { return nil }
            return (left, right)
        default:
            return nil
        }
    }
}
