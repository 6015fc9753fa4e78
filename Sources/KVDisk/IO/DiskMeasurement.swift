internal import CKvasir
internal import Glibc
internal import KVThreads

/// How fast a disk reads or writes one after the other.
package struct DiskThroughput: Sendable, CustomStringConvertible {
    /// What was measured.
    package let name: String
    /// Bytes of one request.
    package let requestBytes: Int
    /// Requests under way at once.
    package let depth: Int
    /// Bytes moved.
    package let byteCount: Int
    /// How long it took.
    package let wallSeconds: Double
    /// Processor time of the whole process meanwhile.
    package let cpuSeconds: Double

    /// Gigabytes (10⁹ bytes) per second.
    package var gigabytesPerSecond: Double { Double(byteCount) / wallSeconds / 1e9 }

    package var description: String {
        let rate = (gigabytesPerSecond * 100).rounded() / 100
        let cpu = (cpuSeconds * 1000).rounded()
        return "\(name) \(requestBytes >> 10) KiB × \(depth): \(rate) GB/s, \(cpu) ms of CPU"
    }
}

/// Measures a disk with a file that it makes and removes again.
///
/// The bytes come from and go to a memfd, as those of an arena do, whose pages are faulted in
/// before. It blocks.
package struct DiskMeasurement {
    private static let fileName = "kvasir-measure"
    private static let number = UInt64.max

    private let io: any DiskIO
    private let requestBytes: Int
    private let depth: Int
    private let fileBytes: Int
    private let arena: DiskBuffer
    private let keepsFile: Bool

    /// Makes the file and the memory.
    /// - Parameters:
    ///   - requestBytes: of one request, a multiple of 4096.
    ///   - depth: requests under way at once.
    ///   - fileBytes: of the file, a multiple of `requestBytes`.
    ///   - keepsFile: uses the file of an earlier measurement if it has this length, and leaves it.
    package init(
        _ io: any DiskIO, requestBytes: Int, depth: Int, fileBytes: Int, keepsFile: Bool = false
    ) throws(DiskFault) {
        precondition(depth > 0 && fileBytes % requestBytes == 0, "whole requests")
        self.io = io
        self.requestBytes = requestBytes
        self.depth = depth
        self.fileBytes = fileBytes
        self.keepsFile = keepsFile
        let byteCount = requestBytes * depth
        let descriptor = kv_memfd("kvasir-measure", UInt64(byteCount))
        if descriptor < 0 { throw DiskFault(errno: errno, "make a memfd of \(byteCount) bytes") }
        defer { close(descriptor) }
        let address = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let address, address != MAP_FAILED else {
            throw DiskFault(errno: errno, "map \(byteCount) bytes")
        }
        arena = DiskBuffer(address: address, count: byteCount)
        var random = SimulatedRandom(seed: 1)
        for offset in stride(from: 0, to: byteCount, by: 8) {
            address.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
        }
        do throws(DiskFault) {
            let isThere = try io.list().contains { $0 == (Self.fileName, fileBytes) }
            if keepsFile, isThere {
                try call(.open(file: Self.number, name: Self.fileName))
            } else {
                try call(.remove(name: Self.fileName))
                try call(
                    .create(file: Self.number, name: Self.fileName, byteCount: fileBytes))
            }
        } catch {
            munmap(address, byteCount)
            throw error
        }
    }

    /// Writes the file from start to end, and syncs it, which counts.
    package func write(_ name: String) throws(DiskFault) -> DiskThroughput {
        try measure(name, isWrite: true)
    }

    /// Reads the file from start to end; it must have been written.
    package func read(_ name: String) throws(DiskFault) -> DiskThroughput {
        try measure(name, isWrite: false)
    }

    /// Removes the file and the memory.
    package func end() throws(DiskFault) {
        munmap(arena.address, arena.count)
        try call(.close(file: Self.number))
        if !keepsFile { try call(.remove(name: Self.fileName)) }
    }

    private func measure(_ name: String, isWrite: Bool) throws(DiskFault) -> DiskThroughput {
        let wall = Self.seconds(CLOCK_MONOTONIC)
        let cpu = Self.seconds(CLOCK_PROCESS_CPUTIME_ID)
        try transferAll(isWrite: isWrite)
        if isWrite { try call(.sync(file: Self.number)) }
        return DiskThroughput(
            name: name, requestBytes: requestBytes, depth: depth, byteCount: fileBytes,
            wallSeconds: Self.seconds(CLOCK_MONOTONIC) - wall,
            cpuSeconds: Self.seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu)
    }

    private func transferAll(isWrite: Bool) throws(DiskFault) {
        let ended = Ended(try EventCounter(isSemaphore: true))
        var fault: DiskFault?
        var freeSlots = Array(0..<depth)
        var next = 0
        // After a fault the others are still waited for: their buffers are theirs until then.
        while freeSlots.count < depth || (next < fileBytes && fault == nil) {
            if next < fileBytes, fault == nil, let slot = freeSlots.popLast() {
                submit(slot: slot, offset: next, isWrite: isWrite, to: ended)
                next += requestBytes
            } else {
                let (slot, outcome) = ended.wait()
                freeSlots.append(slot)
                if case .failed(let cause) = outcome { fault = cause }
            }
        }
        if let fault { throw fault }
    }

    private func submit(slot: Int, offset: Int, isWrite: Bool, to ended: Ended) {
        let buffer = DiskBuffer(
            address: arena.address + slot * requestBytes, count: requestBytes)
        let operation: DiskRequest.Operation =
            isWrite
            ? .write(file: Self.number, offset: offset, from: [buffer])
            : .read(file: Self.number, offset: offset, into: [buffer])
        io.submit(DiskRequest(id: UInt64(offset), operation: operation)) { outcome in
            ended.append(slot, outcome)
        }
    }

    private func call(_ operation: DiskRequest.Operation) throws(DiskFault) {
        let ended = Ended(try EventCounter(isSemaphore: true))
        io.submit(DiskRequest(id: 0, operation: operation)) { ended.append(0, $0) }
        if case .failed(let fault) = ended.wait().outcome { throw fault }
    }

    private static func seconds(_ clock: clockid_t) -> Double {
        var time = timespec()
        clock_gettime(clock, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}

/// Slots whose requests have ended.
private final class Ended: Sendable {
    private let slots = Locked<[(Int, DiskOutcome)]>([])
    private let wake: EventCounter

    init(_ wake: EventCounter) {
        self.wake = wake
    }

    func append(_ slot: Int, _ outcome: DiskOutcome) {
        slots.withLock { $0.append((slot, outcome)) }
        wake.signal()
    }

    func wait() -> (slot: Int, outcome: DiskOutcome) {
        wake.wait()
        return slots.withLock { $0.removeLast() }
    }
}
