/// The state of a simulated disk: a value that knows no threads.
struct SimulatedDisk: Sendable {
    /// A write that has completed and that no completed sync covers.
    struct UnsyncedWrite {
        var offset: Int
        var bytes: [UInt8]
        /// Counts completed writes.
        var sequence: UInt64
    }

    struct File {
        var name: String
        var byteCount: Int
        /// What reads get.
        var current = SparseBytes()
        /// What survives.
        var durable = SparseBytes()
        /// In the order of their completions.
        var unsynced: [UnsyncedWrite] = []
        /// Whether something was written to it, or it was found there.
        var isWritten: Bool
        /// Whether its name leads to it.
        var isLinked = true
    }

    /// A request under way.
    struct Pending {
        let submission: Submission
        let order: UInt64
        var due: UInt64
        /// The file of a number, as it was when this was submitted.
        let file: Int?
        /// Of a sync: the last write that had completed when it was submitted.
        let lastWrite: UInt64
        /// Of a transfer: where its buffers are, in order.
        let memory: [Range<UInt>]
        /// Bytes of a transfer that are done.
        var done = 0
        /// Of a write: what was taken so far.
        var taken: [UInt8] = []
    }

    /// 512 bytes get to the disk together, or not at all.
    static let sectorBytes = 512

    var random: SimulatedRandom
    var faults: SimulatedFaults
    var now: UInt64 = 0
    var counters = SimulatedCounters()
    var history: UInt64 = 0xCBF2_9CE4_8422_2325
    /// Why nothing can be submitted any more.
    var end: String?
    /// Files by a number of their own, in the order of creation.
    var files: [Int: File] = [:]
    var fileCount = 0
    var names: [String: Int] = [:]
    var numbers: [UInt64: Int] = [:]
    /// Numbers that are being created or opened.
    var numbersToCome: Set<UInt64> = []
    var pending: [Pending] = []
    private var orders: UInt64 = 0
    private var writeSequence: UInt64 = 0

    init(seed: UInt64, faults: SimulatedFaults) {
        random = SimulatedRandom(seed: seed)
        self.faults = faults
    }

    // MARK: Submitting

