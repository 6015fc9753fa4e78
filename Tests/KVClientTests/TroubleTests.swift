import Glibc
import KVClient
import TestSupport
import Testing

@Suite("The client in trouble", .serialized)
struct TroubleTests {
    private func code(_ body: () throws -> Void) throws -> ClientError.Code {
        try #require(throws: ClientError.self, performing: body).code
    }

    private func openDescriptors() throws -> Int {
        let directory = try #require(opendir("/proc/self/fd"))
        defer { closedir(directory) }
        var count = 0
        while readdir(directory) != nil { count += 1 }
        return count
    }

    @Test("Without a server the error says how to start one")
    func noServer() throws {
        let error = try #require(throws: ClientError.self) {
            try Client(.init(socket: "/tmp/kvasir-no-such-directory/socket"))
        }
        #expect(error.code == .notConnected)
        #expect(error.message.contains("kvasir serve"))
    }

    @Test("A path that is too long for the kernel is refused")
    func longPath() throws {
        let path = "/tmp/" + String(repeating: "x", count: 200)
        #expect(try code { _ = try Client(.init(socket: path)) } == .notConnected)
    }

    @Test("A server that says nothing times out, and the connection is closed")
    func timeout() throws {
        let peer = try FakePeer([.silence])
        let client = try Client(.init(socket: peer.socket, timeoutMs: 50))
        #expect(try code { _ = try client.ping() } == .timeout)
        #expect(!client.isConnected)
        client.close()
        peer.stop()
    }

    @Test("A reply that comes in part and then stops times out in the time given")
    func partialReply() throws {
        let peer = try FakePeer([.bytes("$100\r\nabc")])
        let client = try Client(.init(socket: peer.socket, timeoutMs: 50))
        #expect(try code { _ = try client.command("GET", "x") } == .timeout)
        client.close()
        peer.stop()
    }

    @Test(
        "A reply that makes no sense is an error, and the connection is closed",
        arguments: [
            "?\r\n", "+OK\r\n", "*3\r\n:1\r\n$0\r\n\r\n:0\r\n", ":1\r\n:2\r\n",
            "*2\r\n:1\r\n$1\r\nx\r\n",
        ])
    func badReplies(reply: String) throws {
        let space = try Sample.space()
        let (root, keys) = Sample.keys(1, space)
        let opened = "*3\r\n:1\r\n$32\r\n"
        // The id of the space is raw bytes, which the fake can't send as text: KV.OPEN is refused first.
        let peer = try FakePeer([
            .bytes(opened + String(repeating: "x", count: 32) + "\r\n$0\r\n\r\n")
        ])
        let client = try Client(.init(socket: peer.socket, timeoutMs: 500))
        #expect(try code { _ = try client.match(space, root: root, keys: keys) } == .badReply)
        #expect(!client.isConnected)
        client.close()
        peer.stop()

        let other = try FakePeer([.bytes(reply)])
        let second = try Client(.init(socket: other.socket, timeoutMs: 500))
        #expect(try code { _ = try second.ping() } == .badReply)
        #expect(!second.isConnected)
        second.close()
        other.stop()
    }

    @Test("An arena without a descriptor is refused")
    func noDescriptor() throws {
        let peer = try FakePeer([.bytes("*3\r\n:4096\r\n$16\r\n0123456789abcdef\r\n:4096\r\n")])
        let client = try Client(.init(socket: peer.socket, timeoutMs: 500))
        #expect(try code { _ = try client.mapArena() } == .badReply)
        client.close()
        peer.stop()
    }

    @Test("A peer that is no Kvasir is refused on connecting")
    func notKvasir() throws {
        let peer = try FakePeer([], greeting: .bytes("-ERR unknown command 'KV.SESSION'\r\n"))
        #expect(try code { _ = try Client(.init(socket: peer.socket, timeoutMs: 500)) } == .command)
        peer.stop()
    }

    @Test("A peer that hangs up in the middle is a lost connection")
    func hangUp() throws {
        let peer = try FakePeer([.hangUp])
        let client = try Client(.init(socket: peer.socket, timeoutMs: 500))
        #expect(try code { _ = try client.ping() } == .connectionLost)
        client.close()
        peer.stop()
    }

    @Test("When the server is gone requests fail, leases are stale; when it is back requests go on")
    func serverGoneAndBack() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(2, space)
        try Sample.save(client, space, root, keys)
        let hold = try #require(
            try client.match(space, root: root, keys: keys, holdMs: 60_000).hold)
        let lease = try client.acquire(hold)
        server.stop()
        let gone = try code { _ = try client.ping() }
        #expect(gone == .notConnected || gone == .connectionLost)
        #expect(!client.isConnected)
        // What was mapped stays readable, so that a copy in flight crashes nobody; the release says that it was in vain.
        try lease.withBytes(of: 0) { #expect($0[3] == Sample.byte(0, 0, 3)) }
        try server.start()
        #expect(try code { _ = try client.release(lease) } == .stale)
        #expect(try code { _ = try client.acquire(hold) } == .stale)
        #expect(try client.match(space, root: root, keys: keys).count == 2)
        client.close()
    }

    @Test("A closed client says so")
    func closed() throws {
        let server = try TestServer()
        let client = try server.client()
        client.close()
        client.close()
        #expect(try code { _ = try client.ping() } == .closed)
        #expect(!client.isConnected)
    }

    @Test("No descriptor and no mapping is left, whatever happened")
    func descriptors() throws {
        let server = try TestServer(verifyOneIn: 1)
        let space = try Sample.space()
        let (root, keys) = Sample.keys(3, space)
        let before = try openDescriptors()
        for _ in 0..<20 {
            let client = try server.client()
            try Sample.save(client, space, root, keys)
            let match = try client.match(space, root: root, keys: keys, holdMs: 1_000)
            let lease = try client.wait(for: try client.acquire(try #require(match.hold)))
            #expect(try client.release(lease))
            _ = try? client.command("NOSUCH")
            client.close()
        }
        for _ in 0..<20 {
            // Dropped without a close.
            let client = try server.client()
            _ = try client.mapArena()
        }
        for _ in 0..<20 {
            let peer = try FakePeer([.bytes("nonsense\r\n")])
            let client = try Client(.init(socket: peer.socket, timeoutMs: 500))
            _ = try? client.ping()
            client.close()
            peer.stop()
        }
        // The server closes its ends in its own time, and other tests have descriptors open too.
        var left = try openDescriptors()
        for _ in 0..<6000 where left > before {
            usleep(10_000)
            left = try openDescriptors()
        }
        #expect(left <= before)
    }
}
