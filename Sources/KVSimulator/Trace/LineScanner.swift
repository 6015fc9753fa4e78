/// Reads the JSON values of one line, strictly (RFC 8259), without making strings or arrays of them.
///
/// Much of the time of a simulation is spent here, so it works on the bytes of the file.
struct LineScanner {
    private let bytes: UnsafeBufferPointer<UInt8>
    private(set) var position = 0

    /// How deep what is skipped may be nested.
    private static let depthMaximum = 32

    init(_ bytes: UnsafeBufferPointer<UInt8>) {
        self.bytes = bytes
    }

    /// Whether a line is no whole value, and right as far as it goes.
    static func isCutOff(_ line: UnsafeBufferPointer<UInt8>) -> Bool {
        var scanner = LineScanner(line)
        do throws(LineProblem) {
            try scanner.skipValue()
            return false
        } catch {
            return scanner.position >= line.count
        }
    }

    /// The next byte that is no white space, 0 at the end.
    mutating func peek() -> UInt8 {
        while position < bytes.count {
            let byte = bytes[position]
            if byte != 0x20 && byte != 0x09 && byte != 0x0D { return byte }
            position += 1
        }
        return 0
    }

    mutating func take(_ character: Unicode.Scalar) -> Bool {
        if peek() == UInt8(ascii: character) && position < bytes.count {
            position += 1
            return true
        }
        return false
    }

    mutating func expect(_ character: Unicode.Scalar) throws(LineProblem) {
        if !take(character) { throw unexpected("'\(character)' is expected") }
    }

    /// Makes sure that nothing follows.
    mutating func expectEnd() throws(LineProblem) {
        _ = peek()
        if position < bytes.count { throw unexpected("something follows the value") }
    }

    private func unexpected(_ what: String) -> LineProblem {
        position >= bytes.count
            ? LineProblem("the line ends too early (\(what)); is the file complete?")
            : LineProblem("no valid JSON at byte \(position + 1) of the line: \(what)")
    }

    // MARK: Objects and arrays

    /// Calls `member` with each name of the object; it must read or skip the value.
    mutating func object(
        _ member: (inout LineScanner, FieldName) throws(LineProblem) -> Void
    ) throws(LineProblem) {
        try expect("{")
        if take("}") { return }
        repeat {
            if peek() != UInt8(ascii: "\"") { throw unexpected("a name is expected") }
            let name = FieldName(bytes: try rawString())
            try expect(":")
            try member(&self, name)
        } while take(",")
        try expect("}")
    }

    /// Calls `element` before each element of the array; it must read or skip it.
    mutating func array(
        _ element: (inout LineScanner) throws(LineProblem) -> Void
    ) throws(LineProblem) {
        try expect("[")
        if take("]") { return }
        repeat { try element(&self) } while take(",")
        try expect("]")
    }

    /// Steps over `null`, if it comes next.
    mutating func takeNull() throws(LineProblem) -> Bool {
        if peek() != UInt8(ascii: "n") { return false }
        try word("null")
        return true
    }

    mutating func skipValue(depth: Int = 0) throws(LineProblem) {
        if depth > Self.depthMaximum { throw unexpected("nested too deep") }
        switch peek() {
        case UInt8(ascii: "{"):
            try object { (scanner, _) throws(LineProblem) in
                try scanner.skipValue(depth: depth + 1)
            }
        case UInt8(ascii: "["):
            try array { (scanner) throws(LineProblem) in try scanner.skipValue(depth: depth + 1) }
        case UInt8(ascii: "\""): _ = try rawString()
        case UInt8(ascii: "t"): try word("true")
        case UInt8(ascii: "f"): try word("false")
        case UInt8(ascii: "n"): try word("null")
        default: _ = try numberText()
        }
    }

    private mutating func word(_ word: StaticString) throws(LineProblem) {
        let end = position + word.utf8CodeUnitCount
        let isThere = word.withUTF8Buffer { letters in
            end <= bytes.count && bytes[position..<end].elementsEqual(letters)
        }
        if !isThere { throw unexpected("'\(word)' is expected") }
        position = end
    }

    // MARK: Strings

    /// The bytes between the quotation marks, escapes as they stand.
    mutating func rawString() throws(LineProblem) -> UnsafeBufferPointer<UInt8> {
        try expect("\"")
        let start = position
        while position < bytes.count {
            let byte = bytes[position]
            if byte == UInt8(ascii: "\"") {
                let content = UnsafeBufferPointer(rebasing: bytes[start..<position])
                position += 1
                return content
            }
            if byte < 0x20 { throw unexpected("a control character stands in a string") }
            position += byte == UInt8(ascii: "\\") ? 2 : 1
        }
        position = bytes.count
        throw unexpected("a string has no end")
    }