    /// Takes a request; gives the rule that it breaks, if it does.
    mutating func submit(_ submission: Submission) -> String? {
        let operation = submission.request.operation
        if let misuse = misuse(operation) { return misuse }
        var file: Int?
        switch operation {
        case .read(let number, _, let buffers):
            file = numbers[number]
            for buffer in buffers {
                buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0xA5)
            }
        case .write(let number, _, _), .sync(let number): file = numbers[number]
        case .close(let number): file = numbers.removeValue(forKey: number)
        case .create(let number, _, _), .open(let number, _): numbersToCome.insert(number)
        case .remove: break
        }
        orders += 1
        let due = now + delay()
        pending.append(
            Pending(
                submission: submission, order: orders, due: due, file: file,
                lastWrite: writeSequence,
                memory: Self.memory(of: operation.transfer?.buffers ?? [])))
        return nil
    }

    private mutating func delay() -> UInt64 {
        let isLate = random.happens(faults.late)
        let range = isLate ? faults.lateNanoseconds : faults.delayNanoseconds
        return UInt64.random(in: range, using: &random)
    }

    // MARK: Completing

    private var next: Int? {
        pending.indices.min {
            (pending[$0].due, pending[$0].order) < (pending[$1].due, pending[$1].order)
        }
    }

    var nextDue: UInt64? { next.map { pending[$0].due } }

    /// Carries out the next request; nil when there was none, or when a part is left.
    mutating func step() -> (completion: @Sendable (DiskOutcome) -> Void, outcome: DiskOutcome)? {
        guard let next else { return nil }
        now = max(now, pending[next].due)
        if isShort(next) { return nil }
        let ended = pending.remove(at: next)
        var outcome = DiskOutcome.done
        do throws(DiskFault) {
            try carryOut(ended)
        } catch {
            outcome = .failed(error)
            counters.failures += 1
        }
        counters.completions += 1
        note(ended.submission.request.id)
        note(now)
        if case .failed(let fault) = outcome { note(UInt64(fault.code.number) + 1) }
        releaseIfUnused(ended.file)
        return (ended.submission.completion, outcome)
    }

    /// Does a part of a transfer and leaves the rest for later, when the seed wants it so.
    private mutating func isShort(_ index: Int) -> Bool {
        let pending = pending[index]
        guard let transfer = pending.submission.request.operation.transfer else { return false }
        let total = transfer.buffers.reduce(0) { $0 + $1.count }
        let blocks = (total - pending.done) / DiskBuffer.alignment
        guard blocks > 1, random.happens(faults.shortTransfer) else { return false }
        let end = pending.done + Int.random(in: 1..<blocks, using: &random) * DiskBuffer.alignment
        if transfer.isWrite {
            self.pending[index].taken += Self.bytes(transfer.buffers, from: pending.done, to: end)
        }
        self.pending[index].done = end
        self.pending[index].due = now + delay()
        return true
    }

    private mutating func carryOut(_ ended: Pending) throws(DiskFault) {
        switch ended.submission.request.operation {
        case .read(_, let offset, let buffers):
            try read(ended.file!, offset: offset, into: buffers)
        case .write(_, let offset, _): try write(ended, offset: offset)
        case .sync: try sync(ended.file!, lastWrite: ended.lastWrite)
        case .create(let number, let name, let byteCount):
            numbersToCome.remove(number)
            try create(number, name: name, byteCount: byteCount)
        case .open(let number, let name):
            numbersToCome.remove(number)
            guard let file = names[name] else { throw DiskFault(.notFound, "open \(name)") }
            numbers[number] = file
        case .close: break
        case .remove(let name):
            if faults.isReadOnly { throw DiskFault(.readOnly, "remove \(name)") }
            guard let file = names.removeValue(forKey: name) else { break }
            files[file]!.isLinked = false
            releaseIfUnused(file)
        }
    }

    private mutating func read(
        _ file: Int, offset: Int, into buffers: [DiskBuffer]
    ) throws(DiskFault) {
        let total = buffers.reduce(0) { $0 + $1.count }
        let action = "read \(total) bytes at \(offset) of \(files[file]!.name)"
        try checkRange(file, offset: offset, byteCount: total, action)
        if random.happens(faults.readError) { throw DiskFault(.inputOutput, action) }
        var position = offset
        for buffer in buffers {
            files[file]!.current.read(into: buffer.bytes, at: position)
            position += buffer.count
        }
        if random.happens(faults.flipOnRead) {
            let bytes = buffers.randomElement(using: &random)!.bytes
            bytes[Int.random(in: 0..<bytes.count, using: &random)] ^=
                1 << UInt8.random(in: 0..<8, using: &random)
            counters.flips += 1
        }
        for buffer in buffers { noteSample(buffer) }
    }

    private mutating func write(_ ended: Pending, offset: Int) throws(DiskFault) {
        let file = ended.file!
        var bytes = Self.taken(by: ended)
        let action = "write \(bytes.count) bytes at \(offset) of \(files[file]!.name)"
        try checkRange(file, offset: offset, byteCount: bytes.count, action)
        if faults.isReadOnly { throw DiskFault(.readOnly, action) }
        files[file]!.isWritten = true
        if random.happens(faults.writeError) {
            for (start, part) in survivors(of: bytes, counts: false) {
                put(part, into: file, at: offset + start)
            }
            throw DiskFault(.inputOutput, action)
        }
        if random.happens(faults.flipOnWrite) {
            bytes[Int.random(in: 0..<bytes.count, using: &random)] ^=
                1 << UInt8.random(in: 0..<8, using: &random)
            counters.flips += 1
        }
        put(bytes, into: file, at: offset)
    }

    private mutating func put(_ bytes: [UInt8], into file: Int, at offset: Int) {
        writeSequence += 1
        bytes.withUnsafeBytes { files[file]!.current.write($0, at: offset) }
        files[file]!.unsynced.append(
            UnsyncedWrite(offset: offset, bytes: bytes, sequence: writeSequence))
    }

    private mutating func sync(_ file: Int, lastWrite: UInt64) throws(DiskFault) {
        let unsynced = files[file]!.unsynced
        files[file]!.unsynced = unsynced.filter { $0.sequence > lastWrite }
        let isFailure = random.happens(faults.syncError)
        for write in unsynced where write.sequence <= lastWrite {
            if isFailure {
                settle(write.bytes, of: file, at: write.offset)
            } else {
                write.bytes.withUnsafeBytes { files[file]!.durable.write($0, at: write.offset) }
            }
        }
        if isFailure { throw DiskFault(.inputOutput, "sync \(files[file]!.name)") }
    }

    private mutating func create(
        _ number: UInt64, name: String, byteCount: Int
    ) throws(DiskFault) {
        let action = "create \(name) of \(byteCount) bytes"
        if faults.isReadOnly { throw DiskFault(.readOnly, action) }
        if names[name] != nil { throw DiskFault(.exists, action) }
        let isFull = !hasRoom(for: byteCount)
        if isFull || random.happens(faults.createError) { throw DiskFault(.noSpace, action) }
        numbers[number] = add(File(name: name, byteCount: byteCount, isWritten: false))
    }

    private func checkRange(
        _ file: Int, offset: Int, byteCount: Int, _ action: String
    ) throws(DiskFault) {
        let end = files[file]!.byteCount
        if offset > end || byteCount > end - offset {
            throw DiskFault(.endOfFile, action, because: "the file ends at \(end)")
        }
    }

    // MARK: Files

    /// Gives a file its name and number.
    mutating func add(_ file: File) -> Int {
        fileCount += 1
        files[fileCount] = file
        names[file.name] = fileCount
        return fileCount
    }

    func hasRoom(for byteCount: Int) -> Bool {
        guard let capacity = faults.capacityBytes else { return true }
        return files.values.reduce(byteCount) { $0 + $1.byteCount } <= capacity
    }

    /// Forgets a removed file when its last number is closed and its last request has ended.
    private mutating func releaseIfUnused(_ file: Int?) {
        guard let file, let entry = files[file], !entry.isLinked else { return }
        if numbers.values.contains(file) || pending.contains(where: { $0.file == file }) { return }
        files[file] = nil
    }

    func list() -> [(name: String, byteCount: Int)] {
        names.map { ($0.key, files[$0.value]!.byteCount) }.sorted { $0.0 < $1.0 }
    }

    func contents(of name: String) -> [UInt8]? {
        guard let file = names[name].flatMap({ files[$0] }) else { return nil }
        return [UInt8](unsafeUninitializedCapacity: file.byteCount) { bytes, count in
            file.current.read(into: UnsafeMutableRawBufferPointer(bytes), at: 0)
            count = file.byteCount
        }
    }

    mutating func flipBit(of name: String, at offset: Int, bit: Int) {
        guard let file = names[name], offset >= 0, offset < files[file]!.byteCount,
            (0..<8).contains(bit)
        else { preconditionFailure("no bit \(bit) of byte \(offset) of \(name)") }
        files[file]!.current.flip(bit: bit, at: offset)
        files[file]!.durable.flip(bit: bit, at: offset)
        for index in files[file]!.unsynced.indices {
            let start = files[file]!.unsynced[index].offset
            if offset >= start, offset < start + files[file]!.unsynced[index].bytes.count {
                files[file]!.unsynced[index].bytes[offset - start] ^= 1 << UInt8(bit)
            }
        }
        counters.flips += 1
    }

    // MARK: Memory and history

    /// All bytes of a write under way, as they are in memory now, but for those taken before.
    static func taken(by pending: Pending) -> [UInt8] {
        let buffers = pending.submission.request.operation.transfer!.buffers
        let total = buffers.reduce(0) { $0 + $1.count }
        return pending.taken + bytes(buffers, from: pending.done, to: total)
    }

    private static func bytes(_ buffers: [DiskBuffer], from start: Int, to end: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(end - start)
        var position = 0
        for buffer in buffers {
            let low = max(start, position)
            let high = min(end, position + buffer.count)
            if low < high { bytes += buffer.bytes[(low - position)..<(high - position)] }
            position += buffer.count
        }
        return bytes
    }

    /// FNV-1a.
    private mutating func note(_ number: UInt64) {
        for shift in stride(from: UInt64(0), to: 64, by: 8) {
            history = (history ^ (number >> shift & 0xFF)) &* 0x100_0000_01B3
        }
    }

    /// A word of each sector tells buffers apart well enough.
    private mutating func noteSample(_ buffer: DiskBuffer) {
        for offset in stride(from: 0, to: buffer.count, by: Self.sectorBytes) {
            note(buffer.address.load(fromByteOffset: offset, as: UInt64.self))
        }
    }
}
