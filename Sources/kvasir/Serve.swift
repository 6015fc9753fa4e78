import ArgumentParser
import Foundation
import KVArena
import KVPolicy
import KVRequestLog
import KVService
import KVSocket
import KVStore
import Logging

struct Serve: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Keep KV caches in shared memory and serve them to engines on this host.",
        discussion: """
            The memory is made at once and faulted in in the background, and what a disk has from earlier is \
            found in the background too; the server answers from the start. SIGTERM or Ctrl-C stops it; what is only \
            in memory goes to disk before, for ten seconds at most.
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

    @OptionGroup(title: "Disk tier")
    var diskOptions: DiskOptions

    @Option(
        help: ArgumentHelp(
            "What memory gives up first: \(Self.policyNames). [KVASIR_POLICY] (default: \(PolicyName.default.rawValue))",
            valueName: "name"))
    var policy: String?

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

    @OptionGroup(title: "Request log")
    var requestLogOptions: RequestLogOptions

    private static let policyNames =
        PolicyName.allCases.map(\.rawValue).joined(separator: ", ") + " or default"

    func run() throws {
        // First of all, so that every thread started from here on leaves the signals to the event
        // loop.
        Server.blockSignals()
        ChildProcess.followParent()
        let started = Date()
        let settings = try resolve()
        var logger = Logger(label: "kvasir") { _ in LineLogHandler() }
        logger.logLevel = settings.level
        let requests = try openRequestLog(settings, logger: logger)
        defer { requests?.stop() }
        let store = try open(settings, logger: logger)
        let server = Server(
            store: store,
            configuration: ServerConfiguration(
                socketPath: settings.socket, socketGroup: settings.group, logger: logger,
                requestLog: requests))
        try server.run(handlingSignals: true) {
            let ms = Int(Date().timeIntervalSince(started) * 1000)
            logger.info(
                "kvasir \(KvasirVersion.current) serves \(ByteCount(store.arena.byteCount)) on \(settings.socket) (pid \(ProcessInfo.processInfo.processIdentifier), \(ms) ms)"
            )
        }
        // It is written while the store is.
        requests?.close()
        flush(store, logger: logger)
        store.stop()
        requests?.stop()
    }

    private func openRequestLog(_ settings: Settings, logger: Logger) throws -> RequestLog? {
        guard let (directory, byteLimit) = settings.requestLog else { return nil }
        do {
            let log = try RequestLog(
                .init(directory: directory, byteLimit: byteLimit, logger: logger))
            logger.info("logs requests in \(directory), \(ByteCount(byteLimit)) at most")
            return log
        } catch {
            throw CommandFailure(error.message)
        }
    }

    private func open(_ settings: Settings, logger: Logger) throws -> Store {
        if settings.plan.isDefault, settings.plan.disks.isEmpty {
            logger.warning("no disk tier: this user has no home; name a directory with --disk")
        }
        var configuration = Store.Configuration(
            memoryBytes: settings.memory?.bytes, verifyOneIn: settings.verifyOneIn,
            disks: settings.plan.disks, diskAdmission: settings.plan.admission,
            policy: settings.policy, logger: logger)
        do {
            do {
                return try Store(configuration)
            } catch let error as StoreError
                where settings.plan.isDefault && (error.code == .disk || error.code == .diskInUse)
            {
                logger.warning("no disk tier: \(error.message)")
                configuration.disks = []
                return try Store(configuration)
            }
        } catch let error as StoreError {
            throw CommandFailure(error.message)
        }
    }

    /// Brings what is only in memory to disk, within a bound.
    private func flush(_ store: Store, logger: Logger) {
        if store.gauges.disk.disks == 0 { return }
        logger.info("writing what is only in memory, for \(Int(Self.flushSeconds)) s at most")
        do {
            try store.sync(seconds: Self.flushSeconds)
        } catch {
            logger.warning("not all of the memory is on disk: \(error)")
        }
    }

    /// How long a stopping server writes what is only in memory.
    private static let flushSeconds = 10.0

    private struct Settings {
        var socket: String
        var group: String?
        var memory: ByteCount?
        var verifyOneIn: Int
        var policy: PolicyName
        var plan: DiskOptions.Plan
        var requestLog: (directory: String, byteLimit: Int)?
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
        let word = try Setting.value(policy, "KVASIR_POLICY", default: "default")
        guard let chosen = PolicyName(named: word.lowercased()) else {
            throw ValidationError("--policy takes one of \(Self.policyNames), not '\(word)'")
        }
        let name = try Setting.value(logLevel, "KVASIR_LOG_LEVEL", default: "info")
        guard let level = Logger.Level(rawValue: name.lowercased()) else {
            let all = Logger.Level.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("--log-level takes one of \(all), not '\(name)'")
        }
        return Settings(
            socket: path, group: group.isEmpty ? nil : group,
            memory: bytes?.bytes == 0 ? nil : bytes,
            verifyOneIn: verifyOneIn, policy: chosen, plan: try diskOptions.resolve(),
            requestLog: try requestLogOptions.resolve(), level: level)
    }
}
