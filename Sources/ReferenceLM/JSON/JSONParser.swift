extension JSON {
    /// How deep arrays and objects may be nested.
    static let depthMaximum = 32

    /// Why a text is not JSON.
    struct Problem: Error, Hashable {
        /// What is wrong, to be read after "the file is not valid JSON: ".
        let message: String
    }

    /// Reads one value that fills the text, but for white space around it. Source: RFC 8259.
    ///
    /// - Complexity: linear in the length of the text.
    init(parsing text: [UInt8]) throws(Problem) {
        do {
            _ = try UTF8Span(validating: text.span)
        } catch {
            throw Problem(message: "it is not UTF-8 at byte \(error.byteOffsets.lowerBound)")
        }
        var parser = JSONParser(text: text)
        self = try parser.document()
    }
}

/// The place that has been reached in a text, which is valid UTF-8.
private struct JSONParser {
    typealias Problem = JSON.Problem

    let text: [UInt8]
    var position = 0

    mutating func document() throws(Problem) -> JSON {
        let value = try self.value(depth: 0)
        skipSpace()
        if position < text.count { throw problem("something follows the value") }
        return value
    }

    private mutating func value(depth: Int) throws(Problem) -> JSON {
        skipSpace()
        guard let byte = peek else { throw problem("it ends too early") }
        switch byte {
        case UInt8(ascii: "{"): return .object(try object(depth: depth + 1))
        case UInt8(ascii: "["): return .array(try array(depth: depth + 1))
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .boolean(true))
        case UInt8(ascii: "f"): return try word("false", .boolean(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
        default: throw problem("a value is expected")
        }
    }

    // MARK: - Objects and arrays

    private mutating func object(depth: Int) throws(Problem) -> JSONObject {
        try enter(depth)
        var members: [JSONObject.Member] = []
        skipSpace()
        if take("}") { return try object(of: members) }
        while true {
            skipSpace()
            guard peek == UInt8(ascii: "\"") else { throw problem("a name is expected") }
            let name = try string()
            skipSpace()
            guard take(":") else { throw problem("':' is expected") }
            members.append(.init(name: name, value: try value(depth: depth)))
            skipSpace()
            if take("}") { return try object(of: members) }
            guard take(",") else { throw problem("',' or '}' is expected") }
        }
    }

    private func object(of members: [JSONObject.Member]) throws(Problem) -> JSONObject {
        do {
            return try JSONObject(members)
        } catch {
            throw Problem(
                message: "the name \(error.name.text.quoted) appears twice in the object that ends "
                    + "at byte \(position)")
        }
    }

    private mutating func array(depth: Int) throws(Problem) -> [JSON] {
        try enter(depth)
        var elements: [JSON] = []
        skipSpace()
        if take("]") { return elements }
        while true {
            elements.append(try value(depth: depth))
            skipSpace()
            if take("]") { return elements }
            guard take(",") else { throw problem("',' or ']' is expected") }
        }
    }

    /// Steps over the bracket that opens an object or an array.
    private mutating func enter(_ depth: Int) throws(Problem) {
        if depth > JSON.depthMaximum {
            throw problem("it is nested more than \(JSON.depthMaximum) deep")
        }
        position += 1
    }

    // MARK: - Words and numbers

    private mutating func word(_ word: StaticString, _ value: JSON) throws(Problem) -> JSON {
        let end = position + word.utf8CodeUnitCount
        let isThere = word.withUTF8Buffer { letters in
            end <= text.count && text[position..<end].elementsEqual(letters)
        }
        guard isThere else { throw problem("'\(word)' is expected") }
        position = end
        return value
    }

    private mutating func number() throws(Problem) -> JSON {
        let start = position
        _ = take("-")
        if !take("0"), skipDigits() == 0 { throw problem("a digit is expected") }
        if take("."), skipDigits() == 0 { throw problem("a digit is expected") }
        if take("e") || take("E") {
            if !take("+") { _ = take("-") }
            if skipDigits() == 0 { throw problem("a digit is expected") }
        }
        return .number(String(decoding: text[start..<position], as: UTF8.self))
    }

    // MARK: - Strings

    private mutating func string() throws(Problem) -> ByteString {
        position += 1
        var bytes = plainBytes()
        while true {
            switch peek {
            case UInt8(ascii: "\""):
                position += 1
                return ByteString(bytes)
            case UInt8(ascii: "\\"):
                position += 1
                bytes += UTF8.encode(try escaped()) ?? UTF8.encodedReplacementCharacter
                bytes += plainBytes()
            case nil: throw problem("a string has no end")
            default: throw problem("a control character stands in a string")
            }
        }
    }

    /// The bytes up to a quotation mark, a backslash, or a control character.
    private mutating func plainBytes() -> [UInt8] {
        let start = position
        while let byte = peek, byte >= 0x20, byte != UInt8(ascii: "\""),
            byte != UInt8(ascii: "\\")
        { position += 1 }
        return Array(text[start..<position])
    }

    /// What follows a backslash.
    private mutating func escaped() throws(Problem) -> Unicode.Scalar {
        guard let letter = peek else { throw problem("a string has no end") }
        position += 1
        switch letter {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"):
            return Unicode.Scalar(letter)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{C}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"): return try unicode()
        default: throw problem("an unknown escape stands in a string")
        }
    }

    private mutating func unicode() throws(Problem) -> Unicode.Scalar {
        let first = try hexadecimal()
        if let scalar = Unicode.Scalar(first) { return scalar }
        guard first < 0xDC00, take("\\"), take("u") else {
            throw problem("half a surrogate pair stands in a string")
        }
        let second = try hexadecimal()
        guard (0xDC00...0xDFFF).contains(second),
            let scalar = Unicode.Scalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00))
        else { throw problem("half a surrogate pair stands in a string") }
        return scalar
    }

    private mutating func hexadecimal() throws(Problem) -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            guard let byte = peek, let digit = Character(Unicode.Scalar(byte)).hexDigitValue
            else { throw problem("four hexadecimal digits are expected") }
            value = value << 4 | UInt32(digit)
            position += 1
        }
        return value
    }

    // MARK: - Bytes

    private var peek: UInt8? { position < text.count ? text[position] : nil }

    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard peek == UInt8(ascii: character) else { return false }
        position += 1
        return true
    }

    private mutating func skipSpace() {
        while let byte = peek, byte == 0x20 || byte == 0x09 || byte == 0x0A || byte == 0x0D {
            position += 1
        }
    }

    private mutating func skipDigits() -> Int {
        let start = position
        while let byte = peek, (0x30...0x39).contains(byte) { position += 1 }
        return position - start
    }

    private func problem(_ what: String) -> Problem {
        Problem(message: "\(what) at byte \(position)")
    }
}
