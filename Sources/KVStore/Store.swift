internal import CXXHash
internal import Dispatch
internal import Glibc
public import KVArena
internal import KVThreads
public import Logging
internal import Synchronization

/// A store of KV chunks in shared memory: the core, its arena, and the threads that carry out what
/// the core asks for.
///
/// Use it in a program of your own through ``session(name:)``, or behind a socket with the
/// `KVService` library.
///
/// The core is one value behind one lock, held for microseconds and never across I/O, hashing or
/// copying. Two kinds of threads work beside the callers: `kv-fault` fault the arena in and end,
/// `kv-check` hashes what is sampled for verification.
public final class Store: Sendable {
    /// How a store is made.
    public struct Configuration: Sendable {
        /// Bytes of the arena; nil for a quarter of the memory that this machine or control group
        /// has.
        public var memoryBytes: Int?
        /// One acquire and one seal in this many is verified: 1 for all, 0 for none.
        public var verifyOneIn: Int
        /// Ask for huge pages (they come only where the system is set up for them).
        public var hugePages: Bool
        /// Threads that fault the arena in; nil for one per processor, at most four.
        public var faultThreads: Int?
        /// Where progress and trouble are told.
        public var logger: Logger

        /// A configuration; every value has a default.
        public init(
            memoryBytes: Int? = nil, verifyOneIn: Int = 64, hugePages: Bool = true,
            faultThreads: Int? = nil, logger: Logger = Logger(label: "kvasir")
        ) {
            self.memoryBytes = memoryBytes
            self.verifyOneIn = verifyOneIn
            self.hugePages = hugePages
            self.faultThreads = faultThreads
            self.logger = logger
        }
    }

    /// The smallest arena.
    public static let smallestMemoryBytes = 1 << 20

    /// The largest arena: pages are counted in 32 bits.
    public static let largestMemoryBytes = 8 << 40

    /// The shared memory. Its descriptor is what clients map.
    public let arena: SharedArena
    package let logger: Logger

    private let core: Locked<StoreCore>
    private let checks = Locked<[(job: UInt64, offset: UInt64, length: UInt64)]>([])
    private let checksWaiting = DispatchSemaphore(value: 0)
    private let isStopping = Atomic<Bool>(false)
    private let faulter: ArenaFaulter
    private let threads = Locked<[NamedThread]>([])
    private let leaseReady = Locked<(@Sendable (UInt64) -> Void)?>(nil)
    /// Callers that wait for the checks of their read lease.
    private let waiters = Locked<[UInt64: DispatchSemaphore]>([:])

    /// Makes the arena and starts faulting it in; returns at once.
    ///
    /// - Throws: `StoreError` when the machine or the control group can't hold the arena,
    ///   `ArenaError` when the kernel refuses it.
    public init(_ configuration: Configuration = Configuration()) throws {
        let budget = MemoryBudget.current()
        let bytes = configuration.memoryBytes ?? budget.defaultArenaBytes
        let slab = ExtentAllocator.slabBytes(forArenaBytes: bytes)
        let whole = bytes / slab * slab
        try Self.check(bytes: whole, against: budget)
        arena = try SharedArena(byteCount: whole, hugePages: configuration.hugePages)
        logger = configuration.logger
        let secret = (UInt64.random(in: .min ... .max), UInt64.random(in: .min ... .max))
        core = Locked(
            StoreCore(
                .init(
                    arenaBytes: whole, slabBytes: slab, checkOneIn: configuration.verifyOneIn,
                    secret: secret)))
        faulter = ArenaFaulter(arena: arena, slabBytes: slab, logger: configuration.logger)
        let processors = max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
        start(faultThreads: configuration.faultThreads ?? min(4, processors))
    }

