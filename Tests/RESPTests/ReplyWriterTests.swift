import RESP
import TestRandom
import Testing

/// The text that `write` writes.
private func written(
    _ version: ProtocolVersion, _ write: (inout ReplyWriter) -> Void
) -> String {
    var writer = ReplyWriter(version: version)
    write(&writer)
    return String(decoding: writer.output.copyBytes(), as: UTF8.self)
}

@Suite("The reply writer")
struct ReplyWriterTests {
    @Test("writes what both versions share")
    func shared() {
        for version in [ProtocolVersion.resp2, .resp3] {
            #expect(written(version) { $0.ok() } == "+OK\r\n")
            #expect(written(version) { $0.simpleString("PONG") } == "+PONG\r\n")
            #expect(written(version) { $0.error("ERR", "no") } == "-ERR no\r\n")
            #expect(written(version) { $0.bulk("héllo") } == "$6\r\nhéllo\r\n")
            #expect(written(version) { $0.bulk("") } == "$0\r\n\r\n")
            #expect(written(version) { $0.bulk([1, 13, 10]) } == "$3\r\n\u{1}\r\n\r\n")
            #expect(written(version) { $0.array(0) } == "*0\r\n")
            #expect(written(version) { $0.array(12) } == "*12\r\n")
        }
    }

    @Test("writes integers of any size")
    func integers() {
        var values = [0, 1, -1, 9, 10, 99, 100, Int.max, Int.min, Int.max - 1, Int.min + 1]
        var power = 1
        while power < Int.max / 10 {
            power *= 10
            values += [power - 1, power, power + 1, -power, 1 - power, -1 - power]
        }
        for value in values {
            #expect(written(.resp2) { $0.integer(value) } == ":\(value)\r\n")
        }
    }

    @Test("writes what RESP2 lacks as Redis does")
    func versions() {
        func both(_ write: (inout ReplyWriter) -> Void) -> [String] {
            [written(.resp2, write), written(.resp3, write)]
        }
        #expect(both { $0.null() } == ["$-1\r\n", "_\r\n"])
        #expect(both { $0.map(3) } == ["*6\r\n", "%3\r\n"])
        #expect(both { $0.set(3) } == ["*3\r\n", "~3\r\n"])
        #expect(both { $0.push(3) } == ["*3\r\n", ">3\r\n"])
        #expect(both { $0.boolean(true) } == [":1\r\n", "#t\r\n"])
        #expect(both { $0.boolean(false) } == [":0\r\n", "#f\r\n"])
        #expect(both { $0.double(1.5) } == ["$3\r\n1.5\r\n", ",1.5\r\n"])
        #expect(both { $0.double(3) } == ["$1\r\n3\r\n", ",3\r\n"])
        #expect(both { $0.double(.infinity) } == ["$3\r\ninf\r\n", ",inf\r\n"])
        #expect(both { $0.double(-.infinity) } == ["$4\r\n-inf\r\n", ",-inf\r\n"])
        #expect(both { $0.double(.nan) } == ["$3\r\nnan\r\n", ",nan\r\n"])
        #expect(both { $0.double(-.nan) } == ["$3\r\nnan\r\n", ",nan\r\n"])
        #expect(both { $0.verbatim("text") } == ["$4\r\ntext\r\n", "=8\r\ntxt:text\r\n"])
    }

    @Test("lets no text break out of its line")
    func lineBreaks() {
        #expect(written(.resp2) { $0.error("E\r\n", "a\r\n+OK\nb") } == "-E   a  +OK b\r\n")
        #expect(written(.resp2) { $0.simpleString("a\r\nb") } == "+a  b\r\n")
    }

    @Test("answers a broken stream with its error")
    func protocolErrors() {
        let failure = parseRequests(utf8("*65")).failure
        let text = written(.resp2) { writer in failure.map { writer.error($0) } }
        #expect(text == "-KVLIMIT Protocol error: more than arguments allows (64 arguments)\r\n")
    }

    @Test("fills bulk strings in place, and takes them back when filling fails")
    func inPlace() {
        struct Refusal: Error {}
        var writer = ReplyWriter()
        writer.bulk(count: 8) {
            $0.storeBytes(of: UInt64(0x6867_6665_6463_6261).littleEndian, as: UInt64.self)
        }
        #expect(throws: Refusal.self) {
            try writer.bulk(count: 100) { _ throws(Refusal) in throw Refusal() }
        }
        writer.bulk(count: 0) { #expect($0.count == 0) }
        #expect(writer.output.copyBytes() == utf8("$8\r\nabcdefgh\r\n$0\r\n\r\n"))
    }

    @Test("writes requests for clients")
    func commands() {
        let text = written(.resp3) {
            $0.command("KV.SESSION", arguments: 1)
            $0.bulk("engine")
        }
        #expect(text == "*2\r\n$10\r\nKV.SESSION\r\n$6\r\nengine\r\n")
    }
}

@Suite("The byte queue")
struct ByteQueueTests {
    @Test("gives back what was put in, in order, whatever the sizes")
    func model() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        var queue = ByteQueue()
        var model: [UInt8] = []
        var next: UInt8 = 0
        for step in 0..<4000 {
            let large = random.below(50) == 0
            let count = random.below(large ? 200_000 : 200)
            if random.below(2) == 0 {
                let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0) &+ next }
                next &+= 1
                if random.below(2) == 0 {
                    queue.append(bytes)
                } else {
                    queue.append(count: count) { $0.copyBytes(from: bytes) }
                }
                model += bytes
            } else {
                let taken = min(random.below(2) == 0 ? count : Int.max, model.count)
                queue.consume(taken)
                model.removeFirst(taken)
            }
            guard queue.count == model.count, queue.isEmpty == model.isEmpty,
                queue.withUnsafeBytes({ $0.elementsEqual(model) || $0.isEmpty && model.isEmpty })
            else {
                Issue.record("seed \(seed), step \(step)")
                return
            }
        }
    }

    @Test("refuses to give more than it has")
    func overdraw() async {
        await #expect(processExitsWith: .failure) {
            var queue = ByteQueue()
            queue.append(1)
            queue.consume(2)
        }
    }
}
