import ArgumentParser
import Foundation
import KVClient

struct Stats: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what a server holds and what it has done.",
        discussion:
            "The names in --json are those of KV.STATS; docs/protocol.md says how to ask for them in any client."
    )

    @OptionGroup var options: ClientOptions

    @Flag(help: "Print JSON.")
    var json = false

    @Option(
        help: ArgumentHelp(
            "Show them again every so many seconds, with what changed, until Ctrl-C.",
            valueName: "seconds"))
    var watch: Double?

    func validate() throws {
        if let watch, !(0.1...86_400).contains(watch) {
            throw ValidationError("--watch takes 0.1 to 86400 seconds, not \(watch)")
        }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        var before: [Statistic]?
        while true {
            let now = try asking { () throws(ClientError) in try client.stats() }
            if json {
                let pairs = now.map { ($0.name, $0.value) }
                try JSONOutput.print(
                    Dictionary(pairs) { first, _ in first }, isPretty: watch == nil)
            } else {
                if watch != nil, isatty(1) == 1 { print("\u{1B}[H\u{1B}[2J", terminator: "") }
                print(StatisticsReport(now, before: before).text(socket: client.socketPath))
            }
            guard let watch else { return }
            fflush(nil)
            before = now
            Thread.sleep(forTimeInterval: watch)
        }
    }
}

/// Statistics in groups, for people.
struct StatisticsReport {
    private static let groups: [(title: String, names: [String])] = [
        (
            "Memory",
            ["arena_bytes", "arena_ready_bytes", "used_bytes", "pinned_bytes", "quarantined_bytes"]
        ),
        (
            "Disk",
            [
                "disks", "disks_recovering", "disks_suspended", "disk_bytes", "disk_live_bytes",
                "disk_limit_bytes", "chunks_on_disk", "chunks_on_disk_only", "chunks_waiting",
                "chunks_being_written", "chunks_loading",
            ]
        ),
        (
            "Stored now",
            ["chunks", "chunks_static", "chunks_writing", "chunks_doomed", "spaces", "roots"]
        ),
        ("In use now", ["sessions", "holds", "read_leases", "write_leases", "connections"]),
        (
            "Loads",
            [
                "matches", "matched_keys_asked", "matched_keys_hit", "matched_keys_on_disk",
                "bytes_acquired",
            ]
        ),
        (
            "From disk",
            [
                "chunks_loaded", "bytes_loaded", "chunks_loaded_waited_for",
                "chunks_refused_load", "chunks_recovered",
            ]
        ),
        (
            "Saves",
            [
                "chunks_granted", "chunks_present", "chunks_busy", "chunks_refused_full",
                "chunks_refused_not_ready",
                "reservations_refused", "pins_refused", "chunks_sealed", "bytes_sealed",
                "chunks_abandoned",
            ]
        ),
        (
            "To disk",
            ["chunks_written", "bytes_written", "chunks_moved", "bytes_moved"]
        ),
        (
            "Removed",
            [
                "chunks_evicted", "chunks_evicted_for_other_length",
                "chunks_evicted_unwritten", "chunks_evicted_from_disk", "chunks_left_to_memory",
                "chunks_dropped",
                "chunks_expired",
            ]
        ),
        ("Request log", ["request_log_written", "request_log_dropped", "request_log_bytes"]),
        (
            "Trouble",
            [
                "chunks_damaged", "chunks_unreadable", "chunk_writes_failed", "holds_expired",
                "read_leases_expired", "write_leases_expired",
                "protocol_errors",
            ]
        ),
    ]

    private let values: [Statistic]
    private let known: [String: Int]
    private let before: [String: Int]?

    init(_ values: [Statistic], before: [Statistic]?) {
        self.values = values
        known = Dictionary(values.map { ($0.name, $0.value) }) { first, _ in first }
        self.before = before.map {
            Dictionary($0.map { ($0.name, $0.value) }) { first, _ in first }
        }
    }

    func text(socket: String) -> String {
        var lines = ["kvasir on \(socket), up \(Format.age(known["uptime_ms"] ?? 0))"]
        let grouped = Set(Self.groups.flatMap(\.names) + ["uptime_ms"])
        let rest = values.map(\.name).filter { !grouped.contains($0) }
        for (title, names) in Self.groups + [("Other", rest)] {
            let present = names.filter { known[$0] != nil }
            if present.isEmpty || isWithoutDisk(title) || isUnused(title, names) { continue }
            lines += ["", title]
            for name in present { lines.append(line(name)) }
            if title == "Loads", let asked = known["matched_keys_asked"], asked > 0 {
                let share = Double(known["matched_keys_hit"] ?? 0) / Double(asked) * 100
                lines.append(row("hit rate of keys", "\(Format.fixed(share, 1)) %"))
            }
        }
        return lines.joined(separator: "\n")
    }

    /// Rows of zeros for a tier that is not there help nobody.
    private func isWithoutDisk(_ title: String) -> Bool {
        title.lowercased().hasSuffix("disk") && known["disks"] == 0
    }

    /// Nor do those of a log that nobody keeps.
    private func isUnused(_ title: String, _ names: [String]) -> Bool {
        title == "Request log" && names.allSatisfy { known[$0] == 0 }
    }

    private func line(_ name: String) -> String {
        let value = known[name] ?? 0
        let isBytes = name.hasSuffix("_bytes") || name.hasPrefix("bytes_")
        let text = isBytes ? ByteCount(value).description : Format.number(value)
        let change = before.map { value - ($0[name] ?? 0) } ?? 0
        let sign = change > 0 ? "+" : ""
        let title = name.replacingOccurrences(of: "_", with: " ").replacingOccurrences(
            of: " bytes", with: "")
        return row(title, text) + (change == 0 ? "" : "   \(sign)\(Format.number(change))")
    }

    private func row(_ title: String, _ value: String) -> String {
        let space = String(repeating: " ", count: max(1, 46 - title.count - value.count))
        return "  \(title)\(space)\(value)"
    }
}
