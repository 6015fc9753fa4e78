/// What splits text into the pieces that the model turns into tokens one by one.
enum PreTokenizer: Sendable {
    case byteLevel(ByteLevel)
    case split(SplitPattern, SplitBehavior, invert: Bool)
    case bert
    case whitespaceSplit
    case digits(SplitBehavior)
    case punctuation(SplitBehavior)
    case sequence([PreTokenizer])

    static let supported = """
        ByteLevel, Split, BertPreTokenizer, Whitespace, WhitespaceSplit, Digits, Punctuation, \
        Sequence
        """

    init(_ field: TokenizerField) throws(ModelError) {
        switch try field.type() {
        case "ByteLevel": self = .byteLevel(try ByteLevel(field))
        case "Split": self = try Self.split(field)
        case "BertPreTokenizer": self = .bert
        case "Whitespace":
            self = .split(
                try SplitPattern(#"\w+|[^\w\s]+"#, field: field), .removed, invert: true)
        case "WhitespaceSplit": self = .whitespaceSplit
        case "Digits":
            let isIndividual = try field.boolean("individual_digits", standard: false)
            self = .digits(isIndividual ? .isolated : .contiguous)
        case "Punctuation":
            let behavior = try field.optional("behavior")
            self = .punctuation(try behavior.map(SplitBehavior.init) ?? .isolated)
        case "Sequence": self = try Self.sequence(field)
        case let type:
            throw field.unsupported(
                "is a pre-tokenizer of type \(type.quoted)", supported: Self.supported)
        }
    }

    private static func sequence(_ field: TokenizerField) throws(ModelError) -> PreTokenizer {
        var writesBytes = false
        let steps = try field.steps("pretokenizers") { element throws(ModelError) in
            let step = try PreTokenizer(element)
            if case .sequence(let steps) = step { return steps }
            return [step]
        }
        for step in steps {
            guard case .byteLevel = step else { continue }
            // Each time would double the text.
            if writesBytes {
                throw field.unsupported("writes bytes twice", supported: "one ByteLevel")
            }
            writesBytes = true
        }
        return .sequence(steps)
    }

    private static func split(_ field: TokenizerField) throws(ModelError) -> PreTokenizer {
        let pattern = try field.required("pattern")
        let compiled: SplitPattern
        if let expression = try pattern.optional("Regex") {
            compiled = try SplitPattern(try expression.string(), field: expression)
        } else if let literal = try pattern.optional("String") {
            compiled = try SplitPattern(literal: try literal.string(), field: literal)
        } else {
            throw pattern.malformed("has neither `Regex` nor `String`")
        }
        return .split(
            compiled, try SplitBehavior(try field.required("behavior")),
            invert: try field.boolean("invert", standard: false))
    }

    /// Splits the pieces further.
    func apply(_ text: inout SplitText) {
        switch self {
        case .byteLevel(let byteLevel): byteLevel.apply(&text)
        case .split(let pattern, let behavior, let invert):
            text.split(behavior, invert: invert) { pattern.matches(in: $0) }
        case .bert:
            text.split(.removed) { $0.properties.isWhitespace }
            text.split(.isolated) { $0.isPunctuation }
        case .whitespaceSplit: text.split(.removed) { $0.properties.isWhitespace }
        case .digits(let behavior): text.split(behavior) { $0.isNumber }
        case .punctuation(let behavior): text.split(behavior) { $0.isPunctuation }
        case .sequence(let steps): for step in steps { step.apply(&text) }
        }
    }
}

/// GPT-2's way: split into words with the space before them, then write the bytes in
/// ``ByteAlphabet``.
struct ByteLevel: Sendable {
    /// GPT-2's words.
    private static let words =
        #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#

    private let addsPrefixSpace: Bool
    private let pattern: SplitPattern?

    init(_ field: TokenizerField) throws(ModelError) {
        addsPrefixSpace = try field.boolean("add_prefix_space", standard: true)
        let usesPattern = try field.boolean("use_regex", standard: true)
        pattern = usesPattern ? try SplitPattern(Self.words, field: field) : nil
    }

    func apply(_ text: inout SplitText) {
        if addsPrefixSpace {
            text.replacePieces { piece, bytes in
                if piece.first != UInt8(ascii: " ") { bytes.append(UInt8(ascii: " ")) }
                bytes += piece
            }
        }
        if let pattern { text.split(.isolated) { pattern.matches(in: $0) } }
        text.replacePieces { ByteAlphabet.encode($0, into: &$1) }
    }
}
