/// What puts special tokens around the tokens of a text.
struct PostProcessor: Sendable {
    private var before: [UInt32] = []
    private var after: [UInt32] = []

    static let supported =
        "ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing, Sequence"

    init(_ field: TokenizerField?) throws(ModelError) {
        guard let field else { return }
        switch try field.type() {
        case "ByteLevel": break
        case "BertProcessing", "RobertaProcessing":
            before = [try Self.tokenID(try field.required("cls"))]
            after = [try Self.tokenID(try field.required("sep"))]
        case "TemplateProcessing": try readTemplate(field)
        case "Sequence":
            for element in try field.required("processors").elements() {
                let step = try PostProcessor(element)
                before = step.before + before
                after += step.after
                try checkCount(element)
            }
        case let type:
            throw field.unsupported(
                "is a post-processor of type \(type.quoted)", supported: Self.supported)
        }
    }

    /// The id in `["[CLS]", 101]`.
    private static func tokenID(_ field: TokenizerField) throws(ModelError) -> UInt32 {
        let elements = try field.elements()
        guard elements.count == 2 else { throw field.malformed("should be a token and its id") }
        return try elements[1].tokenID()
    }

    /// Reads the template for a single text, in which the text must stand once.
    private mutating func readTemplate(_ field: TokenizerField) throws(ModelError) {
        let template = try field.required("single")
        let special = try field.optional("special_tokens")
        var hasSequence = false
        for item in try template.elements() {
            if let token = try item.optional("SpecialToken") {
                let ids = try Self.ids(of: token, special)
                if hasSequence { after += ids } else { before += ids }
                try checkCount(item)
            } else if try item.optional("Sequence") != nil, !hasSequence {
                hasSequence = true
            } else {
                throw item.unsupported(
                    "is neither a special token nor the only text",
                    supported: "templates with special tokens around one text")
            }
        }
        guard hasSequence else { throw template.malformed("has no place for the text") }
    }

    private func checkCount(_ field: TokenizerField) throws(ModelError) {
        guard before.count + after.count <= TokenizerLimits.specialTokens else {
            throw field.malformed(
                "makes more than \(TokenizerLimits.specialTokens) special tokens")
        }
    }

    private static func ids(
        of token: TokenizerField, _ special: TokenizerField?
    ) throws(ModelError) -> [UInt32] {
        let id = try token.required("id")
        guard let entry = try special?.entry(ByteString(try id.bytes())) else {
            throw id.malformed("is not among the template's `special_tokens`")
        }
        return try entry.list("ids") { id throws(ModelError) in try id.tokenID() }
    }

    /// The tokens of a text with the special tokens around them.
    func apply(_ ids: [UInt32]) -> [UInt32] { before + ids + after }
}
