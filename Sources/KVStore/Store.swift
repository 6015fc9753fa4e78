internal import CXXHash
internal import Dispatch
internal import Glibc
public import KVArena
public import KVPolicy
internal import KVThreads
internal import KVTier
public import Logging
internal import Synchronization

/// A store of KV chunks in shared memory: the core, its arena, and the threads that carry out what
/// the core asks for.
///
/// Use it in a program of your own through ``session(name:)``, or behind a socket with the
/// `KVService` library.
///
/// The core is one value behind one lock, held for microseconds and never across I/O, hashing or
/// copying. Beside the callers work threads: `kv-fault` fault the arena in and end, `kv-check`
/// hashes what is sampled for verification and what comes from disks, `kv-flush` hashes what goes to
/// disks, when nobody else needs the processor, `kv-recover` reads what all disks have at the start
/// and ends, `kv-static` keeps the list of static chunks on them, and the disks have their own.
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
        /// Directories for what memory has no room for, each on a device of its own; none for a
        /// store that forgets everything when it ends.
        public var disks: [DiskConfiguration]
        /// Which sealed chunks go to disk.
        public var diskAdmission: DiskAdmission
        /// Which policy decides what memory gives up.
        public var policy: PolicyName
        /// Where progress and trouble are told.
        public var logger: Logger

        /// A configuration; every value has a default.
        public init(
            memoryBytes: Int? = nil, verifyOneIn: Int = 64, hugePages: Bool = true,
            faultThreads: Int? = nil, disks: [DiskConfiguration] = [],
            diskAdmission: DiskAdmission = .all, policy: PolicyName = .default,
            logger: Logger = Logger(label: "kvasir")
        ) {
            self.disks = disks
            self.diskAdmission = diskAdmission
            self.policy = policy
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
    /// What decides which chunks go when memory runs short.
    public let policy: PolicyName
    package let logger: Logger

    private let core: Locked<StoreCore>
    /// What somebody may wait for.
    private let checks = HashQueue()
    /// What goes to disks.
    private let flushes = HashQueue()
    private let isStopping = Atomic<Bool>(false)
    /// Something comes due before the next tick.
    private let isTickWanted = Atomic<Bool>(false)
    private let faulter: ArenaFaulter
    private let threads = Locked<[NamedThread]>([])
    private let disks: [DiskVolume]
    private let recovery: DiskRecoveryRun
    private let statics: StaticKeeper
    private let leaseReady = Locked<(@Sendable (UInt64) -> Void)?>(nil)
    private let syncEnded = Locked<(@Sendable (UInt64, StoreError?) -> Void)?>(nil)
    /// Callers that wait for the checks of their read lease.
    private let waiters = Locked<[UInt64: DispatchSemaphore]>([:])
    /// Callers that wait for a sync, and how it ended.
    private let syncWaiters = Locked<[UInt64: SyncWaiter]>([:])

    /// Makes the arena and starts faulting it in; returns at once.
    ///
    /// - Throws: `StoreError` when the machine or the control group can't hold the arena or a disk
    ///   can't be used, `ArenaError` when the kernel refuses the arena.
    public init(_ configuration: Configuration = Configuration()) throws {
        let budget = MemoryBudget.current()
        let bytes = configuration.memoryBytes ?? budget.defaultArenaBytes
        let slab = ExtentAllocator.slabBytes(forArenaBytes: bytes)
        let whole = bytes / slab * slab
        try Self.check(bytes: whole, against: budget)
        arena = try SharedArena(byteCount: whole, hugePages: configuration.hugePages)
        logger = configuration.logger
        policy = configuration.policy
        let secret = (UInt64.random(in: .min ... .max), UInt64.random(in: .min ... .max))
        core = Locked(
            StoreCore(
                .init(
                    arenaBytes: whole, slabBytes: slab, checkOneIn: configuration.verifyOneIn,
                    secret: secret, admission: configuration.diskAdmission,
                    wallOffsetMs: Self.wallOffsetMs()),
                policy: configuration.policy.make()))
        disks = try DiskVolume.open(configuration.disks, arena: arena, logger: logger)
        recovery = DiskRecoveryRun(disks, logger: logger)
        statics = StaticKeeper(logger: logger)
        faulter = ArenaFaulter(arena: arena, slabBytes: slab, logger: configuration.logger)
        let processors = max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
        start(faultThreads: configuration.faultThreads ?? min(4, processors))
        startDisks()
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
        var started = [
            NamedThread("kv-check") { [weak self, checks, arena, hasDisks = !disks.isEmpty] in
                // Disks have deadlines too, and an embedded store has no event loop that would let
                // time pass.
                var tick = Self.longestDiskTick
                while true {
                    let end =
                        hasDisks
                        ? DispatchTime.now() + .nanoseconds(Int(tick)) : .distantFuture
                    let isTick = !checks.wait(until: end)
                    guard let self, !self.isStopping.load(ordering: .acquiring) else { return }
                    if isTick || self.isTickWanted.load(ordering: .relaxed) { tick = self.tick() }
                    self.hash(from: checks, arena, clearsPadding: false)
                }
            }
        ]
        if !disks.isEmpty {
            started.append(
                NamedThread("kv-flush") { [weak self, flushes, arena] in
                    // Saves and loads don't wait for it, so it waits for them.
                    Self.yieldToOthers()
                    while true {
                        _ = flushes.wait(until: .distantFuture)
                        guard let self, !self.isStopping.load(ordering: .acquiring) else { return }
                        self.hash(from: flushes, arena, clearsPadding: true)
                    }
                })
        }
        threads.withLock { $0 = started }
        faulter.start(threads: faultThreads) { [weak self] slabs in
            self?.withCore { core, _ in core.slabsBecameReady(slabs) }
        }
    }

    /// Has the calling thread run after others.
    private static func yieldToOthers() {
        // Process 0 is the calling thread on Linux. Without the right to do so it runs as others do.
        _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, flushNiceness)
    }

    /// Of 19.
    private static let flushNiceness: Int32 = 10

    /// Hashes what waits for it.
    ///
    /// - Parameter clearsPadding: it goes to a disk: what pads it to whole pages is made zeros.
    private func hash(from queue: HashQueue, _ arena: SharedArena, clearsPadding: Bool) {
        while !isStopping.load(ordering: .acquiring), let next = queue.next() {
            if !withCore({ core, _ in core.wantsCheck(next.job) }) { continue }
            let bytes = arena.bytes(offset: next.offset, length: next.length)
            let checksum = kv_xxh3_64(bytes.baseAddress, bytes.count)
            if clearsPadding { arena.clearPadding(offset: next.offset, length: next.length) }
            withCore { core, now in
                core.checkCompleted(job: next.job, checksum: checksum, now: now)
            }
        }
    }

    deinit {
        stop()
    }

    /// Ends the store's threads. Later calls find an arena that grows no further, and disks that
    /// take nothing more; what was not on disk before is lost (see ``sync(seconds:)``).
    public func stop() {
        if isStopping.exchange(true, ordering: .acquiringAndReleasing) { return }
        faulter.stop()
        recovery.stop()
        // While the directories are still this store's.
        statics.stop { core.withLock { $0.staticList } }
        for disk in disks { disk.stop() }
        for queue in [checks, flushes] { queue.wake() }
        let started = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in started { thread.join() }
    }

    /// How often disks are looked after when nothing else happens and nothing comes due, and how
    /// often at most; in nanoseconds.
    private static let longestDiskTick: UInt64 = 500_000_000
    private static let shortestDiskTick: UInt64 = 5_000_000

    /// Lets time pass. - Returns: nanoseconds until that is wanted again.
    private func tick() -> UInt64 {
        withCore { core, now in
            core.settle(now: now)
            if !core.waitsForMemory { isTickWanted.store(false, ordering: .relaxed) }
            let next = core.nextDeadline ?? .max
            let wait = next > now ? next - now : 0
            return min(max(wait, Self.shortestDiskTick), Self.longestDiskTick)
        }
    }

    /// What added to ``now()`` in milliseconds gives those since 1970.
    static func wallOffsetMs() -> UInt64 {
        let wall = wallMs()
        let monotonic = now() / 1_000_000
        return wall > monotonic ? wall - monotonic : 0
    }

    /// Milliseconds since 1970.
    static func wallMs() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(max(0, time.tv_sec)) * 1000 + UInt64(time.tv_nsec) / 1_000_000
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
            let now = Self.now()
            defer {
                core.settle(now: now)
                if !core.effects.isEmpty { swap(&effects, &core.effects) }
                if core.waitsForMemory { askForTick() }
            }
            return try body(&core, now)
        }
    }

    /// Wakes the thread that lets time pass, so that it sees when it is wanted next.
    private func askForTick() {
        if !isTickWanted.exchange(true, ordering: .relaxed) { checks.wake() }
    }

    private func carryOut(_ effects: [StoreCore.Effect]) {
        for effect in effects {
            switch effect {
            case .check(let job, let offset, let length):
                checks.append(.init(job: job, offset: offset, length: length))
            case .prepare(let job, let offset, let length):
                flushes.append(.init(job: job, offset: offset, length: length))
            case .io(let volume, let request):
                disks[volume].carryOut(request) { [weak self] id, outcome in
                    self?.withCore { core, now in
                        core.diskCompleted(volume: volume, id, outcome, now: now)
                    }
                }
            case .synced(let ticket, let fault):
                endSync(ticket, fault.map { StoreError(.disk, $0.message) })
            case .keepStatics: statics.listHasChanged()
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

    /// Who is told, on any thread, how a sync ended.
    package func onSyncEnded(_ action: @escaping @Sendable (UInt64, StoreError?) -> Void) {
        syncEnded.withLock { $0 = action }
    }

    private func endSync(_ ticket: UInt64, _ error: StoreError?) {
        syncWaiters.withLock { $0[ticket] }?.end(error)
        syncEnded.withLock { $0 }?(ticket, error)
    }

    /// Waits until everything that was sealed or dropped before is durable on disk.
    ///
    /// - Throws: `StoreError` if a disk failed, if that takes longer than `seconds`, or if the store
    ///   has no disk.
    public func sync(seconds: Double = 60) throws(StoreError) {
        let waiter = SyncWaiter()
        let ticket = try withCore { core, now throws(StoreError) -> UInt64 in
            let ticket = try core.sync(now: now)
            // Before the effects are carried out, so that none is missed.
            syncWaiters.withLock { $0[ticket] = waiter }
            return ticket
        }
        defer { syncWaiters.withLock { $0[ticket] = nil } }
        if let error = waiter.wait(seconds: seconds) {
            withCore { core, _ in core.cancelSync(ticket) }
            throw error
        }
    }

    /// Empties segments of which less than `share` is used, and gives their files back to the file
    /// system. Nothing that can be matched is given up. It blocks.
    ///
    /// - Parameter progress: told the bytes of all files now and then.
    /// - Throws: `StoreError` if there is no disk, or chunks on it fit into no arena of this size.
    public func compactDisks(
        below share: Double = 0.5, progress: (Int) -> Void = { _ in }
    ) throws(StoreError) {
        if disks.isEmpty { throw StoreError(.noTier, "this store has no disk") }
        // What is not known yet would count as dead.
        if !waitUntilRecovered(seconds: 3600) {
            throw StoreError(.timeout, "the disks are still being read; try again later")
        }
        if withCore({ core, _ in core.hasRefusedChunks }) {
            throw StoreError(
                .argument, "the disk has chunks that this arena is too small for; give more memory")
        }
        withCore { core, now in core.compactDisks(below: share, now: now) }
        while !isStopping.load(ordering: .acquiring),
            withCore({ core, _ in core.isCompactingDisks })
        {
            let now = gauges.disk
            progress(now.diskBytes)
            if now.disksSuspended > 0 {
                throw StoreError(
                    .disk, "a disk takes no writes now; the log says why. Try again then")
            }
            usleep(10_000)
        }
        try sync()
    }

    private func startDisks() {
        if !disks.isEmpty {
            // Before anything is found or saved.
            let marks = statics.load(disks)
            withCore { core, _ in core.restoreStatics(marks) }
            statics.start { [weak self] in self?.withCore { core, _ in core.staticList } }
        }
        for (volume, opened) in disks.enumerated() {
            let added = withCore { core, _ in core.add(opened.makeLog()) }
            precondition(added == volume, "disks have the numbers that the core gave them")
        }
        recovery.start(into: self)
    }

    /// Waits until all that the disks have is known. - Returns: false if that took longer than
    /// `seconds`.
    public func waitUntilRecovered(seconds: Double = 60) -> Bool {
        let end = Self.now() + UInt64(seconds * 1e9)
        while gauges.disk.disksRecovering > 0 {
            if Self.now() > end { return false }
            usleep(2_000)
        }
        return true
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

/// Bytes to be hashed.
private struct HashJob {
    var job: UInt64
    var offset: UInt64
    var length: UInt64
}

/// What is to be hashed by one thread, in order.
private final class HashQueue: Sendable {
    private let jobs = Locked(ArraySlice<HashJob>())
    private let isWanted = DispatchSemaphore(value: 0)

    func append(_ job: HashJob) {
        jobs.withLock { $0.append(job) }
        isWanted.signal()
    }

    func next() -> HashJob? { jobs.withLock { $0.popFirst() } }

    /// - Returns: false if nothing came in time.
    func wait(until end: DispatchTime) -> Bool { isWanted.wait(timeout: end) == .success }

    /// Ends a wait although nothing came.
    func wake() { isWanted.signal() }
}

/// Waits for one sync.
private final class SyncWaiter: Sendable {
    private let ended = DispatchSemaphore(value: 0)
    private let error = Locked<StoreError?>(nil)

    func end(_ error: StoreError?) {
        self.error.withLock { $0 = error }
        ended.signal()
    }

    /// - Returns: why it failed; nil if it did not.
    func wait(seconds: Double) -> StoreError? {
        if ended.wait(timeout: .now() + seconds) == .timedOut {
            return StoreError(
                .timeout,
                "not everything was durable after \(seconds) s; the disk may be slow or suspended, see the log"
            )
        }
        return error.withLock { $0 }
    }
}
