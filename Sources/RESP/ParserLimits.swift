/// How much a client may send in one command.
///
/// The defaults are those of `docs/protocol.md`. Each limit is checked as early as the bytes that
/// break it are known, so that nobody waits for, or makes room for, what will be refused.
public struct ParserLimits: Hashable, Sendable {
    /// Arguments of one command, its name included.
    public var arguments: Int
    /// Bytes of one argument.
    public var argumentBytes: Int
    /// Bytes of one command as it stands on the wire, framing included.
    public var commandBytes: Int
    /// Bytes of the line of an inline command, without its line feed.
    public var inlineBytes: Int

    /// The limits of `docs/protocol.md`, or others.
    ///
    /// - Precondition: each limit is between 1 and 2⁴⁸.
    public init(
        arguments: Int = 64,
        argumentBytes: Int = 4 << 20,
        commandBytes: Int = 8 << 20,
        inlineBytes: Int = 64 << 10
    ) {
        for limit in [arguments, argumentBytes, commandBytes, inlineBytes] {
            precondition((1...(1 << 48)).contains(limit), "a limit is between 1 and 2^48")
        }
        self.arguments = arguments
        self.argumentBytes = argumentBytes
        self.commandBytes = commandBytes
        self.inlineBytes = inlineBytes
    }
}

/// How much a server may send in one reply.
public struct ReplyLimits: Hashable, Sendable {
    /// Aggregates inside one another.
    public var depth: Int
    /// Elements of all aggregates of one reply together; a map's pair counts as two.
    public var elements: Int
    /// Bytes of one bulk string, bulk error or verbatim string.
    public var bulkBytes: Int
    /// Bytes of one line: simple strings, errors, numbers, lengths.
    public var lineBytes: Int
    /// Bytes of one reply as it stands on the wire, framing included.
    public var replyBytes: Int

    /// Limits that hold whatever Kvasir answers, or others.
    ///
    /// - Precondition: each limit is between 1 and 2⁴⁸, and `depth` at most 256.
    public init(
        depth: Int = 32,
        elements: Int = 1 << 20,
        bulkBytes: Int = 64 << 20,
        lineBytes: Int = 64 << 10,
        replyBytes: Int = 128 << 20
    ) {
        for limit in [depth, elements, bulkBytes, lineBytes, replyBytes] {
            precondition((1...(1 << 48)).contains(limit), "a limit is between 1 and 2^48")
        }
        precondition(depth <= 256, "values are taken apart recursively: a depth is at most 256")
        self.depth = depth
        self.elements = elements
        self.bulkBytes = bulkBytes
        self.lineBytes = lineBytes
        self.replyBytes = replyBytes
    }
}
