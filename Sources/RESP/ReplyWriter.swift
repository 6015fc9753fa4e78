/// The version of RESP that a connection has agreed on with `HELLO`.
public enum ProtocolVersion: Int, Hashable, Sendable {
    /// What every Redis client understands, and what a connection starts with.
    case resp2 = 2
    /// Maps, sets, doubles, booleans, pushes.
    case resp3 = 3
}

/// Writes replies as RESP bytes into a queue.
///
/// The version decides how a value looks on the wire; who writes it need not care: what RESP2 lacks
/// is written as Redis does it (a map as a flat array, a double as a bulk string). Aggregates are
/// written as a header with a count, followed by as many values. No call allocates once the queue
/// has grown to the connection's usual size.
///
/// Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
public struct ReplyWriter: ~Copyable, Sendable {
    /// How values look from now on.
    public var version: ProtocolVersion
    /// What was written and not sent yet.
    public var output = ByteQueue()

    /// Makes a writer with nothing written.
    public init(version: ProtocolVersion = .resp2) {
        self.version = version
    }

    /// `+OK`. Amortised O(1).
    public mutating func ok() {
        output.append("+OK\r\n" as StaticString)
    }

    /// A simple string; CR and LF in it become spaces. Amortised O(length).
    public mutating func simpleString(_ text: String) {
        output.append(Byte.plus)
        line(text)
        endLine()
    }

    /// An error: a code word, then a sentence; CR and LF in them become spaces. Amortised
    /// O(length).
    public mutating func error(_ code: String, _ message: String) {
        output.append(Byte.minus)
        line(code)
        output.append(Byte.space)
        line(message)
        endLine()
    }

    /// The reply to a broken stream; the connection is to be closed after it. Amortised O(length).
    public mutating func error(_ error: ProtocolError) {
        self.error(error.replyCode, error.message)
    }

    /// An integer. Amortised O(1), no allocation.
    public mutating func integer(_ value: Int) {
        header(UInt8(ascii: ":"), value)
    }

    /// A bulk string. Amortised O(length).
    public mutating func bulk(_ bytes: UnsafeRawBufferPointer) {
        output.reserve(bytes.count + 32)
        header(Byte.dollar, bytes.count)
        unsafe output.append(bytes)
        endLine()
    }

    /// A bulk string. Amortised O(length).
    public mutating func bulk(_ bytes: RawSpan) {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.withUnsafeBytes { unsafe bulk($0) }
    }

    /// A bulk string. Amortised O(length).
    public mutating func bulk(_ bytes: [UInt8]) {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.withUnsafeBytes { unsafe bulk($0) }
    }

    /// A bulk string of UTF-8. Amortised O(length).
    public mutating func bulk(_ text: String) {
        var text = text
        // SAFETY: the pointer does not leave the closure.
        text.withUTF8 { unsafe bulk(UnsafeRawBufferPointer($0)) }
    }

    /// A bulk string of `count` bytes that `body` fills in place: packed numbers need no detour.
    ///
    /// `body` must write every byte. O(1) beside `body`.
    public mutating func bulk<Failure: Error>(
        count: Int, _ body: (UnsafeMutableRawBufferPointer) throws(Failure) -> Void
    ) throws(Failure) {
        let before = output.count
        header(Byte.dollar, count)
        do throws(Failure) {
            try unsafe output.append(count: count, body)
        } catch {
            // A header without its body would break the stream for every reply after it.
            output.truncate(to: before)
            throw error
        }
        endLine()
    }

    /// Text for people: a verbatim string in RESP3, a bulk string in RESP2. Amortised O(length).
    ///
    /// - Precondition: `format` has three bytes (`txt`, `mkd`).
    public mutating func verbatim(_ text: String, format: StaticString = "txt") {
        precondition(format.utf8CodeUnitCount == 3, "a verbatim format has three bytes")
        guard version == .resp3 else { return bulk(text) }
        header(UInt8(ascii: "="), text.utf8.count + 4)
        output.append(format)
        output.append(UInt8(ascii: ":"))
        output.append(text)
        endLine()
    }

    /// No value: `_` in RESP3, the null bulk string in RESP2. Amortised O(1).
    public mutating func null() {
        output.append(version == .resp3 ? "_\r\n" : "$-1\r\n" as StaticString)
    }

    /// Yes or no; 1 or 0 in RESP2. Amortised O(1).
    public mutating func boolean(_ value: Bool) {
        guard version == .resp3 else { return integer(value ? 1 : 0) }
        output.append(value ? "#t\r\n" : "#f\r\n" as StaticString)
    }

    /// A double in the shortest text that reads back as the same value; a bulk string in RESP2.
    ///
    /// Whole numbers have no fraction; infinities are `inf` and `-inf`, not-a-number is `nan`.
    public mutating func double(_ value: Double) {
        var text = value.isNaN ? "nan" : value.description
        if text.hasSuffix(".0") { text.removeLast(2) }
        guard version == .resp3 else { return bulk(text) }
        output.append(UInt8(ascii: ","))
        output.append(text)
        endLine()
    }

    /// The header of an array of `count` values. Amortised O(1).
    public mutating func array(_ count: Int) {
        header(Byte.asterisk, count)
    }

    /// The header of a map of `count` pairs; a flat array of twice as many values in RESP2.
    public mutating func map(_ count: Int) {
        if version == .resp3 { header(UInt8(ascii: "%"), count) } else { array(count * 2) }
    }

    /// The header of a set of `count` values; an array in RESP2. Amortised O(1).
    public mutating func set(_ count: Int) {
        if version == .resp3 { header(UInt8(ascii: "~"), count) } else { array(count) }
    }

    /// The header of a push of `count` values, which answers no command; an array in RESP2.
    public mutating func push(_ count: Int) {
        if version == .resp3 { header(UInt8(ascii: ">"), count) } else { array(count) }
    }

    /// The head of a request, for clients: `name`, to be followed by `arguments` bulk strings.
    public mutating func command(_ name: String, arguments: Int) {
        array(arguments + 1)
        bulk(name)
    }

    private mutating func header(_ type: UInt8, _ value: Int) {
        precondition(
            value >= 0 || type == UInt8(ascii: ":"), "a count or length can't be negative")
        output.reserve(24)
        output.append(type)
        output.append(decimal: value)
        endLine()
    }

    private mutating func endLine() {
        output.append("\r\n" as StaticString)
    }

    /// Writes text that must not end its line.
    private mutating func line(_ text: String) {
        for byte in text.utf8 {
            let breaks = byte == Byte.carriageReturn || byte == Byte.lineFeed
            output.append(breaks ? Byte.space : byte)
        }
    }
}
