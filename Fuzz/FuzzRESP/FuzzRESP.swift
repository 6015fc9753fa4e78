import CFuzz
import RESP

/// Feeds whatever libFuzzer thinks of to both parsers, whole and split. Run by `make fuzz`.
///
/// The first bytes of an input choose the parser and how the rest is split; a promise that is broken
/// ends the program, and libFuzzer keeps the input.
@main
struct FuzzRESP {
    static func main() {
        var argc = CommandLine.argc
        var argv: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = CommandLine.unsafeArgv
        _ = withUnsafeMutablePointer(to: &argv) { argv in
            argv.withMemoryRebound(
                to: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?.self, capacity: 1
            ) { argv in
                LLVMFuzzerRunDriver(&argc, argv) { data, count in
                    FuzzRESP.run(UnsafeRawBufferPointer(start: data, count: count))
                    return 0
                }
            }
        }
    }

    private static func run(_ input: UnsafeRawBufferPointer) {
        guard input.count > 4 else { return }
        let stream = [UInt8](input[4...])
        let step = 1 + Int(input[1])
        let first = min(stream.count, Int(input[2]) << 4 | Int(input[3]) >> 4)
        if input[0].isMultiple(of: 2) {
            let whole = requests(stream, first: stream.count, step: stream.count)
            precondition(requests(stream, first: first, step: step) == whole, "split alike")
        } else {
            let whole = replies(stream, first: stream.count, step: stream.count)
            precondition(replies(stream, first: first, step: step) == whole, "split alike")
        }
    }

    /// What the request parser makes of `stream`, shown up to `first` and then `step` bytes more a time.
    private static func requests(_ stream: [UInt8], first: Int, step: Int) -> [UInt8] {
        let limits = ParserLimits(
            arguments: 16, argumentBytes: 256, commandBytes: 1024, inlineBytes: 128)
        var parser = RequestParser(limits: limits)
        var transcript: [UInt8] = []
        var received: [UInt8] = []
        var taken = 0
        var end = first
        while true {
            // A buffer of its own size each time: reading beyond it is seen by the address sanitizer.
            received = [UInt8](received + stream[taken..<end])
            taken = end
            while !received.isEmpty {
                let step = received.withUnsafeMutableBytes { parser.next($0) }
                switch step {
                case .needMore(let atLeast):
                    precondition(atLeast > received.count, "a need that is met")
                case .ignored(let consumed):
                    precondition(consumed > 0 && consumed <= received.count, "progress")
                    received.removeFirst(consumed)
                    continue
                case .command(let consumed):
                    precondition(consumed > 0 && consumed <= received.count, "progress")
                    precondition(!parser.arguments.isEmpty, "a command has a name")
                    for range in parser.arguments {
                        transcript.append(UInt8(truncatingIfNeeded: range.count))
                        transcript += received[range]
                    }
                    transcript.append(0xFE)
                    received.removeFirst(consumed)
                    continue
                case .failure(let error):
                    return transcript + Array(error.description.utf8)
                }
                break
            }
            guard end < stream.count else { return transcript }
            end = min(stream.count, end + step)
        }
    }

    /// What the reply parser makes of `stream`.
    private static func replies(_ stream: [UInt8], first: Int, step: Int) -> [UInt8] {
        let limits = ReplyLimits(
            depth: 8, elements: 100, bulkBytes: 256, lineBytes: 128, replyBytes: 1024)
        var parser = ReplyParser(limits: limits)
        var transcript: [UInt8] = []
        var received: [UInt8] = []
        var taken = 0
        var end = first
        while true {
            received = [UInt8](received + stream[taken..<end])
            taken = end
            while !received.isEmpty {
                switch parser.next(received.span) {
                case .needMore(let atLeast):
                    precondition(atLeast > received.count, "a need that is met")
                case .value(let value, let consumed):
                    precondition(consumed > 0 && consumed <= received.count, "progress")
                    transcript += Array(String(describing: value).utf8)
                    received.removeFirst(consumed)
                    continue
                case .failure(let error):
                    return transcript + Array(error.description.utf8)
                }
                break
            }
            guard end < stream.count else { return transcript }
            end = min(stream.count, end + step)
        }
    }
}
