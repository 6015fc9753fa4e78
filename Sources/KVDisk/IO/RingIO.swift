internal import KVThreads

/// A disk that one thread reads and writes through an io_uring.
///
/// Syncs, and what touches names, have threads of their own: swift-system's `IORing` has no fsync,
/// and creating a file blocks. Among transfers, reads go first; the rule is ``TransferQueue``'s.
package final class RingIO: DiskIO {
    private let files: DiskFiles
    private let shared: RingShared
    private let thread: Locked<NamedThread?>
    private let syncs: ServiceQueue
    private let others: ServiceQueue

    /// Opens a directory, which must exist, and starts the threads; fails where the kernel, or
    /// what confines this process, has no io_uring.
    /// - Parameter depth: ring entries under way at once; at most half of them are of writes.
    package convenience init(directory: String, depth: Int = 64) throws(DiskFault) {
        let files = try DiskFiles(path: directory, wantsDirect: true, allocates: true)
        try self.init(files: files, depth: depth)
    }

    init(files: DiskFiles, depth: Int) throws(DiskFault) {
        precondition(depth >= 2 && depth <= 4096, "a ring has 2...4096 entries")
        self.files = files
        let shared = try RingShared(depth: depth)
        self.shared = shared
        // The ring belongs to its thread from the start; that thread tells how it went.
        let startup = RingStartup(started: try EventCounter(isSemaphore: false))
        let thread = NamedThread("kv-disk-ring") {
            do throws(DiskFault) {
                var loop = try RingLoop(files: files, shared: shared, depth: depth)
                startup.started.signal()
                loop.run()
            } catch {
                startup.fault.withLock { $0 = error }
                startup.started.signal()
            }
        }
        startup.started.wait()
        if let fault = startup.fault.withLock({ $0 }) {
            thread.join()
            throw fault
        }
        self.thread = Locked(thread)
        do throws(DiskFault) {
            syncs = try ServiceQueue("kv-disk-sync") { files.carryOut($0) }
            others = try ServiceQueue("kv-disk-files") { files.carryOut($0) }
        } catch {
            shared.stop()
            thread.join()
            throw error
        }
    }

    package var isDirect: Bool { files.isDirect }

    package func submit(
        _ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void
    ) {
        if let misuse = request.operation.misuse { preconditionFailure(misuse) }
        let submission = Submission(request: request, completion: completion)
        switch request.operation {
        case .read, .write: shared.submit(submission)
        case .sync: syncs.submit(submission)
        case .create, .open, .close, .remove: others.submit(submission)
        }
    }

    package func list() throws(DiskFault) -> [(name: String, byteCount: Int)] {
        try files.list()
    }

    package func stop() {
        shared.stop()
        let thread = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
        syncs.stop()
        others.stop()
        files.end()
    }
}

/// How the ring's thread tells that it has a ring, or why not.
private final class RingStartup: Sendable {
    let started: EventCounter
    let fault = Locked<DiskFault?>(nil)

    init(started: EventCounter) {
        self.started = started
    }
}

/// What the ring's thread shares with those that submit.
final class RingShared: Sendable {
    struct State {
        var queue: TransferQueue
        var isStopping = false
        /// The ring's thread waits, or is about to, and doesn't know of what came since.
        var isAsleep = false
    }

    let state: Locked<State>
    /// Completions and submissions wake the thread through the same descriptor.
    let wake: EventCounter

    init(depth: Int) throws(DiskFault) {
        state = Locked(State(queue: TransferQueue(writeLimit: max(1, depth / 4))))
        wake = try EventCounter(isSemaphore: false)
    }

    func submit(_ submission: Submission) {
        let wasAsleep = state.withLock { state in
            precondition(!state.isStopping, "a request after stop()")
            state.queue.append(submission)
            defer { state.isAsleep = false }
            return state.isAsleep
        }
        if wasAsleep { wake.signal() }
    }

    func stop() {
        state.withLock { $0.isStopping = true }
        wake.signal()
    }
}
