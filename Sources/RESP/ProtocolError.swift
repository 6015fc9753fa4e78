/// Why a byte stream is not RESP, or is more of it than a limit allows.
///
/// A parser that has reported one keeps reporting it: after a malformed byte nobody can say where
/// the next command starts. The connection's owner sends the error and closes the connection.
public struct ProtocolError: Error, Hashable, Sendable {
    /// What kind of mistake it is. New codes may be added.
    public struct Code: RawRepresentable, Hashable, Sendable {
        /// The code as text, for logs and tests.
        public let rawValue: String

        /// Makes a code of its text.
        public init(rawValue: String) {
            self.rawValue = rawValue
        }

        /// A byte stands where another one must.
        public static let unexpectedByte = Code(rawValue: "unexpected-byte")
        /// A length or count is not plain decimal digits.
        public static let invalidLength = Code(rawValue: "invalid-length")
        /// CR LF is missing where it must stand.
        public static let missingTerminator = Code(rawValue: "missing-terminator")
        /// A quote of an inline command does not end, or ends inside a word.
        public static let unbalancedQuotes = Code(rawValue: "unbalanced-quotes")
        /// A value can't be read as what its type byte announced.
        public static let invalidValue = Code(rawValue: "invalid-value")
        /// A part of RESP that no peer of ours uses (streamed values).
        public static let unsupported = Code(rawValue: "unsupported")
        /// More than a limit allows; ``ProtocolError/limit`` names it.
        public static let limitExceeded = Code(rawValue: "limit-exceeded")
    }

    /// What kind of mistake it is.
    public let code: Code
    /// What is wrong and how to mend it: one sentence for a person.
    public let message: String
    /// The name of the limit that was reached, if one was.
    public let limit: String?

    /// Makes an error; parsers do, and programs that build on them may.
    public init(code: Code, message: String, limit: String? = nil) {
        self.code = code
        self.message = message
        self.limit = limit
    }

    /// The code word of the error reply: `KVLIMIT` for a limit, else `ERR`.
    public var replyCode: String {
        code == .limitExceeded ? "KVLIMIT" : "ERR"
    }

    /// Whether the connection must be closed once the error has been sent.
    ///
    /// Always true: none of these leaves a stream in which the next command can be found.
    public var closesConnection: Bool { true }
}

extension ProtocolError: CustomStringConvertible {
    /// Code and message on one line.
    public var description: String {
        "\(code.rawValue): \(message)"
    }
}

extension ProtocolError {
    static func overLimit(_ name: String, _ value: Int, unit: String) -> ProtocolError {
        ProtocolError(
            code: .limitExceeded,
            message: "Protocol error: more than \(name) allows (\(value) \(unit))",
            limit: name)
    }

    static func malformed(_ code: Code, _ message: String) -> ProtocolError {
        ProtocolError(code: code, message: "Protocol error: " + message)
    }
}