    private static func check(bytes: Int, against budget: MemoryBudget) throws(StoreError) {
        if bytes < smallestMemoryBytes {
            throw StoreError(
                .argument,
                "an arena of \(bytes) bytes is too small; give at least \(smallestMemoryBytes)")
        }
        if bytes > budget.usableBytes {
            throw StoreError(
                .argument,
                "an arena of \(bytes >> 20) MiB does not fit: \(budget.availableBytes >> 20) MiB are available"
                    + (budget.groupLimitBytes.map {
                        ", and the control group has a limit of \($0 >> 20) MiB, of which "
                            + "\((budget.groupUsedBytes ?? 0) >> 20) MiB are used"
                    } ?? "")
                    + "; give --memory at most \(budget.usableBytes >> 20)MiB, or free memory")
        }
        if bytes > largestMemoryBytes {
            throw StoreError(
                .argument, "an arena has at most \(largestMemoryBytes) bytes; run several servers")
        }
    }

    private func start(faultThreads: Int) {
        // The threads hold the parts that they use, not the store, so that dropping the store ends
        // them.
        let started = [
            NamedThread("kv-check") { [weak self, checksWaiting, arena] in
                while true {
                    checksWaiting.wait()
                    guard let self, !self.isStopping.load(ordering: .acquiring) else { return }
                    var work: [(job: UInt64, offset: UInt64, length: UInt64)] = []
                    self.checks.withLock { swap(&$0, &work) }
                    for next in work where self.withCore({ core, _ in core.wantsCheck(next.job) }) {
                        let bytes = arena.bytes(offset: next.offset, length: next.length)
                        let checksum = kv_xxh3_64(bytes.baseAddress, bytes.count)
                        self.withCore { core, now in
                            core.checkCompleted(job: next.job, checksum: checksum, now: now)
                        }
                    }
                }
            }
        ]
        threads.withLock { $0 = started }
        faulter.start(threads: faultThreads) { [weak self] slabs in
            self?.withCore { core, _ in core.slabsBecameReady(slabs) }
        }
    }

    deinit {
        stop()
    }

    /// Ends the store's threads. Later calls find an arena that grows no further.
    public func stop() {
        if isStopping.exchange(true, ordering: .acquiringAndReleasing) { return }
        faulter.stop()
        checksWaiting.signal()
        let started = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in started { thread.join() }
    }

    /// Nanoseconds of the clock that deadlines are measured by.
    package static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// Runs one event on the core, then has its effects carried out.
    package func withCore<Result: Sendable, Failure: Error>(
        _ body: (inout StoreCore, _ now: UInt64) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        var effects: [StoreCore.Effect] = []
        // An event that fails may have let deadlines pass, so its effects count too.
        defer { if !effects.isEmpty { carryOut(effects) } }
        return try core.withLock { core throws(Failure) in
            defer { if !core.effects.isEmpty { swap(&effects, &core.effects) } }
            return try body(&core, Self.now())
        }
    }

    private func carryOut(_ effects: [StoreCore.Effect]) {
        for effect in effects {
            switch effect {
            case .check(let job, let offset, let length):
                checks.withLock { $0.append((job, offset, length)) }
                checksWaiting.signal()
            case .leaseReady(let lease):
                waiters.withLock { $0[lease] }?.signal()
                leaseReady.withLock { $0 }?(lease)
            case .warning(let message):
                logger.warning("\(message)")
            }
        }
    }

    /// Who is told, on any thread, that nothing of a read lease is pending any more.
    package func onLeaseReady(_ action: @escaping @Sendable (UInt64) -> Void) {
        leaseReady.withLock { $0 = action }
    }

    /// Blocks until the checks of a read lease may be done, at most a second; look again then.
    func waitUntilSettled(_ lease: UInt64) {
        let semaphore = DispatchSemaphore(value: 0)
        waiters.withLock { $0[lease] = semaphore }
        defer { waiters.withLock { $0[lease] = nil } }
        // What was settled before the semaphore stood there signals nobody.
        let isPending = withCore { core, _ in core.isPending(lease) }
        if isPending { _ = semaphore.wait(timeout: .now() + 1) }
    }

    /// What the store holds now.
    public var gauges: StoreGauges { withCore { core, _ in core.gauges } }

    /// What the store has done since it started.
    public var counters: StoreCounters { withCore { core, _ in core.counters } }

    /// Waits until the whole arena is faulted in. - Returns: false if that took longer than
    /// `seconds`.
    public func waitUntilReady(seconds: Double = 60) -> Bool {
        faulter.waitUntilDone(seconds: seconds)
    }
}
