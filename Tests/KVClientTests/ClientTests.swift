import Glibc
import KVClient
import KVIdentity
import KVPolicy
import RESP
import TestSupport
import Testing

@Suite("The client and a real server")
struct ClientTests {
    @Test("What was saved is loaded, byte for byte, in every shard")
    func bytesEqual() throws {
        let server = try TestServer(verifyOneIn: 1)
        let client = try server.client()
        defer { client.close() }
        let space = try Sample.space(shardBytes: [5_000, 8_192, 1])
        let (root, keys) = Sample.keys(9, space)
        let lease = try Sample.save(client, space, root, keys)
        #expect(lease.states == Array(repeating: .granted, count: 9))
        #expect(lease.reason.isEmpty)

        for _ in 0..<2 {
            let match = try client.match(space, root: root, keys: keys, holdMs: 10_000, readers: 3)
            #expect(match.count == 9)
            #expect(match.tiers == Array(repeating: .memory, count: 9))
            let hold = try #require(match.hold)
            for shard in 0..<3 {
                let lease = try client.wait(for: try client.acquire(hold, shard: shard))
                #expect(lease.readyCount == 9)
                for chunk in 0..<9 {
                    try lease.withBytes(of: chunk) { bytes in
                        #expect(bytes.count == space.shardBytes[shard])
                        #expect(
                            bytes.indices.allSatisfy { bytes[$0] == Sample.byte(chunk, shard, $0) })
                    }
                }
                #expect(try client.release(lease))
            }
        }
    }

    @Test("A match finds the leading chunks, and a part of a hold can be read")
    func partialMatch() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(8, space)
        try Sample.save(client, space, root, Array(keys[..<5]))
        #expect(try client.match(space, root: root, keys: keys).count == 5)
        #expect(try client.match(space, root: root, keys: keys).hold == nil)
        let hold = try #require(try client.match(space, root: root, keys: keys, holdMs: 1_000).hold)
        let lease = try client.acquire(hold, from: 2, count: 2)
        #expect(lease.extents.count == 2)
        try lease.withBytes(of: 0) { #expect($0[0] == Sample.byte(2, 0, 0)) }
        #expect(try client.release(lease))
        let next = try client.reserve(space, root: root, keys: Array(keys[5...]), parent: keys[4])
        #expect(next.granted == [0, 1, 2])
        #expect(try client.commit(next, positions: [0]) == 1)
        #expect(
            try client.locate(space, root: root, keys: keys)[4...] == [
                .memory, .memory, .writing, .writing,
            ])
        #expect(try client.release(next))
        #expect(try client.locate(space, root: root, keys: keys)[6...] == [.absent, .absent])
    }

    @Test("Hints and pins of requests reach the server, and wrong ones are refused")
    func hints() throws {
        let server = try TestServer()
        let client = try server.client()
        defer { client.close() }
        let space = try Sample.space()
        let (root, keys) = Sample.keys(4, space)
        func pinned() throws -> Int? {
            try client.stats().first { $0.name == "pinned_bytes" }?.value
        }
        let hints: [ReuseHint] = [
            .closed, .pending, .pending(seconds: 2.5), .pending(seconds: ReuseHint.mostSeconds),
            ReuseHint(.pending, seconds: 0.0004, priority: ReuseHint.leastPriority),
        ]
        for hint in hints {
            #expect(try client.match(space, root: root, keys: keys, hint: hint).count == 0)
        }
        let lease = try client.reserve(
            space, root: root, keys: keys, hint: .pending(seconds: 2), pin: .milliseconds(60_000))
        #expect(try pinned() == 0)
        #expect(try client.commit(lease) == 4)
        let bytes = try #require(try pinned())
        #expect(bytes > 0)
        #expect(try client.unpin(space, root: root, keys: keys) == 4)
        let match = try client.match(
            space, root: root, keys: keys, holdMs: 1_000, hint: .closed, pin: .milliseconds(60_000))
        #expect(match.count == 4 && match.hold != nil)
        #expect(try pinned() == bytes)

        func isStatic() throws -> Int? {
            try client.stats().first { $0.name == "chunks_static" }?.value
        }
        #expect(try client.pin(space, root: root, keys: keys, for: .forever) == 4)
        #expect(try isStatic() == 4)
        #expect(try client.allChunks(ChunkFilter()).allSatisfy { $0.isStatic })
        #expect(try client.unpin(space, root: root, keys: keys) == 4)
        #expect(try isStatic() == 0)
        _ = try client.match(space, root: root, keys: keys, pin: .forever)
        #expect(try isStatic() == 4)
        #expect(try client.unpin(space, root: root, keys: keys) == 4)

        let priority = ReuseHint(.unknown, priority: ReuseHint.mostPriority + 1)
        for wrong in [(ReuseHint.none, 0), (priority, 1)] {
            let refused = try #require(throws: ClientError.self) {
                try client.match(
                    space, root: root, keys: keys, hint: wrong.0, pin: .milliseconds(wrong.1))
            }
            #expect(refused.code == .argument)
        }
    }

    @Test("A server that logs requests has each once, as a match or as told")
    func requests() throws {
        let space = try Sample.space()
        let (root, keys) = Sample.keys(4, space)
        let tokens = 4 * space.chunkTokens + 1
        let silent = try TestServer()
        #expect(try !silent.client().logRequests())
        #expect(try !silent.client().logRequest(space, root: root, keys: keys, tokens: tokens))

        let server = try TestServer(logsRequests: true)
        let client = try server.client()
        defer { client.close() }
        func logged() throws -> Int? {
            try client.stats().first { $0.name == "request_log_written" }?.value
        }
        _ = try client.match(space, root: root, keys: keys)
        #expect(try client.logRequests())
        // It tells itself now.
        _ = try client.match(space, root: root, keys: keys)
        let hint = ReuseHint(.pending, seconds: 2, priority: 3)
        #expect(
            try client.logRequest(space, root: root, keys: keys, tokens: tokens, hint: hint))
        #expect(try client.logRequest(space, root: root, keys: [], tokens: 1))
        let refused = try #require(throws: ClientError.self) {
            try client.logRequest(space, root: root, keys: keys, tokens: 1)
        }
        #expect(refused.code == .argument)
        // The one of the match and the two that were told.
        let end = ContinuousClock.now + .seconds(10)
        while try logged() != 3, ContinuousClock.now < end { usleep(1_000) }
        #expect(try logged() == 3)
    }

    @Test("Chunks that are there already are not granted, and positions stay those of the keys")
    func presentChunks() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(4, space)
        try Sample.save(client, space, root, Array(keys[..<2]))
        let lease = try client.reserve(space, root: root, keys: keys)
        #expect(lease.states == [.present, .present, .granted, .granted])
        #expect(lease.granted == [2, 3])
        let refused = try #require(throws: ClientError.self) {
            try lease.withMutableBytes(of: 0) { _ in }
        }
        #expect(refused.code == .noExtent)
        try lease.withMutableBytes(of: 3) { $0[0] = 42 }
        #expect(try client.commit(lease) == 2)
        let hold = try #require(try client.match(space, root: root, keys: keys, holdMs: 1_000).hold)
        let read = try client.acquire(hold)
        try read.withBytes(of: 3) { #expect($0[0] == 42) }
        #expect(try client.release(read))
    }

    @Test("Housekeeping: explain, pin, unpin, expire, prefetch, drop, spaces, stats, version, ping")
    func housekeeping() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(4, space)
        #expect(try client.explain(space, root: root, keys: keys).code == "never-stored")
        try Sample.save(client, space, root, keys)
        #expect(try client.explain(space, root: root, keys: keys).code == "hit")
        #expect(try client.explain(space, root: root, keys: keys).matched == 4)
        #expect(try client.pin(space, root: root, keys: keys, for: .milliseconds(10_000)) == 4)
        #expect(try client.unpin(space, root: root, keys: keys) == 4)
        #expect(try client.expire(space, root: root, keys: keys, afterMs: 100_000) == 4)
        #expect(
            try client.expire(space, root: root, keys: keys, afterMs: 100_000, isSliding: true)
                == 4)
        try client.setTimeToLive(space, ms: 0)
        try client.setTimeToLive(space, ms: 100_000, isSliding: true)
        let short = try #require(throws: ClientError.self) {
            try client.setTimeToLive(space, ms: 1_999, isSliding: true)
        }
        #expect(short.code == .argument)
        #expect(try client.prefetch(space, root: root, keys: keys) == 4)
        #expect(try client.drop(space, root: root, keys: [keys[3]]) == 1)
        #expect(try client.explain(space, root: root, keys: keys).code == "dropped")
        #expect(try client.drop(space, root: root) == 3)
        try Sample.save(client, space, root, keys)
        #expect(try client.spaces().first?["chunks"] == "4")
        #expect(try client.drop(space) == 4)
        #expect(try client.stats().contains { $0.name == "chunks" && $0.value == 0 })
        #expect(try client.version().processID == Int(getpid()))
        #expect(try client.ping() > 0)
        let error = try #require(throws: ClientError.self) { try client.sync() }
        #expect(error.code == .noTier)
        #expect(try client.command("ECHO", "hello") == .bulk(Array("hello".utf8)))
        #expect(client.isConnected)
    }

    @Test("What follows the arguments of a command and is not HEX is refused, not ignored")
    func trailingArguments() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(1, space)
        let handle = try client.open(space).handle
        let target = ["\(handle)", root.digest.hex, keys[0].hex]
        func send(_ words: [String]) throws -> RESPValue {
            try client.command(words.map { Array($0.utf8) })
        }
        let forms = [
            ["KV.LOCATE"] + target, ["KV.EXPLAIN"] + target, ["KV.PREFETCH"] + target,
            ["KV.UNPIN"] + target, ["KV.PIN"] + target + ["5"], ["KV.EXPIRE"] + target + ["5"],
            ["KV.DROP", "KEYS"] + target, ["KV.DROP", "ROOT", "\(handle)", root.digest.hex],
        ]
        for form in forms {
            _ = try send(form + ["HEX"])
            let error = try #require(throws: ClientError.self) { try send(form + ["JUNK"]) }
            #expect(error.code == .command, "\(form[0])")
            #expect(error.message.contains("syntax error"), "\(form[0])")
        }
    }

    @Test("Errors of the server come as they are and leave the connection as it was")
    func serverErrors() throws {
        let server = try TestServer()
        let client = try server.client()
        let unknown = try #require(throws: ClientError.self) { try client.command("NOSUCH") }
        #expect(unknown.code == .command)
        #expect(unknown.message.contains("NOSUCH"))
        let space = try Sample.space()
        let (root, keys) = Sample.keys(3, space)
        let gap = try #require(throws: ClientError.self) {
            try client.reserve(space, root: root, keys: [keys[2]], parent: keys[1])
        }
        #expect(gap.code == .gap)
        let huge = try Sample.space(shardBytes: [1 << 30])
        let large = try #require(throws: ClientError.self) { try client.open(huge) }
        #expect(large.code == .argument)
        #expect(try client.ping() > 0)
    }

    @Test("A reader past its deadline is told to discard what it copied")
    func expiredLease() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(2, space)
        try Sample.save(client, space, root, keys)
        let hold = try #require(try client.match(space, root: root, keys: keys, holdMs: 1).hold)
        let end = nowMs() + 5_000
        // The deadline may pass before or after the lease is given.
        guard let lease = try? client.acquire(hold) else { return }
        while nowMs() < end,
            try client.stats().first(where: { $0.name == "read_leases" })?.value != 0
        {}
        #expect(try !client.release(lease))
    }

    @Test("A read-only client reads")
    func readOnly() throws {
        let server = try TestServer()
        let writer = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(2, space)
        try Sample.save(writer, space, root, keys)
        let reader = try server.client(isReadOnly: true)
        #expect(try reader.mapArena().isReadOnly)
        let hold = try #require(try reader.match(space, root: root, keys: keys, holdMs: 1_000).hold)
        let lease = try reader.acquire(hold)
        try lease.withBytes(of: 1) { #expect($0[9] == Sample.byte(1, 0, 9)) }
        #expect(try reader.release(lease))
    }

    @Test("Threads share a client")
    func threads() throws {
        let server = try TestServer(verifyOneIn: 1)
        let client = try server.client()
        let space = try Sample.space()
        let threads = (0..<4).map { number in
            Running.start {
                do {
                    let (root, keys) = Sample.keys(5, space, first: UInt32(number * 1_000))
                    try Sample.save(client, space, root, keys)
                    for _ in 0..<50 {
                        let hold = try #require(
                            try client.match(space, root: root, keys: keys, holdMs: 5_000).hold)
                        let lease = try client.wait(for: try client.acquire(hold))
                        try lease.withBytes(of: 4) { #expect($0[1] == Sample.byte(4, 0, 1)) }
                        #expect(try client.release(lease))
                    }
                } catch { Issue.record(error) }
            }
        }
        for thread in threads { pthread_join(thread, nil) }
    }

    private func nowMs() -> Int {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
    }
}
