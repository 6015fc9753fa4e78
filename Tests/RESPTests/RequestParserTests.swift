import RESP
import TestRandom
import Testing

@Suite("The request parser")
struct RequestParserTests {
    @Test("reads arrays of bulk strings, pipelined, with any bytes in them")
    func arrays() {
        let binary: [UInt8] = [0, 13, 10, 255, 36, 42]
        let stream = request([utf8("KV.MATCH"), utf8("7"), binary, []]) + request([utf8("PING")])
        let transcript = parseRequests(stream)
        #expect(
            transcript.commands == [[utf8("KV.MATCH"), utf8("7"), binary, []], [utf8("PING")]])
        #expect(transcript.failure == nil)
        #expect(transcript.rest == 0)
        #expect(transcript.broken == nil)
    }

    @Test(
        "reads inline commands as Redis does",
        arguments: [
            ("PING\r\n", ["PING"]),
            ("PING\n", ["PING"]),
            ("  ECHO \t hello  \r\n", ["ECHO", "hello"]),
            ("ECHO \"hello world\"\r\n", ["ECHO", "hello world"]),
            (
                "ECHO \"\\x41\\x7a\\n\\r\\t\\b\\a\\\\\\\"\\q\"\r\n",
                ["ECHO", "Az\n\r\t\u{8}\u{7}\\\"q"]
            ),
            ("ECHO \"\\x4\"\r\n", ["ECHO", "x4"]),
            ("ECHO \"\\xZZ\"\r\n", ["ECHO", "xZZ"]),
            ("ECHO 'it\\'s \\n \"x\"'\r\n", ["ECHO", "it's \\n \"x\""]),
            ("ECHO \"\" ''\r\n", ["ECHO", "", ""]),
            ("ECHO a\"b c\"\r\n", ["ECHO", "ab c"]),
            ("ECHO back\\slash\r\n", ["ECHO", "back\\slash"]),
            ("$4\r\n", ["$4"]),
        ])
    func inline(line: String, words: [String]) {
        let transcript = parseRequests(utf8(line))
        #expect(transcript.commands == [words.map(utf8)])
        #expect(transcript.failure == nil)
        #expect(transcript.rest == 0)
    }

    @Test("ignores empty lines and empty arrays, and consumes them")
    func empties() {
        var parser = RequestParser()
        for (empty, consumed) in [("\r\n", 2), ("\n", 1), ("   \r\n", 5), ("*0\r\n", 4)] {
            var bytes = utf8(empty + "PING\r\n")
            let step = bytes.withUnsafeMutableBytes { parser.next($0) }
            #expect(step == .ignored(consumed: consumed))
        }
        #expect(parseRequests(utf8("\r\n*0\r\n\nPING\r\n\r\n")).commands == [[utf8("PING")]])
    }

    @Test(
        "refuses what is malformed, at its first wrong byte",
        arguments: [
            ("*1\r\n+", ProtocolError.Code.unexpectedByte),
            ("*1\r\nP", .unexpectedByte),
            ("*2\r\n$1\r\na\r\n*", .unexpectedByte),
            ("*+", .invalidLength),
            ("*-", .invalidLength),
            ("*\r", .invalidLength),
            ("* ", .invalidLength),
            ("*01", .invalidLength),
            ("*00", .invalidLength),
            ("*1 ", .invalidLength),
            ("*1\n", .invalidLength),
            ("*1\rx", .missingTerminator),
            ("*1\r\n$-", .invalidLength),
            ("*1\r\n$+", .invalidLength),
            ("*1\r\n$\r", .invalidLength),
            ("*1\r\n$01", .invalidLength),
            ("*1\r\n$1a", .invalidLength),
            ("*1\r\n$1\rx", .missingTerminator),
            ("*1\r\n$1\r\nab", .missingTerminator),
            ("*1\r\n$1\r\na\rb", .missingTerminator),
            ("*1\r\n$0\r\n\n", .missingTerminator),
            ("*65", .limitExceeded),
            ("*1\r\n$4194305", .limitExceeded),
            ("a \"b\n", .unbalancedQuotes),
            ("a 'b\n", .unbalancedQuotes),
            ("a \"b\"c\n", .unbalancedQuotes),
            ("a 'b'c\n", .unbalancedQuotes),
            ("a \"b\\\n", .unbalancedQuotes),
        ])
    func malformed(stream: String, code: ProtocolError.Code) {
        let transcript = parseRequests(utf8(stream))
        #expect(transcript.failure?.code == code, "\(transcript)")
        #expect(transcript.failure?.closesConnection == true)
        #expect(transcript.failure?.message.hasPrefix("Protocol error: ") == true)
        let before = parseRequests(utf8(String(stream.unicodeScalars.dropLast())))
        #expect(before.failure == nil, "the error must come with its byte, not before")
    }

    @Test("accepts each limit and refuses one more, naming the limit")
    func limits() {
        let limits = ParserLimits(
            arguments: 3, argumentBytes: 10, commandBytes: 40, inlineBytes: 20)
        func failure(_ text: String) -> String? {
            parseRequests(utf8(text), limits: limits).failure?.limit
        }
        func commands(_ text: String) -> Int {
            parseRequests(utf8(text), limits: limits).commands.count
        }
        #expect(commands("*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n") == 1)
        #expect(failure("*4") == "arguments")
        #expect(commands("a b c\r\n") == 1)
        #expect(failure("a b c d\r\n") == "arguments")
        #expect(commands("*1\r\n$10\r\n0123456789\r\n") == 1)
        #expect(failure("*1\r\n$11") == "argument-bytes")
        #expect(commands("0123456789\n") == 1)
        #expect(failure("0123456789a\n") == "argument-bytes")
        // 4 bytes of header, then twice 5 + 10 + 2: 38 bytes.
        #expect(commands("*2\r\n$10\r\n0123456789\r\n$10\r\n0123456789\r\n") == 1)
        let tight = ParserLimits(arguments: 3, argumentBytes: 10, commandBytes: 38)
        let whole = "*2\r\n$10\r\n0123456789\r\n$10\r\n0123456789\r\n"
        #expect(parseRequests(utf8(whole), limits: tight).commands.count == 1)
        let tighter = ParserLimits(arguments: 3, argumentBytes: 10, commandBytes: 37)
        #expect(parseRequests(utf8(whole), limits: tighter).failure?.limit == "command-bytes")
        #expect(commands("a                  b\n") == 1)
        #expect(failure("a                   b\n") == "inline-bytes")
        #expect(failure("a                   b") == "inline-bytes")
        #expect(failure("a                  b") == nil)
        #expect(
            parseRequests(utf8("*4"), limits: limits).failure?.replyCode == "KVLIMIT")
    }

    @Test("the default limits are those of docs/protocol.md")
    func defaultLimits() {
        let limits = ParserLimits()
        #expect(limits.arguments == 64)
        #expect(limits.argumentBytes == 4 << 20)
        #expect(limits.commandBytes == 8 << 20)
        #expect(limits.inlineBytes == 64 << 10)
    }

    @Test("says how many bytes a command needs, as soon as they are announced")
    func hint() {
        var parser = RequestParser()
        var bytes = utf8("*2\r\n$1000\r\n")
        let step = bytes.withUnsafeMutableBytes { parser.next($0) }
        #expect(step == .needMore(atLeast: 11 + 1000 + 2 + 6))
    }

    @Test("looks at nothing twice: what it understood may even be overwritten")
    func doesNotRescan() {
        var parser = RequestParser()
        var stream = request([utf8("SET"), utf8("key"), [UInt8](repeating: 42, count: 1000)])
        let body = stream.count - 1002
        stream.withUnsafeMutableBytes { buffer in
            let shown = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<(body + 500)])
            #expect(parser.next(shown) == .needMore(atLeast: buffer.count))
            for index in 0..<(body + 500) { buffer[index] = UInt8(ascii: "?") }
            #expect(parser.next(buffer) == .command(consumed: buffer.count))
        }
        #expect(parser.arguments == [8..<11, 17..<20, body..<(body + 1000)])

        var line = [UInt8](repeating: UInt8(ascii: "x"), count: 1000) + [10]
        line.withUnsafeMutableBytes { buffer in
            let shown = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<500])
            #expect(parser.next(shown) == .needMore(atLeast: 501))
            buffer[100] = 10
            #expect(parser.next(buffer) == .command(consumed: 1001))
        }
    }

    @Test("keeps nothing of one command in the next")
    func independence() {
        var parser = RequestParser()
        var stream = request([utf8("A"), utf8("b")]) + request([utf8("C")])
        stream.withUnsafeMutableBytes { buffer in
            guard case .command(let consumed) = parser.next(buffer) else {
                Issue.record("no command")
                return
            }
            #expect(parser.arguments.count == 2)
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[consumed...])
            #expect(parser.next(rest) == .command(consumed: rest.count))
            #expect(parser.arguments == [8..<9])
        }
    }

    @Test("the buffer may move between calls")
    func movingBuffer() {
        let stream = request([utf8("ECHO"), utf8("some bytes")])
        var parser = RequestParser()
        for end in 1...stream.count {
            var received = [UInt8](stream[..<end])
            let step = received.withUnsafeMutableBytes { parser.next($0) }
            if end < stream.count {
                guard case .needMore = step else {
                    Issue.record("\(step) after \(end) bytes")
                    return
                }
            } else {
                #expect(step == .command(consumed: stream.count))
                #expect(received[parser.arguments[1]] == ArraySlice(utf8("some bytes")))
            }
        }
    }

    @Test("reads every split at one or two places alike", arguments: Corpus.requests)
    func everySplit(stream: [UInt8]) {
        let whole = parseRequests(stream)
        for first in 0...stream.count {
            for second in first...stream.count {
                let split = parseRequests(stream, cuts: [first, second])
                guard split == whole else {
                    Issue.record("cut at \(first) and \(second): \(split) is not \(whole)")
                    return
                }
            }
        }
        #expect(parseRequests(stream, cuts: Array(0...stream.count)) == whole)
    }

    @Test("reads back what was written, however it is split")
    func roundTrip() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        for _ in 0..<500 {
            let commands = (0..<(1 + random.below(4))).map { _ in
                (0..<(1 + random.below(8))).map { _ in
                    (0..<random.below(40)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                }
            }
            let stream = commands.flatMap(request)
            let cuts = randomCuts(random.below(6), in: stream.count, &random)
            let transcript = parseRequests(stream, cuts: cuts)
            guard transcript.commands == commands, transcript.failure == nil,
                transcript.rest == 0, transcript.broken == nil
            else {
                Issue.record("seed \(seed): \(transcript)")
                return
            }
        }
    }
}
