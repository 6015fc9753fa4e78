import ArgumentParser
import Foundation
import KVDisk
import KVIdentity

struct DiskVerify: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Read all that is live in disk directories and compare it with its checksums.",
        discussion: """
            Changes nothing. The exit status is 1 if a record is bad or a segment is damaged: a server treats what it \
            can't read as missing, so nothing has to be mended, but look after the device.
            """)

    @Argument(help: "The directories: all of a server together.", completion: .directory)
    var directories: [String]

    func run() throws {
        let look = try DiskLook(paths: directories)
        defer { look.close() }
        look.tellProblems()
        let start = Date()
        let bar = ProgressBar("verifying")
        let verification = DiskVerification(look.directories, look.recovered) { done, total in
            bar.tell(done, of: total)
            return true
        }
        guard let verification else { preconditionFailure("nobody ends this verification") }
        bar.done()
        for shard in verification.bad { print(Self.line(shard, look)) }
        let untold = verification.badCount - verification.bad.count
        if untold > 0 { print("… and \(Format.number(untold)) more") }
        print(Self.summary(verification, seconds: Date().timeIntervalSince(start)))
        if verification.badCount > 0
            || look.paths.indices.contains(where: { !look.problems($0).isEmpty })
        {
            throw ExitCode(1)
        }
    }

    private static func line(_ shard: DiskVerification.BadShard, _ look: DiskLook) -> String {
        "bad: \(look.nameBefore(shard.volume))\(shard.file) byte \(shard.offset), \(Format.number(shard.byteCount)) bytes: "
            + "shard \(shard.shard) of chunk \(shard.key.hex): \(shard.reason)"
    }

    private static func summary(_ result: DiskVerification, seconds: Double) -> String {
        var text =
            "\(Format.count(result.shardCount, "record")), \(ByteCount(result.byteCount)), "
            + "\(Format.number(result.badCount)) bad; took \(Format.duration(seconds * 1e9))"
        if result.goneCount > 0 {
            text +=
                "; \(Format.count(result.goneCount, "record")) went away meanwhile: a server is "
                + "using the directory"
        }
        return text
    }
}
