internal import KVPolicy

/// Reads Kvasir's own log of requests: a header, then a line a request with the keys of its chunks,
/// or its token ids. docs/formats.md has the fields.
struct KvasirTraceReader {
    static let version = 1

    private(set) var builder: TraceBuilder?
    private let options: TraceReader.Options
    /// Tokens of a chunk as the file's header says; nil where the next line must be a header.
    private var chunkTokens: Int?
    /// What the headers so far say of which log they are.
    private var log: String?
    private var names: [ChunkName] = []
    private var tokenIDs: [UInt32] = []

    init(_ options: TraceReader.Options) {
        self.options = options
    }

    /// The last line of a file is cut off: its request is left out, with a warning. - Returns: false
    /// where nothing was read before it.
    mutating func leaveOutTornLine(_ file: String, _ line: Int) -> Bool {
        guard builder != nil, chunkTokens != nil else { return false }
        builder!.warnings.append("\(file), line \(line): the last line is cut off and left out")
        return true
    }

    /// The next file has a header of its own.
    mutating func fileEnded() { chunkTokens = nil }

    mutating func read(_ scanner: inout LineScanner, line: Int) throws(LineProblem) {
        if chunkTokens == nil {
            try readHeader(&scanner)
        } else {
            try readRequest(&scanner, line: line)
        }
    }

    private mutating func readHeader(_ scanner: inout LineScanner) throws(LineProblem) {
        var version: Int?
        var tokens: Int?
        var log: String?
        try scanner.object { (scanner, name) throws(LineProblem) in
            switch name {
            case "log": log = String(decoding: try scanner.string(name), as: UTF8.self)
            case "kvasir_trace": version = try scanner.count(name, maximum: 1 << 20)
            case "chunk_tokens": tokens = try scanner.count(name, maximum: 1 << 20)
            default: try scanner.skipValue()
            }
        }
        try scanner.expectEnd()
        guard let version else {
            throw LineProblem(
                "the first line must be the header {\"kvasir_trace\": 1, \"chunk_tokens\": …}")
        }
        if version != Self.version {
            throw LineProblem(
                "the trace has version \(version), this program reads version \(Self.version)")
        }
        guard let tokens, tokens > 0 else {
            throw LineProblem("the header needs 'chunk_tokens', the tokens of a chunk")
        }
        if let builder, builder.blockTokens != tokens {
            throw LineProblem(
                "its chunks have \(tokens) tokens, those of the file before it "
                    + "\(builder.blockTokens); simulate them one at a time")
        }
        if builder != nil, log != self.log {
            throw LineProblem(
                "it is the log of another start than the file before it, with other names for the "
                    + "same chunks and another clock; simulate them one at a time")
        }
        self.log = log
        chunkTokens = tokens
        if builder != nil { return }
        do {
            builder = try TraceBuilder(blockTokens: tokens, chunkTokens: options.chunkTokens)
        } catch {
            throw LineProblem(error.description)
        }
    }

