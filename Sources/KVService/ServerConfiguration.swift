public import KVRequestLog
public import Logging
internal import RESP

/// How a server is run.
public struct ServerConfiguration: Sendable {
    /// Path of the Unix socket.
    public var socketPath: String
    /// A group that may connect too; nil for the user alone.
    public var socketGroup: String?
    /// Where the server tells what it does.
    public var logger: Logger
    /// Where requests are logged; nil for nowhere. Whoever made it stops it.
    public var requestLog: RequestLog?

    /// A configuration.
    public init(
        socketPath: String, socketGroup: String? = nil, logger: Logger,
        requestLog: RequestLog? = nil
    ) {
        self.socketPath = socketPath
        self.socketGroup = socketGroup
        self.logger = logger
        self.requestLog = requestLog
    }
}

/// The server's named limits. `docs/protocol.md` lists them for users.
public enum ServerLimits {
    /// Connections at a time.
    public static let connections = 1_024
    /// Replies that a client has not read yet; beyond it the connection is closed.
    public static let unreadReplyBytes = 64 << 20
    /// Unread replies from which on no more commands of the connection are taken.
    static let pausedReplyBytes = 1 << 20
    /// Bytes of a session's id.
    public static let sessionNameBytes = 128
    /// Bytes of the name that `CLIENT SETNAME` gives.
    public static let clientNameBytes = 128
    /// How long a `KV.WAIT` may ask for, and what it gets by default, in milliseconds.
    public static let waitMs = 600_000
    static let defaultWaitMs = 5_000
    /// How long a `KV.SYNC` waits that names no time, in milliseconds.
    static let defaultSyncMs = 60_000
    /// Places that one `KV.CHUNKS` looks at, at most and where nothing else is asked for.
    public static let listedChunks = 4_096
    static let defaultListedChunks = 256
    /// How long a stopping server goes on sending replies.
    static let stopMs = 1_000
    static let readBytes = 64 << 10
    static let commands = ParserLimits()
}
