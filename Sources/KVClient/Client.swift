internal import Glibc
internal import KVSocket
internal import KVThreads
public import RESP

/// A client of a Kvasir server on this host.
///
/// Calls block until the reply is there or the time is up. A client may be used from any number of threads; requests go one
/// after the other, except that ``wait(for:timeoutMs:)`` has a connection of its own. A request that finds no connection
/// makes one. Holds and leases end with the connection on which they were given; using one after that throws `stale`.
///
/// Files: this one connects; `Client+Load`, `+Save` and `+Housekeeping` have the commands.
public final class Client: Sendable {
    /// How a client is made.
    public struct Configuration: Sendable {
        /// The server's socket; nil for the rule of `docs/protocol.md`.
        public var socket: String?
        /// The engine that this client belongs to, the same in all of its processes; nil for one of its own.
        public var session: String?
        /// How long a request may take unless the call says otherwise, in milliseconds.
        public var timeoutMs: Int
        /// Map the arena for reading only.
        public var isReadOnly: Bool

        /// A configuration; every value has a default.
        public init(
            socket: String? = nil, session: String? = nil, timeoutMs: Int = 5_000,
            isReadOnly: Bool = false
        ) {
            self.socket = socket
            self.session = session
            self.timeoutMs = timeoutMs
            self.isReadOnly = isReadOnly
        }
    }

    /// The longest timeout, in milliseconds.
    public static let timeoutMsMax = 3_600_000
    /// How much longer than the server we wait for a reply that it promised in time.
    static let graceMs = 1_000
    /// The longest time that the server waits for anything.
    static let serverWaitMsMax = 600_000

    /// The path of the server's socket.
    public let socketPath: String
    /// The session's id at the server.
    public let session: String

    let configuration: Configuration
    private let state: Locked<ClientState>
    private let waiting: Locked<ClientState>

    /// Connects.
    ///
    /// - Throws: `not-connected` when no server can be reached; the message says what to do.
    public init(_ configuration: Configuration = Configuration()) throws(ClientError) {
        do throws(SocketError) {
            socketPath = try SocketPath.resolve(configuration.socket, environment: Self.environment)
        } catch {
            throw ClientError(.notConnected, error.description)
        }
        var random = SystemRandomNumberGenerator()
        session =
            configuration.session
            ?? "swift-\(getpid())-\(String(random.next() as UInt64, radix: 16))"
        self.configuration = configuration
        state = Locked(
            ClientState(path: socketPath, configuration: configuration, session: session))
        waiting = Locked(
            ClientState(path: socketPath, configuration: configuration, session: session))
        try request(nil) { state, timeoutMs throws(ClientError) in
            try state.connect(timeoutMs: timeoutMs)
        }
    }

    /// The variables that the socket rule looks at.
    private static var environment: [String: String] {
        var result: [String: String] = [:]
        for name in ["KVASIR_SOCKET", "XDG_RUNTIME_DIR"] {
            if let value = getenv(name) { result[name] = String(cString: value) }
        }
        return result
    }

    /// Whether there is a connection, as far as can be known without asking.
    public var isConnected: Bool { state.withLock { $0.isConnected } }

    /// Ends the connections and unmaps the arena once no lease has it any more. A request in flight ends first.
    public func close() {
        state.withLock { $0.close() }
        waiting.withLock { $0.close() }
    }

    // MARK: Requests

    /// Runs requests, one exchange after the other, with nobody else's in between.
    ///
    /// Where the connection turns out to be dead before anything was sent, a new one is made and `body` runs again.
    ///
    /// - Parameter wanted: the incarnation that is meant; nil if any will do.
    func request<Result: Sendable>(
        _ timeoutMs: Int?, wanted: Int? = nil,
        _ body: (inout ClientState, _ timeoutMs: Int) throws(ClientError) -> Result
    ) throws(ClientError) -> Result {
        try Self.run(state, time(timeoutMs), wanted, body)
    }

    /// The same on the connection for what takes long.
    func requestAside<Result: Sendable>(
        _ timeoutMs: Int,
        _ body: (inout ClientState, _ timeoutMs: Int) throws(ClientError) -> Result
    ) throws(ClientError) -> Result {
        try Self.run(waiting, time(timeoutMs), nil, body)
    }

    private func time(_ timeoutMs: Int?) -> Int {
        min(max(1, timeoutMs ?? configuration.timeoutMs), Self.timeoutMsMax)
    }

    private static func run<Result: Sendable>(
        _ state: borrowing Locked<ClientState>, _ timeoutMs: Int, _ wanted: Int?,
        _ body: (inout ClientState, _ timeoutMs: Int) throws(ClientError) -> Result
    ) throws(ClientError) -> Result {
        try state.withLock { state throws(ClientError) in
            do throws(ClientError) {
                try state.connect(timeoutMs: timeoutMs, wanted: wanted)
                return try body(&state, timeoutMs)
            } catch {
                guard error.wasNotSent, error.code == .connectionLost, wanted == nil else {
                    throw error
                }
            }
            try state.connect(timeoutMs: timeoutMs)
            return try body(&state, timeoutMs)
        }
    }

    /// Sends one command and returns what `read` makes of the reply; nil from `read` is a reply that makes no sense.
    func ask<Result: Sendable>(
        _ name: String, arguments: Int = 0, timeoutMs: Int?, wanted: Int? = nil,
        write: (inout ReplyWriter) -> Void = { _ in }, read: (RESPValue) -> Result?
    ) throws(ClientError) -> Result {
        try request(timeoutMs, wanted: wanted) { state, timeoutMs throws(ClientError) in
            let reply = try state.ask(name, arguments: arguments, timeoutMs: timeoutMs, write)
            guard let result = read(reply) else { throw state.misunderstood(name) }
            return result
        }
    }

    /// Sends any command. Errors of the server are thrown, like everything else.
    ///
    /// - Parameter arguments: the command's name, then its arguments.
    public func command(_ arguments: [[UInt8]], timeoutMs: Int? = nil) throws(ClientError)
        -> RESPValue
    {
        precondition(!arguments.isEmpty, "a command has a name")
        return try ask(
            String(decoding: arguments[0], as: UTF8.self), arguments: arguments.count - 1,
            timeoutMs: timeoutMs,
            write: { writer in for argument in arguments.dropFirst() { writer.bulk(argument) } },
            read: { $0 })
    }

    /// Sends any command made of words.
    public func command(_ words: String..., timeoutMs: Int? = nil) throws(ClientError) -> RESPValue
    {
        try command(words.map { [UInt8]($0.utf8) }, timeoutMs: timeoutMs)
    }
}
