package import Glibc
package import KVClient
internal import KVRequestLog
internal import KVService
internal import KVStore
internal import Logging
internal import Synchronization

/// A real server in this process, on a socket of its own, for as long as this object lives.
package final class TestServer: Sendable {
    package let socket: String
    /// The directory of the disk tier.
    package let disk: String
    private let directory: String
    private let server: Mutex<Server?>
    private let thread: Mutex<pthread_t?>
    private let store: Mutex<Store>
    private let configuration: Store.Configuration
    private let requestLog: RequestLog?

    /// - Parameters:
    ///   - diskBytes: of a disk tier in the server's own directory; nil for memory alone.
    ///   - logsRequests: keeps a log of requests, which is gone with the server.
    package init(
        memoryBytes: Int = 8 << 20, verifyOneIn: Int = 64, diskBytes: Int? = nil,
        logsRequests: Bool = false
    ) throws {
        var template = Array("/tmp/kvasir-test-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else { throw TestServerError("no directory in /tmp") }
        directory = String(cString: made)
        socket = directory + "/kvasir.sock"
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        let path = directory + "/disk"
        disk = path
        let disks = diskBytes.map { [DiskConfiguration(directory: path, byteCount: $0)] } ?? []
        configuration = .init(
            memoryBytes: memoryBytes, verifyOneIn: verifyOneIn, disks: disks, logger: logger)
        store = Mutex(try Store(configuration))
        requestLog =
            logsRequests
            ? try RequestLog(.init(directory: directory + "/requests", logger: logger)) : nil
        server = Mutex(nil)
        thread = Mutex(nil)
        try start()
    }

    /// Serves (again) and returns once clients can connect.
    ///
    /// - Parameter isEmpty: with a new store, as a new process has it, instead of the one before.
    package func start(isEmpty: Bool = false) throws {
        if isEmpty {
            try store.withLock { store in
                // First, because a directory has one user.
                store.stop()
                store = try Store(configuration)
            }
        }
        let store = store.withLock { $0 }
        if !store.waitUntilReady() { throw TestServerError("the arena did not become ready") }
        let made = Server(
            store: store,
            configuration: .init(
                socketPath: socket, logger: configuration.logger, requestLog: requestLog))
        let listening = Latch()
        let started = Running.start {
            do { try made.run(listening: { listening.open() }) } catch {
                preconditionFailure("the server of a test failed: \(error)")
            }
            listening.open()
        }
        listening.wait()
        server.withLock { $0 = made }
        thread.withLock { $0 = started }
    }

    /// Ends the server; its connections are closed.
    package func stop() {
        server.withLock { server in
            server?.stop()
            server = nil
        }
        let ended = thread.withLock { thread -> pthread_t? in
            defer { thread = nil }
            return thread
        }
        if let ended { pthread_join(ended, nil) }
    }

    deinit {
        stop()
        store.withLock { $0.stop() }
        unlink(socket)
        unlink(socket + ".lock")
        requestLog?.stop()
        for folder in [disk, directory + "/requests"] { Self.remove(folder) }
        rmdir(directory)
    }

    /// Removes a folder of files.
    private static func remove(_ folder: String) {
        guard let entries = opendir(folder) else { return }
        while let entry = readdir(entries) {
            // In place: an entry is shorter than the type says.
            let start = UnsafeRawPointer(entry) + MemoryLayout<dirent>.offset(of: \.d_name)!
            let name = String(cString: start.assumingMemoryBound(to: CChar.self))
            unlink("\(folder)/\(name)")
        }
        closedir(entries)
        rmdir(folder)
    }

    package func client(timeoutMs: Int = 5_000, session: String? = nil, isReadOnly: Bool = false)
        throws
        -> Client
    {
        try Client(
            .init(socket: socket, session: session, timeoutMs: timeoutMs, isReadOnly: isReadOnly))
    }
}

/// Why a server for a test could not be had.
package struct TestServerError: Error, CustomStringConvertible {
    package let description: String

    init(_ description: String) {
        self.description = description
    }
}

/// Starts threads.
package enum Running {
    private final class Body {
        let work: @Sendable () -> Void
        init(_ work: @escaping @Sendable () -> Void) { self.work = work }
    }

    package static func start(_ work: @escaping @Sendable () -> Void) -> pthread_t {
        var thread = pthread_t()
        let body = Unmanaged.passRetained(Body(work)).toOpaque()
        pthread_create(
            &thread, nil,
            { raw in
                Unmanaged<Body>.fromOpaque(raw!).takeRetainedValue().work()
                return nil
            }, body)
        return thread
    }
}

/// Something to wait for.
package final class Latch: Sendable {
    private let pipe: (read: Int32, write: Int32)

    package init() {
        var ends: [Int32] = [-1, -1]
        precondition(Glibc.pipe(&ends) == 0, "no pipe")
        pipe = (ends[0], ends[1])
    }

    deinit {
        close(pipe.read)
        close(pipe.write)
    }

    package func open() {
        var byte: UInt8 = 1
        _ = write(pipe.write, &byte, 1)
    }

    package func wait() {
        var byte: UInt8 = 0
        _ = read(pipe.read, &byte, 1)
    }
}
