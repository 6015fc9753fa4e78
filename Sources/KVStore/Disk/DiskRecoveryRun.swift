internal import KVDisk
internal import KVThreads
internal import Logging
internal import Synchronization

/// Reads what all disks have at the start, on a thread of its own, and tells the core.
///
/// All disks together: what follows a chunk may be on another disk than the chunk.
final class DiskRecoveryRun: Sendable {
    private let volumes: [DiskVolume]
    private let logger: Logger
    private let isStopping = Atomic<Bool>(false)
    private let thread = Locked<NamedThread?>(nil)
    private let toldSeconds = Atomic<Int>(0)

    /// Chunks that the core is told of at a time, so that nobody waits long for its lock.
    private static let batch = 512

    init(_ volumes: [DiskVolume], logger: Logger) {
        self.volumes = volumes
        self.logger = logger
    }

    /// Lets the disks be written to, and starts to read them. Call it once.
    func start(into store: Store) {
        if volumes.isEmpty { return }
        for (volume, disk) in volumes.enumerated() {
            let directory = disk.directory
            store.withCore { core, now in
                core.diskMayBegin(
                    volume: volume, epoch: directory.nextEpoch,
                    files: directory.segments.map { ($0.number, $0.byteCount) }, now: now)
            }
        }
        let started = NamedThread("kv-recover") { [weak store, self] in
            run { store }
        }
        thread.withLock { $0 = started }
    }

    /// Ends it, and waits until it doesn't use the disks any more.
    func stop() {
        isStopping.store(true, ordering: .releasing)
        let started = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        started?.join()
    }

    private var mayGoOn: Bool { !isStopping.load(ordering: .acquiring) }

    /// - Parameter store: gives the store, or nil once it is gone.
    private func run(_ store: () -> Store?) {
        let started = Store.now()
        let recovery = DiskRecovery(
            volumes.map(\.directory), wallMs: Store.wallMs()
        ) { progress in
            self.tell(progress, since: started)
            return self.mayGoOn
        }
        guard let found = recovery.run() else { return }
        for (volume, disk) in zip(found.volumes, volumes) {
            for problem in volume.problems { logger.warning("\(disk.path): \(problem)") }
        }
        if let store = store(), hand(found, to: store) { tellEnd(found, since: started) }
    }

    /// - Returns: false if it was ended.
    private func hand(_ found: RecoveredDisks, to store: Store) -> Bool {
        for (volume, content) in found.volumes.enumerated() {
            store.withCore { core, now in
                for segment in content.segments { core.found(volume: volume, segment, now: now) }
            }
        }
        found.forEachBatch(of: Self.batch) { batch in
            guard mayGoOn else { return false }
            store.withCore { core, now in core.found(batch, spaces: found.spaces, now: now) }
            return true
        }
        guard mayGoOn else { return false }
        let statics = store.withCore { core, now in
            for volume in found.volumes.indices { core.recovered(volume: volume, now: now) }
            return core.staticPlaces
        }
        if statics.all > 0 {
            let rest = statics.all - statics.pinned - statics.missing
            logger.info(
                "static chunks: \(statics.pinned) come to memory, \(rest) stay on disk because half the memory is pinned, \(statics.missing) are missing"
            )
        }
        return true
    }

    // MARK: What people are told

    private var names: String { volumes.map(\.path).joined(separator: ", ") }

    private func tell(_ progress: DiskRecoveryProgress, since started: UInt64) {
        let seconds = Int((Store.now() - started) / 1_000_000_000)
        if seconds < 2 || seconds <= toldSeconds.load(ordering: .relaxed) { return }
        toldSeconds.store(seconds, ordering: .relaxed)
        logger.info(
            "reading \(names): \(progress.segmentsDone) of \(progress.segmentCount) segments, \(progress.bytesDone >> 20) of \(progress.bytesTotal >> 20) MiB, \(seconds) s"
        )
    }

    private func tellEnd(_ found: RecoveredDisks, since started: UInt64) {
        let ms = (Store.now() - started) / 1_000_000
        let segmentCount = found.volumes.reduce(0) { $0 + $1.summaries.count }
        logger.info(
            "disk tier ready: \(found.chunkCount) chunks in \(segmentCount) segments of \(names), \(ms) ms"
        )
    }
}
