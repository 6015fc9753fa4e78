/// Reads traces in Mooncake's format: one JSON object a line with `timestamp`, `input_length` in
/// tokens, and `hash_ids`, one for each block. Equal ids mean equal prompts up to and including the
/// block; the last block may be partial.
///
/// Source: <https://github.com/kvcache-ai/Mooncake>, FAST25-release/traces.
struct MooncakeReader {
    private var builder: TraceBuilder
    private let timeUnit: Double
    private var names: [ChunkName] = []
    /// Requests that have more or fewer ids than their length says, and the line of the first.
    private var mismatches = (count: 0, line: 0)

    init(_ options: TraceReader.Options) throws(LineProblem) {
        do {
            builder = try TraceBuilder(
                blockTokens: options.blockTokens, chunkTokens: options.chunkTokens)
        } catch {
            throw LineProblem(error.description)
        }
        timeUnit = options.timeUnitNanoseconds
    }

    mutating func read(_ scanner: inout LineScanner, line: Int) throws(LineProblem) {
        var time: UInt64?
        var tokens: Int?
        var hasIDs = false
        names.removeAll(keepingCapacity: true)
        var names = self.names
        let unit = timeUnit
        self.names = []
        try scanner.object { (scanner, name) throws(LineProblem) in
            switch name {
            case "timestamp":
                if time != nil { throw LineProblem("\(name) stands there twice") }
                time = try scanner.time(name, nanosecondsPerUnit: unit)
            case "input_length":
                if tokens != nil { throw LineProblem("\(name) stands there twice") }
                tokens = try scanner.count(name, maximum: Int(Int32.max))
            case "hash_ids":
                if hasIDs { throw LineProblem("\(name) stands there twice") }
                hasIDs = true
                if scanner.peek() != UInt8(ascii: "[") { throw scanner.wrongType(name, "an array") }
                try scanner.array { (scanner) throws(LineProblem) in
                    names.append(ChunkName(low: try scanner.unsigned(name)))
                }
            default: try scanner.skipValue()
            }
        }
        try scanner.expectEnd()
        self.names = names
        guard let time else { throw LineProblem("'timestamp' is missing") }
        guard let tokens else { throw LineProblem("'input_length' is missing") }
        if !hasIDs { throw LineProblem("'hash_ids' is missing") }
        let expected = (tokens + builder.blockTokens - 1) / builder.blockTokens
        if names.count != expected {
            if mismatches.count == 0 { mismatches.line = line }
            mismatches.count += 1
        }
        try builder.add(
            nanoseconds: time, tokens: tokens, blockCount: names.count, blocks: names, line: line)
    }

    func finished() -> TraceBuilder {
        var builder = builder
        if mismatches.count > 0 {
            builder.warnings.append(
                "\(mismatches.count) of \(builder.requestCount) requests have more or fewer ids than "
                    + "blocks of \(builder.blockTokens) tokens, the first in line \(mismatches.line): "
                    + "is --block-tokens right?")
        }
        return builder
    }
}
