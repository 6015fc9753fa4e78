internal import Glibc
internal import KVSocket
internal import RESP

/// One connection: a request goes out, its reply comes back, one at a time. It owns its socket.
///
/// After an error that was not the server's answer the stream can't be trusted; the owner lets go of the link.
struct Link: ~Copyable, Sendable {
    private let socket: Descriptor
    private var writer = ReplyWriter()
    private var parser = ReplyParser()
    private var received = ReceiveBuffer()
    private var passed: Descriptor?
    private var socketTimeoutMs = 0

    /// Connects to the socket at `path`.
    init(path: String) throws(ClientError) {
        do throws(SocketError) {
            socket = Descriptor(try UnixSocket.connect(to: path))
        } catch {
            throw ClientError(.notConnected, error.description, wasNotSent: true)
        }
    }

    /// Whether the peer has hung up, as far as can be known without asking it.
    var hasEnded: Bool {
        var query = pollfd(fd: socket.number, events: Int16(POLLIN), revents: 0)
        return poll(&query, 1, 0) > 0
    }

    /// The descriptor that came with the last reply, which the caller then owns.
    mutating func takeDescriptor() -> Descriptor? { passed.take() }

    /// Sends one command and receives its reply; pushes in between are skipped.
    ///
    /// - Parameter takesDescriptor: a descriptor may come with the reply; see ``takeDescriptor()``.
    mutating func exchange(
        timeoutMs: Int, takesDescriptor: Bool = false, _ write: (inout ReplyWriter) -> Void
    ) throws(ClientError) -> RESPValue {
        let deadline = monotonicNanoseconds() + UInt64(timeoutMs) * 1_000_000
        setSocketTimeout(timeoutMs)
        write(&writer)
        try send(deadline, timeoutMs)
        while true {
            let reply = try receive(deadline, timeoutMs, takesDescriptor)
            if case .push = reply { continue }
            if received.count > 0 {
                throw .badReply(to: "a command", "is followed by bytes that nobody asked for")
            }
            received.removeAll()
            return reply
        }
    }

    private mutating func send(_ deadline: UInt64, _ timeoutMs: Int) throws(ClientError) {
        var isFirst = true
        while !writer.output.isEmpty {
            let count = writer.output.withUnsafeBytes {
                Glibc.send(socket.number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count >= 0 {
                writer.output.consume(count)
                isFirst = false
                if writer.output.isEmpty { return }
            } else if errno == EAGAIN {
                throw timeout(timeoutMs)
            } else if errno != EINTR {
                throw lost(errno, wasNotSent: isFirst)
            }
            try adjust(to: deadline, timeoutMs)
        }
    }

    private mutating func receive(
        _ deadline: UInt64, _ timeoutMs: Int, _ takesDescriptor: Bool
    ) throws(ClientError) -> RESPValue {
        while true {
            if received.count > 0 {
                switch parser.next(received.bytes) {
                case .value(let value, let consumed):
                    received.consume(consumed)
                    return value
                case .failure(let error):
                    throw .badReply(to: "a command", "is not RESP (\(error.message))")
                case .needMore(let byteCount):
                    received.grow(toward: byteCount)
                    try adjust(to: deadline, timeoutMs)
                }
            }
            let count: Int
            if takesDescriptor {
                let (number, descriptor) = UnixSocket.receive(socket.number, received.room)
                count = number
                if descriptor >= 0 { passed = Descriptor(descriptor) }
            } else {
                let room = received.room
                count = recv(socket.number, room.baseAddress, room.count, 0)
            }
            if count > 0 {
                received.added(count)
            } else if count == 0 {
                throw lost(0, wasNotSent: false)
            } else if errno == EAGAIN {
                throw timeout(timeoutMs)
            } else if errno != EINTR {
                throw lost(errno, wasNotSent: false)
            }
        }
    }

    /// The request was not over at once: from now on each call may take only what is left.
    private mutating func adjust(to deadline: UInt64, _ timeoutMs: Int) throws(ClientError) {
        let now = monotonicNanoseconds()
        if now >= deadline { throw timeout(timeoutMs) }
        setSocketTimeout(Int((deadline - now) / 1_000_000) + 1)
    }

    private mutating func setSocketTimeout(_ ms: Int) {
        if ms == socketTimeoutMs { return }
        socketTimeoutMs = ms
        var time = timeval(tv_sec: ms / 1000, tv_usec: ms % 1000 * 1000)
        let size = socklen_t(MemoryLayout<timeval>.size)
        setsockopt(socket.number, SOL_SOCKET, SO_RCVTIMEO, &time, size)
        setsockopt(socket.number, SOL_SOCKET, SO_SNDTIMEO, &time, size)
    }

    private func timeout(_ ms: Int) -> ClientError {
        ClientError(
            .timeout,
            "the server did not answer within \(ms) ms; 'kvasir doctor' looks into it, and a longer "
                + "timeout gives it more time")
    }

    private func lost(_ code: Int32, wasNotSent: Bool) -> ClientError {
        let reason = code == 0 ? "" : " (\(String(cString: strerror(code))))"
        return ClientError(
            .connectionLost,
            "the server closed the connection\(reason); its log says why, and 'kvasir serve' starts it again",
            wasNotSent: wasNotSent)
    }
}
