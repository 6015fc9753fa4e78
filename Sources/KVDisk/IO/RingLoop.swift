internal import Glibc
internal import KVThreads
internal import SystemPackage

/// What the ring's thread owns: the ring and the transfers that are in it.
///
/// A transfer is cut into pieces, one for each run of neighbouring buffers, and each piece is one
/// ring entry; what a piece leaves undone is entered again. No more than `depth` entries are under
/// way, so the completion queue, which has twice as many places, never overflows.
struct RingLoop: ~Copyable {
    /// A part of a transfer, or what is left of it.
    private struct Piece {
        var memory: DiskBuffer
        var offset: Int
        var attempts = 0
    }

    /// A transfer that has been begun.
    private struct Transfer {
        let submission: Submission
        let file: OpenFile
        let offset: Int
        let byteCount: Int
        let isWrite: Bool
        var pieces: [Piece]
        /// Pieces that wait for a place in the ring.
        var waiting: FIFO<Int>
        var underWay = 0
        var fault: DiskFault?
    }

    private var ring: IORing
    private let files: DiskFiles
    private let shared: RingShared
    private let depth: Int
    private var transfers: [Transfer?] = []
    private var freeIndexes: [Int] = []
    /// Transfers with pieces that wait, by their index.
    private var reads = FIFO<Int>()
    private var writes = FIFO<Int>()
    private var entries = 0
    private var writeEntries = 0
    /// Whether entries wait for ``submit()``.
    private var isPrepared = false

    init(files: DiskFiles, shared: RingShared, depth: Int) throws(DiskFault) {
        ring = try Self.makeRing(depth: depth, wake: shared.wake)
        self.files = files
        self.shared = shared
        self.depth = depth
    }

    private static func makeRing(depth: Int, wake: EventCounter) throws(DiskFault) -> IORing {
        do throws(Errno) {
            var ring = try IORing(queueDepth: UInt32(depth))
            try ring.registerEventFD(FileDescriptor(rawValue: wake.descriptor))
            // Some sandboxes allow to make a ring, but not to use it.
            guard ring.prepare(request: .nop()) else { throw Errno.notSupported }
            try ring.submitPreparedRequests()
            while ring.tryConsumeCompletion() == nil { wake.wait() }
            return ring
        } catch {
            throw DiskFault(.unsupported, "use io_uring", because: error.description)
        }
    }

    /// Works until stopped, and until everything is done.
    mutating func run() {
        while true {
            var isBusy = consumeCompletions()
            while entries < depth, enterOne() { isBusy = true }
            if isPrepared { submit() }
            if isBusy { continue }
            let (mayEnd, mayWait) = shared.state.withLock { state in
                let isIdle = !state.queue.hasTurn || entries == depth
                state.isAsleep = isIdle
                return (state.isStopping && state.queue.isEmpty, isIdle)
            }
            if mayEnd, entries == 0, reads.isEmpty, writes.isEmpty { return }
            if mayWait { shared.wake.wait() }
        }
    }

    // MARK: Entering

    /// Puts one piece into the ring, or takes up a transfer; false when there is nothing to do.
    private mutating func enterOne() -> Bool {
        if let index = reads.first {
            enterPiece(of: index)
            if transfers[index]!.waiting.isEmpty { _ = reads.popFirst() }
            return true
        }
        // Reads must find room, so writes never take more than half of it.
        if writeEntries < depth / 2, let index = writes.first {
            enterPiece(of: index)
            if transfers[index]!.waiting.isEmpty { _ = writes.popFirst() }
            return true
        }
        switch shared.state.withLock({ $0.queue.next() }) {
        case .transfer(let submission): begin(submission)
        case .refuse(let submission): submission.refuse()
        case nil: return false
        }
        return true
    }

    private mutating func begin(_ submission: Submission) {
        let (number, offset, buffers, isWrite) = submission.request.operation.transfer!
        let byteCount = buffers.reduce(0) { $0 + $1.count }
        let file: OpenFile
        do throws(DiskFault) {
            file = try files.file(number)
            try file.check(offset: offset, byteCount: byteCount, isWrite: isWrite)
        } catch {
            if isWrite { shared.state.withLock { $0.queue.writeEnded() } }
            submission.completion(.failed(error))
            return
        }
        var transfer = Transfer(
            submission: submission, file: file, offset: offset, byteCount: byteCount,
            isWrite: isWrite, pieces: [], waiting: FIFO())
        var position = offset
        for memory in DiskBuffer.merged(buffers) {
            transfer.waiting.append(transfer.pieces.count)
            transfer.pieces.append(Piece(memory: memory, offset: position))
            position += memory.count
        }
        let index = freeIndexes.popLast() ?? transfers.count
        if index == transfers.count {
            transfers.append(transfer)
        } else {
            transfers[index] = transfer
        }
        wait(index, isWrite: isWrite)
    }

