/// Finds replies in what a server sends: values of RESP2 and RESP3, nested ones too.
///
/// As ``RequestParser`` it owns no bytes, is shown everything received and not consumed yet, does
/// not look twice at what it understood, and reads any split of the same bytes alike. Values are
/// copied out. Lengths a server announces reserve no memory before the bytes are there.
///
/// Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>; streamed strings and
/// aggregates (`$?`, `*?`) are refused.
public struct ReplyParser: Sendable {
    /// What the bytes shown so far amount to.
    public enum Step: Hashable, Sendable {
        /// The reply is not complete: it takes at least this many bytes in all; always more than
        /// shown.
        case needMore(atLeast: Int)
        /// One reply of so many bytes.
        case value(RESPValue, consumed: Int)
        /// The stream is broken here for good. Every later call returns the same.
        case failure(ProtocolError)
    }

    private enum Kind: Sendable {
        case array, map, set, push, attribute
        case attributed([RESPValue.Pair])
    }

    private enum BlobKind: Sendable {
        case bulk, error, verbatim
    }

    /// An aggregate that still lacks values.
    private struct Frame: Sendable {
        let kind: Kind
        var missing: Int
        var values: [RESPValue] = []
    }

    private enum Item {
        case value(RESPValue)
        case blob(BlobKind, count: Int)
        case aggregate(Kind, values: Int)
    }

    /// The least that a value takes on the wire: `_`, CR LF.
    private static let leastValueBytes = 3

    /// What a server may send in one reply.
    public let limits: ReplyLimits

    private var frames: [Frame] = []
    private var elements = 0
    /// Everything in front of it is understood.
    private var position = 0
    /// How far the line at `position` has been searched for its end.
    private var searched = 0
    private var blob: (kind: BlobKind, count: Int)?
    private var failure: ProtocolError?

    /// Makes a parser for one connection.
    public init(limits: ReplyLimits = ReplyLimits()) {
        self.limits = limits
    }

    /// Looks for the next reply in `bytes`: all bytes received and not consumed yet.
    ///
    /// O(bytes not seen before).
    public mutating func next(_ bytes: Span<UInt8>) -> Step {
        if let failure { return .failure(failure) }
        do throws(ProtocolError) {
            guard let value = try advance(bytes) else {
                return .needMore(atLeast: leastBytes(shown: bytes.count))
            }
            let consumed = position
            position = 0
            searched = 0
            elements = 0
            return .value(value, consumed: consumed)
        } catch {
            failure = error
            frames.removeAll()
            return .failure(error)
        }
    }

    /// Looks for the next reply in `bytes`: all bytes received and not consumed yet.
    public mutating func next(_ bytes: UnsafeRawBufferPointer) -> Step {
        // SAFETY: the span ends with this call, for which the caller keeps the bytes.
        let span = unsafe Span<UInt8>(_unsafeBytes: bytes)
        return next(span)
    }

    private func leastBytes(shown: Int) -> Int {
        let body = blob.map { position + $0.count + 2 } ?? 0
        return max(shown + 1, body)
    }

    /// Reads on until a reply is complete or the bytes end.
    private mutating func advance(_ bytes: Span<UInt8>) throws(ProtocolError) -> RESPValue? {
        while true {
            var value: RESPValue
            if let (kind, count) = blob {
                guard let complete = try readBlob(bytes, kind, count) else { return nil }
                blob = nil
                value = complete
            } else {
                guard let item = try readLine(bytes) else { return nil }
                switch item {
                case .value(let scalar):
                    value = scalar
                case .blob(let kind, let count):
                    blob = (kind, count)
                    continue
                case .aggregate(let kind, let count):
                    guard let empty = try open(kind, count) else { continue }
                    value = empty
                }
            }
            if let reply = fold(&value) { return reply }
        }
    }

    /// Puts a complete value where it belongs; returns it once it is the whole reply.
    private mutating func fold(_ value: inout RESPValue) -> RESPValue? {
        while let top = frames.indices.last {
            frames[top].values.append(value)
            frames[top].missing -= 1
            guard frames[top].missing == 0 else { return nil }
            let frame = frames.removeLast()
            guard let whole = close(frame) else { return nil }
            value = whole
        }
        return value
    }

