import Glibc
import KVThreads
import Testing

@testable import KVDisk

/// Repeatable numbers; a failing test prints the seed.
typealias SeededRandom = SimulatedRandom

/// A seed of the clock, or the one in the environment.
func seedOfThisRun() -> UInt64 {
    if let text = getenv("KVASIR_SEED"), let seed = UInt64(String(cString: text)) { return seed }
    return UInt64.random(in: 0..<1_000_000_000)
}

/// A directory that is removed with everything in it.
final class TemporaryDirectory: Sendable {
    let path: String

    init(in parent: String = "/tmp") throws {
        var template = Array("\(parent)/kvdisk-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            throw DiskFault(.other(errno), "make a directory in \(parent)")
        }
        path = String(cString: made)
    }

    deinit {
        for name in names() { unlink("\(path)/\(name)") }
        rmdir(path)
    }

    func names() -> [String] {
        guard let stream = opendir(path) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let start = UnsafeRawPointer(entry) + MemoryLayout<dirent>.offset(of: \.d_name)!
            let name = String(cString: start.assumingMemoryBound(to: CChar.self))
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }
}

/// The ways to reach a disk that the tests go.
enum Backend: String, CaseIterable, CustomTestStringConvertible {
    case threads
    case threadsBuffered
    case threadsOne
    case ring
    case ringBuffered
    case ringNarrow

    var testDescription: String { rawValue }

    var isRing: Bool { self == .ring || self == .ringBuffered || self == .ringNarrow }

    /// Opens a directory; nil, with a word about it, where the kernel has no io_uring.
    func open(_ directory: TemporaryDirectory, allocates: Bool = true) throws -> (any DiskIO)? {
        let isBuffered = self == .threadsBuffered || self == .ringBuffered
        let files = try DiskFiles(
            path: directory.path, wantsDirect: !isBuffered, allocates: allocates)
        switch self {
        case .threads, .threadsBuffered: return try ThreadIO(files: files, threadCount: 8)
        case .threadsOne: return try ThreadIO(files: files, threadCount: 1)
        case .ring, .ringBuffered, .ringNarrow:
            do throws(DiskFault) {
                return try RingIO(files: files, depth: self == .ringNarrow ? 2 : 64)
            } catch {
                if error.code != .unsupported { throw error }
                print("skipped: \(error)")
                return nil
            }
        }
    }
}

/// What has completed, in order, for one thread to wait for.
final class Inbox: Sendable {
    private let ended = Locked<[(id: UInt64, outcome: DiskOutcome)]>([])
    private let wake: EventCounter

    init() throws { wake = try EventCounter(isSemaphore: true) }

    func submit(_ operation: DiskRequest.Operation, id: UInt64, to io: any DiskIO) {
        io.submit(DiskRequest(id: id, operation: operation)) { outcome in
            self.ended.withLock { $0.append((id, outcome)) }
            self.wake.signal()
        }
    }

    func next() -> (id: UInt64, outcome: DiskOutcome) {
        wake.wait()
        return ended.withLock { $0.removeFirst() }
    }

    /// What is here without waiting.
    func all() -> [(id: UInt64, outcome: DiskOutcome)] {
        ended.withLock { ended in
            defer { ended = [] }
            return ended
        }
    }
}

extension DiskIO {
    /// Waits for one request.
    func perform(_ operation: DiskRequest.Operation) async -> DiskOutcome {
        await withCheckedContinuation { continuation in
            submit(DiskRequest(id: 0, operation: operation)) { continuation.resume(returning: $0) }
        }
    }

    /// What a request that must fail says.
    func fault(_ operation: DiskRequest.Operation) async -> DiskFault? {
        if case .failed(let fault) = await perform(operation) { return fault }
        return nil
    }
}

extension DiskMemory {
    /// Memory filled with a byte.
    convenience init(byteCount: Int, filledWith byte: UInt8) {
        self.init(byteCount: byteCount)
        fill(byte)
    }

    func fill(_ byte: UInt8) {
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: byte)
    }

    var contents: [UInt8] { buffer.copy }

    /// A part of it, in units of 4096 bytes.
    func blocks(_ range: Range<Int>) -> DiskBuffer {
        DiskBuffer(
            address: buffer.address + range.lowerBound * DiskBuffer.alignment,
            count: range.count * DiskBuffer.alignment)
    }
}

// Quick without optimisation, too: byte by byte, the tests would take minutes.
extension DiskBuffer {
    /// Its bytes as they are now.
    var copy: [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count) { bytes, filled in
            memcpy(bytes.baseAddress!, address, count)
            filled = count
        }
    }

    /// Whether it holds the bytes from `offset` on.
    func equals(_ expected: [UInt8], from offset: Int = 0) -> Bool {
        precondition(offset + count <= expected.count, "as many bytes")
        return expected.withUnsafeBytes { memcmp(address, $0.baseAddress! + offset, count) == 0 }
    }
}

/// Something that one thread waits for.
final class EventBox: Sendable {
    private let counter: EventCounter

    init() {
        do throws(DiskFault) {
            counter = try EventCounter(isSemaphore: true)
        } catch {
            preconditionFailure("\(error)")
        }
    }

    func signal() { counter.signal() }

    func wait() { counter.wait() }
}
