internal import CKvasir
internal import Glibc
internal import KVSocket
public import KVStore
internal import KVThreads
internal import Logging
internal import RESP
internal import Synchronization

/// Serves a store on a Unix socket: one event loop on one thread, for all connections.
///
/// A command is parsed where it was received, applied to the core, and answered into the
/// connection's queue; nothing on the way blocks. `KV.WAIT` parks its connection. The loop never
/// touches KV bytes.
public final class Server: Sendable {
    /// The store that is served.
    public let store: Store
    private let configuration: ServerConfiguration
    private let wake: WakeUp
    private let stopping = Atomic<Bool>(false)

    /// Makes a server; ``run()`` starts it.
    public init(store: Store, configuration: ServerConfiguration) {
        self.store = store
        self.configuration = configuration
        wake = WakeUp()
    }

    /// Listens and serves until ``stop()``, or SIGTERM or SIGINT if `handlingSignals`. Blocks the
    /// calling thread.
    ///
    /// - Parameter listening: called once clients can connect.
    /// - Throws: `SocketError` when the socket can't be had.
    public func run(handlingSignals: Bool = false, listening: () -> Void = {}) throws {
        let loop = try EventLoop(
            store: store, configuration: configuration, wake: wake, handlingSignals: handlingSignals
        )
        store.onLeaseReady { [wake] lease in wake.leaseIsReady(lease) }
        store.onSyncEnded { [wake] ticket, error in wake.syncEnded(ticket, error) }
        listening()
        loop.run(until: { self.stopping.load(ordering: .acquiring) })
    }

    /// Has ``run()`` return soon. May be called from any thread.
    public func stop() {
        stopping.store(true, ordering: .releasing)
        wake.signal()
    }

    /// Blocks SIGTERM and SIGINT in this thread and those it starts, so that the event loop gets
    /// them. Call it first of all.
    public static func blockSignals() {
        var signals = EventLoop.handledSignals
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        // A limit on the length of files is an error like others.
        signal(SIGXFSZ, SIG_IGN)
    }
}

/// Wakes the event loop from other threads.
final class WakeUp: Sendable {
    let descriptor: Int32
    private let ready = Locked<(leases: [UInt64], syncs: [(UInt64, StoreError?)])>(([], []))

    init() {
        descriptor = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        precondition(descriptor >= 0, "no eventfd")
    }

    deinit { close(descriptor) }

    func signal() {
        var one: UInt64 = 1
        // It fails only when the counter is full, and then the loop wakes anyway.
        _ = write(descriptor, &one, 8)
    }

    func leaseIsReady(_ lease: UInt64) {
        ready.withLock { $0.leases.append(lease) }
        signal()
    }

    func syncEnded(_ ticket: UInt64, _ error: StoreError?) {
        ready.withLock { $0.syncs.append((ticket, error)) }
        signal()
    }

    /// What became ready since the last call.
    func drain() -> (leases: [UInt64], syncs: [(UInt64, StoreError?)]) {
        var count: UInt64 = 0
        _ = read(descriptor, &count, 8)
        return ready.withLock { ready in
            defer { ready = ([], []) }
            return ready
        }
    }
}