    /// The value of a frame that lacks nothing; nil for an attribute, whose value comes after it.
    private mutating func close(_ frame: Frame) -> RESPValue? {
        switch frame.kind {
        case .array:
            return .array(frame.values)
        case .set:
            return .set(frame.values)
        case .push:
            return .push(frame.values)
        case .map:
            return .map(RESPValue.pairs(of: frame.values))
        case .attribute:
            let pairs = RESPValue.pairs(of: frame.values)
            frames.append(Frame(kind: .attributed(pairs), missing: 1))
            return nil
        case .attributed(let pairs):
            return .attributed(pairs, frame.values[0])
        }
    }

    /// Starts an aggregate; returns it at once if it is empty.
    private mutating func open(_ kind: Kind, _ count: Int) throws(ProtocolError) -> RESPValue? {
        guard frames.count < limits.depth else {
            throw .overLimit("depth", limits.depth, unit: "aggregates inside one another")
        }
        elements += count
        guard elements <= limits.elements else {
            throw .overLimit("elements", limits.elements, unit: "elements of one reply")
        }
        let frame = Frame(kind: kind, missing: count)
        if count == 0 { return close(frame) }
        frames.append(frame)
        return nil
    }
}

// MARK: - Lines and blobs

extension ReplyParser {
    /// Reads the line at `position`; nil when it is not complete.
    private mutating func readLine(_ bytes: Span<UInt8>) throws(ProtocolError) -> Item? {
        guard position < bytes.count else { return nil }
        let type = bytes[position]
        guard Self.isType(type) else {
            throw .malformed(.unexpectedByte, "no value starts with \(Byte.describe(type))")
        }
        guard let end = try lineEnd(bytes) else { return nil }
        let text = (position + 1)..<end
        let item = try read(type, bytes, text)
        position = end + 2
        guard position <= limits.replyBytes else {
            throw .overLimit("reply-bytes", limits.replyBytes, unit: "bytes of one reply")
        }
        return item
    }

