/// A value of `tokenizer.json` with the way to it, so that an error can say where it is.
struct TokenizerField {
    let value: JSON
    /// How error messages call the file.
    let file: String
    /// The way from the root.
    let path: Path

    /// The way to a value; it is spelled only when an error asks for it.
    indirect enum Path: CustomStringConvertible {
        case root
        /// A member whose name is a word of the format.
        case member(Path, String)
        /// A member whose name is data.
        case entry(Path, ByteString)
        case element(Path, Int)

        /// The way as in `model.vocab["a"]`; empty for the root.
        var description: String {
            switch self {
            case .root: ""
            case .member(.root, let name): name
            case .member(let path, let name): "\(path).\(name)"
            case .entry(let path, let name): "\(path)[\(name.text.quoted)]"
            case .element(let path, let index): "\(path)[\(index)]"
            }
        }
    }

    init(_ value: JSON, file: String, path: Path = .root) {
        self.value = value
        self.file = file
        self.path = path
    }

    /// Reads the object that fills a file.
    init(parsing text: [UInt8], file: String) throws(ModelError) {
        let object = try JSONObject(parsing: text) { problem in
            ModelError(.tokenizer, "\(file) \(problem). Download the file anew.")
        }
        self.init(.object(object), file: file)
    }

    /// An error about this value: the file is damaged or not what it should be.
    func malformed(_ reason: String) -> ModelError {
        var place = ""
        if case .root = path {} else { place = "`\(path)` " }
        return ModelError(
            .tokenizer,
            "\(file): \(place)\(reason). Download the file anew or save the tokenizer again.")
    }

    /// An error about this value: it is fine, but nothing here can follow it.
    func unsupported(_ reason: String, supported: String) -> ModelError {
        ModelError(
            .unsupported,
            "\(file): `\(path)` \(reason). Supported: \(supported). Use a model of such a kind.")
    }

    // MARK: - Objects and lists

    // Each of these reads the value as one kind, which it must be.

    func object() throws(ModelError) -> JSONObject { try expect(value.object, "an object") }

    /// The member of that name; nil when there is none or it is null.
    func optional(_ name: String) throws(ModelError) -> TokenizerField? {
        guard let value = try object()[name], value != .null else { return nil }
        return TokenizerField(value, file: file, path: .member(path, name))
    }

    /// The member of that name, which must be there.
    func required(_ name: String) throws(ModelError) -> TokenizerField {
        guard let field = try optional(name) else { throw malformed("has no `\(name)`") }
        return field
    }

    /// The members of an object whose names are data.
    func entries() throws(ModelError) -> [(name: ByteString, field: TokenizerField)] {
        try object().members.map { member in
            (member.name, TokenizerField(member.value, file: file, path: .entry(path, member.name)))
        }
    }

    /// The entry of that name; nil when there is none.
    func entry(_ name: ByteString) throws(ModelError) -> TokenizerField? {
        try object()[name].map { TokenizerField($0, file: file, path: .entry(path, name)) }
    }

    func array() throws(ModelError) -> [JSON] { try expect(value.array, "an array") }

    func elements() throws(ModelError) -> [TokenizerField] {
        try array().enumerated().map { index, value in
            TokenizerField(value, file: file, path: .element(path, index))
        }
    }

    /// The elements of the list `name`, each read by `read`.
    func list<Element>(
        _ name: String, _ read: (TokenizerField) throws(ModelError) -> Element
    ) throws(ModelError) -> [Element] {
        var list: [Element] = []
        for element in try required(name).elements() { list.append(try read(element)) }
        return list
    }

    /// The steps of the sequence `name`, each read by `read`, which opens sequences in it.
    func steps<Step>(
        _ name: String, _ read: (TokenizerField) throws(ModelError) -> [Step]
    ) throws(ModelError) -> [Step] {
        let steps = try list(name, read).flatMap { $0 }
        guard steps.count <= TokenizerLimits.steps else {
            throw malformed("has \(steps.count) steps; \(TokenizerLimits.steps) is the most")
        }
        return steps
    }

    // MARK: - Single values

    func bytes() throws(ModelError) -> [UInt8] { try expect(value.bytes, "a string").bytes }

    func string() throws(ModelError) -> String { try expect(value.string, "a string") }

    func boolean() throws(ModelError) -> Bool { try expect(value.boolean, "true or false") }

    func integer() throws(ModelError) -> Int { try expect(value.integer, "a whole number") }

    /// An integer that is not negative and at most `maximum`; `what` says what it is.
    func integer(atMost maximum: Int, _ what: String) throws(ModelError) -> Int {
        let integer = try integer()
        guard (0...maximum).contains(integer) else {
            throw malformed("is \(integer); \(what) is between 0 and \(maximum)")
        }
        return integer
    }

    func tokenID() throws(ModelError) -> UInt32 {
        UInt32(try integer(atMost: TokenizerLimits.tokenID, "a token id"))
    }

    /// The boolean `name`, or `standard` when the file does not say.
    func boolean(_ name: String, standard: Bool) throws(ModelError) -> Bool {
        try optional(name)?.boolean() ?? standard
    }

    /// What the value was read as, which must have worked.
    private func expect<Value>(_ value: Value?, _ kind: String) throws(ModelError) -> Value {
        guard let value else { throw malformed("should be \(kind) but is \(self.value.shown)") }
        return value
    }

    /// The `type` of a part of the tokenizer.
    func type() throws(ModelError) -> String { try required("type").string() }
}
