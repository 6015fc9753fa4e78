import ArgumentParser
import Foundation
import KVService

struct Doctor: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Look whether this machine, its limits and the server are as Kvasir needs them.",
        discussion:
            "Changes nothing, and looks at the disk tier as 'kvasir serve' with the same options and variables would use it. The exit status is 1 if there is a problem; warnings don't count."
    )

    @OptionGroup var options: ClientOptions

    @OptionGroup(title: "What the server is started with")
    var diskOptions: DiskOptions

    @Flag(help: "Print JSON.")
    var json = false

    private struct Report: Encodable {
        var version: String
        var healthy: Bool
        var findings: [Finding]
    }

    func run() throws {
        let server = ServerExamination(options: options)
        let machine = MachineExamination(serverAnswers: server.answers)
        let disks = DiskExamination(diskOptions)
        let findings = server.findings + machine.findings + disks.findings
        let isHealthy = !findings.contains { $0.level == .problem }
        if json {
            try JSONOutput.print(
                Report(version: KvasirVersion.current, healthy: isHealthy, findings: findings))
        } else {
            for finding in findings { print(finding.text) }
            let problems = findings.count { $0.level == .problem }
            let warnings = findings.count { $0.level == .warning }
            print("\(findings.count) findings: \(problems) problems, \(warnings) warnings")
        }
        if !isHealthy { throw ExitCode(1) }
    }
}

/// One thing that was looked at.
struct Finding: Encodable {
    enum Level: String, Encodable {
        case fine = "ok"
        case warning
        case problem
    }

    var name: String
    var level: Level
    /// What was found.
    var found: String
    /// What to do about it; empty if there is nothing to do.
    var remedy: String = ""

    var text: String {
        let mark = level.rawValue.padding(toLength: 8, withPad: " ", startingAt: 0)
        let title = name.padding(toLength: max(20, name.count), withPad: " ", startingAt: 0)
        return "\(mark) \(title) \(found)" + (remedy.isEmpty ? "" : " → \(remedy)")
    }
}