    private static func isType(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: ":"), UInt8(ascii: "$"),
            UInt8(ascii: "*"), UInt8(ascii: "_"), UInt8(ascii: "#"), UInt8(ascii: ","),
            UInt8(ascii: "("), UInt8(ascii: "!"), UInt8(ascii: "="), UInt8(ascii: "%"),
            UInt8(ascii: "~"), UInt8(ascii: ">"), UInt8(ascii: "|"):
            true
        default:
            false
        }
    }

    /// Where the CR of the line's CR LF is; nil when it is not there yet.
    ///
    /// Judges byte by byte, so that an error does not depend on how the bytes were split.
    private mutating func lineEnd(_ bytes: Span<UInt8>) throws(ProtocolError) -> Int? {
        var index = max(searched, position + 1)
        let limit = position + 1 + limits.lineBytes
        while index < bytes.count {
            let byte = bytes[index]
            if byte == Byte.carriageReturn {
                guard index + 1 < bytes.count else { break }
                guard bytes[index + 1] == Byte.lineFeed else {
                    throw .malformed(.missingTerminator, "a CR without LF in a line")
                }
                return index
            }
            if byte == Byte.lineFeed {
                throw .malformed(.missingTerminator, "an LF without CR in a line")
            }
            guard index < limit else {
                throw .overLimit("line-bytes", limits.lineBytes, unit: "bytes of one line")
            }
            index += 1
        }
        searched = index
        return nil
    }

    /// Reads what a complete line says.
    private func read(
        _ type: UInt8, _ bytes: Span<UInt8>, _ text: Range<Int>
    ) throws(ProtocolError) -> Item {
        switch type {
        case UInt8(ascii: "+"): return .value(.simpleString(Self.string(bytes, text)))
        case UInt8(ascii: "-"): return .value(.error(Self.string(bytes, text)))
        case UInt8(ascii: ":"): return .value(.integer(try Self.integer(bytes, text)))
        case UInt8(ascii: ","): return .value(.double(try Self.double(bytes, text)))
        case UInt8(ascii: "("): return .value(.bigNumber(try Self.bigNumber(bytes, text)))
        case UInt8(ascii: "#"): return .value(.boolean(try Self.boolean(bytes, text)))
        case UInt8(ascii: "_"):
            guard text.isEmpty else { throw .malformed(.invalidValue, "a null has no text") }
            return .value(.null)
        case UInt8(ascii: "$"):
            return try length(bytes, text).map { .blob(.bulk, count: $0) } ?? .value(.null)
        case UInt8(ascii: "*"):
            return try count(bytes, text).map { .aggregate(.array, values: $0) } ?? .value(.null)
        case UInt8(ascii: "!"): return .blob(.error, count: try notNull(length(bytes, text)))
        case UInt8(ascii: "="):
            let count = try notNull(length(bytes, text))
            guard count >= 4 else {
                throw .malformed(.invalidLength, "a verbatim string starts with its format")
            }
            return .blob(.verbatim, count: count)
        case UInt8(ascii: "%"):
            return .aggregate(.map, values: try notNull(count(bytes, text)) * 2)
        case UInt8(ascii: "|"):
            return .aggregate(.attribute, values: try notNull(count(bytes, text)) * 2)
        case UInt8(ascii: "~"): return .aggregate(.set, values: try notNull(count(bytes, text)))
        default: return .aggregate(.push, values: try notNull(count(bytes, text)))
        }
    }

    /// A blob's length, nil for -1.
    private func length(_ bytes: Span<UInt8>, _ text: Range<Int>) throws(ProtocolError) -> Int? {
        let value = try Self.size(bytes, text)
        guard let value else { return nil }
        guard value <= limits.bulkBytes else {
            throw .overLimit("bulk-bytes", limits.bulkBytes, unit: "bytes of one string")
        }
        guard text.upperBound + 2 + value + 2 <= limits.replyBytes else {
            throw .overLimit("reply-bytes", limits.replyBytes, unit: "bytes of one reply")
        }
        return value
    }

    /// An aggregate's count, nil for -1.
    private func count(_ bytes: Span<UInt8>, _ text: Range<Int>) throws(ProtocolError) -> Int? {
        let value = try Self.size(bytes, text)
        guard let value else { return nil }
        guard value <= limits.elements else {
            throw .overLimit("elements", limits.elements, unit: "elements of one reply")
        }
        return value
    }

    private func notNull(_ size: Int?) throws(ProtocolError) -> Int {
        guard let size else {
            throw .malformed(.invalidLength, "only '$' and '*' can have length -1")
        }
        return size
    }

    private mutating func readBlob(
        _ bytes: Span<UInt8>, _ kind: BlobKind, _ count: Int
    ) throws(ProtocolError) -> RESPValue? {
        let end = position + count
        if end < bytes.count, bytes[end] != Byte.carriageReturn {
            throw .malformed(
                .missingTerminator, "a string is longer than announced: expected CR LF after it")
        }
        guard end + 1 < bytes.count else { return nil }
        guard bytes[end + 1] == Byte.lineFeed else {
            throw .malformed(.missingTerminator, "expected CR LF after a string")
        }
        let body = position..<end
        position = end + 2
        switch kind {
        case .bulk:
            return .bulk(Self.copy(bytes, body))
        case .error:
            return .error(Self.string(bytes, body))
        case .verbatim:
            guard bytes[body.lowerBound + 3] == UInt8(ascii: ":") else {
                throw .malformed(
                    .invalidValue, "a verbatim string starts with three letters and ':'")
            }
            return .verbatim(
                format: Self.string(bytes, body.lowerBound..<(body.lowerBound + 3)),
                Self.copy(bytes, (body.lowerBound + 4)..<body.upperBound))
        }
    }
}

// MARK: - Text

extension ReplyParser {
    private static func copy(_ bytes: Span<UInt8>, _ range: Range<Int>) -> [UInt8] {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.extracting(range).withUnsafeBytes { unsafe [UInt8]($0) }
    }

