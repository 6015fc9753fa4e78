import CKvasir
import Foundation
import KVThreads

/// This program as a process of its own, stopped at the latest when its owner is gone, however that went.
final class ChildProcess {
    let process: Int32
    private var hasEnded = false

    /// Names the process that a child belongs to.
    private static let parentVariable = "KVASIR_PARENT"

    /// For a child's first line: it ends when the process that started it does, even by kill -9.
    static func followParent() {
        guard let text = ProcessInfo.processInfo.environment[parentVariable],
            let parent = Int32(text)
        else { return }
        // Where it has another parent, the variable was inherited and means nothing.
        _ = kv_end_with_parent(parent)
    }

    /// Starts this program with these arguments. Its output goes to standard error unless a descriptor is given, its input is
    /// ours.
    init(_ arguments: [String], input: Int32? = nil, output: Int32 = 2) throws {
        Leftovers.watchSignals()
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        if let input { posix_spawn_file_actions_adddup2(&actions, input, 0) }
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // Signals that this process waits for must reach the child as always.
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        sigaddset(&none, SIGPIPE)
        posix_spawnattr_setsigdefault(&attributes, &none)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        let program = "/proc/self/exe"
        var path = try FileManager.default.destinationOfSymbolicLink(atPath: program)
        // A newer build may have taken its place; this one is still there under the other name.
        if access(path, X_OK) != 0 { path = program }
        var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
        defer { for word in words { free(word) } }
        words.append(nil)
        setenv(Self.parentVariable, "\(getpid())", 1)
        process = try Leftovers.add {
            var process: pid_t = 0
            let code = posix_spawn(&process, path, &actions, &attributes, words, environ)
            if code != 0 {
                throw CommandFailure("can't start \(path): \(String(cString: strerror(code)))")
            }
            return process
        }
    }

    deinit { stop() }

    /// Asks the process to end, and makes it after three seconds.
    func stop() {
        if hasEnded { return }
        Foundation.kill(process, SIGTERM)
        for _ in 0..<300 {
            if isOver { return }
            usleep(10_000)
        }
        kill()
    }

    /// Ends the process at once, as a crash would.
    func kill() {
        if hasEnded { return }
        Foundation.kill(process, SIGKILL)
        waitpid(process, nil, 0)
        markEnded()
    }

    /// Says that the process ended though nobody asked it to. Does not return where this program is being ended itself: then
    /// the child went because of that.
    static func unexpectedEnd(of what: String) -> CommandFailure {
        // Ctrl-C reaches the child as soon as us.
        usleep(200_000)
        Leftovers.waitIfEnding()
        return CommandFailure("\(what) ended; its message is above")
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
        Leftovers.remove(process: process)
    }
}

/// A directory of its own in the temporary one, removed with its owner.
final class TemporaryDirectory {
    let path: String

    init() throws {
        Leftovers.watchSignals()
        var template = Array("/tmp/kvasir-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            throw CommandFailure(
                "can't make a directory in /tmp: \(String(cString: strerror(errno)))")
        }
        path = String(cString: made)
        Leftovers.add(directory: path)
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
        Leftovers.remove(directory: path)
    }
}

/// What must not be left behind when this program is ended by Ctrl-C or SIGTERM.
private enum Leftovers {
    private struct State {
        var isWatching = false
        var isEnding = false
        var processes: Set<Int32> = []
        var directories: Set<String> = []
    }

    private static let state = Locked(State())

    /// Starts a process; no signal comes between its start and its being known here.
    static func add(_ start: () throws -> Int32) rethrows -> Int32 {
        try state.withLock { state in
            let process = try start()
            state.processes.insert(process)
            return process
        }
    }

    static func remove(process: Int32) { state.withLock { _ = $0.processes.remove(process) } }
    static func add(directory: String) { state.withLock { _ = $0.directories.insert(directory) } }
    static func remove(directory: String) {
        state.withLock { _ = $0.directories.remove(directory) }
    }

    /// Starts, once, a thread that waits for the signals.
    static func watchSignals() {
        let isFirst = state.withLock { state in
            defer { state.isWatching = true }
            return !state.isWatching
        }
        guard isFirst else { return }
        var signals = sigset_t()
        sigemptyset(&signals)
        for number in [SIGINT, SIGTERM] { sigaddset(&signals, number) }
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        _ = NamedThread("kv-signals") { [signals] in
            var number: Int32 = 0
            var signals = signals
            while sigwait(&signals, &number) != 0 {}
            removeAll()
            _exit(128 + number)
        }
    }

    /// Returns at once, unless a signal has come: then the thread that waited for it will end the program.
    static func waitIfEnding() {
        while state.withLock({ $0.isEnding }) { sleep(1) }
    }

    private static func removeAll() {
        let (processes, directories) = state.withLock { state in
            state.isEnding = true
            return (state.processes, state.directories)
        }
        for process in processes { kill(process, SIGTERM) }
        for process in processes {
            for _ in 0..<300 where waitpid(process, nil, WNOHANG) == 0 { usleep(10_000) }
            kill(process, SIGKILL)
        }
        for directory in directories { try? FileManager.default.removeItem(atPath: directory) }
    }
}
