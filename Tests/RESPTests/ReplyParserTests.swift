import RESP
import TestRandom
import Testing

@Suite("The reply parser")
struct ReplyParserTests {
    @Test(
        "reads every type",
        arguments: [
            ("+OK\r\n", RESPValue.simpleString("OK")),
            ("+\r\n", .simpleString("")),
            ("-ERR no\r\n", .error("ERR no")),
            (":0\r\n", .integer(0)),
            (":+7\r\n", .integer(7)),
            (":-9223372036854775808\r\n", .integer(.min)),
            ("$3\r\n\r\n\u{0}\r\n", .bulk([13, 10, 0])),
            ("$0\r\n\r\n", .bulk([])),
            ("$-1\r\n", .null),
            ("*-1\r\n", .null),
            ("_\r\n", .null),
            ("*0\r\n", .array([])),
            ("*2\r\n:1\r\n*1\r\n_\r\n", .array([.integer(1), .array([.null])])),
            ("#t\r\n", .boolean(true)),
            ("#f\r\n", .boolean(false)),
            (",1.25\r\n", .double(1.25)),
            (",-1E-2\r\n", .double(-0.01)),
            (",10\r\n", .double(10)),
            (",inf\r\n", .double(.infinity)),
            (",-inf\r\n", .double(-.infinity)),
            ("(-123456789012345678901234567890\r\n", .bigNumber("-123456789012345678901234567890")),
            ("=8\r\nmkd:# hi\r\n", .verbatim(format: "mkd", utf8("# hi"))),
            ("=4\r\ntxt:\r\n", .verbatim(format: "txt", [])),
            ("!6\r\nERR no\r\n", .error("ERR no")),
            ("%1\r\n+a\r\n:1\r\n", .map([.init(.simpleString("a"), .integer(1))])),
            ("%0\r\n", .map([])),
            ("~1\r\n:1\r\n", .set([.integer(1)])),
            (">2\r\n+m\r\n:1\r\n", .push([.simpleString("m"), .integer(1)])),
            (
                "|1\r\n+a\r\n:1\r\n:2\r\n",
                .attributed([.init(.simpleString("a"), .integer(1))], .integer(2))
            ),
            ("*1\r\n|0\r\n:2\r\n", .array([.attributed([], .integer(2))])),
        ])
    func types(stream: String, value: RESPValue) {
        let transcript = parseReplies(utf8(stream))
        #expect(transcript.values == [value])
        #expect(transcript.failure == nil)
        #expect(transcript.rest == 0)
        #expect(transcript.broken == nil)
        #expect(parseReplies(utf8(stream), cuts: Array(0...stream.utf8.count)) == transcript)
    }

    @Test("reads not-a-number")
    func notANumber() {
        guard case .double(let value) = parseReplies(utf8(",nan\r\n")).values.first else {
            Issue.record("no double")
            return
        }
        #expect(value.isNaN)
    }

    @Test(
        "refuses what is malformed",
        arguments: [
            ("?\r\n", ProtocolError.Code.unexpectedByte),
            ("PONG\r\n", .unexpectedByte),
            (":\r\n", .invalidValue),
            (":1a\r\n", .invalidValue),
            (":01\r\n", .invalidValue),
            (":+-1\r\n", .invalidValue),
            (":9223372036854775808\r\n", .invalidValue),
            ("$+1\r\n", .invalidLength),
            ("$-2\r\n", .invalidLength),
            ("$01\r\n", .invalidLength),
            ("$\r\n", .invalidLength),
            ("$?\r\n", .unsupported),
            ("*?\r\n", .unsupported),
            ("%-1\r\n", .invalidLength),
            ("~-1\r\n", .invalidLength),
            ("=3\r\n", .invalidLength),
            ("=5\r\nabcde\r\n", .invalidValue),
            ("!-1\r\n", .invalidLength),
            ("_x\r\n", .invalidValue),
            ("#\r\n", .invalidValue),
            ("#T\r\n", .invalidValue),
            (",\r\n", .invalidValue),
            (",0x1p3\r\n", .invalidValue),
            (",1.\r\n", .invalidValue),
            (",.5\r\n", .invalidValue),
            (",1e\r\n", .invalidValue),
            (",infinity\r\n", .invalidValue),
            ("(\r\n", .invalidValue),
            ("(12x\r\n", .invalidValue),
            ("+a\n", .missingTerminator),
            ("+a\rb", .missingTerminator),
            ("$1\r\nab", .missingTerminator),
            ("$1\r\na\rb", .missingTerminator),
        ])
    func malformed(stream: String, code: ProtocolError.Code) {
        let transcript = parseReplies(utf8(stream))
        #expect(transcript.failure?.code == code)
        #expect(transcript.values.isEmpty)
    }