    /// A string without escapes.
    mutating func string(_ name: FieldName) throws(LineProblem) -> UnsafeBufferPointer<UInt8> {
        if peek() != UInt8(ascii: "\"") { throw wrongType(name, "a string") }
        let content = try rawString()
        if content.contains(UInt8(ascii: "\\")) {
            throw LineProblem("\(name) has an escape in it, which is not read here")
        }
        return content
    }

    // MARK: Numbers

    /// A whole number that is not negative.
    @inline(__always)
    mutating func unsigned(_ name: FieldName) throws(LineProblem) -> UInt64 {
        let first = peek()
        var value = UInt64(first &- 0x30)
        if value > 9 { throw wrongType(name, "a whole number of 0 or more") }
        position += 1
        while position < bytes.count {
            let digit = bytes[position] &- 0x30
            if digit > 9 { break }
            if value == 0 { throw unexpected("a number starts with 0") }
            let (tenfold, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = tenfold.addingReportingOverflow(UInt64(digit))
            if overflow || carry { throw LineProblem("\(name) has a number above 2⁶⁴") }
            value = sum
            position += 1
        }
        if position < bytes.count {
            switch bytes[position] {
            case UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"):
                throw LineProblem("\(name) must be a whole number, without point or exponent")
            default: break
            }
        }
        return value
    }

    /// A whole number up to `maximum`.
    mutating func count(_ name: FieldName, maximum: Int) throws(LineProblem) -> Int {
        let value = try unsigned(name)
        if value > UInt64(maximum) {
            throw LineProblem("\(name) is \(value), more than the \(maximum) that are possible")
        }
        return Int(value)
    }

    /// A time in nanoseconds of a number of units, which may be a fraction.
    mutating func time(
        _ name: FieldName, nanosecondsPerUnit: Double
    ) throws(LineProblem) -> UInt64 {
        let first = peek()
        if first == UInt8(ascii: "-") { throw LineProblem("\(name) is negative") }
        if first &- 0x30 > 9 { throw wrongType(name, "a number") }
        let text = try numberText()
        // Exact for whole numbers, which most logs have.
        guard let value = Double(text), value * nanosecondsPerUnit < 0x1p63 else {
            throw LineProblem("\(name) is \(text), which is too large for a time")
        }
        return UInt64((value * nanosecondsPerUnit).rounded())
    }

    private mutating func numberText() throws(LineProblem) -> String {
        _ = peek()
        let start = position
        if position < bytes.count, bytes[position] == UInt8(ascii: "-") { position += 1 }
        let whole = position
        if skipDigits() == 0 { throw unexpected("a value is expected") }
        if position - whole > 1, bytes[whole] == 0x30 {
            throw unexpected("a number starts with 0")
        }
        if position < bytes.count, bytes[position] == UInt8(ascii: ".") {
            position += 1
            if skipDigits() == 0 { throw unexpected("a digit is expected") }
        }
        if position < bytes.count, bytes[position] | 0x20 == UInt8(ascii: "e") {
            position += 1
            if position < bytes.count,
                bytes[position] == UInt8(ascii: "+") || bytes[position] == UInt8(ascii: "-")
            {
                position += 1
            }
            if skipDigits() == 0 { throw unexpected("a digit is expected") }
        }
        return String(decoding: bytes[start..<position], as: UTF8.self)
    }

    private mutating func skipDigits() -> Int {
        let start = position
        while position < bytes.count, bytes[position] &- 0x30 <= 9 { position += 1 }
        return position - start
    }

    /// What comes next is not what the field holds.
    mutating func wrongType(_ name: FieldName, _ expected: String) -> LineProblem {
        let found =
            switch peek() {
            case UInt8(ascii: "{"): "an object"
            case UInt8(ascii: "["): "an array"
            case UInt8(ascii: "\""): "a string"
            case UInt8(ascii: "t"), UInt8(ascii: "f"): "true or false"
            case UInt8(ascii: "n"): "null"
            case UInt8(ascii: "-"): "a negative number"
            case UInt8(ascii: "0")...UInt8(ascii: "9"): "a number"
            default: ""
            }
        if found.isEmpty { return unexpected("a value is expected") }
        return LineProblem("\(name) is \(found), but must be \(expected)")
    }
}

/// The name of a member, as it stands in the file.
struct FieldName: CustomStringConvertible {
    let bytes: UnsafeBufferPointer<UInt8>

    static func ~= (name: StaticString, field: FieldName) -> Bool {
        name.withUTF8Buffer { $0.count == field.bytes.count && $0.elementsEqual(field.bytes) }
    }

    var description: String { "'\(String(decoding: bytes, as: UTF8.self))'" }
}
