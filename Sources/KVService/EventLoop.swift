internal import CKvasir
internal import Glibc
internal import KVSocket
internal import KVStore
internal import Logging
internal import RESP

/// The loop: waits for sockets, processes, signals, deadlines and other threads, and acts on each.
final class EventLoop {
    let store: Store
    let configuration: ServerConfiguration
    let logger: Logger
    let startedAt = Store.now()
    var connections: [Int32: Connection] = [:]
    var sessions: [String: ServiceSession] = [:]
    /// Sessions without connections whose processes may still write, by name.
    var endedSessions: [String: [ServiceSession]] = [:]
    var acceptedCount = 0
    var refusedCount = 0
    var commandCount = 0
    var protocolErrorCount = 0

    private let wake: WakeUp
    private let poll: Int32
    private let listener: Int32
    private let lock: Int32
    private let timer: Int32
    /// What the timer stands at; `max` when it is not set.
    private var timerDue = UInt64.max
    private var signals: Int32 = -1
    /// Descriptors of processes of ended sessions.
    private var watchedProcesses: [Int32: ServiceSession] = [:]
    private var mustStop = false
    /// Given up for a moment to tell a client that there is no other.
    private var spareDescriptor = EventLoop.openSpareDescriptor()
    private var lastConnectionID = 0

    static var handledSignals: sigset_t {
        var signals = sigset_t()
        sigemptyset(&signals)
        sigaddset(&signals, SIGTERM)
        sigaddset(&signals, SIGINT)
        return signals
    }

