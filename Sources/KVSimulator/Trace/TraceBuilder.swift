/// Makes a ``Trace`` of requests whose blocks have names, and checks that they form a tree.
struct TraceBuilder {
    /// Tokens of a prompt, at most.
    static let tokensMaximum = Int(Int32.max)

    /// Tokens of a block as the log names them.
    let blockTokens: Int
    /// Blocks that make a chunk.
    let blocksPerChunk: Int

    private var table = NameTable()
    private var parents: [UInt32] = []
    private var references: [UInt32] = []
    private var requests: [Trace.Request] = []
    private var lastNanoseconds: UInt64 = 0
    /// By chunk, the line where it appeared first, for messages.
    private var lines: [UInt32] = []
    var warnings: [String] = []

    /// - Parameter chunkTokens: nil for chunks of one block.
    init(blockTokens: Int, chunkTokens: Int?) throws(TraceError) {
        self.blockTokens = blockTokens
        let chunk = chunkTokens ?? blockTokens
        if chunk < blockTokens || chunk % blockTokens != 0 {
            throw TraceError(
                "chunks of \(chunk) tokens can't be made of the trace's blocks of \(blockTokens): "
                    + "take a multiple of \(blockTokens)")
        }
        blocksPerChunk = chunk / blockTokens
    }

    private var chunkTokens: Int { blockTokens * blocksPerChunk }

    /// Adds a request.
    ///
    /// - Parameters:
    ///   - blocks: each names the whole prefix that it ends. Those after the last full one name the
    ///     partial last block.
    ///   - blockCount: blocks of the prompt, named or not.
    mutating func add(
        nanoseconds: UInt64, tokens: Int, blockCount: Int, blocks: some Collection<ChunkName>,
        hint: Trace.Hint = .none, line: Int
    ) throws(LineProblem) {
        if tokens > Self.tokensMaximum {
            throw LineProblem(
                "its prompt has \(tokens) tokens, more than the \(Self.tokensMaximum) that are "
                    + "possible; leave it out, or correct the size of a block if that is wrong")
        }
        if nanoseconds < lastNanoseconds {
            throw LineProblem(
                "its time is \(Double(lastNanoseconds - nanoseconds) / 1e6) ms before that of the "
                    + "request before it; requests must be in the order of time, so sort the file")
        }
        lastNanoseconds = nanoseconds
        let first = references.count
        let fullBlocks = min(blocks.count, tokens / blockTokens)
        let fullCount = fullBlocks / blocksPerChunk
        var parent = Trace.none
        var position = 0
        for name in blocks {
            position += 1
            let endsChunk = position % blocksPerChunk == 0
            // The last chunk may be partial: it has the name of its last block.
            if !endsChunk && position != blocks.count { continue }
            parent = try append(name, parent: parent, line: line)
        }
        if references.count > Int(UInt32.max) - 1 {
            throw LineProblem("more than 4 billion chunks are asked for; split the trace")
        }
        requests.append(
            Trace.Request(
                nanoseconds: nanoseconds, tokens: UInt32(tokens),
                chunkCount: UInt32((blockCount + blocksPerChunk - 1) / blocksPerChunk),
                fullCount: UInt32(fullCount), first: UInt32(first),
                namedCount: UInt32(references.count - first), hint: hint))
    }

    private mutating func append(
        _ name: ChunkName, parent: UInt32, line: Int
    ) throws(LineProblem) -> UInt32 {
        let (chunk, isNew) = table.number(of: name)
        if isNew {
            parents.append(parent)
            lines.append(UInt32(clamping: line))
        } else if parents[Int(chunk)] != parent {
            throw LineProblem(
                "a block has another block before it than in line \(lines[Int(chunk)]); equal ids "
                    + "must mean equal prompts up to and including the block (chained hashes)")
        }
        references.append(chunk)
        return chunk
    }

    func build() -> Trace {
        Trace(
            chunkTokens: chunkTokens, requests: requests, references: references,
            parents: parents, fingerprints: table.names.map(\.mixed), warnings: warnings)
    }

    var requestCount: Int { requests.count }
}

/// What is wrong with a line, to be read after its number.
struct LineProblem: Error {
    let message: String

    init(_ message: String) {
        self.message = message
    }
}
