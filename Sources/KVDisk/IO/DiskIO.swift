/// A directory of files of fixed length on one device.
///
/// Reads go before writes inside a back end, and what is under way in the kernel is bounded. A
/// request is never abandoned: its buffers belong to it until the completion.
package protocol DiskIO: AnyObject, Sendable {
    /// Queues a request; `completion` is called exactly once, on any thread, never inside submit.
    ///
    /// The memory of the request's buffers must live, and nobody else touch it, until then. The
    /// completion must be quick and must not block: the thread that runs it carries out others. It
    /// may submit, but not stop. A request that no correct program would make (unaligned, empty,
    /// after ``stop()``) traps.
    func submit(_ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void)

    /// Names and lengths of all plain files in the directory, in the order of their names. It
    /// blocks: for the start.
    func list() throws(DiskFault) -> [(name: String, byteCount: Int)]

    /// Carries out what was submitted, waits for it, and lets go of the directory. It blocks.
    func stop()

    /// Whether files are read and written past the page cache (O_DIRECT).
    var isDirect: Bool { get }
}

/// A way to reach a disk.
package enum DiskIOKind: String, Sendable, CaseIterable, CustomStringConvertible {
    /// One thread with an io_uring.
    case ring = "io_uring"
    /// A pool of threads with blocking calls.
    case threads = "threads"

    package var description: String { rawValue }

    /// Opens a directory, which must exist, this way.
    package func open(directory: String) throws(DiskFault) -> any DiskIO {
        switch self {
        case .ring: try RingIO(directory: directory)
        case .threads: try ThreadIO(directory: directory)
        }
    }

    /// Opens a directory, which must exist, the best way that this system allows.
    package static func best(directory: String) throws(DiskFault) -> DiskIOChoice {
        try best(directory: directory) { (directory) throws(DiskFault) in
            try RingIO(directory: directory)
        }
    }

    static func best(
        directory: String, openRing: (String) throws(DiskFault) -> any DiskIO
    ) throws(DiskFault) -> DiskIOChoice {
        do {
            let io = try openRing(directory)
            return DiskIOChoice(io: io, kind: .ring, reason: "the kernel offers io_uring")
        } catch {
            // What is wrong with the directory is as wrong for threads, which then say so.
            let io = try ThreadIO(directory: directory)
            return DiskIOChoice(io: io, kind: .threads, reason: error.message)
        }
    }
}

/// What `DiskIOKind.best(directory:)` chose.
package struct DiskIOChoice: Sendable {
    /// The disk.
    package let io: any DiskIO
    /// How it is reached.
    package let kind: DiskIOKind
    /// Why this way.
    package let reason: String
}
