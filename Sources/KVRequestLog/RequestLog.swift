internal import Glibc
internal import KVThreads
public import Logging

/// A log of the requests that came, for `kvasir simulate` and `kvasir plan`.
///
/// The files tell when requests came, how long they were and which had beginnings in common; chunks
/// have keyed names (HMAC-SHA256), whose secret is made at the start and never leaves this process's
/// memory. Who records a request waits for nothing: a thread of the log's own, `kv-requests`, makes
/// the names and writes. What it can't keep up with, or can't write, is left out and counted.
public final class RequestLog: Sendable {
    /// How a log is kept.
    public struct Configuration: Sendable {
        /// Where its files are; made, with mode 0700, if it is missing.
        public var directory: String
        /// Bytes of all files together, after which it stops.
        public var byteLimit: Int
        /// Where trouble is told.
        public var logger: Logger

        /// A configuration.
        public init(
            directory: String, byteLimit: Int = RequestLogLimits.defaultBytes,
            logger: Logger = Logger(label: "kvasir")
        ) {
            self.directory = directory
            self.byteLimit = byteLimit
            self.logger = logger
        }
    }

    /// What was done so far.
    public struct Counters: Sendable, Hashable {
        /// Requests that are in the files.
        public var written = 0
        /// Requests that were left out: they came too fast, could not be written, or came after the
        /// limit was reached.
        public var dropped = 0
        /// Bytes of all files.
        public var bytes = 0

        /// Nothing so far.
        public init() {}

        init(written: Int, dropped: Int, bytes: Int) {
            self.written = written
            self.dropped = dropped
            self.bytes = bytes
        }
    }

    private let configuration: Configuration
    private let directory: LogDirectory
    private let startedAt = RequestLog.now()
    private let mailbox: Mailbox
    private let thread = Locked<NamedThread?>(nil)

    /// Opens the directory; files are made as requests come, one for each chunk size.
    ///
    /// - Throws: `RequestLogError` when the directory can't be made or written to.
    public convenience init(_ configuration: Configuration) throws(RequestLogError) {
        try self.init(configuration, queue: RequestQueue())
        start()
    }

    /// A log that writes nothing before ``start()``.
    init(_ configuration: Configuration, queue: RequestQueue) throws(RequestLogError) {
        self.configuration = configuration
        directory = try LogDirectory(configuration.directory)
        mailbox = Mailbox(queue, logger: configuration.logger)
    }

    deinit { stop() }

    func start() {
        let name = "requests-\(Self.timestamp())"
        let started = NamedThread("kv-requests") {
            [mailbox, directory, startedAt, limit = configuration.byteLimit] in
            // Nobody waits for it, so it waits for the others.
            _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, Self.niceness)
            var writer = LogWriter(
                directory, byteLimit: limit, name: name, startedAt: startedAt)
            mailbox.deliver(to: &writer, limit: limit)
        }
        thread.withLock { $0 = started }
    }

    /// Of 19.
    private static let niceness: Int32 = 10

    /// Has a request written, soon. Waits for nothing. O(1): its keys are shared, not copied.
    public func record(_ request: LoggedRequest) { mailbox.record(request) }

    /// Whether requests are still written: false once the limit was reached or it was stopped.
    public var isRecording: Bool { mailbox.isOpen }

    /// What was done so far.
    public var counters: Counters { mailbox.counters }

    /// Takes nothing more. What was recorded is written meanwhile; ``stop()`` waits for it.
    public func close() { mailbox.close() }

    /// Writes what was recorded and ends the log's thread; later requests are left out. Takes five
    /// seconds at most, after which the rest is lost.
    public func stop() {
        guard
            let thread = thread.withLock({ thread in
                defer { thread = nil }
                return thread
            })
        else { return }
        mailbox.close()
        if mailbox.waitUntilWritten(seconds: RequestLogLimits.stopSeconds) { thread.join() }
    }

    /// The time of the day in UTC, as file names have it.
    private static func timestamp() -> String {
        var seconds = time(nil)
        var date = tm()
        gmtime_r(&seconds, &date)
        func digits(_ value: Int32, _ count: Int) -> String {
            let text = String(value)
            return String(repeating: "0", count: max(0, count - text.count)) + text
        }
        let day = digits(date.tm_year + 1900, 4) + digits(date.tm_mon + 1, 2)
        let clock = digits(date.tm_hour, 2) + digits(date.tm_min, 2) + digits(date.tm_sec, 2)
        return "\(day)\(digits(date.tm_mday, 2))T\(clock)Z"
    }

    static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