    private mutating func wait(_ index: Int, isWrite: Bool) {
        if isWrite { writes.append(index) } else { reads.append(index) }
    }

    private mutating func enterPiece(of index: Int) {
        let number = transfers[index]!.waiting.popFirst()!
        transfers[index]!.underWay += 1
        let file = FileDescriptor(rawValue: transfers[index]!.file.descriptor)
        let piece = transfers[index]!.pieces[number]
        let context = UInt64(index) << 32 | UInt64(number)
        let isWrite = transfers[index]!.isWrite
        let hasRoom = ring.prepare(
            request: isWrite
                ? .write(
                    piece.memory.bytes, into: file, at: UInt64(piece.offset), context: context)
                : .read(
                    file, into: piece.memory.bytes, at: UInt64(piece.offset), context: context))
        precondition(hasRoom, "the ring has room for \(depth) entries")
        isPrepared = true
        entries += 1
        if isWrite { writeEntries += 1 }
    }

    /// Hands to the kernel what was entered.
    private mutating func submit() {
        isPrepared = false
        while true {
            do throws(Errno) {
                return try ring.submitPreparedRequests()
            } catch {
                switch error {
                case .resourceBusy, .noMemory, .resourceTemporarilyUnavailable, .interrupted:
                    // The kernel wants completions taken, or has no memory just now.
                    if !consumeCompletions() { usleep(1000) }
                default:
                    // What the kernel took of the buffers is unknown now; nobody may reuse them.
                    fatalError("io_uring refuses what it took before: \(error)")
                }
            }
        }
    }

    // MARK: Completing

    /// Takes what is complete; false when nothing was.
    private mutating func consumeCompletions() -> Bool {
        var isAny = false
        while let completion = ring.tryConsumeCompletion() {
            isAny = true
            complete(
                Int(completion.context >> 32), Int(completion.context & 0xFFFF_FFFF),
                result: Int(completion.result))
        }
        return isAny
    }

    private mutating func complete(_ index: Int, _ number: Int, result: Int) {
        var transfer = transfers[index]!
        // The only reference, so that nothing is copied.
        transfers[index] = nil
        entries -= 1
        if transfer.isWrite { writeEntries -= 1 }
        transfer.underWay -= 1
        let isUnfinished = advance(&transfer, number, result: result)
        if isUnfinished, transfer.fault == nil {
            let wasIdle = transfer.waiting.isEmpty
            transfer.waiting.append(number)
            transfers[index] = transfer
            if wasIdle { wait(index, isWrite: transfer.isWrite) }
            return
        }
        // After a fault the rest is still entered: simpler than to forget it, and rare.
        if transfer.underWay > 0 || !transfer.waiting.isEmpty {
            transfers[index] = transfer
            return
        }
        freeIndexes.append(index)
        if transfer.isWrite { shared.state.withLock { $0.queue.writeEnded() } }
        let outcome = transfer.fault.map { DiskOutcome.failed($0) } ?? .done
        transfer.submission.completion(outcome)
    }

    /// Notes what a piece has done; true when something is left to do.
    private func advance(_ transfer: inout Transfer, _ number: Int, result: Int) -> Bool {
        var piece = transfer.pieces[number]
        // What is done of a block is done again: O_DIRECT can't go on in the middle of one.
        let whole = max(0, result) / DiskBuffer.alignment * DiskBuffer.alignment
        if whole == piece.memory.count { return false }
        if whole > 0 {
            piece.memory = piece.memory.dropping(whole)
            piece.offset += whole
            piece.attempts = 0
        } else {
            piece.attempts += 1
        }
        transfer.pieces[number] = piece
        let progress = TransferProgress(
            file: transfer.file, offset: transfer.offset, byteCount: transfer.byteCount,
            isWrite: transfer.isWrite)
        let fault = progress.fault(
            count: result, code: result < 0 ? Int32(-result) : 0, attempts: piece.attempts)
        if transfer.fault == nil { transfer.fault = fault }
        return true
    }
}
