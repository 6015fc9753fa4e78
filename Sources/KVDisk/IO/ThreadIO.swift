internal import KVThreads

/// A disk that a pool of threads reads and writes with blocking calls.
///
/// Syncs have their own thread, and so has what touches names, so that neither holds up a read.
/// Among transfers, reads go first; the rule is ``TransferQueue``'s.
package final class ThreadIO: DiskIO {
    private struct State {
        var queue: TransferQueue
        var isStopping = false
    }

    private let files: DiskFiles
    private let state: Locked<State>
    private let wake: EventCounter
    private let threads = Locked<[NamedThread]>([])
    private let syncs: ServiceQueue
    private let others: ServiceQueue

    /// Opens a directory, which must exist, and starts the threads.
    /// - Parameter threadCount: transfers under way at once; at most half of them, but one at
    ///   least, are writes.
    package convenience init(directory: String, threadCount: Int = 8) throws(DiskFault) {
        let files = try DiskFiles(path: directory, wantsDirect: true, allocates: true)
        try self.init(files: files, threadCount: threadCount)
    }

    init(files: DiskFiles, threadCount: Int) throws(DiskFault) {
        precondition(threadCount > 0, "a pool has a thread")
        self.files = files
        state = Locked(State(queue: TransferQueue(writeLimit: max(1, threadCount / 2))))
        wake = try EventCounter(isSemaphore: true)
        syncs = try ServiceQueue("kv-disk-sync") { files.carryOut($0) }
        others = try ServiceQueue("kv-disk-files") { files.carryOut($0) }
        for index in 0..<threadCount {
            let thread = NamedThread("kv-disk-\(index)") { self.run() }
            threads.withLock { $0.append(thread) }
        }
    }

    package var isDirect: Bool { files.isDirect }

    package func submit(
        _ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void
    ) {
        if let misuse = request.operation.misuse { preconditionFailure(misuse) }
        let submission = Submission(request: request, completion: completion)
        switch request.operation {
        case .read, .write:
            state.withLock { state in
                precondition(!state.isStopping, "a request after stop()")
                state.queue.append(submission)
            }
            wake.signal()
        case .sync: syncs.submit(submission)
        case .create, .open, .close, .remove: others.submit(submission)
        }
    }

    package func list() throws(DiskFault) -> [(name: String, byteCount: Int)] {
        try files.list()
    }

    package func stop() {
        state.withLock { $0.isStopping = true }
        let threads = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for _ in threads { wake.signal() }
        for thread in threads { thread.join() }
        syncs.stop()
        others.stop()
        files.end()
    }

    private func run() {
        while true {
            let (turn, isStopping) = state.withLock { ($0.queue.next(), $0.isStopping) }
            switch turn {
            case .refuse(let submission): submission.refuse()
            case .transfer(let submission): carryOut(submission)
            // A write that must wait for others is taken up by the thread that ends one of them.
            case nil where isStopping: return
            case nil: wake.wait()
            }
        }
    }

    private func carryOut(_ submission: Submission) {
        let (number, offset, buffers, isWrite) = submission.request.operation.transfer!
        var outcome = DiskOutcome.done
        do throws(DiskFault) {
            let file = try files.file(number)
            try file.transfer(buffers, offset: offset, isWrite: isWrite)
        } catch {
            outcome = .failed(error)
        }
        if isWrite { state.withLock { $0.queue.writeEnded() } }
        submission.completion(outcome)
    }
}
