/// One value of RESP2 or RESP3, as a client reads it.
///
/// Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
public indirect enum RESPValue: Hashable, Sendable {
    /// A pair of a map, in the order of the wire.
    public struct Pair: Hashable, Sendable {
        /// What the pair is found by.
        public var key: RESPValue
        /// What is found.
        public var value: RESPValue

        /// Makes a pair.
        public init(_ key: RESPValue, _ value: RESPValue) {
            self.key = key
            self.value = value
        }
    }

    /// A short text without line breaks; bytes that are not UTF-8 are replaced by U+FFFD.
    case simpleString(String)
    /// An error, simple or bulk: a code word, then a sentence.
    case error(String)
    /// A 64-bit integer.
    case integer(Int)
    /// Bytes of any kind.
    case bulk([UInt8])
    /// No value: RESP3's null, RESP2's null bulk string and null array.
    case null
    /// Values in order.
    case array([RESPValue])
    /// RESP3: a floating-point number.
    case double(Double)
    /// RESP3: yes or no.
    case boolean(Bool)
    /// RESP3: an integer of any size, as its decimal digits.
    case bigNumber(String)
    /// RESP3: text with a format of three letters (`txt`, `mkd`).
    case verbatim(format: String, [UInt8])
    /// RESP3: pairs.
    case map([Pair])
    /// RESP3: values without order.
    case set([RESPValue])
    /// RESP3: values that answer no request.
    case push([RESPValue])
    /// RESP3: a value that comes with remarks which a client may ignore.
    case attributed([Pair], RESPValue)
}

extension RESPValue {
    /// The bytes of a string of any kind (simple, bulk, verbatim), else nil.
    public var bytes: [UInt8]? {
        switch self {
        case .bulk(let bytes), .verbatim(_, let bytes): bytes
        case .simpleString(let text): [UInt8](text.utf8)
        case .attributed(_, let value): value.bytes
        default: nil
        }
    }

    /// The text of a string of any kind (not UTF-8 is replaced by U+FFFD), else nil.
    public var text: String? {
        if case .simpleString(let text) = self { return text }
        return bytes.map { String(decoding: $0, as: UTF8.self) }
    }

    /// The value of an integer, else nil.
    public var integer: Int? {
        switch self {
        case .integer(let value): value
        case .attributed(_, let value): value.integer
        default: nil
        }
    }

    /// The values of an array, set or push, else nil.
    public var elements: [RESPValue]? {
        switch self {
        case .array(let values), .set(let values), .push(let values): values
        case .attributed(_, let value): value.elements
        default: nil
        }
    }

    /// The pairs of a map, or of the flat array that stands for one in RESP2, else nil.
    public var pairs: [Pair]? {
        switch self {
        case .map(let pairs):
            return pairs
        case .array(let values) where values.count.isMultiple(of: 2):
            return Self.pairs(of: values)
        case .attributed(_, let value):
            return value.pairs
        default:
            return nil
        }
    }

    static func pairs(of values: [RESPValue]) -> [Pair] {
        stride(from: 0, to: values.count, by: 2).map { Pair(values[$0], values[$0 + 1]) }
    }
}
