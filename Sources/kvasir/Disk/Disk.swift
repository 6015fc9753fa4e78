import ArgumentParser
import Foundation
import KVDisk
import KVTier

struct Disk: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Look into disk directories: what they hold, and whether they are whole.",
        discussion: """
            Name all directories of a server at once: a chunk counts only if the chunks before it are there, \
            and those may be on another disk.

            They need no server. 'inspect' and 'verify' only read, and work beside a server that uses the directories; \
            what it is writing meanwhile may then be missing, or look unfinished.
            """,
        subcommands: [DiskInspect.self, DiskVerify.self, DiskCompact.self])
}

/// Directories that a command reads as a server does at its start.
struct DiskLook {
    let paths: [String]
    let directories: [DiskDirectory]
    let recovered: RecoveredDisks
    /// By directory its list of static chunks.
    let statics: [StaticListFile.Content]
    private let files: [ReadOnlyIO]

    /// Reads all that segments say. It blocks, with a bar on standard error when that takes long.
    init(paths: [String]) throws {
        self.paths = paths
        var files: [ReadOnlyIO] = []
        var directories: [DiskDirectory] = []
        for path in paths {
            let (io, directory) = try Self.open(path)
            if let twice = directories.firstIndex(where: { $0.disk == directory.disk }) {
                throw CommandFailure("\(paths[twice]) and \(path) are the same disk; name it once")
            }
            files.append(io)
            directories.append(directory)
        }
        (self.files, self.directories) = (files, directories)
        statics = zip(paths, directories).map { path, directory in
            StaticListFile(directory: path, disk: directory.disk).read()
        }
        let bar = ProgressBar("reading")
        let nowMs = UInt64(Date().timeIntervalSince1970 * 1000)
        let recovery = DiskRecovery(directories, wallMs: nowMs) { progress in
            bar.tell(progress.bytesDone, of: progress.bytesTotal)
            return true
        }
        guard let recovered = recovery.run() else {
            preconditionFailure("nobody ends this recovery")
        }
        bar.done()
        self.recovered = recovered
    }

    private static func open(_ path: String) throws -> (ReadOnlyIO, DiskDirectory) {
        do {
            let io = try ReadOnlyIO(directory: path)
            return (io, try DiskDirectory.look(io))
        } catch let fault as DiskFault {
            throw CommandFailure(fault.message)
        } catch let fault as TierFault {
            throw CommandFailure("\(path): \(fault.message)")
        }
    }

    /// Says what is amiss on standard error.
    func tellProblems() {
        for volume in recovered.volumes.indices {
            let name = nameBefore(volume)
            for problem in problems(volume) { Output.tell("problem: \(name)\(problem)\n") }
            for note in notes(volume) { Output.tell("note: \(name)\(note)\n") }
        }
    }

    /// What is wrong in a directory.
    func problems(_ volume: Int) -> [String] {
        guard case .unusable(let problem, _) = statics[volume] else {
            return recovered.volumes[volume].problems
        }
        return recovered.volumes[volume].problems + [problem]
    }

    /// What stands before a message: the directory, if there are several.
    func nameBefore(_ volume: Int) -> String {
        paths.count > 1 ? "\(paths[volume]): " : ""
    }

    /// What is to know of a directory and is nothing to worry about.
    func notes(_ volume: Int) -> [String] {
        let found = recovered.volumes[volume]
        let orphans = found.counts.orphanedChunks
        if paths.count > 1 || orphans == 0 { return found.notes }
        return found.notes + [
            "\(Format.count(orphans, "chunk")) without the chunk before: if the server has several disks, that "
                + "may be on another one; name all directories at once to have them judged together"
        ]
    }

    /// Lets go of the directories.
    func close() { for io in files { io.stop() } }
}

/// How much of a long job is done, on standard error: only on a terminal, and only when the job takes
/// more than two seconds.
final class ProgressBar {
    private static let width = 30
    private static let quietSeconds = 2.0
    private static let secondsBetween = 0.1

    private let title: String
    private let isTerminal: Bool
    private let start: Date
    private var lastTold = Date.distantPast

    /// - Parameter start: when the job began, of which this may be a part.
    init(_ title: String, since start: Date = Date()) {
        self.title = title
        self.start = start
        isTerminal = isatty(2) == 1
    }

    /// Shows bytes of bytes.
    func tell(_ done: Int, of total: Int) {
        tell { Self.text(title, done, of: total) }
    }

    /// Shows a share from 0 to 1.
    func tell(share: Double) {
        tell { Self.text(title, share) }
    }

    private func tell(_ text: () -> String) {
        let now = Date()
        guard isTerminal, now.timeIntervalSince(start) > Self.quietSeconds,
            now.timeIntervalSince(lastTold) > Self.secondsBetween
        else { return }
        lastTold = now
        Output.tell("\r\u{1B}[K\(text())")
    }

    /// Takes the bar away.
    func done() {
        if lastTold != .distantPast { Output.tell("\r\u{1B}[K") }
    }

    static func text(_ title: String, _ done: Int, of total: Int) -> String {
        let share = total > 0 ? min(1, Double(done) / Double(total)) : 1
        return "\(text(title, share)) of \(ByteCount(total))"
    }

    private static func text(_ title: String, _ share: Double) -> String {
        let share = min(max(0, share), 1)
        let full = Int(share * Double(width))
        let bar = String(repeating: "█", count: full) + String(repeating: "░", count: width - full)
        return "\(title) \(bar) \(Int(share * 100)) %"
    }
}
