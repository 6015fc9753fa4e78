/// The fields of one JSON object of a configuration, each read as what it must be.
///
/// A field that is missing or null is nil; one of another type or outside its range is an error
/// that says where it stands, what it is and what it should be.
struct ConfigurationFields: Sendable {
    /// The path of the file, for messages.
    let file: String
    /// The path of this object in the file, with a period at its end; empty for the outermost one.
    let prefix: String
    private let object: JSONObject

    /// Reads the object that fills a file.
    init(parsing text: [UInt8], file: String) throws(ModelError) {
        let object = try JSONObject(parsing: text) { problem in
            ModelError(.configuration, "\(file) \(problem); restore it as it was published")
        }
        self.init(file: file, prefix: "", object: object)
    }

    private init(file: String, prefix: String, object: JSONObject) {
        self.file = file
        self.prefix = prefix
        self.object = object
    }

    /// Whether the object has no fields.
    var isEmpty: Bool { object.members.isEmpty }

    /// Whether a field is not even null.
    func isMissing(_ name: String) -> Bool { object[name] == nil }

    /// What stands in a field; nil if it is missing or null.
    func value(_ name: String) -> JSON? {
        let value = object[name]
        return value == .null ? nil : value
    }

    func integer(_ name: String, in range: ClosedRange<Int>) throws(ModelError) -> Int? {
        guard let value = value(name) else { return nil }
        return try integer(value, name, in: range)
    }

    /// An integer, or a list of them.
    func integers(_ name: String, in range: ClosedRange<Int>, atMost count: Int)
        throws(ModelError) -> [Int]?
    {
        guard let value = value(name) else { return nil }
        guard let elements = value.array else { return [try integer(value, name, in: range)] }
        if elements.count > count { throw unexpected(name, value, "at most \(count) integers") }
        var result: [Int] = []
        for element in elements { result.append(try integer(element, name, in: range)) }
        return result
    }

    func number(_ name: String, in range: ClosedRange<Double>) throws(ModelError) -> Double? {
        guard let value = value(name) else { return nil }
        guard let number = value.double, range.contains(number) else {
            throw unexpected(
                name, value, "a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func boolean(_ name: String) throws(ModelError) -> Bool? {
        guard let value = value(name) else { return nil }
        guard let boolean = value.boolean else { throw unexpected(name, value, "true or false") }
        return boolean
    }

    func string(_ name: String) throws(ModelError) -> String? {
        guard let value = value(name) else { return nil }
        guard let string = value.string else { throw unexpected(name, value, "a string") }
        return string
    }

    func strings(_ name: String) throws(ModelError) -> [String]? {
        guard let value = value(name) else { return nil }
        guard let elements = value.array else {
            throw unexpected(name, value, "an array of strings")
        }
        var result: [String] = []
        for element in elements {
            guard let string = element.string else {
                throw unexpected(name, element, "strings only")
            }
            result.append(string)
        }
        return result
    }

    func object(_ name: String) throws(ModelError) -> ConfigurationFields? {
        guard let value = value(name) else { return nil }
        guard let object = value.object else { throw unexpected(name, value, "an object") }
        return ConfigurationFields(file: file, prefix: prefix + name + ".", object: object)
    }

    /// A field that must be there.
    func required(_ name: String, in range: ClosedRange<Int>) throws(ModelError) -> Int {
        guard let integer = try integer(name, in: range) else {
            throw missing(name, "an integer from \(range.lowerBound) to \(range.upperBound)")
        }
        return integer
    }

    /// A field that must be there.
    func required(_ name: String, in range: ClosedRange<Double>) throws(ModelError) -> Double {
        guard let number = try number(name, in: range) else {
            throw missing(name, "a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    /// The error that a field contradicts another one.
    func invalid(_ what: String) -> ModelError {
        ModelError(.configuration, "\(file): \(what); restore the file as it was published")
    }

    /// The error that the model is of a kind that isn't built in.
    func unsupported(_ what: String) -> ModelError {
        ModelError(.unsupported, "\(file): \(what)")
    }

    private func integer(_ value: JSON, _ name: String, in range: ClosedRange<Int>)
        throws(ModelError) -> Int
    {
        guard let integer = value.integer, range.contains(integer) else {
            throw unexpected(
                name, value, "an integer from \(range.lowerBound) to \(range.upperBound)")
        }
        return integer
    }

    private func missing(_ name: String, _ expected: String) -> ModelError {
        invalid("\"\(prefix)\(name)\" is missing, expected \(expected)")
    }

    private func unexpected(_ name: String, _ value: JSON, _ expected: String) -> ModelError {
        invalid("\"\(prefix)\(name)\" has \(value.shown), expected \(expected)")
    }
}
