internal import KVThreads

/// Requests that block for long and don't transfer, on threads of their own.
final class ServiceQueue: Sendable {
    private struct State {
        var waiting = FIFO<Submission>()
        var refused = FIFO<Submission>()
        var isStopping = false
    }

    private let state = Locked(State())
    private let wake: EventCounter
    private let threads = Locked<[NamedThread]>([])
    private let work: @Sendable (DiskRequest.Operation) -> DiskOutcome

    init(
        _ name: String, threadCount: Int = 1,
        work: @escaping @Sendable (DiskRequest.Operation) -> DiskOutcome
    ) throws(DiskFault) {
        wake = try EventCounter(isSemaphore: true)
        self.work = work
        for _ in 0..<threadCount {
            let thread = NamedThread(name) { self.run() }
            threads.withLock { $0.append(thread) }
        }
    }

    func submit(_ submission: Submission) {
        state.withLock { state in
            precondition(!state.isStopping, "a request after stop()")
            if state.waiting.count < DiskIOLimits.waitingRequests {
                state.waiting.append(submission)
            } else {
                precondition(
                    state.refused.count < DiskIOLimits.waitingRequests,
                    "requests are submitted without end")
                state.refused.append(submission)
            }
        }
        wake.signal()
    }

    /// Waits until all is done and the threads have ended. A second call does nothing.
    func stop() {
        state.withLock { $0.isStopping = true }
        let threads = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for _ in threads { wake.signal() }
        for thread in threads { thread.join() }
    }

    private enum Turn {
        case work(Submission)
        case refuse(Submission)
        case wait
        case end
    }

    private func run() {
        while true {
            let turn = state.withLock { state -> Turn in
                if let submission = state.refused.popFirst() { return .refuse(submission) }
                if let submission = state.waiting.popFirst() { return .work(submission) }
                return state.isStopping ? .end : .wait
            }
            switch turn {
            case .work(let submission):
                submission.completion(work(submission.request.operation))
            case .refuse(let submission): submission.refuse()
            case .wait: wake.wait()
            case .end: return
            }
        }
    }
}
