import Foundation
import KVClient
import Synchronization

/// This program as a process of its own, stopped at the latest when its owner is gone.
final class ChildProcess {
    /// What a signal handler may look at.
    private static let running = Atomic<Int32>(0)

    let process: Int32
    private var hasEnded = false

    /// Starts this program with these arguments. Its output goes to standard error unless a descriptor is given.
    init(_ arguments: [String], output: Int32 = 2) throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        let path = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
        var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
        defer { for word in words { free(word) } }
        words.append(nil)
        var process: pid_t = 0
        let code = posix_spawn(&process, path, &actions, nil, words, environ)
        if code != 0 {
            throw CommandFailure("can't start \(path): \(String(cString: strerror(code)))")
        }
        self.process = process
        Self.running.store(process, ordering: .relaxed)
        // Ctrl-C reaches the child by itself; this is for a plain kill.
        signal(SIGTERM) { _ in
            let child = ChildProcess.running.load(ordering: .relaxed)
            if child > 0 { kill(child, SIGTERM) }
            _exit(143)
        }
    }

    deinit { stop() }

    /// Asks the process to end, and makes it after three seconds.
    func stop() {
        if hasEnded { return }
        kill(process, SIGTERM)
        for _ in 0..<300 {
            if isOver { return }
            usleep(10_000)
        }
        kill(process, SIGKILL)
        waitpid(process, nil, 0)
        markEnded()
    }

    /// Whether the process has ended by itself.
    var isOver: Bool {
        if hasEnded { return true }
        if waitpid(process, nil, WNOHANG) == 0 { return false }
        markEnded()
        return true
    }

    private func markEnded() {
        hasEnded = true
        _ = Self.running.compareExchange(expected: process, desired: 0, ordering: .relaxed)
    }
}

/// A directory of its own in the temporary one, removed with its owner.
final class TemporaryDirectory {
    let path: String

    init() throws {
        var template = Array("/tmp/kvasir-bench-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            throw CommandFailure(
                "can't make a directory in /tmp: \(String(cString: strerror(errno)))")
        }
        path = String(cString: made)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

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
            "serve", "--socket", socket, "--memory", "\(memoryBytes)", "--log-level", "warning",
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
                throw CommandFailure(
                    "the server that was to be measured ended; its message is above")
            }
            if Measure.now() > deadline {
                throw CommandFailure("the server that was to be measured doesn't answer")
            }
            usleep(5_000)
        }
    }

    func stop() { child?.stop() }
}
