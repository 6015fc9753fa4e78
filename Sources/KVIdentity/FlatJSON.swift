/// One value of a flat JSON object.
enum FlatValue: Equatable {
    case string(String)
    case integer(Int)
    case integers([Int])
}

/// Reads a JSON object of strings, integers and arrays of integers, and nothing else.
///
/// A space must mean the same to everybody who reads it, and general JSON readers differ: on fields
/// that stand there twice, on `1.0` for an integer, on lone surrogates. This one refuses all of
/// these. Source: RFC 8259.
struct FlatJSON {
    private let bytes: [UInt8]
    private var index = 0
    private let maximumElements: Int

    private init(_ bytes: [UInt8], maximumElements: Int) {
        self.bytes = bytes
        self.maximumElements = maximumElements
    }

    /// The fields of the object that `bytes` are.
    ///
    /// - Throws: `malformedJSON`, `duplicateField`, `wrongType` or `limitExceeded`.
    static func fields(
        of bytes: [UInt8], maximumElements: Int
    ) throws(IdentityError) -> [String: FlatValue] {
        var reader = FlatJSON(bytes, maximumElements: maximumElements)
        return try reader.object()
    }

    private mutating func object() throws(IdentityError) -> [String: FlatValue] {
        var fields: [String: FlatValue] = [:]
        try expect(UInt8(ascii: "{"), "a space is a JSON object: '{' must come first")
        if !take(UInt8(ascii: "}")) {
            repeat {
                try expect(UInt8(ascii: "\""), "a field's name must be a string")
                let name = try string()
                try expect(UInt8(ascii: ":"), "expected ':' after the name of a field")
                let value = try value(of: name)
                guard fields.updateValue(value, forKey: name) == nil else {
                    throw IdentityError(
                        code: .duplicateField,
                        message: "the field \(quoted(name)) stands there twice: keep one",
                        field: name)
                }
            } while take(UInt8(ascii: ","))
            try expect(UInt8(ascii: "}"), "expected ',' or '}' after a field")
        }
        skipSpace()
        guard index == bytes.count else { throw malformed("bytes follow the JSON object") }
        return fields
    }

    private mutating func value(of field: String) throws(IdentityError) -> FlatValue {
        skipSpace()
        guard index < bytes.count else { throw malformed("the text ends where a value must stand") }
        switch bytes[index] {
        case UInt8(ascii: "\""):
            index += 1
            return .string(try string())
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"):
            return .integer(try integer(field))
        case UInt8(ascii: "["):
            index += 1
            return .integers(try integers(field))
        default:
            throw IdentityError(
                code: .wrongType,
                message: "the field \(quoted(field)) must be a string, an integer or an array of "
                    + "integers",
                field: field)
        }
    }

    private mutating func integers(_ field: String) throws(IdentityError) -> [Int] {
        var values: [Int] = []
        if take(UInt8(ascii: "]")) { return values }
        repeat {
            skipSpace()
            guard values.count < maximumElements else {
                throw IdentityError(
                    code: .limitExceeded,
                    message: "the field \(quoted(field)) has more than \(maximumElements) elements",
                    field: field)
            }
            values.append(try integer(field))
        } while take(UInt8(ascii: ","))
        try expect(UInt8(ascii: "]"), "expected ',' or ']' after an element")
        return values
    }

    private mutating func integer(_ field: String) throws(IdentityError) -> Int {
        let start = index
        while index < bytes.count, isNumberByte(bytes[index]) { index += 1 }
        let text = String(decoding: bytes[start..<index], as: UTF8.self)
        // `description` has one spelling for each integer, and it is JSON's: this refuses
        // fractions, exponents, signs and zeros in front, and what does not fit.
        guard let value = Int(text), value.description == text else {
            throw IdentityError(
                code: .wrongType,
                message: "the field \(quoted(field)) must be made of integers of at most 64 bits, "
                    + "without fraction or exponent",
                field: field)
        }
        return value
    }

    private func isNumberByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "+"),
            UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"):
            true
        default:
            false
        }
    }

    /// Reads the rest of a string whose opening quote is taken.
    private mutating func string() throws(IdentityError) -> String {
        var text: [UInt8] = []
        while index < bytes.count {
            let byte = bytes[index]
            index += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: text, as: UTF8.self) else {
                    throw malformed("a string is not UTF-8")
                }
                return text
            case UInt8(ascii: "\\"):
                try escape(into: &text)
            case 0..<0x20:
                throw malformed("a control character in a string must be escaped")
            default:
                text.append(byte)
            }
        }
        throw malformed("a string does not end")
    }

    private mutating func escape(into text: inout [UInt8]) throws(IdentityError) {
        guard index < bytes.count else { throw malformed("a string does not end") }
        let byte = bytes[index]
        index += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "f"): text.append(0x0C)
        case UInt8(ascii: "n"): text.append(0x0A)
        case UInt8(ascii: "r"): text.append(0x0D)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "u"):
            let scalar = try unicodeEscape()
            text.append(contentsOf: Character(scalar).utf8)
        default:
            throw malformed("an unknown escape in a string")
        }
    }

    private mutating func unicodeEscape() throws(IdentityError) -> UnicodeScalar {
        let first = try hexUnit()
        if let scalar = UnicodeScalar(first) { return scalar }
        guard first < 0xDC00, index + 1 < bytes.count, bytes[index] == UInt8(ascii: "\\"),
            bytes[index + 1] == UInt8(ascii: "u")
        else { throw malformed("half a surrogate pair in a string") }
        index += 2
        let second = try hexUnit()
        guard (0xDC00...0xDFFF).contains(second),
            let scalar = UnicodeScalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00))
        else { throw malformed("half a surrogate pair in a string") }
        return scalar
    }

    private mutating func hexUnit() throws(IdentityError) -> UInt32 {
        guard index + 4 <= bytes.count else { throw malformed("a string does not end") }
        var value: UInt32 = 0
        for byte in bytes[index..<(index + 4)] {
            guard let digit = Character(UnicodeScalar(byte)).hexDigitValue, byte < 0x80 else {
                throw malformed("\\u takes four hexadecimal digits")
            }
            value = value << 4 | UInt32(digit)
        }
        index += 4
        return value
    }

    private mutating func skipSpace() {
        while index < bytes.count {
            switch bytes[index] {
            case 0x20, 0x09, 0x0A, 0x0D: index += 1
            default: return
            }
        }
    }

    /// Takes `byte` if it is next, after space.
    private mutating func take(_ byte: UInt8) -> Bool {
        skipSpace()
        guard index < bytes.count, bytes[index] == byte else { return false }
        index += 1
        return true
    }

    private mutating func expect(_ byte: UInt8, _ message: String) throws(IdentityError) {
        guard take(byte) else { throw malformed(message) }
    }

    private func malformed(_ message: String) -> IdentityError {
        IdentityError(
            code: .malformedJSON, message: "the space is not valid JSON (byte \(index)): \(message)"
        )
    }
}

/// A string of somebody else's in a message: short, on one line, its ends visible.
func quoted(_ text: String) -> String {
    var result = "\""
    var count = 0
    for scalar in text.unicodeScalars {
        if count == 64 { return result + "…\"" }
        let isControl = scalar.value < 0x20 || (0x7F...0x9F).contains(scalar.value)
        result.unicodeScalars.append(isControl ? "\u{FFFD}" : scalar)
        count += 1
    }
    return result + "\""
}

/// `text` as a JSON string.
func jsonString(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\"": result += "\\\""
        case "\\": result += "\\\\"
        case "\u{00}"..."\u{1F}":
            let digits = String(scalar.value, radix: 16)
            result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result + "\""
}