    private mutating func readRequest(
        _ scanner: inout LineScanner, line: Int
    ) throws(LineProblem) {
        var time: UInt64?
        var tokens: Int?
        var hasChunks = false
        var hasTokenIDs = false
        var root = ChunkName(low: 0)
        var hint = Trace.Hint.none
        var seconds: Double?
        var names = self.names
        var tokenIDs = self.tokenIDs
        names.removeAll(keepingCapacity: true)
        tokenIDs.removeAll(keepingCapacity: true)
        try scanner.object { (scanner, name) throws(LineProblem) in
            switch name {
            case "ms":
                if time != nil { throw LineProblem("\(name) stands there twice") }
                time = try scanner.time(name, nanosecondsPerUnit: 1e6)
            case "tokens":
                if tokens != nil { throw LineProblem("\(name) stands there twice") }
                tokens = try scanner.count(name, maximum: Int(Int32.max))
            case "chunks":
                if hasChunks { throw LineProblem("\(name) stands there twice") }
                hasChunks = true
                if scanner.peek() != UInt8(ascii: "[") { throw scanner.wrongType(name, "an array") }
                try scanner.array { (scanner) throws(LineProblem) in
                    names.append(try Self.chunkKey(&scanner, name))
                }
            case "token_ids":
                if hasTokenIDs { throw LineProblem("\(name) stands there twice") }
                hasTokenIDs = true
                if scanner.peek() != UInt8(ascii: "[") { throw scanner.wrongType(name, "an array") }
                try scanner.array { (scanner) throws(LineProblem) in
                    tokenIDs.append(UInt32(try scanner.count(name, maximum: Int(UInt32.max))))
                }
            case "root": root = Self.name(of: try scanner.string(name))
            case "hint": hint = try Self.hint(&scanner, name)
            case "expected_ms":
                let ms = Double(try scanner.time(name, nanosecondsPerUnit: 1))
                if ms > ReuseHint.mostSeconds * 1e3 {
                    throw LineProblem(
                        "\(name) is more than a year (\(Int(ReuseHint.mostSeconds)) s), which is as "
                            + "far ahead as hints reach")
                }
                seconds = ms / 1e3
            default: try scanner.skipValue()
            }
        }
        try scanner.expectEnd()
        guard let time else { throw LineProblem("'ms' is missing, the time of the request") }
        if hasChunks == hasTokenIDs {
            throw LineProblem("a request has either 'chunks' or 'token_ids'")
        }
        if case .pending = hint { hint = .pending(seconds: seconds) }
        let size = chunkTokens!
        if hasTokenIDs {
            if let tokens, tokens != tokenIDs.count {
                throw LineProblem("'tokens' is \(tokens), but there are \(tokenIDs.count) ids")
            }
            tokens = tokenIDs.count
            Self.chain(tokenIDs, from: root, chunkTokens: size, into: &names)
        }
        guard let tokens else { throw LineProblem("'tokens' is missing, the prompt's length") }
        let chunkCount = (tokens + size - 1) / size
        if names.count != chunkCount && names.count != tokens / size {
            throw LineProblem(
                "\(tokens) tokens are \(chunkCount) chunks of \(size) (\(tokens / size) full ones), "
                    + "but 'chunks' has \(names.count)")
        }
        self.names = names
        self.tokenIDs = tokenIDs
        try builder!.add(
            nanoseconds: time, tokens: tokens, blockCount: chunkCount, blocks: names, hint: hint,
            line: line)
    }

    /// The names of the chunks of token ids, a partial last one included.
    private static func chain(
        _ tokens: [UInt32], from root: ChunkName, chunkTokens: Int, into names: inout [ChunkName]
    ) {
        var name = root
        for (position, token) in tokens.enumerated() {
            name = ChunkName.chained(name, UInt64(token))
            let isLast = position == tokens.count - 1
            if (position + 1) % chunkTokens == 0 || isLast { names.append(name) }
        }
    }

    /// A key: up to 64 hexadecimal digits, or a whole number.
    private static func chunkKey(
        _ scanner: inout LineScanner, _ field: FieldName
    ) throws(LineProblem) -> ChunkName {
        if scanner.peek() != UInt8(ascii: "\"") {
            return ChunkName(low: try scanner.unsigned(field))
        }
        let digits = try scanner.string(field)
        if digits.isEmpty || digits.count > 64 {
            throw LineProblem("\(field) has a key of \(digits.count) characters; 1 to 64 are read")
        }
        var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        for (place, digit) in digits.enumerated() {
            let value: UInt64
            switch digit {
            case 0x30...0x39: value = UInt64(digit - 0x30)
            case 0x41...0x46: value = UInt64(digit - 0x41 + 10)
            case 0x61...0x66: value = UInt64(digit - 0x61 + 10)
            default: throw LineProblem("\(field) has a key that is not hexadecimal")
            }
            switch place / 16 {
            case 0: words.0 = words.0 << 4 | value
            case 1: words.1 = words.1 << 4 | value
            case 2: words.2 = words.2 << 4 | value
            default: words.3 = words.3 << 4 | value
            }
        }
        if digits.count <= 32 {
            return ChunkName(low: words.0, high: words.1 ^ UInt64(digits.count) << 58)
        }
        return ChunkName(
            low: words.0 ^ ChunkName.mix(words.2 &+ 1), high: words.1 ^ ChunkName.mix(words.3 &+ 2))
    }

    private static func name(of text: UnsafeBufferPointer<UInt8>) -> ChunkName {
        var name = ChunkName(low: UInt64(text.count) + 1)
        for byte in text { name = ChunkName.chained(name, UInt64(byte)) }
        return name
    }

    private static func hint(
        _ scanner: inout LineScanner, _ name: FieldName
    ) throws(LineProblem) -> Trace.Hint {
        let text = String(decoding: try scanner.string(name), as: UTF8.self)
        switch text {
        case "none": return .none
        case "closed": return .closed
        case "pending": return .pending(seconds: nil)
        default: throw LineProblem("\(name) is '\(text)', but must be none, closed or pending")
        }
    }
}
