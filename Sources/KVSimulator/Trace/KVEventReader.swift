/// Reads vLLM's KV events, one batch a line, as JSON: `[ts, [event…], rank]`, which is msgspec's
/// form, or `{"ts": …, "events": [event…]}`.
///
/// Events tell which blocks were stored, not what was asked for: a block that vLLM still had leaves
/// no trace. So each stored run counts as a request for the whole prompt up to its end: the blocks
/// before it must have been found. What follows the end of a prompt within a few seconds belongs to
/// it: a prompt that was computed in pieces, and the answer.
///
/// Source: vllm/distributed/kv_events.py of vLLM 0.32.
struct KVEventReader {
    private static let mediumOfEngine = "GPU"

    /// Blocks of all prompts together, at most: each prompt is walked from its end to its beginning,
    /// so that a long chain of short runs costs the square of its length.
    static let referencesMaximum = 100_000_000

    private struct Block {
        var parent: UInt32
        var depth: UInt32
    }

    /// A prompt that may still grow.
    private struct Prompt {
        var nanoseconds: UInt64
        var last: UInt64
        var tip: UInt32
        var line: Int
    }

    private let options: TraceReader.Options
    private var table = NameTable()
    private var blocks: [Block] = []
    private var prompts: [Prompt] = []
    /// By last block: the prompt that ends there.
    private var openPrompts: [UInt32: Int] = [:]
    private var blockTokens: Int?
    /// Blocks of all prompts so far.
    private var referenceCount = 0
    private var orphanCount = 0
    private var otherGroupCount = 0

    init(_ options: TraceReader.Options) {
        self.options = options
    }

    mutating func read(_ scanner: inout LineScanner, line: Int) throws(LineProblem) {
        var time: UInt64?
        var stored: [Event] = []
        if scanner.take("[") {
            time = try scanner.time(
                FieldName("the batch's time"), nanosecondsPerUnit: 1e9)
            try scanner.expect(",")
            try Self.events(&scanner, into: &stored)
            while scanner.take(",") { try scanner.skipValue() }
            try scanner.expect("]")
        } else {
            try scanner.object { (scanner, name) throws(LineProblem) in
                switch name {
                case "ts": time = try scanner.time(name, nanosecondsPerUnit: 1e9)
                case "events": try Self.events(&scanner, into: &stored)
                default: try scanner.skipValue()
                }
            }
        }
        try scanner.expectEnd()
        guard let time else { throw LineProblem("'ts' is missing, the time of the batch") }
        for event in stored { try add(event, time: time, line: line) }
    }

    // MARK: Events

    /// A `BlockStored`.
    private struct Event {
        var hashes: [ChunkName] = []
        var parent: ChunkName?
        var blockTokens: Int?
        var medium = KVEventReader.mediumOfEngine
        var group = 0
    }

    private static func events(
        _ scanner: inout LineScanner, into stored: inout [Event]
    ) throws(LineProblem) {
        try scanner.array { (scanner) throws(LineProblem) in
            var event = Event()
            var type = ""
            var hasHashes = false
            try scanner.object { (scanner, name) throws(LineProblem) in
                switch name {
                case "type": type = String(decoding: try scanner.string(name), as: UTF8.self)
                case "block_hashes":
                    hasHashes = true
                    try scanner.array { (scanner) throws(LineProblem) in
                        event.hashes.append(try blockHash(&scanner, name))
                    }
                case "parent_block_hash":
                    event.parent = try scanner.takeNull() ? nil : try blockHash(&scanner, name)
                case "block_size":
                    event.blockTokens = try scanner.count(name, maximum: 1 << 20)
                case "medium":
                    if try scanner.takeNull() { break }
                    event.medium = String(decoding: try scanner.string(name), as: UTF8.self)
                case "group_idx":
                    event.group = try scanner.takeNull() ? 0 : scanner.count(name, maximum: 1 << 20)
                default: try scanner.skipValue()
                }
            }
            switch type {
            case "BlockStored":
                if !hasHashes { throw LineProblem("a BlockStored has no 'block_hashes'") }
                guard let size = event.blockTokens, size > 0 else {
                    throw LineProblem("a BlockStored has no 'block_size'")
                }
                if event.medium == mediumOfEngine, !event.hashes.isEmpty { stored.append(event) }
            case "BlockRemoved", "AllBlocksCleared": break
            case "": throw LineProblem("an event has no 'type'")
            default: throw LineProblem("an event of the type '\(type)' is not known")
            }
        }
    }

