import Foundation
import KVClient

/// The server that is measured: one of our own, or the one that was named.
final class BenchServer {
    let socket: String
    let process: Int32
    private let child: ChildProcess?
    private let directory: TemporaryDirectory?

    /// Uses the server behind a socket.
    init(named socket: String, progress: Progress) throws {
        self.socket = socket
        child = nil
        directory = nil
        let client = try asking { () throws(ClientError) in try Client(.init(socket: socket)) }
        defer { client.close() }
        process = Int32(try asking { () throws(ClientError) in try client.version().processID })
        try Self.waitUntilReady(client, progress)
    }

    /// Starts a server and waits until its arena is faulted in.
    init(memoryBytes: Int, progress: Progress) throws {
        let directory = try TemporaryDirectory()
        self.directory = directory
        socket = directory.path + "/kvasir.sock"
        let child = try ChildProcess([
            "serve", "--socket", socket, "--memory", "\(memoryBytes)", "--memory-only",
            "--log-level", "warning",
        ])
        self.child = child
        process = child.process
        let client = try Self.connect(socket, child)
        defer { client.close() }
        try Self.waitUntilReady(client, progress)
    }

    private static func waitUntilReady(_ client: Client, _ progress: Progress) throws {
        while true {
            let values = try asking { () throws(ClientError) in try client.stats() }
            let known = Dictionary(values.map { ($0.name, $0.value) }) { first, _ in first }
            let (size, ready) = (known["arena_bytes"] ?? 0, known["arena_ready_bytes"] ?? 0)
            if ready >= size { break }
            progress.tell("the server's memory: \(ready >> 20) of \(size >> 20) MiB faulted in")
            usleep(500_000)
        }
        progress.done()
    }

    private static func connect(_ socket: String, _ child: ChildProcess) throws -> Client {
        let deadline = Measure.now() + 10_000_000_000
        while true {
            if let client = try? Client(.init(socket: socket)) { return client }
            if child.isOver {
                throw ChildProcess.unexpectedEnd(of: "the server that was to be measured")
            }
            if Measure.now() > deadline {
                throw CommandFailure("the server that was to be measured doesn't answer")
            }
            usleep(5_000)
        }
    }

    func stop() { child?.stop() }
}
