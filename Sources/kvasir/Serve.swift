import ArgumentParser
import Foundation
import KVArena
import KVService
import KVSocket
import KVStore
import Logging

struct Serve: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Keep KV caches in shared memory and serve them to engines on this host.",
        discussion: """
            The memory is made at once and faulted in in the background; the server answers from the start. \
            SIGTERM or Ctrl-C stops it.
            """)

    @Option(
        help: ArgumentHelp(
            "Path of the Unix socket. [KVASIR_SOCKET] (default: kvasir/kvasir.sock in the user's runtime directory, else in /tmp/kvasir-UID)",
            valueName: "path"))
    var socket: String?

    @Option(
        help: ArgumentHelp(
            "Let members of this group connect too, e.g. from containers. [KVASIR_SOCKET_GROUP] (default: the user alone)",
            valueName: "group"))
    var socketGroup: String?

    @Option(
        help: ArgumentHelp(
            "Size of the memory tier, e.g. 4GiB. [KVASIR_MEMORY] (default: a quarter of the machine's or control group's memory)",
            valueName: "size"))
    var memory: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Verify checksums of one acquire in so many: 'all', 'off' or a number. [KVASIR_VERIFY] (default: 64)",
            valueName: "rate"))
    var verify: String?

    @Option(
        help: ArgumentHelp(
            "trace, debug, info, notice, warning, error or critical. [KVASIR_LOG_LEVEL] (default: info)",
            valueName: "level"))
    var logLevel: String?

    func run() throws {
        // First of all, so that every thread started from here on leaves the signals to the event
        // loop.
        Server.blockSignals()
        ChildProcess.followParent()
        let started = Date()
        let settings = try resolve()
        var logger = Logger(label: "kvasir") { _ in LineLogHandler() }
        logger.logLevel = settings.level
        let store: Store
        do {
            store = try Store(
                Store.Configuration(
                    memoryBytes: settings.memory?.bytes, verifyOneIn: settings.verifyOneIn,
                    logger: logger))
        } catch let error as StoreError {
            throw CommandFailure(error.message)
        }
        let server = Server(
            store: store,
            configuration: ServerConfiguration(
                socketPath: settings.socket, socketGroup: settings.group, logger: logger))
        try server.run(handlingSignals: true) {
            let ms = Int(Date().timeIntervalSince(started) * 1000)
            logger.info(
                "kvasir \(KvasirVersion.current) serves \(ByteCount(store.arena.byteCount)) on \(settings.socket) (pid \(ProcessInfo.processInfo.processIdentifier), \(ms) ms)"
            )
        }
        store.stop()
    }

    private struct Settings {
        var socket: String
        var group: String?
        var memory: ByteCount?
        var verifyOneIn: Int
        var level: Logger.Level
    }

    private func resolve() throws -> Settings {
        let environment = ProcessInfo.processInfo.environment
        let path = try SocketPath.resolve(socket, environment: environment)
        let group = try Setting.value(socketGroup, "KVASIR_SOCKET_GROUP", default: "")
        let bytes: ByteCount? = try Setting.value(memory, "KVASIR_MEMORY", default: ByteCount(0))
        let rate = try Setting.value(verify, "KVASIR_VERIFY", default: "64")
        guard let verifyOneIn = rate == "all" ? 1 : rate == "off" ? 0 : Int(rate), verifyOneIn >= 0
        else {
            throw ValidationError("--verify takes 'all', 'off' or a number, not '\(rate)'")
        }
        let name = try Setting.value(logLevel, "KVASIR_LOG_LEVEL", default: "info")
        guard let level = Logger.Level(rawValue: name.lowercased()) else {
            let all = Logger.Level.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("--log-level takes one of \(all), not '\(name)'")
        }
        return Settings(
            socket: path, group: group.isEmpty ? nil : group,
            memory: bytes?.bytes == 0 ? nil : bytes,
            verifyOneIn: verifyOneIn, level: level)
    }
}