    private static func string(_ bytes: Span<UInt8>, _ range: Range<Int>) -> String {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.extracting(range).withUnsafeBytes {
            unsafe String(decoding: $0, as: UTF8.self)
        }
    }

    /// An integer; the specification allows replies a `+`.
    private static func integer(
        _ bytes: Span<UInt8>, _ text: Range<Int>
    ) throws(ProtocolError) -> Int {
        let digits = withoutPlus(bytes, text)
        guard let value = Argument.integer(bytes, digits) else {
            throw .malformed(.invalidValue, "not a 64-bit integer")
        }
        return value
    }

    /// A length or count: digits, or -1 for null.
    private static func size(
        _ bytes: Span<UInt8>, _ text: Range<Int>
    ) throws(ProtocolError) -> Int? {
        if text.count == 1, bytes[text.lowerBound] == UInt8(ascii: "?") {
            throw .malformed(.unsupported, "streamed values are not supported")
        }
        guard let value = Argument.integer(bytes, text), value >= -1 else {
            throw .malformed(.invalidLength, "a length is decimal digits, or -1 for null")
        }
        return value < 0 ? nil : value
    }

    private static func boolean(
        _ bytes: Span<UInt8>, _ text: Range<Int>
    ) throws(ProtocolError) -> Bool {
        if text.count == 1, bytes[text.lowerBound] == UInt8(ascii: "t") { return true }
        if text.count == 1, bytes[text.lowerBound] == UInt8(ascii: "f") { return false }
        throw .malformed(.invalidValue, "a boolean is t or f")
    }

    private static func bigNumber(
        _ bytes: Span<UInt8>, _ text: Range<Int>
    ) throws(ProtocolError) -> String {
        var index = text.lowerBound
        if index < text.upperBound, bytes[index] == Byte.minus || bytes[index] == Byte.plus {
            index += 1
        }
        guard digits(bytes, &index, text.upperBound), index == text.upperBound else {
            throw .malformed(.invalidValue, "a big number is decimal digits")
        }
        return string(bytes, text)
    }

    private static func double(
        _ bytes: Span<UInt8>, _ text: Range<Int>
    ) throws(ProtocolError) -> Double {
        let spelled = string(bytes, text)
        switch spelled {
        case "inf", "+inf": return .infinity
        case "-inf": return -.infinity
        case "nan", "-nan": return .nan
        default: break
        }
        guard isDecimalFraction(bytes, text), let value = Double(spelled) else {
            throw .malformed(.invalidValue, "not a double")
        }
        return value
    }

    /// `[sign] digits [. digits] [e [sign] digits]`: Swift's own reader takes more than RESP has.
    private static func isDecimalFraction(_ bytes: Span<UInt8>, _ text: Range<Int>) -> Bool {
        var index = text.lowerBound
        let end = text.upperBound
        skipSign(bytes, &index, end)
        guard digits(bytes, &index, end) else { return false }
        if index < end, bytes[index] == UInt8(ascii: ".") {
            index += 1
            guard digits(bytes, &index, end) else { return false }
        }
        if index < end, bytes[index] | 0x20 == UInt8(ascii: "e") {
            index += 1
            skipSign(bytes, &index, end)
            guard digits(bytes, &index, end) else { return false }
        }
        return index == end
    }

    private static func skipSign(_ bytes: Span<UInt8>, _ index: inout Int, _ end: Int) {
        if index < end, bytes[index] == Byte.minus || bytes[index] == Byte.plus { index += 1 }
    }

    /// Skips digits; false if there is none.
    private static func digits(_ bytes: Span<UInt8>, _ index: inout Int, _ end: Int) -> Bool {
        let start = index
        while index < end, Byte.isDigit(bytes[index]) { index += 1 }
        return index > start
    }

    private static func withoutPlus(_ bytes: Span<UInt8>, _ text: Range<Int>) -> Range<Int> {
        guard text.count > 1, bytes[text.lowerBound] == Byte.plus,
            Byte.isDigit(bytes[text.lowerBound + 1])
        else { return text }
        return (text.lowerBound + 1)..<text.upperBound
    }
}