    init(store: Store, configuration: ServerConfiguration, wake: WakeUp, handlingSignals: Bool)
        throws
    {
        self.store = store
        self.configuration = configuration
        self.wake = wake
        logger = configuration.logger
        let group = try configuration.socketGroup.map { try Self.group(named: $0) }
        try SocketPath.prepareDirectory(for: configuration.socketPath, group: group)
        lock = try Self.takeLock(configuration.socketPath + ".lock")
        Self.raiseDescriptorLimit()
        do {
            listener = try UnixSocket.listen(
                on: configuration.socketPath, group: group,
                backlog: Int32(ServerLimits.connections))
        } catch {
            close(lock)
            throw error
        }
        poll = epoll_create1(Int32(EPOLL_CLOEXEC))
        precondition(poll >= 0, "no epoll descriptor")
        timer = timerfd_create(CLOCK_MONOTONIC, Int32(TFD_CLOEXEC | TFD_NONBLOCK))
        precondition(timer >= 0, "no timer descriptor")
        Self.makeNonBlocking(listener)
        watch(timer, EPOLLIN.rawValue)
        watch(listener, EPOLLIN.rawValue)
        watch(wake.descriptor, EPOLLIN.rawValue)
        if handlingSignals {
            var set = Self.handledSignals
            signals = signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK))
            watch(signals, EPOLLIN.rawValue)
        }
    }

    deinit {
        for descriptor in watchedProcesses.keys { close(descriptor) }
        if signals >= 0 { close(signals) }
        if spareDescriptor >= 0 { close(spareDescriptor) }
        close(poll)
        close(timer)
        close(lock)
    }

    /// One server a socket: two that start at once must not both replace a stale one.
    private static func takeLock(_ path: String) throws -> Int32 {
        let fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0o600)
        if fd < 0 { throw SocketError("can't make \(path): \(String(cString: strerror(errno)))") }
        if flock(fd, LOCK_EX | LOCK_NB) != 0 {
            close(fd)
            throw SocketError(
                "another server holds \(path); stop it, or name another socket with --socket",
                code: EADDRINUSE)
        }
        return fd
    }

    private static func group(named name: String) throws -> gid_t {
        guard let group = getgrnam(name) else {
            throw SocketError(
                "there is no group '\(name)'; name an existing one with --socket-group")
        }
        return group.pointee.gr_gid
    }

    /// A connection takes two descriptors: its socket and its process.
    private static func raiseDescriptorLimit() {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue)), &limit)
        limit.rlim_cur = max(limit.rlim_cur, min(limit.rlim_max, 65_536))
        setrlimit(__rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue)), &limit)
    }

    static func makeNonBlocking(_ fd: Int32) {
        _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
    }

    private func watch(_ fd: Int32, _ events: UInt32, change: Bool = false) {
        var event = epoll_event()
        event.events = events
        event.data.fd = fd
        epoll_ctl(poll, change ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event)
    }

    // MARK: The loop

    func run(until isOver: () -> Bool) {
        var events = [epoll_event](repeating: epoll_event(), count: 128)
        while !mustStop && !isOver() {
            armTimer()
            let count = epoll_wait(poll, &events, Int32(events.count), -1)
            for index in 0..<max(0, Int(count)) {
                handle(events[index].data.fd, events[index].events)
            }
        }
        finish()
    }

    /// Has the timer wake the loop at the earliest deadline.
    ///
    /// A timeout given to `epoll_wait` would be set and taken back by the kernel at every wait, which costs more than a
    /// microsecond; this one is set only when a deadline comes that is earlier than the one it stands at.
    private func armTimer() {
        var due = store.withCore { core, _ in core.nextDeadline }
        for connection in connections.values {
            if let deadline = connection.waiting?.deadline { due = min(due ?? .max, deadline) }
        }
        guard let due, due < timerDue else { return }
        timerDue = due
        var time = itimerspec()
        // 0 would switch it off.
        let at = max(1, due)
        time.it_value = timespec(tv_sec: Int(at / 1_000_000_000), tv_nsec: Int(at % 1_000_000_000))
        timerfd_settime(timer, Int32(TFD_TIMER_ABSTIME), &time, nil)
    }

    private func timerIsDue() {
        var count: UInt64 = 0
        _ = read(timer, &count, 8)
        timerDue = .max
        passTime()
    }

    private func passTime() {
        let now = Store.now()
        store.withCore { core, now in core.advance(to: now) }
        for connection in connections.values {
            guard let waiting = connection.waiting, waiting.deadline <= now else { continue }
            connection.waiting = nil
            connection.writer.error(
                StoreError.Code.timeout.description, message(whenOverdue: waiting))
            serve(connection)
        }
    }

    private func message(whenOverdue waiting: Connection.Waiting) -> String {
        switch waiting.kind {
        case .lease:
            return "lease \(waiting.id) still has pending extents; wait again or release it"
        case .sync:
            store.withCore { core, _ in core.cancelSync(waiting.id) }
            return
                "not everything is durable yet; the disk is slow or suspended, see the server's log"
        }
    }

    private func handle(_ fd: Int32, _ events: UInt32) {
        if fd == listener {
            acceptAll()
        } else if fd == wake.descriptor {
            let (leases, syncs) = wake.drain()
            for lease in leases { answerWait(for: lease) }
            for (ticket, error) in syncs { answerSync(ticket, error) }
        } else if fd == timer {
            timerIsDue()
        } else if fd == signals {
            logger.info("stopping: a signal asked for it")
            mustStop = true
        } else if let session = watchedProcesses[fd] {
            processIsGone(fd, of: session)
        } else if let connection = connections[fd] {
            if events & (EPOLLIN.rawValue | EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 {
                receive(connection)
            } else {
                serve(connection)
            }
        }
    }

    // MARK: Connections

    private func acceptAll() {
        while true {
            let fd = kv_accept(listener)
            if fd < 0 {
                if errno == EMFILE || errno == ENFILE, refuseWithSpareDescriptor() { continue }
                return
            }
            if connections.count >= ServerLimits.connections {
                refuse(fd, "\(ServerLimits.connections) connections are open; close some")
                continue
            }
            let process = kv_peer_pidfd(fd)
            if process < 0, errno == EMFILE || errno == ENFILE {
                // A writer that can't be watched could be taken for gone while it writes.
                refuse(fd, Self.noDescriptors)
                continue
            }
            let isUnwatched = process < 0 && errno != ESRCH
            var user: uid_t = 0
            acceptedCount += 1
            lastConnectionID += 1
            // With a space, which no KV.SESSION can have: nobody inherits from it.
            let name = "connection \(lastConnectionID)"
            let id = store.withCore { core, _ in core.openSession(name: name) }
            let session = ServiceSession(id: id, name: name, isNamed: false)
            session.connectionCount = 1
            let connection = Connection(
                fd: fd, id: lastConnectionID, processDescriptor: process, isUnwatched: isUnwatched,
                processID: kv_peer_process(fd, &user), session: session, now: Store.now())
            connections[fd] = connection
            connection.watched = EPOLLIN.rawValue
            watch(fd, connection.watched)
        }
    }

    private static let noDescriptors =
        "the server has no descriptors left; close connections, or start it with a higher ulimit -n"

    private func refuse(_ fd: Int32, _ reason: String) {
        refusedCount += 1
        _ = Array("-KVLIMIT \(reason)\r\n".utf8).withUnsafeBytes { UnixSocket.send(fd, $0) }
        close(fd)
    }

    /// Without a descriptor left, whoever waits in the queue would wake the loop for ever.
    private func refuseWithSpareDescriptor() -> Bool {
        if spareDescriptor < 0 { return false }
        close(spareDescriptor)
        let fd = kv_accept(listener)
        if fd >= 0 { refuse(fd, Self.noDescriptors) }
        spareDescriptor = Self.openSpareDescriptor()
        return fd >= 0
    }

    private static func openSpareDescriptor() -> Int32 { open("/dev/null", O_RDONLY | O_CLOEXEC) }

    private func receive(_ connection: Connection) {
        switch connection.read() {
        case .nothing: return
        case .ended: drop(connection)
        case .some: serve(connection)
        }
    }

    /// Takes the commands that have arrived, sends what there is to send, and asks epoll for what
    /// is still missing.
    func serve(_ connection: Connection) {
        // As long as all replies are sent at once, nothing else would bring us back to commands put off.
        var left = 0
        repeat {
            left = connection.unparsed.count
            takeCommands(connection)
            if !connection.flush() || (connection.isClosing && connection.writer.output.isEmpty) {
                drop(connection)
                return
            }
        } while connection.takesCommands && connection.writer.output.isEmpty
            && !connection.unparsed.isEmpty && connection.unparsed.count < left
        if connection.writer.output.count > ServerLimits.unreadReplyBytes {
            logger.warning("connection \(connection.id) leaves its replies unread; closed")
            drop(connection)
            return
        }
        var wanted: UInt32 = connection.takesCommands ? EPOLLIN.rawValue : 0
        if !connection.writer.output.isEmpty { wanted |= EPOLLOUT.rawValue }
        if wanted != connection.watched {
            connection.watched = wanted
            watch(connection.fd, wanted, change: true)
        }
    }

    private func takeCommands(_ connection: Connection) {
        while connection.takesCommands {
            let bytes = connection.unparsed
            if bytes.isEmpty { return }
            switch connection.parser.next(bytes) {
            case .needMore: return
            case .ignored(let consumed): connection.consume(consumed)
            case .command(let consumed):
                commandCount += 1
                connection.commandCount += 1
                let arguments = Arguments(
                    bytes: UnsafeRawBufferPointer(bytes), ranges: connection.parser.arguments)
                run(arguments, on: connection)
                connection.consume(consumed)
            case .failure(let error):
                protocolErrorCount += 1
                connection.writer.error(error)
                connection.isClosing = true
            }
        }
    }

    private func run(_ arguments: Arguments, on connection: Connection) {
        do throws(CommandError) {
            try execute(arguments, on: connection)
        } catch {
            connection.writer.error(error.code, error.message)
        }
    }

    private func drop(_ connection: Connection) {
        guard connections.removeValue(forKey: connection.fd) != nil else { return }
        epoll_ctl(poll, EPOLL_CTL_DEL, connection.fd, nil)
        if let waiting = connection.waiting, case .sync = waiting.kind {
            store.withCore { core, _ in core.cancelSync(waiting.id) }
        }
        leave(connection)
    }

    // MARK: Sessions

    /// The connection moves to the session of that name.
    func join(_ connection: Connection, name: String) {
        let session: ServiceSession
        if let known = sessions[name] {
            session = known
        } else {
            let id = store.withCore { core, _ in core.openSession(name: name) }
            session = ServiceSession(id: id, name: name, isNamed: true)
            sessions[name] = session
        }
        let before = connection.session
        store.withCore { core, _ in core.endSession(before.id, processesAlive: false) }
        session.connectionCount += 1
        connection.session = session
        connection.hasNamedSession = true
    }

    /// The connection is gone; its session ends with its last connection.
    private func leave(_ connection: Connection) {
        let session = connection.session
        session.connectionCount -= 1
        if connection.isUnwatched { session.hasUnwatchedProcess = true }
        dropDescriptorsOfGoneProcesses(session)
        if connection.processDescriptor >= 0 {
            // One for each process, however many connections it had.
            if connection.processID > 0, session.processIDs.contains(connection.processID) {
                close(connection.processDescriptor)
            } else {
                session.processDescriptors.append(connection.processDescriptor)
                session.processIDs.append(connection.processID)
                dropDescriptorsOfGoneProcesses(session)
            }
        }
        if session.connectionCount > 0 { return }
        if session.isNamed { sessions[session.name] = nil }
        let isAlive = !session.processDescriptors.isEmpty || session.hasUnwatchedProcess
        let isOver = store.withCore { core, _ in
            core.endSession(session.id, processesAlive: isAlive)
            return !core.hasSession(session.id)
        }
        if isOver || !isAlive {
            for descriptor in session.processDescriptors { close(descriptor) }
            session.processDescriptors = []
            return
        }
        endedSessions[session.name, default: []].append(session)
        for descriptor in session.processDescriptors {
            watchedProcesses[descriptor] = session
            watch(descriptor, EPOLLIN.rawValue)
        }
    }

    private func dropDescriptorsOfGoneProcesses(_ session: ServiceSession) {
        for index in session.processDescriptors.indices.reversed() {
            var query = pollfd(
                fd: session.processDescriptors[index], events: Int16(POLLIN), revents: 0)
            if Glibc.poll(&query, 1, 0) <= 0 { continue }
            close(session.processDescriptors.remove(at: index))
            session.processIDs.remove(at: index)
        }
    }

    private func processIsGone(_ descriptor: Int32, of session: ServiceSession) {
        watchedProcesses[descriptor] = nil
        epoll_ctl(poll, EPOLL_CTL_DEL, descriptor, nil)
        close(descriptor)
        session.processDescriptors.removeAll { $0 == descriptor }
        if !session.processDescriptors.isEmpty || session.hasUnwatchedProcess { return }
        store.withCore { core, _ in core.processesGone(session.id) }
        forget(session)
    }

    /// Nothing of an ended session is left: nobody has to be watched for it.
    func forget(_ session: ServiceSession) {
        for descriptor in session.processDescriptors {
            watchedProcesses[descriptor] = nil
            epoll_ctl(poll, EPOLL_CTL_DEL, descriptor, nil)
            close(descriptor)
        }
        session.processDescriptors = []
        session.processIDs = []
        endedSessions[session.name]?.removeAll { $0 === session }
        if endedSessions[session.name]?.isEmpty ?? false { endedSessions[session.name] = nil }
    }

    /// Ended sessions of this name whose last lease was released need not be watched any more.
    func forgetReleased(_ name: String) {
        for session in endedSessions[name] ?? [] {
            let isOver = store.withCore { core, _ in !core.hasSession(session.id) }
            if isOver { forget(session) }
        }
    }

    // MARK: Waiting

    private func answerWait(for lease: UInt64) {
        resume(lease) { connection, kind in
            guard case .lease(let isHex) = kind else { return }
            let answer = Result { () throws(StoreError) in
                try store.withCore { core, now throws(StoreError) in
                    try core.extents(lease: lease, session: connection.session.id, now: now)
                }
            }
            switch answer {
            case .success(let extents): connection.writer.write(extents, isHex: isHex)
            case .failure(let error): connection.writer.error(error.code.description, error.message)
            }
        }
    }

    private func answerSync(_ ticket: UInt64, _ error: StoreError?) {
        resume(ticket) { connection, _ in
            if let error {
                connection.writer.error(error.code.description, error.message)
            } else {
                connection.writer.ok()
            }
        }
    }

    /// Answers connections that wait for a lease or a sync, and goes on with them. Ids of the two are
    /// never equal.
    private func resume(_ id: UInt64, _ answer: (Connection, Connection.Waiting.Kind) -> Void) {
        for connection in connections.values {
            guard let waiting = connection.waiting, waiting.id == id else { continue }
            connection.waiting = nil
            answer(connection, waiting.kind)
            serve(connection)
        }
    }

    /// Sends what is left, within a bound, and takes the socket away.
    private func finish() {
        unlink(configuration.socketPath)
        close(listener)
        let end = Store.now() + UInt64(ServerLimits.stopMs) * 1_000_000
        for connection in connections.values {
            while connection.flush(), !connection.writer.output.isEmpty, Store.now() < end {
                var query = pollfd(fd: connection.fd, events: Int16(POLLOUT), revents: 0)
                _ = Glibc.poll(&query, 1, 10)
            }
        }
        for connection in Array(connections.values) { drop(connection) }
        logger.info("stopped")
    }
}
