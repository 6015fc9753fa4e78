internal import Glibc
internal import KVArena
internal import KVDisk
internal import KVThreads
internal import KVTier
internal import Logging

/// One directory of the disk tier: its files, and the threads that reach them.
final class DiskVolume: Sendable {
    private let configuration: DiskConfiguration
    private let io: any DiskIO
    /// What was there at the start.
    let directory: DiskDirectory
    private let driver: LogDriver
    private let arena: SharedArena
    private let budgetBytes: Int
    private let segmentBytes: Int
    /// Whether nothing may be submitted any more.
    private let isStopping = Locked(false)

    var path: String { configuration.directory }

    /// Opens all directories, or none.
    static func open(
        _ configurations: [DiskConfiguration], arena: SharedArena, logger: Logger
    ) throws(StoreError) -> [DiskVolume] {
        if configurations.count > StoreLimits.disks {
            throw StoreError(
                .argument,
                "\(configurations.count) disk directories; give at most \(StoreLimits.disks)")
        }
        var opened: [DiskVolume] = []
        for configuration in configurations {
            do throws(StoreError) {
                opened.append(
                    try DiskVolume(configuration, arena: arena, logger: logger))
            } catch {
                for volume in opened { volume.stop() }
                throw error
            }
        }
        return opened
    }

    private init(
        _ configuration: DiskConfiguration, arena: SharedArena, logger: Logger
    ) throws(StoreError) {
        self.configuration = configuration
        self.arena = arena
        let path = configuration.directory
        try Self.makeDirectory(path)
        let choice = try Self.open(path)
        io = choice.io
        do throws(TierFault) {
            var random = SystemRandomNumberGenerator()
            directory = try DiskDirectory.open(
                choice.io, nowMs: Store.wallMs(), random: &random)
        } catch {
            choice.io.stop()
            throw StoreError(.disk, "can't use the disk directory \(path): \(error.message)")
        }
        let taken = directory.segments.reduce(0) { $0 + $1.byteCount }
        do throws(StoreError) {
            budgetBytes = try Self.budget(configuration, takenBytes: taken)
            segmentBytes = try Self.segment(configuration, budgetBytes: budgetBytes)
        } catch {
            choice.io.stop()
            throw error
        }
        driver = LogDriver(
            choice.io, arena: arena.all.baseAddress!, byteCount: arena.byteCount)
        logger.info(
            "disk tier: \(path), at most \(budgetBytes >> 20) MiB, by \(choice.kind)\(choice.io.isDirect ? " with O_DIRECT" : " through the page cache") (\(choice.reason))"
        )
    }

    /// How the log of the directory begins.
    func makeLog() -> LogConfiguration {
        LogConfiguration(
            disk: directory.disk, segmentBytes: segmentBytes, budgetBytes: budgetBytes,
            seed: UInt64.random(in: .min ... .max),
            wallOffsetMs: Store.wallOffsetMs())
    }

    /// Has the files do something; after ``stop()`` nothing, and nobody is told.
    func carryOut(
        _ request: LogRequest, completion: @escaping @Sendable (UInt64, DiskOutcome) -> Void
    ) {
        isStopping.withLock { isStopping in
            if isStopping { return }
            // The arena stays mapped as long as the disk may reach into it.
            driver.carryOut([request]) { [arena] id, outcome in
                completion(id, outcome)
                withExtendedLifetime(arena) {}
            }
        }
    }

    /// Waits for what is under way and lets go of the directory. Nobody may be reading it.
    func stop() {
        let isFirst = isStopping.withLock { isStopping in
            defer { isStopping = true }
            return !isStopping
        }
        if isFirst { io.stop() }
    }

    // MARK: Directory and size

    /// Opens a directory. A process that was just killed holds its lock until all its memory is
    /// given back, so a lock is waited for.
    private static func open(_ path: String) throws(StoreError) -> DiskIOChoice {
        let end = Store.now() + lockPatienceNs
        while true {
            do throws(DiskFault) {
                return try DiskIOKind.best(directory: path)
            } catch {
                let code = error.code == .busy ? StoreError.Code.diskInUse : .disk
                if error.code != .busy || Store.now() > end {
                    throw StoreError(
                        code, "can't use the disk directory \(path): \(error.message)")
                }
                usleep(50_000)
            }
        }
    }

    /// How long the lock of a directory is waited for.
    private static let lockPatienceNs: UInt64 = 3_000_000_000

    private static func makeDirectory(_ path: String) throws(StoreError) {
        var made = path.hasPrefix("/") ? "/" : ""
        for part in path.split(separator: "/") {
            made += made.isEmpty || made.hasSuffix("/") ? String(part) : "/" + part
            // For the owner only: chunks are what prompts said.
            if mkdir(made, 0o700) != 0, errno != EEXIST {
                throw StoreError(
                    .disk,
                    "can't make the disk directory \(path): \(String(cString: strerror(errno))) at \(made); "
                        + "choose another one with --disk, or do without with --memory-only")
            }
        }
    }

    private static func budget(
        _ configuration: DiskConfiguration, takenBytes: Int
    ) throws(StoreError) -> Int {
        if let bytes = configuration.byteCount {
            if bytes < DiskConfiguration.smallestBytes {
                throw StoreError(
                    .argument,
                    "a disk of \(bytes) bytes is too small; give at least \(DiskConfiguration.smallestBytes)"
                )
            }
            return bytes
        }
        guard let free = DiskConfiguration.freeBytes(at: configuration.directory) else {
            throw StoreError(
                .disk,
                "can't see how much is free in \(configuration.directory): \(String(cString: strerror(errno)))"
            )
        }
        let bytes = DiskConfiguration.usualByteCount(freeBytes: free, takenBytes: takenBytes)
        if bytes < DiskConfiguration.smallestBytes {
            throw StoreError(
                .disk,
                "only \(free >> 20) MiB are free in \(configuration.directory); free some, choose another "
                    + "directory with --disk, or do without with --memory-only")
        }
        return bytes
    }

    private static func segment(
        _ configuration: DiskConfiguration, budgetBytes: Int
    ) throws(StoreError) -> Int {
        let most = budgetBytes / DiskConfiguration.fewestSegments / 4096 * 4096
        if let bytes = configuration.segmentBytes {
            if bytes % 4096 != 0 || bytes < 64 << 10 || bytes > most {
                throw StoreError(
                    .argument,
                    "a segment of \(bytes) bytes; give a multiple of 4096 from \(64 << 10) to \(most), "
                        + "so that \(DiskConfiguration.fewestSegments) fit")
            }
            return bytes
        }
        var bytes = DiskConfiguration.usualSegmentBytes
        while bytes > 1 << 20, bytes > budgetBytes / DiskConfiguration.fewestSegments { bytes /= 2 }
        return bytes
    }
}
