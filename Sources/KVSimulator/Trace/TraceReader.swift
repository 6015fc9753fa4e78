/// The formats of logs that can be replayed; docs/simulator.md describes each.
package enum TraceFormat: String, CaseIterable, Sendable {
    /// JSON Lines of Mooncake and of the traces that took its form.
    case mooncake
    /// JSON Lines of chunk keys or token ids, with a header.
    case kvasir
    /// JSON Lines of vLLM's KV events.
    case vllmEvents = "vllm-events"
}

/// Reads one or more files, in the order of time, into one trace.
package struct TraceReader {
    package struct Options: Sendable {
        /// nil: told from the first line.
        package var format: TraceFormat?
        /// Tokens of a block of a Mooncake trace.
        package var blockTokens = 512
        /// Tokens of the chunks that are simulated; nil for those of the log.
        package var chunkTokens: Int?
        /// Nanoseconds of a unit of a Mooncake trace's timestamps.
        package var timeUnitNanoseconds = 1e6
        /// Of KV events: blocks that follow the end of a prompt within so many seconds still belong
        /// to it.
        package var joinSeconds = 10.0

        package init(format: TraceFormat? = nil) {
            self.format = format
        }
    }

    private let options: Options
    private var mooncake: MooncakeReader?
    private var kvasir: KvasirTraceReader?
    private var events: KVEventReader?

    package init(_ options: Options) {
        self.options = options
    }

    /// Reads a whole file. Linear in its length.
    ///
    /// - Parameters:
    ///   - file: its name, for messages.
    ///   - progress: called now and then with the share that is read.
    package mutating func read(
        _ bytes: UnsafeBufferPointer<UInt8>, file: String, progress: (Double) -> Void = { _ in }
    ) throws(TraceError) {
        try refuseCompressed(bytes, file)
        var line = 0
        var start = 0
        while start < bytes.count {
            var end = start
            while end < bytes.count, bytes[end] != 0x0A { end += 1 }
            line += 1
            var scanner = LineScanner(UnsafeBufferPointer(rebasing: bytes[start..<end]))
            if scanner.peek() != 0 || scanner.position < end - start {
                do throws(LineProblem) {
                    try read(&scanner, line: line)
                } catch {
                    // Whoever wrote the log may have ended in the middle of its last line.
                    let isLast = end == bytes.count
                    let text = UnsafeBufferPointer(rebasing: bytes[start..<end])
                    if !isLast || !LineScanner.isCutOff(text)
                        || kvasir?.leaveOutTornLine(file, line) != true
                    {
                        throw TraceError(file: file, line: line, error.message)
                    }
                }
            }
            if line % 4096 == 0 { progress(Double(end) / Double(bytes.count)) }
            start = end + 1
        }
        kvasir?.fileEnded()
    }

    /// What was read.
    package consuming func finish() throws(TraceError) -> Trace {
        let trace: Trace
        if let events {
            trace = try events.finish()
        } else if let builder = mooncake?.finished() ?? kvasir?.builder {
            trace = builder.build()
        } else {
            throw TraceError("the trace holds no line")
        }
        if trace.requests.isEmpty { throw TraceError("the trace holds no request") }
        return trace
    }

    private mutating func read(_ scanner: inout LineScanner, line: Int) throws(LineProblem) {
        if mooncake == nil, kvasir == nil, events == nil { try begin(scanner) }
        if mooncake != nil {
            try mooncake!.read(&scanner, line: line)
        } else if kvasir != nil {
            try kvasir!.read(&scanner, line: line)
        } else {
            try events!.read(&scanner, line: line)
        }
    }

    private mutating func begin(_ scanner: LineScanner) throws(LineProblem) {
        let format: TraceFormat
        if let asked = options.format {
            format = asked
        } else {
            format = try Self.format(ofFirst: scanner)
        }
        switch format {
        case .mooncake: mooncake = try MooncakeReader(options)
        case .kvasir: kvasir = KvasirTraceReader(options)
        case .vllmEvents: events = KVEventReader(options)
        }
    }

    private static func format(ofFirst scanner: LineScanner) throws(LineProblem) -> TraceFormat {
        var scanner = scanner
        if scanner.peek() == UInt8(ascii: "[") { return .vllmEvents }
        var format: TraceFormat?
        try scanner.object { (scanner, name) throws(LineProblem) in
            switch name {
            case "kvasir_trace": format = .kvasir
            case "hash_ids": format = .mooncake
            case "events": format = .vllmEvents
            default: break
            }
            try scanner.skipValue()
        }
        guard let format else {
            throw LineProblem(
                "not a format that is known (no 'hash_ids', 'kvasir_trace' or 'events'); see "
                    + "docs/simulator.md, or say which it is with --format")
        }
        return format
    }

    private func refuseCompressed(
        _ bytes: UnsafeBufferPointer<UInt8>, _ file: String
    ) throws(TraceError) {
        let isGzip = bytes.count > 2 && bytes[0] == 0x1F && bytes[1] == 0x8B
        let isZstandard =
            bytes.count > 4 && bytes[0] == 0x28 && bytes[1] == 0xB5 && bytes[2] == 0x2F
            && bytes[3] == 0xFD
        if isGzip || isZstandard {
            let tool = isGzip ? "gzip" : "zstd"
            throw TraceError(
                "\(file) is compressed with \(tool); unpack it on the way: "
                    + "\(tool) -dc FILE | kvasir simulate - …")
        }
    }
}
