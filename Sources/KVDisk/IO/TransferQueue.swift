/// First in, first out.
struct FIFO<Element> {
    private var items: [Element?] = []
    private var head = 0

    var count: Int { items.count - head }
    var isEmpty: Bool { count == 0 }
    var first: Element? { isEmpty ? nil : items[head] }

    mutating func append(_ item: Element) { items.append(item) }

    mutating func popFirst() -> Element? {
        if isEmpty { return nil }
        let item = items[head]
        items[head] = nil
        head += 1
        if head == items.count || (head >= 64 && head * 2 >= items.count) {
            items.removeFirst(head)
            head = 0
        }
        return item
    }
}

/// A request and whom to tell.
struct Submission: Sendable {
    let request: DiskRequest
    let completion: @Sendable (DiskOutcome) -> Void
}

/// The reads and writes of a disk that wait for their turn.
///
/// Reads go first. A write goes when no read waits, or when ``DiskIOLimits/readsPerWaitingWrite``
/// reads have passed it; and no more than `writeLimit` are under way, so that a read that comes
/// finds a thread soon.
struct TransferQueue {
    /// What to do with a submission.
    enum Turn {
        case transfer(Submission)
        /// Answer that too many wait.
        case refuse(Submission)
    }

    private var reads = FIFO<Submission>()
    private var writes = FIFO<Submission>()
    private var refused = FIFO<Submission>()
    private var readsSinceWrite = 0
    private var writesUnderWay = 0
    private let writeLimit: Int
    private let limit: Int

    init(writeLimit: Int, limit: Int = DiskIOLimits.waitingRequests) {
        self.writeLimit = writeLimit
        self.limit = limit
    }

    var isEmpty: Bool { reads.isEmpty && writes.isEmpty && refused.isEmpty }

    /// Whether ``next()`` has something to give.
    var hasTurn: Bool { !reads.isEmpty || !refused.isEmpty || mayWrite }

    private var mayWrite: Bool { !writes.isEmpty && writesUnderWay < writeLimit }

    mutating func append(_ submission: Submission) {
        if reads.count + writes.count >= limit {
            precondition(refused.count < limit, "requests are submitted without end")
            refused.append(submission)
        } else if case .write = submission.request.operation {
            writes.append(submission)
        } else {
            reads.append(submission)
        }
    }

    /// What is to be done next, if anything. ``writeEnded()`` must follow each write.
    mutating func next() -> Turn? {
        if let submission = refused.popFirst() { return .refuse(submission) }
        let isDue = reads.isEmpty || readsSinceWrite >= DiskIOLimits.readsPerWaitingWrite
        if mayWrite, isDue {
            readsSinceWrite = 0
            writesUnderWay += 1
            return .transfer(writes.popFirst()!)
        }
        guard let read = reads.popFirst() else { return nil }
        readsSinceWrite = writes.isEmpty ? 0 : readsSinceWrite + 1
        return .transfer(read)
    }

    mutating func writeEnded() {
        precondition(writesUnderWay > 0, "a write ended twice")
        writesUnderWay -= 1
    }
}

extension Submission {
    /// Answers that too many requests wait.
    func refuse() {
        completion(
            .failed(
                DiskFault(
                    .busy, "take request \(request.id)",
                    because: "\(DiskIOLimits.waitingRequests) others wait")))
    }
}