    @Test("accepts each limit and refuses one more, naming the limit")
    func limits() {
        let limits = ReplyLimits(
            depth: 3, elements: 6, bulkBytes: 5, lineBytes: 4, replyBytes: 30)
        func outcome(_ text: String) -> String {
            let transcript = parseReplies(utf8(text), limits: limits)
            return transcript.failure?.limit ?? "\(transcript.values.count)"
        }
        #expect(outcome("*1\r\n*1\r\n*1\r\n:1\r\n") == "1")
        #expect(outcome("*1\r\n*1\r\n*1\r\n*1\r\n") == "depth")
        #expect(outcome("*1\r\n*1\r\n*1\r\n*0\r\n") == "depth")
        #expect(outcome("*6\r\n_\r\n_\r\n_\r\n_\r\n_\r\n_\r\n") == "1")
        #expect(outcome("*7\r\n") == "elements")
        #expect(outcome("%4\r\n") == "elements")
        #expect(outcome("*3\r\n*4\r\n") == "elements")
        #expect(outcome("$5\r\n01234\r\n") == "1")
        #expect(outcome("$6\r\n") == "bulk-bytes")
        #expect(outcome("+1234\r\n") == "1")
        #expect(outcome("+12345\r\n") == "line-bytes")
        #expect(outcome("+12345") == "line-bytes")
        // 4 + 11 + 11 bytes in front of the last element.
        let long = "*3\r\n$5\r\n01234\r\n$5\r\n01234\r\n"
        #expect(outcome(long + ":1\r\n") == "1")
        #expect(outcome(long + ":12\r\n") == "reply-bytes")
        #expect(outcome("*2\r\n" + long + "$0\r\n") == "reply-bytes")
    }

    @Test("limits start anew with each reply")
    func limitsPerReply() {
        let limits = ReplyLimits(elements: 2, replyBytes: 10)
        let stream = utf8("*2\r\n_\r\n_\r\n*2\r\n_\r\n_\r\n*2\r\n_\r\n_\r\n")
        let transcript = parseReplies(stream, limits: limits)
        #expect(transcript.values.count == 3)
        #expect(transcript.failure == nil)
    }

    @Test("reads every split at one or two places alike", arguments: Corpus.replies)
    func everySplit(stream: [UInt8]) {
        let whole = parseReplies(stream)
        for first in 0...stream.count {
            for second in first...stream.count {
                let split = parseReplies(stream, cuts: [first, second])
                guard split == whole else {
                    Issue.record("cut at \(first) and \(second): \(split) is not \(whole)")
                    return
                }
            }
        }
        #expect(parseReplies(stream, cuts: Array(0...stream.count)) == whole)
    }

