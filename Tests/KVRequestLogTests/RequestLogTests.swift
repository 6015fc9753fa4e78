import Foundation
import KVIdentity
import KVPolicy
import KVSimulator
import Testing

@testable import KVRequestLog

@Suite("Request log")
struct RequestLogTests {
    private let scratch = Scratch()

    /// Logs requests and waits until they are in the files.
    private func logged(
        _ requests: [LoggedRequest], byteLimit: Int = RequestLogLimits.defaultBytes
    ) throws -> RequestLog.Counters {
        let log = try RequestLog(
            .init(directory: scratch.path, byteLimit: byteLimit, logger: Messages().logger))
        for request in requests { log.record(request) }
        log.stop()
        return log.counters
    }

    // MARK: The format

    @Test("A line has time, length, names and the hint")
    func line() {
        var text: [UInt8] = []
        TraceLine.append(
            request([1, 2], ms: 1_520, tokens: 40, hint: .pending(seconds: 2.5), since: 7_004_000),
            names: [0xF00D, 0x0123_4567_89AB_CDEF], since: 4_000, to: &text)
        #expect(
            String(decoding: text, as: UTF8.self)
                == "{\"ms\": 1527.000, \"tokens\": 40, \"chunks\": [\"000000000000f00d\", \"0123456789abcdef\"], \"hint\": \"pending\", \"expected_ms\": 2500}\n"
        )
        text = []
        TraceLine.append(request([], tokens: 3), names: [], since: 9, to: &text)
        #expect(
            String(decoding: text, as: UTF8.self)
                == "{\"ms\": 0.000, \"tokens\": 3, \"chunks\": []}\n")
    }

    @Test("The simulator reads what the log has written: lengths, shared beginnings, hints, times")
    func replays() throws {
        let start = RequestLog.now()
        let counters = try logged([
            request([1, 2, 3], ms: 10, since: start),
            request([1, 2, 4], ms: 20, tokens: 61, hint: .closed, since: start),
            request([], ms: 30, tokens: 9, hint: .pending, since: start),
            request([1], ms: 40, hint: .pending(seconds: 3), since: start),
        ])
        let name = try #require(scratch.files.first)
        #expect(scratch.files.count == 1)
        #expect(
            counters == .init(written: 4, dropped: 0, bytes: scratch.bytes(name)))
        let trace = try replayable(scratch.text(name))
        #expect(trace.chunkTokens == 16)
        #expect(trace.requests.map { Int($0.tokens) } == [48, 61, 9, 16])
        #expect(trace.requests.map { Int($0.fullCount) } == [3, 3, 0, 1])
        #expect(
            trace.requests.map(\.hint) == [
                .none, .closed, .pending(seconds: nil), .pending(seconds: 3),
            ])
        #expect(trace.parents == [Trace.none, 0, 1, 1])
        let times = trace.requests.map { Int($0.nanoseconds / 1_000_000) }
        #expect(zip(times, times.dropFirst()).allSatisfy { $1 - $0 == 10 })
    }

    @Test("Each chunk size has a file, with its header")
    func chunkSizes() throws {
        _ = try logged([
            request([1]), request([1, 2], chunkTokens: 256), request([3]),
            request([1], chunkTokens: 32),
        ])
        #expect(scratch.files.count == 3)
        for (size, count) in [(16, 2), (256, 1), (32, 1)] {
            let name = try #require(scratch.files.first { $0.hasSuffix("Z-\(size).jsonl") })
            let text = scratch.text(name)
            #expect(text.hasPrefix("{\"kvasir_trace\": 1, \"chunk_tokens\": \(size), "))
            #expect(try replayable(text).requests.count == count)
        }
    }

    @Test(
        "The directory is made for its owner only, with what is missing above it, and so are files")
    func modes() throws {
        let log = try RequestLog(
            .init(directory: scratch.path + "/a/b/", logger: Messages().logger))
        log.record(request([1]))
        log.stop()
        #expect(scratch.mode() == 0o700)
        #expect(scratch.mode("a/b") == 0o700)
        let name = try #require(
            try FileManager.default.contentsOfDirectory(atPath: scratch.path + "/a/b").first)
        #expect(scratch.mode("a/b/\(name)") == 0o600)
    }

    @Test("Servers that share a directory, and starts within a second, get files of their own")
    func sameSecond() throws {
        let logs = try (0..<4).map { _ in
            try RequestLog(.init(directory: scratch.path, logger: Messages().logger))
        }
        for log in logs { log.record(request([1])) }
        for log in logs { log.stop() }
        #expect(scratch.files.count == 4)
        for name in scratch.files {
            #expect(try replayable(scratch.text(name)).requests.count == 1)
        }
    }

    @Test("A directory that can't be had is said, with what to do")
    func noDirectory() throws {
        try FileManager.default.createDirectory(
            atPath: scratch.path, withIntermediateDirectories: true)
        try Data().write(to: URL(fileURLWithPath: scratch.path + "/file"))
        for (path, reason) in [
            (scratch.path + "/file", "Not a directory"),
            (scratch.path + "/file/below", "Not a directory"),
            ("/proc/requests", "No such file"), ("", "needs a directory"),
        ] {
            let error = #expect(throws: RequestLogError.self) {
                _ = try RequestLog(.init(directory: path, logger: Messages().logger))
            }
            #expect(error?.message.contains(reason) == true, "\(String(describing: error))")
            #expect(error?.message.contains("--request-log") == true)
        }
    }

    // MARK: Names

    @Test("Names are keyed: another start gives others, and no key is in the file")
    func keyed() throws {
        let requests = [request([1, 2, 3])]
        _ = try logged(requests)
        _ = try logged(requests)
        let texts = scratch.files.map(scratch.text)
        #expect(texts.count == 2)
        func names(_ text: String) -> [Substring] {
            requestLines(text)[0].split(separator: "\"").filter { $0.count == 16 }
        }
        #expect(names(texts[0]).count == 3)
        #expect(Set(names(texts[0])).isDisjoint(with: names(texts[1])))
        for text in texts {
            for key in requests[0].keys + [requests[0].space, requests[0].root] {
                #expect(!text.contains(key.hex.prefix(8)))
            }
        }
    }

    @Test("Equal names mean equal paths in one space and under one root")
    func paths() {
        let names = KeyedNames()
        func made(_ keys: [UInt64], space: UInt64 = 1, root: UInt64 = 1) -> [UInt64] {
            names.names(space: digest(space), root: digest(root), keys: keys.map(digest))
        }
        #expect(made([1, 2, 3]) == made([1, 2, 3]))
        #expect(made([1, 2, 3]).prefix(2) == made([1, 2, 4])[...1])
        #expect(made([1, 2, 3])[2] != made([1, 2, 4])[2])
        // The same key at another place, in another space, under another root.
        #expect(made([2])[0] != made([1, 2])[1])
        #expect(made([1], space: 2) != made([1]))
        #expect(made([1], root: 2) != made([1]))
        #expect(made([]) == [])
    }

    @Test("Names are HMAC-SHA256 as RFC 2104 has it")
    func reference() {
        let names = KeyedNames(secret: Array("secret".utf8))
        // Computed with Python: hmac.digest(b"secret", hmac.digest(b"secret", bytes(64), "sha256")
        // + bytes(32), "sha256")[:8].hex()
        let zero = Digest(words: (0, 0, 0, 0))
        #expect(names.names(space: zero, root: zero, keys: [zero]) == [0xa87e_0c2a_8cf5_2527])
    }

    @Test("Whatever keys clients choose, the simulator finds a tree")
    func hostileKeys() throws {
        _ = try logged([
            request([1, 2]), request([2, 1]), request([1, 1, 1]), request([2], root: 2),
        ])
        #expect(try replayable(scratch.text(scratch.files[0])).requests.count == 4)
    }

    @Test(
        "A file that somebody removes or shortens is followed by another one",
        arguments: [true, false])
    func removed(isGone: Bool) throws {
        let directory = try LogDirectory(scratch.path)
        var writer = LogWriter(
            directory, byteLimit: 1 << 20, name: "requests", startedAt: 0)
        #expect(writer.write([request([1]), request([2])]).written == 2)
        let first = try #require(scratch.files.first)
        if isGone {
            try FileManager.default.removeItem(atPath: "\(scratch.path)/\(first)")
        } else {
            truncate("\(scratch.path)/\(first)", 0)
        }
        #expect(writer.write([request([3])]).written == 1)
        let name = try #require(scratch.files.first { isGone || $0 != first })
        #expect(try replayable(scratch.text(name)).requests.count == 1)
        if !isGone { #expect(scratch.bytes(first) == 0 && scratch.files.count == 2) }
        // With the directory gone, what can't be written is counted.
        try FileManager.default.removeItem(atPath: scratch.path)
        let outcome = writer.write([request([4])])
        #expect(outcome.dropped == 1 && outcome.problem != nil)
    }

    @Test("All files of a log have one id, and those of another one another id")
    func ids() throws {
        func headers() throws -> [Substring] {
            let place = Scratch()
            let log = try RequestLog(.init(directory: place.path, logger: Messages().logger))
            log.record(request([1]))
            log.record(request([1], chunkTokens: 32))
            log.stop()
            return place.files.compactMap { place.text($0).split(separator: "\n").first }
        }
        let (first, second) = (try headers(), try headers())
        func ids(_ headers: [Substring]) -> Set<Substring> {
            Set(headers.compactMap { $0.split(separator: "\"log\": ").last })
        }
        #expect(first.count == 2 && ids(first).count == 1 && ids(second).count == 1)
        #expect(ids(first) != ids(second))
    }

    // MARK: Limits

    @Test("What the queue has no room for is left out, counted and said once")
    func overflow() throws {
        let messages = Messages()
        let log = try RequestLog(
            .init(directory: scratch.path, logger: messages.logger),
            queue: RequestQueue(requestLimit: 4))
        for number in 0..<10 { log.record(request([UInt64(number)])) }
        #expect(log.counters == .init(written: 0, dropped: 6, bytes: 0))
        #expect(messages.all.count == 1)
        #expect(messages.all[0].contains("can't keep up"))
        log.start()
        log.stop()
        #expect(log.counters.written == 4)
        #expect(log.counters.dropped == 6)
        #expect(try replayable(scratch.text(scratch.files[0])).requests.count == 4)
    }

    @Test("The queue is bounded in bytes, too, and empty again once it was taken")
    func queueBytes() {
        let large = request(Array(0..<100))
        var queue = RequestQueue(requestLimit: 100, byteLimit: 2 * large.queuedBytes)
        var taken: [Bool] = []
        var halfFull: [Bool] = []
        for request in [large, large, request([])] {
            taken.append(queue.append(request))
            halfFull.append(queue.isHalfFull)
        }
        #expect(taken == [true, true, false])
        #expect(halfFull == [false, true, true])
        let (all, none) = (queue.takeAll(), queue.takeAll())
        #expect(all.count == 2)
        #expect(none.isEmpty)
        // What is being written takes room, too.
        let early = queue.append(large)
        queue.done(1, bytes: all[0].queuedBytes)
        let late = queue.append(large)
        #expect(!early)
        #expect(late)
    }

    @Test("At its limit the log stops: not a byte more, whole lines only, said once")
    func limit() throws {
        let header = TraceLine.header(chunkTokens: 16, id: 0).count
        // All lines are equally long.
        let lines = (0..<5).map { request([UInt64($0)]) }
        var line: [UInt8] = []
        TraceLine.append(lines[0], names: [0], since: 0, to: &line)
        for (byteLimit, written) in [
            (header + 2 * line.count - 1, 1), (header + 2 * line.count, 2),
            (header + 2 * line.count + 1, 2), (header + line.count - 1, 0),
            (header + 5 * line.count, 5),
        ] {
            let place = Scratch()
            let messages = Messages()
            let log = try RequestLog(
                .init(directory: place.path, byteLimit: byteLimit, logger: messages.logger))
            for request in lines { log.record(request) }
            log.stop()
            #expect(log.counters.written == written)
            #expect(log.counters.dropped == 5 - written)
            #expect(log.counters.bytes <= byteLimit)
            #expect(place.files.map(place.bytes).reduce(0, +) == log.counters.bytes)
            #expect(place.files.count == (written == 0 ? 0 : 1))
            #expect(
                messages.all.count { $0.contains("limit of \(byteLimit) bytes") }
                    == (written < 5 ? 1 : 0))
        }
    }

    @Test("The limit counts all files, and ends them all")
    func limitOfAll() throws {
        let counters = try logged(
            [request([1]), request([1], chunkTokens: 32), request([2]), request([3])],
            byteLimit: 2 * TraceLine.header(chunkTokens: 16, id: 0).count + 160)
        #expect(counters.written == 2)
        #expect(counters.dropped == 2)
        #expect(scratch.files.count == 2)
    }

    @Test("More chunk sizes than the log has files for are left out, and the others go on")
    func manySizes() throws {
        let sizes = (1...(RequestLogLimits.files + 3)).map { request([1], chunkTokens: $0) }
        let counters = try logged(sizes + [request([2], chunkTokens: 1)])
        #expect(scratch.files.count == RequestLogLimits.files)
        #expect(counters.written == RequestLogLimits.files + 1)
        #expect(counters.dropped == 3)
    }

    // MARK: Trouble

    @Test("What can't be written is left out, counted and said once; later requests are written")
    func noFile() throws {
        let messages = Messages()
        let log = try RequestLog(
            .init(directory: scratch.path, logger: messages.logger))
        try FileManager.default.removeItem(atPath: scratch.path)
        log.record(request([1]))
        log.record(request([2]))
        log.stop()
        #expect(log.counters == .init(written: 0, dropped: 2, bytes: 0))
        #expect(messages.all.count == 1, "\(messages.all)")
        #expect(messages.all[0].contains("No such file or directory"))
    }

    @Test("Requests are written within a second, without being asked to")
    func soon() throws {
        let log = try RequestLog(.init(directory: scratch.path, logger: Messages().logger))
        for number in 1...3 {
            log.record(request([UInt64(number)]))
            let end = RequestLog.now() + 1_000_000_000 * 10
            while log.counters.written < number, RequestLog.now() < end { usleep(1000) }
            #expect(log.counters.written == number)
        }
        log.stop()
    }

    @Test("After a stop nothing is taken, and a stop may be said twice")
    func stopped() throws {
        let log = try RequestLog(.init(directory: scratch.path, logger: Messages().logger))
        #expect(log.isRecording)
        log.record(request([1]))
        log.stop()
        log.stop()
        log.record(request([2]))
        #expect(!log.isRecording)
        #expect(log.counters.written == 1)
        #expect(log.counters.dropped == 1)
    }

    @Test("A log from several threads loses and mixes nothing")
    func threads() async throws {
        let log = try RequestLog(.init(directory: scratch.path, logger: Messages().logger))
        await withTaskGroup(of: Void.self) { group in
            for part in 0..<4 {
                group.addTask {
                    for number in 0..<500 { log.record(request([UInt64(part * 1000 + number)])) }
                }
            }
        }
        log.stop()
        #expect(log.counters.written == 2_000)
        #expect(requestLines(scratch.text(scratch.files[0])).count == 2_000)
    }
}
