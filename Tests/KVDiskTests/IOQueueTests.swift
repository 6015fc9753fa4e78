import KVThreads
import Testing

@testable import KVDisk

/// The order in which transfers have their turn.
struct IOQueueTests {
    private let memory = DiskMemory(byteCount: 4096)

    private func submission(_ id: Int, isWrite: Bool) -> Submission {
        let operation: DiskRequest.Operation =
            isWrite
            ? .write(file: 1, offset: 0, from: [memory.buffer])
            : .read(file: 1, offset: 0, into: [memory.buffer])
        return Submission(request: DiskRequest(id: UInt64(id), operation: operation)) { _ in }
    }

    /// The order in which a queue gives everything, when writes end at once: reads positive, writes
    /// negative.
    private func drain(_ queue: inout TransferQueue) -> [Int] {
        var order: [Int] = []
        while case .transfer(let submission)? = queue.next() {
            let id = Int(submission.request.id)
            if case .write = submission.request.operation {
                order.append(-id)
                queue.writeEnded()
            } else {
                order.append(id)
            }
        }
        return order
    }

    @Test func readsGoFirstAndAWaitingWriteHasEveryNinthTurn() {
        var queue = TransferQueue(writeLimit: 1)
        for id in 1...3 { queue.append(submission(id, isWrite: true)) }
        for id in 1...20 { queue.append(submission(id, isWrite: false)) }
        let order = drain(&queue)
        #expect(order == Array(1...8) + [-1] + Array(9...16) + [-2] + Array(17...20) + [-3])
        #expect(queue.isEmpty)
    }

    @Test func noMoreWritesThanTheLimitAreUnderWay() {
        var queue = TransferQueue(writeLimit: 2)
        for id in 1...4 { queue.append(submission(id, isWrite: true)) }
        #expect(queue.next() != nil && queue.next() != nil && queue.next() == nil)
        #expect(!queue.isEmpty && !queue.hasTurn)
        queue.append(submission(1, isWrite: false))
        #expect(queue.hasTurn && queue.next() != nil && queue.next() == nil)
        queue.writeEnded()
        #expect(queue.hasTurn && queue.next() != nil && queue.next() == nil)
    }

    @Test func tooManyAreRefusedAtOnce() {
        var queue = TransferQueue(writeLimit: 1, limit: 3)
        for id in 1...5 { queue.append(submission(id, isWrite: false)) }
        for id: UInt64 in [4, 5] {
            guard case .refuse(let submission)? = queue.next() else {
                Issue.record("\(id) is not refused")
                return
            }
            #expect(submission.request.id == id)
        }
        #expect(drain(&queue) == [1, 2, 3])
    }

    @Test func aRefusalIsAFaultThatSaysSo() {
        let outcome = Locked<DiskOutcome?>(nil)
        let request = DiskRequest(id: 9, operation: .sync(file: 1))
        Submission(request: request) { ended in outcome.withLock { $0 = ended } }.refuse()
        guard case .failed(let fault)? = outcome.withLock({ $0 }) else {
            Issue.record("no fault")
            return
        }
        #expect(fault.code == .busy && fault.message.contains("request 9"))
    }

    @Test func aQueueGivesWhatItGotInOrder() {
        var queue = FIFO<Int>()
        var random = SeededRandom(seed: 1)
        var (next, expected) = (0, 0)
        for _ in 0..<20_000 {
            if Bool.random(using: &random) {
                queue.append(next)
                next += 1
            } else if expected < next {
                #expect(queue.first == expected && queue.popFirst() == expected)
                expected += 1
            } else {
                #expect(queue.popFirst() == nil && queue.isEmpty)
            }
            #expect(queue.count == next - expected)
        }
    }

    @Test func neighboursInMemoryAreMerged() {
        let memory = DiskMemory(byteCount: 8 * 4096)
        let merged = DiskBuffer.merged([
            memory.blocks(0..<1), memory.blocks(1..<3), memory.blocks(4..<5), memory.blocks(3..<4),
            memory.blocks(5..<6), memory.blocks(6..<8),
        ])
        let offsets = merged.map { ($0.address - memory.buffer.address) / 4096 }
        #expect(offsets == [0, 4, 3, 5] && merged.map { $0.count / 4096 } == [3, 1, 1, 3])
    }
}
