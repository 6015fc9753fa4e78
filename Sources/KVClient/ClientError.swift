/// Why a request did not get what it asked for.
public struct ClientError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What kind of error it is: one of the server's code words (`docs/protocol.md`), or the
    /// client's own, in small letters. New codes may be added.
    public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        /// The word.
        public let rawValue: String

        /// A code of this word.
        public init(rawValue: String) {
            self.rawValue = rawValue
        }

        /// The word.
        public var description: String { rawValue }

        /// No server could be reached.
        public static let notConnected = Code(rawValue: "not-connected")
        /// The connection ended before the reply came; whether the request was carried out is unknown.
        public static let connectionLost = Code(rawValue: "connection-lost")
        /// The server did not answer in time. The connection was closed.
        public static let timeout = Code(rawValue: "timeout")
        /// The server answered something that this client doesn't understand. The connection was closed.
        public static let badReply = Code(rawValue: "bad-reply")
        /// The hold or lease belongs to a connection that has ended.
        public static let stale = Code(rawValue: "stale")
        /// The client was closed.
        public static let closed = Code(rawValue: "closed")
        /// The extent is not there: pending, gone, or not granted.
        public static let noExtent = Code(rawValue: "no-extent")
        /// The arena can't be mapped.
        public static let arena = Code(rawValue: "arena")

        /// The server: an unknown command, or a malformed one.
        public static let command = Code(rawValue: "ERR")
        /// The server: an argument is not what the command takes.
        public static let argument = Code(rawValue: "KVARG")
        /// The server: no such space.
        public static let unknownSpace = Code(rawValue: "KVSPACE")
        /// The server: no such hold or lease in this session.
        public static let unknownLease = Code(rawValue: "KVLEASE")
        /// The server: the lease's deadline has passed.
        public static let expired = Code(rawValue: "KVEXPIRED")
        /// The server: the keys neither start at chunk 0 nor follow a chunk that is there.
        public static let gap = Code(rawValue: "KVGAP")
        /// The server: a key is known under another parent.
        public static let chain = Code(rawValue: "KVCHAIN")
        /// The server: no room.
        public static let full = Code(rawValue: "KVFULL")
        /// The server: a limit was reached.
        public static let limit = Code(rawValue: "KVLIMIT")
        /// The server: a wait ran out of time. The connection goes on.
        public static let waitTimeout = Code(rawValue: "KVTIMEOUT")
        /// The server: a disk failed; the message says which and what to do.
        public static let disk = Code(rawValue: "KVDISK")
        /// The server: the tier that the command needs is not configured.
        public static let noTier = Code(rawValue: "KVNOTIER")
    }

    /// What kind of error it is.
    public let code: Code
    /// What went wrong and what to do, one sentence for a person.
    public let message: String
    /// Nothing of the request left this process, so it may be sent again.
    let wasNotSent: Bool

    /// Makes an error.
    public init(_ code: Code, _ message: String) {
        self.init(code, message, wasNotSent: false)
    }

    init(_ code: Code, _ message: String, wasNotSent: Bool) {
        self.code = code
        self.message = message
        self.wasNotSent = wasNotSent
    }

    /// An error reply: a code word, a space, a sentence.
    init(reply: String) {
        let parts = reply.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: false)
        let word = parts.first.map(String.init) ?? ""
        let sentence = parts.count > 1 ? String(parts[1]) : "the server gave no reason"
        self.init(Code(rawValue: word.isEmpty ? "ERR" : word), sentence)
    }

    static func badReply(to command: String, _ what: String = "is not what the protocol has")
        -> ClientError
    {
        ClientError(
            .badReply,
            "the reply to \(command) \(what); use a client and a server of the same release, and check "
                + "that the socket is Kvasir's")
    }

    /// The code in brackets behind the sentence.
    public var description: String { "\(message) [\(code)]" }
}
