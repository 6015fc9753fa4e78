internal import Dispatch
internal import Glibc
internal import KVArena
internal import KVThreads
internal import Logging
internal import Synchronization

/// Faults the arena in, slab by slab, in the background, and says when each is ready.
///
/// First touch runs at 0.5–2 GB/s a thread, so several threads share the work. Before each step
/// they look whether the machine still has the memory; if not they wait, so that a shortage makes
/// the arena smaller and kills nobody.
final class ArenaFaulter: Sendable {
    /// What must stay available beyond the slab that is faulted in.
    static let reserveBytes = 128 << 20
    private static let retryMs = 500

    private let arena: SharedArena
    private let slabBytes: Int
    private let slabCount: Int
    private let logger: Logger
    private let nextSlab = Atomic<Int>(0)
    private let doneSlabs = Atomic<Int>(0)
    private let toldTenths = Atomic<Int>(0)
    private let isStopping = Atomic<Bool>(false)
    private let isWaitingForMemory = Atomic<Bool>(false)
    private let threads = Locked<[NamedThread]>([])
    private let done = DispatchSemaphore(value: 0)

    init(arena: SharedArena, slabBytes: Int, logger: Logger) {
        self.arena = arena
        self.slabBytes = slabBytes
        slabCount = arena.byteCount / slabBytes
        self.logger = logger
    }

    func start(threads count: Int, ready: @escaping @Sendable (Range<Int>) -> Void) {
        let started = Store.now()
        let made = (0..<max(1, count)).map { _ in
            NamedThread("kv-fault") { [self] in
                while !isStopping.load(ordering: .acquiring) {
                    let slab = nextSlab.wrappingAdd(1, ordering: .relaxed).oldValue
                    if slab >= slabCount || !fault(slab) { return }
                    ready(slab..<(slab + 1))
                    tellProgress(since: started)
                }
            }
        }
        threads.withLock { $0 = made }
    }

    func stop() {
        isStopping.store(true, ordering: .releasing)
        let started = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in started { thread.join() }
    }

    func waitUntilDone(seconds: Double) -> Bool {
        if done.wait(timeout: .now() + seconds) == .timedOut { return false }
        done.signal()
        return true
    }

    /// - Returns: false when it was stopped.
    private func fault(_ slab: Int) -> Bool {
        while !isStopping.load(ordering: .acquiring) {
            var trouble = "\(MemoryBudget.current().usableBytes >> 20) MiB are left"
            if MemoryBudget.current().usableBytes > slabBytes + Self.reserveBytes {
                do {
                    try arena.populate((slab * slabBytes)..<((slab + 1) * slabBytes))
                    isWaitingForMemory.store(false, ordering: .relaxed)
                    return true
                } catch {
                    trouble = error.description
                }
            }
            if !isWaitingForMemory.exchange(true, ordering: .relaxed) {
                let ready = doneSlabs.load(ordering: .relaxed) * slabBytes
                logger.warning(
                    "the arena stays at \(ready >> 20) of \(arena.byteCount >> 20) MiB until there is memory (\(trouble)); free some, or start with less --memory"
                )
            }
            usleep(UInt32(Self.retryMs) * 1000)
        }
        return false
    }

    private func tellProgress(since started: UInt64) {
        let count = doneSlabs.wrappingAdd(1, ordering: .relaxed).newValue
        let seconds = Double(Store.now() - started) / 1e9
        let size = "\((count * slabBytes) >> 20) of \(arena.byteCount >> 20) MiB"
        if count == slabCount {
            logger.info("arena ready: \(size) faulted in, \(Int(seconds * 1000)) ms")
            done.signal()
            return
        }
        let tenths = count * 10 / slabCount
        let told = toldTenths.load(ordering: .relaxed)
        if tenths > told, seconds > 2,
            toldTenths.compareExchange(expected: told, desired: tenths, ordering: .relaxed)
                .exchanged
        {
            logger.info("faulting the arena in: \(size), \(Int(seconds)) s")
        }
    }
}
