import RESP
import TestRandom

func utf8(_ text: String) -> [UInt8] { [UInt8](text.utf8) }

/// A list of byte strings as one request on the wire.
func request(_ arguments: [[UInt8]]) -> [UInt8] {
    var writer = ReplyWriter()
    writer.array(arguments.count)
    for argument in arguments { writer.bulk(argument) }
    return writer.output.copyBytes()
}

/// What a parser made of a stream, flattened so that comparing is cheap.
struct Transcript: Equatable, CustomStringConvertible {
    var commands: [[[UInt8]]] = []
    var failure: ProtocolError?
    /// Bytes left that are not a whole command.
    var rest = 0
    /// What the parser promised and did not keep.
    var broken: String?

    var description: String {
        let names = commands.map { command in
            command.map { String(decoding: $0, as: UTF8.self) }
        }
        return "\(names), failure \(String(describing: failure)), rest \(rest), "
            + "broken \(broken ?? "nothing")"
    }
}

/// Shows `stream` to a request parser as an event loop would that receives up to `cuts[i]`, then
/// all.
func parseRequests(
    _ stream: [UInt8], cuts: [Int] = [], limits: ParserLimits = ParserLimits()
) -> Transcript {
    var parser = RequestParser(limits: limits)
    var transcript = Transcript()
    var copy = stream
    copy.withUnsafeMutableBytes { buffer in
        var start = 0
        var leastBytes = 0
        for cut in cuts + [stream.count] {
            while start < cut || cut == stream.count {
                let shown = UnsafeMutableRawBufferPointer(rebasing: buffer[start..<cut])
                let step = parser.next(shown)
                switch step {
                case .needMore(let atLeast):
                    if atLeast <= shown.count { transcript.broken = "needMore(\(atLeast))" }
                    leastBytes = max(leastBytes, atLeast)
                case .ignored(let consumed), .command(let consumed):
                    if consumed < max(1, leastBytes) || consumed > shown.count {
                        transcript.broken = "consumed \(consumed), needed \(leastBytes)"
                        return
                    }
                    if case .command = step {
                        let shown = UnsafeRawBufferPointer(shown)
                        let arguments = parser.arguments.indices.map {
                            [UInt8](parser.argument($0, in: shown))
                        }
                        if arguments.isEmpty { transcript.broken = "a command without words" }
                        transcript.commands.append(arguments)
                    }
                    start += consumed
                    leastBytes = 0
                    continue
                case .failure(let error):
                    transcript.failure = error
                    if parser.next(shown) != .failure(error) {
                        transcript.broken = "another error the second time"
                    }
                    return
                }
                break
            }
        }
        transcript.rest = stream.count - start
    }
    return transcript
}

/// The replies of a stream and why it ended.
struct ReplyTranscript: Equatable {
    var values: [RESPValue] = []
    var failure: ProtocolError?
    var rest = 0
    var broken: String?
}

/// Shows `stream` to a reply parser in pieces that end at `cuts`, then all.
func parseReplies(
    _ stream: [UInt8], cuts: [Int] = [], limits: ReplyLimits = ReplyLimits()
) -> ReplyTranscript {
    var parser = ReplyParser(limits: limits)
    var transcript = ReplyTranscript()
    let span = stream.span
    var start = 0
    var leastBytes = 0
    for cut in cuts + [stream.count] {
        scan: while start < cut || cut == stream.count {
            switch parser.next(span.extracting(start..<cut)) {
            case .needMore(let atLeast):
                if atLeast <= cut - start { transcript.broken = "needMore(\(atLeast))" }
                leastBytes = max(leastBytes, atLeast)
                break scan
            case .value(let value, let consumed):
                if consumed < max(1, leastBytes) || consumed > cut - start {
                    transcript.broken = "consumed \(consumed), needed \(leastBytes)"
                    return transcript
                }
                transcript.values.append(value)
                start += consumed
                leastBytes = 0
            case .failure(let error):
                transcript.failure = error
                if parser.next(span.extracting(start..<cut)) != .failure(error) {
                    transcript.broken = "another error the second time"
                }
                return transcript
            }
        }
    }
    transcript.rest = stream.count - start
    return transcript
}

/// Up to `count` sorted places inside a stream.
func randomCuts(_ count: Int, in length: Int, _ random: inout SeededGenerator) -> [Int] {
    guard length > 0 else { return [] }
    return (0..<count).map { _ in random.below(length + 1) }.sorted()
}
