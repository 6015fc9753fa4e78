/// Makes lines of requests and writes them, a file for each chunk size. One thread at a time.
struct LogWriter {
    /// What became of some requests.
    struct Outcome: Equatable {
        var written = 0
        var dropped = 0
        /// Bytes that all files have.
        var bytes = 0
        /// What went wrong last.
        var problem: String?
        /// Nothing more is written.
        var hasReachedLimit = false
    }

    private let directory: LogDirectory
    private let byteLimit: Int
    private let name: String
    private let startedAt: UInt64
    private let names: KeyedNames
    /// Tells the logs of two starts apart.
    private let id: UInt64
    private var files: [Int: LogFile] = [:]
    private var outcome = Outcome()
    private var line: [UInt8] = []

    /// - Parameters:
    ///   - name: what the names of its files start with.
    ///   - startedAt: nanoseconds at which the log's time is 0.
    init(
        _ directory: LogDirectory, byteLimit: Int, name: String, startedAt: UInt64,
        names: KeyedNames = KeyedNames()
    ) {
        self.directory = directory
        self.byteLimit = byteLimit
        self.name = name
        self.startedAt = startedAt
        self.names = names
        id = names.id
    }

    /// Writes requests, in the order of time.
    mutating func write(_ requests: ArraySlice<LoggedRequest>) -> Outcome {
        outcome.written = 0
        outcome.dropped = 0
        outcome.problem = nil
        // The next one begins a file of its own.
        files = files.filter { !$0.value.isGone }
        for request in requests { add(request) }
        for (chunkTokens, file) in files { write(file, chunkTokens) }
        return outcome
    }

    private mutating func add(_ request: LoggedRequest) {
        if outcome.hasReachedLimit {
            outcome.dropped += 1
            return
        }
        line.removeAll(keepingCapacity: true)
        let chunks = names.names(space: request.space, root: request.root, keys: request.keys)
        TraceLine.append(request, names: chunks, since: startedAt, to: &line)
        guard let file = file(request.chunkTokens, room: line.count) else {
            outcome.dropped += 1
            return
        }
        file.append(line)
        outcome.bytes += line.count
        if file.waitingBytes >= RequestLogLimits.pieceBytes { write(file, request.chunkTokens) }
    }

    /// The file of a chunk size, if one more line fits into the limit.
    private mutating func file(_ chunkTokens: Int, room: Int) -> LogFile? {
        let known = files[chunkTokens]
        let header = known == nil ? TraceLine.header(chunkTokens: chunkTokens, id: id) : []
        if outcome.bytes + header.count + room > byteLimit {
            outcome.hasReachedLimit = true
            return nil
        }
        if let known { return known }
        if files.count >= RequestLogLimits.files {
            outcome.problem = "more than \(RequestLogLimits.files) chunk sizes"
            return nil
        }
        do throws(RequestLogError) {
            let file = try LogFile(directory, name: "\(name)-\(chunkTokens)", header: header)
            files[chunkTokens] = file
            outcome.bytes += header.count
            return file
        } catch {
            outcome.problem = error.message
            return nil
        }
    }

    private mutating func write(_ file: LogFile, _ chunkTokens: Int) {
        let (count, bytes) = (file.waitingCount, file.waitingBytes)
        if count == 0 { return }
        guard let reason = file.write() else {
            outcome.written += count
            return
        }
        outcome.dropped += count
        outcome.bytes -= bytes
        outcome.problem =
            "can't write \(directory.path)/\(file.name): \(LogDirectory.text(reason))"
        // The next one begins a file of its own, whose lines are whole.
        if file.isTorn { files[chunkTokens] = nil }
    }
}
