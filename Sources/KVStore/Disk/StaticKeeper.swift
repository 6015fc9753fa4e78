internal import Dispatch
internal import KVDisk
internal import KVThreads
internal import KVTier
internal import Logging

/// Keeps the list of static chunks in every directory, on a thread of its own: within a second of a
/// change, and again and again where that fails.
final class StaticKeeper: Sendable {
    private struct State {
        /// Of the list that is newest on any disk.
        var generation: UInt64 = 0
        /// The files that may be written.
        var files: [(path: String, file: StaticListFile)] = []
        /// Counts the changes of the list, and those that all files have.
        var changes: UInt64 = 0
        var kept: UInt64 = 0
        /// There is something that not all files have.
        var hasChanged: Bool { changes != kept }
        /// The operator knows of the trouble.
        var isTold = false
        var isStopping = false
    }

    private let state = Locked(State())
    private let isWanted = DispatchSemaphore(value: 0)
    private let thread = Locked<NamedThread?>(nil)
    private let logger: Logger

    /// How long changes gather, and how long a failure is let rest.
    private static let patienceMs = 200
    private static let shortestRetryMs = 1_000
    private static let longestRetryMs = 30_000

    init(logger: Logger) {
        self.logger = logger
    }

    /// Finds the newest list of the directories. Where they differ all get it.
    func load(_ volumes: [DiskVolume]) -> [TierMark] {
        var newest: (generation: UInt64, marks: [TierMark])?
        var generations: Set<UInt64?> = []
        for volume in volumes {
            let file = StaticListFile(directory: volume.path, disk: volume.directory.disk)
            var mayBeWritten = true
            switch file.read() {
            case .none: generations.insert(nil)
            case .list(let generation, let marks):
                generations.insert(generation)
                if generation >= newest?.generation ?? 0 { newest = (generation, marks) }
            case .unusable(let problem, let mayBeReplaced):
                logger.warning("\(volume.path): \(problem)")
                generations.insert(nil)
                mayBeWritten = mayBeReplaced
            }
            if mayBeWritten { state.withLock { $0.files.append((volume.path, file)) } }
        }
        guard let newest else { return [] }
        state.withLock { state in
            state.generation = newest.generation
            if generations.count > 1 { state.changes += 1 }
        }
        return newest.marks
    }

    /// Starts the thread. - Parameter list: gives the list as it is now, or nil at the end.
    func start(list: @escaping @Sendable () -> [TierMark]?) {
        let started = NamedThread("kv-static") { [self] in
            var pauseMs = Self.patienceMs
            while true {
                let (hasChanged, isStopping) = state.withLock { ($0.hasChanged, $0.isStopping) }
                if isStopping { return }
                if !hasChanged {
                    isWanted.wait()
                    continue
                }
                rest(pauseMs)
                if state.withLock({ $0.isStopping }) { return }
                // What changes from here on is written the next time.
                let changes = state.withLock { $0.changes }
                guard let marks = list() else { return }
                if state.withLock({ $0.isStopping }) { return }
                pauseMs =
                    write(marks, upTo: changes)
                    ? Self.patienceMs
                    : min(max(2 * pauseMs, Self.shortestRetryMs), Self.longestRetryMs)
            }
        }
        thread.withLock { $0 = started }
    }

    /// The list is another one now.
    func listHasChanged() {
        state.withLock { $0.changes += 1 }
        isWanted.signal()
    }

    /// Ends the thread, and writes what it has not. - Parameter list: gives the list.
    func stop(list: () -> [TierMark]) {
        state.withLock { $0.isStopping = true }
        isWanted.signal()
        let started = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        guard let started else { return }
        started.join()
        let (hasChanged, changes) = state.withLock { ($0.hasChanged, $0.changes) }
        if hasChanged { _ = write(list(), upTo: changes) }
    }

    /// Waits, but not when it is to end.
    private func rest(_ ms: Int) {
        let end = DispatchTime.now() + .milliseconds(ms)
        while isWanted.wait(timeout: end) == .success {
            if state.withLock({ $0.isStopping }) { return }
        }
    }

    /// - Parameter changes: so many are in it.
    /// - Returns: whether all files have it.
    private func write(_ marks: [TierMark], upTo changes: UInt64) -> Bool {
        let (generation, files) = state.withLock { state in
            if state.generation < .max { state.generation += 1 }
            return (state.generation, state.files)
        }
        var trouble: String?
        for (path, file) in files {
            do throws(DiskFault) {
                try file.write(generation: generation, marks, nowMs: Store.wallMs())
            } catch {
                trouble = "\(path): \(error.message)"
            }
        }
        let isNews = state.withLock { state in
            if trouble == nil { state.kept = changes }
            defer { state.isTold = trouble != nil }
            return state.isTold != (trouble != nil)
        }
        if let trouble, isNews {
            logger.warning(
                "which chunks are static can't be kept, so a restart may not know: \(trouble); it is tried again"
            )
        } else if isNews {
            logger.info("which chunks are static is kept on all disks again")
        }
        return trouble == nil
    }
}
