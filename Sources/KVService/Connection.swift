internal import Glibc
internal import KVSocket
internal import KVStore
internal import RESP

/// One client's connection: what was received, what is to be sent, and what it may be waiting for.
/// Only the event loop's thread touches it. It owns its descriptors.
final class Connection {
    let fd: Int32
    let id: Int
    /// Readable once the client's process is gone; -1 if the kernel can't tell.
    let processDescriptor: Int32
    /// The process may live, but its end can't be seen.
    let isUnwatched: Bool
    /// 0 if it is not known here (it may be in another container).
    let processID: Int32
    let openedAt: UInt64

    var parser = RequestParser(limits: ServerLimits.commands)
    var writer = ReplyWriter()
    var session: ServiceSession
    /// Whether `KV.SESSION` was said.
    var hasNamedSession = false
    var clientName = ""
    var libraryName = ""
    var libraryVersion = ""
    var commandCount = 0
    /// Close once everything is sent.
    var isClosing = false
    /// What a `KV.WAIT` or `KV.SYNC` waits for; no command is taken meanwhile.
    var waiting: Waiting?
    struct Waiting {
        enum Kind {
            case lease(isHex: Bool)
            case sync
        }

        /// The read lease, or the ticket of the sync.
        var id: UInt64
        var kind: Kind
        var deadline: UInt64
    }

    /// What epoll was asked to watch.
    var watched: UInt32 = 0

    private var received: UnsafeMutableRawBufferPointer
    private var receivedStart = 0
    private var receivedEnd = 0
    /// Descriptors to pass, each with the first byte of its reply.
    private var passed: [(at: UInt64, fd: Int32)] = []
    private var sentBytes: UInt64 = 0

    init(
        fd: Int32, id: Int, processDescriptor: Int32, isUnwatched: Bool, processID: Int32,
        session: ServiceSession, now: UInt64
    ) {
        self.fd = fd
        self.id = id
        self.processDescriptor = processDescriptor
        self.isUnwatched = isUnwatched
        self.processID = processID
        self.session = session
        openedAt = now
        received = .allocate(byteCount: ServerLimits.readBytes, alignment: 16)
    }

    deinit {
        close(fd)
        received.deallocate()
    }

    /// Whether commands may be taken now.
    var takesCommands: Bool {
        waiting == nil && !isClosing && writer.output.count < ServerLimits.pausedReplyBytes
    }

    /// What was received and not understood yet.
    var unparsed: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: received[receivedStart..<receivedEnd])
    }

    /// Drops what was understood.
    func consume(_ count: Int) {
        receivedStart += count
        if receivedStart < receivedEnd { return }
        receivedStart = 0
        receivedEnd = 0
        if received.count > 4 * ServerLimits.readBytes { resize(ServerLimits.readBytes) }
    }

    enum ReadResult {
        case some
        case nothing
        case ended
    }

    /// Reads what has arrived, up to what fits.
    func read() -> ReadResult {
        if receivedEnd == received.count {
            if receivedStart > 0 {
                resize(received.count)
            } else {
                resize(received.count * 2)
            }
        }
        let count = recv(fd, received.baseAddress! + receivedEnd, received.count - receivedEnd, 0)
        if count > 0 {
            receivedEnd += count
            return .some
        }
        if count < 0, errno == EAGAIN || errno == EINTR { return .nothing }
        return .ended
    }

    private func resize(_ byteCount: Int) {
        let fresh = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 16)
        fresh.copyMemory(from: UnsafeRawBufferPointer(unparsed))
        receivedEnd -= receivedStart
        receivedStart = 0
        received.deallocate()
        received = fresh
    }

    /// Passes a descriptor with the first byte of the reply that is written next.
    func pass(_ descriptor: Int32) {
        passed.append((sentBytes + UInt64(writer.output.count), descriptor))
    }

    /// Sends what the socket takes. - Returns: false if the connection is broken.
    func flush() -> Bool {
        while !writer.output.isEmpty {
            var limit = writer.output.count
            var descriptor: Int32 = -1
            if let next = passed.first {
                if next.at == sentBytes {
                    descriptor = next.fd
                    if passed.count > 1 { limit = min(limit, Int(passed[1].at - sentBytes)) }
                } else {
                    limit = min(limit, Int(next.at - sentBytes))
                }
            }
            let count = writer.output.withUnsafeBytes {
                UnixSocket.send(
                    fd, UnsafeRawBufferPointer(rebasing: $0[0..<limit]), passing: descriptor)
            }
            if count < 0 {
                if errno == EINTR { continue }
                return errno == EAGAIN
            }
            if descriptor >= 0 { passed.removeFirst() }
            writer.output.consume(count)
            sentBytes += UInt64(count)
        }
        return true
    }
}

/// A session as the service knows it: the core's session, and the connections that belong to it.
final class ServiceSession {
    let id: UInt64
    let name: String
    let isNamed: Bool
    var connectionCount = 0
    /// Of connections that have closed: readable once their process is gone.
    var processDescriptors: [Int32] = []
    /// Their process ids, in the same order.
    var processIDs: [Int32] = []
    /// It says itself which requests it has (`KV.REQUEST`), so its matches count as none.
    var tellsRequests = false
    /// A process whose end can't be seen: what it was given comes back only by its release.
    var hasUnwatchedProcess = false

    init(id: UInt64, name: String, isNamed: Bool) {
        self.id = id
        self.name = name
        self.isNamed = isNamed
    }
}
