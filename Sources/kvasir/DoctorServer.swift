import Foundation
import KVClient
import KVService
import KVSocket

/// Looks at the socket, and at the server behind it.
struct ServerExamination {
    private(set) var findings: [Finding] = []
    private(set) var answers = false

    init(options: ClientOptions) {
        let path: String
        do {
            path = try SocketPath.resolve(
                options.socket, environment: ProcessInfo.processInfo.environment)
        } catch {
            findings.append(Finding(name: "socket", level: .problem, found: error.description))
            return
        }
        findings.append(socket(path))
        server(options, path)
    }

    private func socket(_ path: String) -> Finding {
        var status = stat()
        guard lstat(path, &status) == 0 else {
            let code = errno
            if code == ENOENT {
                return Finding(name: "socket", level: .fine, found: "\(path) is not there yet")
            }
            return Finding(
                name: "socket", level: .problem,
                found: "can't look at \(path): \(String(cString: strerror(code)))",
                remedy:
                    "run as the server's user, or name another socket with --socket or KVASIR_SOCKET"
            )
        }
        let mode = String(status.st_mode & 0o777, radix: 8)
        let owner =
            getpwuid(status.st_uid).map { String(cString: $0.pointee.pw_name) }
            ?? "\(status.st_uid)"
        let found = "\(path), owner \(owner), mode 0\(mode)"
        if status.st_mode & S_IFMT != S_IFSOCK {
            return Finding(
                name: "socket", level: .problem, found: "\(path) is no socket",
                remedy: "remove it, or name another with --socket or KVASIR_SOCKET")
        }
        if status.st_mode & 0o007 != 0 {
            return Finding(
                name: "socket", level: .warning,
                found: found + ": every user of this machine may connect",
                remedy: "chmod o= \(path); share it with one group by 'kvasir serve --socket-group'"
            )
        }
        return Finding(name: "socket", level: .fine, found: found)
    }

    private mutating func server(_ options: ClientOptions, _ path: String) {
        do throws(ClientError) {
            let client = try Client(.init(socket: path, timeoutMs: options.timeout))
            defer { client.close() }
            let version = try client.version()
            let time = try client.ping()
            answers = true
            findings.append(
                Finding(
                    name: "server", level: .fine,
                    found:
                        "answers in \(Format.duration(Double(time))), pid \(version.processID), up "
                        + Format.age(version.uptimeMs)))
            findings.append(versions(version))
            let values = try client.stats()
            findings.append(arena(values))
            findings.append(disks(values))
        } catch {
            let isAbsent = error.code == .notConnected && !error.message.hasPrefix("can't connect")
            findings.append(
                Finding(
                    name: "server", level: isAbsent ? .warning : .problem,
                    found: isAbsent ? "none answers" : error.message,
                    remedy: isAbsent
                        ? "start one with 'kvasir serve'"
                        : "look at the server's log; stop it and start it again if it hangs"))
            findings.append(
                Finding(
                    name: "versions", level: .fine,
                    found: "client \(KvasirVersion.current), no server"))
        }
    }

    private func versions(_ version: ServerVersion) -> Finding {
        let found =
            "client \(KvasirVersion.current), server \(version.server), protocol \(version.protocolVersion)"
        if version.protocolVersion != KvasirVersion.protocolVersion {
            return Finding(
                name: "versions", level: .problem,
                found: found + ", but the client speaks protocol \(KvasirVersion.protocolVersion)",
                remedy: "install the same release of both")
        }
        if version.server != KvasirVersion.current {
            return Finding(
                name: "versions", level: .warning, found: found,
                remedy: "restart the server so that it runs what is installed")
        }
        return Finding(name: "versions", level: .fine, found: found)
    }

    private func disks(_ statistics: [Statistic]) -> Finding {
        let values = Dictionary(statistics.map { ($0.name, $0.value) }) { first, _ in first }
        let count = values["disks"] ?? 0
        if count == 0 {
            return Finding(name: "server's disks", level: .fine, found: "none: memory only")
        }
        var found = "\(Format.number(values["chunks_on_disk"] ?? 0)) chunks, "
        found += "\(ByteCount(values["disk_live_bytes"] ?? 0)) in use of files of "
        found += "\(ByteCount(values["disk_bytes"] ?? 0)), at most "
        found += ByteCount(values["disk_limit_bytes"] ?? 0).description
        if let suspended = values["disks_suspended"], suspended > 0 {
            return Finding(
                name: "server's disks", level: .problem,
                found: found + "; \(suspended) of \(count) take no writes after faults",
                remedy: "the server's log says which and why; it tries again by itself")
        }
        if let recovering = values["disks_recovering"], recovering > 0 {
            found += "; \(recovering) of \(count) still being read after the start"
        }
        return Finding(name: "server's disks", level: .fine, found: found)
    }

    private func arena(_ statistics: [Statistic]) -> Finding {
        let values = Dictionary(statistics.map { ($0.name, $0.value) }) { first, _ in first }
        let (size, ready) = (values["arena_bytes"] ?? 0, values["arena_ready_bytes"] ?? 0)
        let found =
            "\(ByteCount(size)), \(ByteCount(ready)) faulted in, \(ByteCount(values["used_bytes"] ?? 0)) in use"
        if ready < size {
            return Finding(
                name: "arena", level: .warning, found: found,
                remedy:
                    "wait until it is ready; if it stays so, memory is short: give the server less --memory"
            )
        }
        return Finding(name: "arena", level: .fine, found: found)
    }
}
