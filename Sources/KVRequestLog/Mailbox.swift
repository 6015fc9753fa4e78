internal import Dispatch
internal import KVThreads
internal import Logging

/// Between those who record requests and the thread that writes them.
///
/// The thread sleeps while nothing comes, and gathers for a moment what comes, so that recorders
/// wake it a few times a second at most.
final class Mailbox: Sendable {
    private struct State {
        var queue: RequestQueue
        var counters = RequestLog.Counters()
        /// The thread sleeps until it is woken.
        var isIdle = false
        var isStopping = false
        var hasReachedLimit = false
        /// When it was last told that requests come too fast.
        var overflow = Quiet()
    }

    private let state: Locked<State>
    private let wake = DispatchSemaphore(value: 0)
    private let ended = DispatchSemaphore(value: 0)
    private let logger: Logger

    init(_ queue: RequestQueue, logger: Logger) {
        state = Locked(State(queue: queue))
        self.logger = logger
    }

    var counters: RequestLog.Counters { state.withLock { $0.counters } }

    var isOpen: Bool { state.withLock { !$0.isStopping && !$0.hasReachedLimit } }

    private enum Receipt {
        case taken
        case woke
        case dropped
        case overflowed
    }

    func record(_ request: LoggedRequest) {
        let receipt = state.withLock { state -> Receipt in
            if state.isStopping || state.hasReachedLimit {
                state.counters.dropped += 1
                return .dropped
            }
            let wasHalfFull = state.queue.isHalfFull
            if !state.queue.append(request) {
                state.counters.dropped += 1
                return state.overflow.isOver(at: RequestLog.now()) ? .overflowed : .dropped
            }
            let wakes = state.isIdle || (!wasHalfFull && state.queue.isHalfFull)
            state.isIdle = false
            return wakes ? .woke : .taken
        }
        switch receipt {
        case .taken, .dropped: break
        case .woke: wake.signal()
        case .overflowed:
            logger.warning(
                "the request log can't keep up: requests are left out of it, and counted as request_log_dropped"
            )
        }
    }

    /// Hands over what comes until it is closed. On the log's thread.
    func deliver(to writer: inout LogWriter, limit: Int) {
        var trouble = Trouble(logger)
        while true {
            let (requests, isStopping) = state.withLock { state in
                let requests = state.queue.takeAll()
                state.isIdle = requests.isEmpty && !state.isStopping
                return (requests, state.isStopping)
            }
            if !requests.isEmpty {
                // Whoever records may wait for the lock, so little is done under it.
                let bytes = requests.reduce(0) { $0 + $1.queuedBytes }
                for piece in Self.pieces(requests) {
                    deliver(piece, to: &writer, limit: limit, &trouble)
                }
                state.withLock { $0.queue.done(requests.count, bytes: bytes) }
            } else if isStopping {
                break
            } else {
                wake.wait()
            }
            if !state.withLock({ $0.isStopping }) {
                _ = wake.wait(timeout: .now() + .milliseconds(RequestLogLimits.gatherMs))
            }
        }
        ended.signal()
    }

    /// Runs of requests that are written and counted together, so that all takes little time at once.
    private static func pieces(_ requests: [LoggedRequest]) -> [ArraySlice<LoggedRequest>] {
        var pieces: [ArraySlice<LoggedRequest>] = []
        var (first, keys) = (0, 0)
        for (place, request) in requests.enumerated() {
            keys += request.keys.count
            if keys < RequestLogLimits.pieceKeys, place < requests.count - 1 { continue }
            pieces.append(requests[first...place])
            (first, keys) = (place + 1, 0)
        }
        return pieces
    }

    private func deliver(
        _ requests: ArraySlice<LoggedRequest>, to writer: inout LogWriter, limit: Int,
        _ trouble: inout Trouble
    ) {
        let outcome = writer.write(requests)
        let isFull = state.withLock { state in
            state.counters.written += outcome.written
            state.counters.dropped += outcome.dropped
            state.counters.bytes = outcome.bytes
            defer { state.hasReachedLimit = outcome.hasReachedLimit }
            return outcome.hasReachedLimit && !state.hasReachedLimit
        }
        trouble.tell(outcome)
        if isFull {
            logger.warning(
                "the request log has reached its limit of \(limit) bytes (--request-log-limit): nothing more is written to it"
            )
        }
    }

    /// Takes nothing more; what was taken is written.
    func close() {
        state.withLock { $0.isStopping = true }
        wake.signal()
    }

    /// Waits until what was taken is written. - Returns: whether it was.
    func waitUntilWritten(seconds: Double) -> Bool {
        if ended.wait(timeout: .now() + seconds) == .success { return true }
        logger.warning(
            "the end of the request log is lost: it could not be written within \(Int(seconds)) s")
        return false
    }
}

/// Says that writing fails, and that it works again: once a minute at most.
private struct Trouble {
    private let logger: Logger
    private var quiet = Quiet()
    private var isTold = false

    init(_ logger: Logger) {
        self.logger = logger
    }

    mutating func tell(_ outcome: LogWriter.Outcome) {
        if let problem = outcome.problem {
            if isTold || !quiet.isOver(at: RequestLog.now()) { return }
            isTold = true
            logger.warning(
                "the request log: \(problem); requests are left out of it, and counted as request_log_dropped"
            )
        } else if isTold, outcome.written > 0 {
            isTold = false
            logger.info("the request log is written again")
        }
    }
}

/// The time in which something is not said again.
private struct Quiet {
    private var saidAt: UInt64?

    /// Whether it may be said now; if so, it counts as said.
    mutating func isOver(at now: UInt64) -> Bool {
        if let saidAt, now - saidAt < RequestLogLimits.quietSeconds * 1_000_000_000 { return false }
        saidAt = now
        return true
    }
}
