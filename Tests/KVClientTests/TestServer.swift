import Glibc
import KVClient
import KVIdentity
import KVService
import KVStore
import Logging
import Synchronization
import Testing

/// A real server in this process, on a socket of its own, for as long as this object lives.
final class TestServer: Sendable {
    let socket: String
    private let directory: String
    private let server: Mutex<Server?>
    private let thread: Mutex<pthread_t?>
    private let store: Store

    init(memoryBytes: Int = 8 << 20, verifyOneIn: Int = 64) throws {
        var template = Array("/tmp/kvasir-test-XXXXXX".utf8CString)
        directory = String(cString: try #require(mkdtemp(&template)))
        socket = directory + "/kvasir.sock"
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        store = try Store(.init(memoryBytes: memoryBytes, verifyOneIn: verifyOneIn, logger: logger))
        server = Mutex(nil)
        thread = Mutex(nil)
        try start()
        #expect(store.waitUntilReady())
    }

    /// Serves (again), with the same store, and returns once clients can connect.
    func start() throws {
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        let made = Server(store: store, configuration: .init(socketPath: socket, logger: logger))
        let listening = Latch()
        let started = Running.start {
            do { try made.run(listening: { listening.open() }) } catch { Issue.record(error) }
            listening.open()
        }
        listening.wait()
        server.withLock { $0 = made }
        thread.withLock { $0 = started }
    }

    /// Ends the server; its connections are closed.
    func stop() {
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
        store.stop()
        unlink(socket)
        rmdir(directory)
    }

    func client(timeoutMs: Int = 5_000, session: String? = nil, isReadOnly: Bool = false) throws
        -> Client
    {
        try Client(
            .init(socket: socket, session: session, timeoutMs: timeoutMs, isReadOnly: isReadOnly))
    }
}

/// Starts threads.
enum Running {
    private final class Body {
        let work: @Sendable () -> Void
        init(_ work: @escaping @Sendable () -> Void) { self.work = work }
    }

    static func start(_ work: @escaping @Sendable () -> Void) -> pthread_t {
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
final class Latch: Sendable {
    private let pipe: (read: Int32, write: Int32)

    init() {
        var ends: [Int32] = [-1, -1]
        precondition(Glibc.pipe(&ends) == 0, "no pipe")
        pipe = (ends[0], ends[1])
    }

    deinit {
        close(pipe.read)
        close(pipe.write)
    }

    func open() {
        var byte: UInt8 = 1
        _ = write(pipe.write, &byte, 1)
    }

    func wait() {
        var byte: UInt8 = 0
        _ = read(pipe.read, &byte, 1)
    }
}

enum Sample {
    static func space(shardBytes: [Int] = [5_000], number: UInt64 = 0) throws -> CacheSpace {
        try CacheSpace(
            model: Digest(words: (1, 2, 3, number)), dtype: "float32", kind: .opaque, layers: 1,
            heads: 1, headSize: 1,
            order: "bytes", blockTokens: 16, chunkTokens: 16, ranks: shardBytes.count,
            shardBytes: shardBytes)
    }

    static func keys(_ count: Int, _ space: CacheSpace, first: UInt32 = 0) -> (
        root: Root, keys: [Digest]
    ) {
        let root = Root(space: space.id)
        let tokens = (0..<UInt32(count * 16)).map { $0 + first }
        return (root, ChunkKeys.chain(root: root, tokens: tokens, chunkTokens: 16))
    }

    static func byte(_ chunk: Int, _ shard: Int, _ index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: chunk &* 131 &+ shard &* 17 &+ index &* 7)
    }

    /// Reserves, fills every shard, and commits.
    @discardableResult
    static func save(_ client: Client, _ space: CacheSpace, _ root: Root, _ keys: [Digest]) throws
        -> KVClient.WriteLease
    {
        let lease = try client.reserve(space, root: root, keys: keys)
        for shard in 0..<space.shardCount {
            for chunk in lease.granted {
                try lease.withMutableBytes(of: chunk, shard: shard) { bytes in
                    for index in bytes.indices { bytes[index] = byte(chunk, shard, index) }
                }
            }
            if !lease.granted.isEmpty { try client.commit(lease, shard: shard) }
        }
        return lease
    }
}