    /// A hash: a whole number (vLLM's default), or a string.
    private static func blockHash(
        _ scanner: inout LineScanner, _ field: FieldName
    ) throws(LineProblem) -> ChunkName {
        if scanner.peek() != UInt8(ascii: "\"") {
            return ChunkName(low: try scanner.unsigned(field))
        }
        var name = ChunkName(low: 1, high: 1)
        for byte in try scanner.string(field) { name = ChunkName.chained(name, UInt64(byte)) }
        return name
    }

    // MARK: Prompts

    private mutating func add(_ event: Event, time: UInt64, line: Int) throws(LineProblem) {
        if event.group != 0 {
            otherGroupCount += 1
            return
        }
        if let blockTokens, blockTokens != event.blockTokens {
            throw LineProblem(
                "blocks have \(event.blockTokens!) tokens, but \(blockTokens) above; a trace is of "
                    + "one model and one configuration")
        }
        blockTokens = event.blockTokens
        var parent = Trace.none
        var depth: UInt32 = 0
        if let name = event.parent {
            if let known = table.find(name) {
                parent = known
                depth = blocks[Int(known)].depth + 1
            } else {
                orphanCount += 1
                return
            }
        }
        let start = parent
        for name in event.hashes {
            let (block, isNew) = table.number(of: name)
            if isNew {
                blocks.append(Block(parent: parent, depth: depth))
            } else if blocks[Int(block)].parent != parent {
                throw LineProblem("a block has another parent than above")
            }
            parent = block
            depth += 1
        }
        let joinNanoseconds = UInt64(options.joinSeconds * 1e9)
        if start != Trace.none, let open = openPrompts[start],
            time >= prompts[open].last, time - prompts[open].last <= joinNanoseconds
        {
            try count(event.hashes.count)
            openPrompts[start] = nil
            prompts[open].tip = parent
            prompts[open].last = time
            openPrompts[parent] = open
            return
        }
        try count(Int(depth))
        prompts.append(Prompt(nanoseconds: time, last: time, tip: parent, line: line))
        openPrompts[parent] = prompts.count - 1
    }

    /// Counts blocks of prompts.
    private mutating func count(_ blocks: Int) throws(LineProblem) {
        referenceCount += blocks
        if referenceCount > Self.referencesMaximum {
            throw LineProblem(
                "up to here the prompts have more than \(Self.referencesMaximum) blocks, since each "
                    + "event that doesn't follow the one before it at once counts as a whole prompt; "
                    + "cut the log into parts and simulate them one at a time")
        }
    }

    func finish() throws(TraceError) -> Trace {
        guard let blockTokens else {
            throw TraceError("the trace holds no BlockStored event of the engine's own memory")
        }
        var builder = try TraceBuilder(
            blockTokens: blockTokens, chunkTokens: options.chunkTokens)
        let order = prompts.indices.sorted {
            (prompts[$0].nanoseconds, $0) < (prompts[$1].nanoseconds, $1)
        }
        for place in order {
            let prompt = prompts[place]
            var path: [ChunkName] = []
            var block = prompt.tip
            while block != Trace.none {
                path.append(table.names[Int(block)])
                block = blocks[Int(block)].parent
            }
            do throws(LineProblem) {
                try builder.add(
                    nanoseconds: prompt.nanoseconds, tokens: path.count * blockTokens,
                    blockCount: path.count, blocks: path.reversed(), line: prompt.line)
            } catch {
                throw TraceError("line \(prompt.line): \(error.message)")
            }
        }
        if orphanCount > 0 {
            builder.warnings.append(
                "\(orphanCount) events follow a block whose own event is not in the file; they are "
                    + "left out. Start the log before the engine.")
        }
        if otherGroupCount > 0 {
            builder.warnings.append(
                "\(otherGroupCount) events of other KV-cache groups than the first are left out")
        }
        return builder.build()
    }
}

extension FieldName {
    /// A name for messages about what has none in the file.
    fileprivate init(_ text: StaticString) {
        bytes = UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount)
    }
}
