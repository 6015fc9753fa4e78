/// A JSON value, read more strictly than usual.
///
/// Model files decide how many gigabytes are read and where from, and which text means which
/// token, so nothing is guessed here: a name that appears twice in an object is an error, a number
/// stays as it was written until somebody says what it must be, `true` is never 1, and a string is
/// its bytes. The last matters because two Swift strings of the same canonical form are equal: of a
/// vocabulary that holds `é` both composed and decomposed, one of the two would vanish.
enum JSON: Equatable, Sendable {
    case null
    case boolean(Bool)
    /// The number as it is written in the file.
    case number(String)
    case string(ByteString)
    case array([JSON])
    case object(JSONObject)

    /// The boolean; nil if this is none. The same goes for what follows.
    var boolean: Bool? {
        if case .boolean(let value) = self { value } else { nil }
    }

    /// The number as an integer; nil also if it is not written as one or doesn't fit.
    var integer: Int? {
        if case .number(let literal) = self { Int(literal) } else { nil }
    }

    /// The number as the nearest double; nil also if it is too large.
    var double: Double? {
        guard case .number(let literal) = self, let value = Double(literal), value.isFinite else {
            return nil
        }
        return value
    }

    var bytes: ByteString? {
        if case .string(let bytes) = self { bytes } else { nil }
    }

    var string: String? { bytes?.text }

    var array: [JSON]? {
        if case .array(let elements) = self { elements } else { nil }
    }

    var object: JSONObject? {
        if case .object(let object) = self { object } else { nil }
    }

    /// The value for a message: short, on one line.
    var shown: String {
        switch self {
        case .null: "null"
        case .boolean(let value): "\(value)"
        case .number(let literal): "the number \(literal.shortened)"
        case .string(let value): "the string \(value.text.quoted)"
        case .array(let elements): "an array of \(elements.count)"
        case .object(let object): "an object of \(object.members.count)"
        }
    }
}
