internal import KVThreads

/// Requests of a disk that block until they have ended: for starts and tools, never for a thread
/// that serves others. One thread at a time may use it.
///
/// A simulated disk is stepped meanwhile, so that nobody else has to.
package struct DiskCalls: Sendable {
    private final class Answer: Sendable {
        private let outcome = Locked<DiskOutcome?>(nil)
        let wake: EventCounter

        init() throws(DiskFault) { wake = try EventCounter(isSemaphore: true) }

        func set(_ ended: DiskOutcome) {
            outcome.withLock { $0 = ended }
            wake.signal()
        }

        func take() -> DiskOutcome? {
            outcome.withLock { outcome in
                defer { outcome = nil }
                return outcome
            }
        }
    }

    /// The disk.
    package let io: any DiskIO
    private let answer: Answer

    /// Calls to a disk.
    package init(_ io: any DiskIO) throws(DiskFault) {
        self.io = io
        answer = try Answer()
    }

    /// Carries out one request.
    package func perform(_ operation: DiskRequest.Operation) throws(DiskFault) {
        let answer = answer
        io.submit(DiskRequest(id: .max, operation: operation)) { answer.set($0) }
        if let simulated = io as? SimulatedIO {
            while true {
                if let outcome = answer.take() { return try Self.check(outcome) }
                precondition(simulated.step(), "a request without an answer")
            }
        }
        while true {
            answer.wake.wait()
            if let outcome = answer.take() { return try Self.check(outcome) }
        }
    }

    private static func check(_ outcome: DiskOutcome) throws(DiskFault) {
        if case .failed(let fault) = outcome { throw fault }
    }
}