    @Test("looks at nothing twice: what it understood may even be overwritten")
    func doesNotRescan() {
        var stream = utf8("*3\r\n:1\r\n$1000\r\n") + [UInt8](repeating: 42, count: 1000)
        stream += utf8("\r\n+0123456789\r\n")
        var parser = ReplyParser()
        let lineStart = 15 + 1002
        for (shown, atLeast) in [(500, lineStart), (lineStart + 6, lineStart + 7)] {
            let step = parser.next(stream.span.extracting(0..<shown))
            #expect(step == .needMore(atLeast: atLeast))
            let kept = shown > lineStart ? lineStart : 15
            for index in 0..<kept { stream[index] = UInt8(ascii: "?") }
            if shown > lineStart { stream[lineStart + 3] = 10 }
        }
        guard case .value(.array(let values), stream.count) = parser.next(stream.span) else {
            Issue.record("no value")
            return
        }
        #expect(values[0] == .integer(1))
        #expect(values[1].bytes?.count == 1000)
        #expect(values[2] == .simpleString("01\n3456789"))
    }

    @Test("reads back whatever is written, in both versions")
    func roundTrip() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        for step in 0..<1000 {
            var writer = ReplyWriter(version: step.isMultiple(of: 2) ? .resp2 : .resp3)
            let expected = (0..<(1 + random.below(3))).map { _ in
                write(&writer, &random, depth: 0)
            }
            let stream = writer.output.copyBytes()
            let cuts = randomCuts(random.below(5), in: stream.count, &random)
            let transcript = parseReplies(stream, cuts: cuts)
            guard transcript.values == expected, transcript.failure == nil, transcript.rest == 0
            else {
                Issue.record("seed \(seed), step \(step): \(transcript), expected \(expected)")
                return
            }
        }
    }

    /// Writes a random value and returns what a client must read.
    private func write(
        _ writer: inout ReplyWriter, _ random: inout SeededGenerator, depth: Int
    ) -> RESPValue {
        let isNew = writer.version == .resp3
        let count = random.below(5)
        switch random.below(depth < 4 ? 12 : 8) {
        case 0:
            writer.simpleString("text \(count)")
            return .simpleString("text \(count)")
        case 1:
            writer.error("ERR", "number \(count)")
            return .error("ERR number \(count)")
        case 2:
            let value = Int(truncatingIfNeeded: random.next()) >> random.below(64)
            writer.integer(value)
            return .integer(value)
        case 3:
            let bytes = (0..<random.below(50)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            writer.bulk(bytes)
            return .bulk(bytes)
        case 4:
            writer.null()
            return .null
        case 5:
            writer.boolean(count > 2)
            return isNew ? .boolean(count > 2) : .integer(count > 2 ? 1 : 0)
        case 6:
            let bits = random.next()
            let value = Double(bitPattern: bits).isNaN ? 0.5 : Double(bitPattern: bits)
            writer.double(value)
            if isNew { return .double(value) }
            let text = value.description
            return .bulk(utf8(text.hasSuffix(".0") ? String(text.dropLast(2)) : text))
        case 7:
            writer.verbatim("text")
            return isNew ? .verbatim(format: "txt", utf8("text")) : .bulk(utf8("text"))
        case 8:
            writer.map(count)
            let values = (0..<(count * 2)).map { _ in write(&writer, &random, depth: depth + 1) }
            guard isNew else { return .array(values) }
            return .map((0..<count).map { .init(values[$0 * 2], values[$0 * 2 + 1]) })
        case let kind:
            if kind == 9 { writer.array(count) }
            if kind == 10 { writer.set(count) }
            if kind == 11 { writer.push(count) }
            let values = (0..<count).map { _ in write(&writer, &random, depth: depth + 1) }
            guard isNew, kind > 9 else { return .array(values) }
            return kind == 10 ? .set(values) : .push(values)
        }
    }

    @Test("values say what they hold")
    func accessors() {
        let flat = RESPValue.array([.bulk(utf8("a")), .integer(1)])
        #expect(flat.pairs == [.init(.bulk(utf8("a")), .integer(1))])
        #expect(RESPValue.array([.null]).pairs == nil)
        #expect(RESPValue.attributed([], flat).elements?.count == 2)
        #expect(RESPValue.verbatim(format: "txt", utf8("x")).text == "x")
        #expect(RESPValue.simpleString("x").bytes == utf8("x"))
        #expect(RESPValue.integer(3).integer == 3)
        #expect(RESPValue.null.text == nil)
    }
}
