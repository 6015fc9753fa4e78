import ArgumentParser
import Foundation
import KVDisk
import KVDiskFormat
import KVIdentity
import KVStore
import Logging

struct DiskCompact: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "compact",
        abstract: "Give room back that disk directories take and do not use.",
        discussion: """
            Moves what lives in segments that are mostly dead together, and removes their files. Nothing that could be \
            matched is lost. A server does this by itself when it needs the room; this is for giving it to others. \
            The server that uses the directories must be stopped first. Name all of them: a chunk that follows one on \
            another disk counts as dead without it.
            """)

    @Argument(help: "The directories.", completion: .directory)
    var directories: [String]

    @Flag(help: "Give up chunks that follow others which are in none of the directories.")
    var dropOrphans = false

    @Option(
        help: ArgumentHelp(
            "Empty segments of which less than this share is used.", valueName: "share"))
    var below = 0.5

    func validate() throws {
        if !(0...1).contains(below) {
            throw ValidationError("--below takes a share from 0 to 1, not \(below)")
        }
    }

    func run() throws {
        let (segmentBytes, memoryBytes, fileBytes) = try needs()
        var logger = Logger(label: "kvasir") { _ in LineLogHandler() }
        logger.logLevel = .warning
        let disks = zip(directories, fileBytes).map { directory, bytes in
            DiskConfiguration(
                directory: directory, byteCount: bytes + 4 * segmentBytes,
                segmentBytes: segmentBytes)
        }
        do {
            let store = try Store(
                .init(memoryBytes: memoryBytes, verifyOneIn: 0, disks: disks, logger: logger))
            defer { store.stop() }
            try compact(store)
        } catch let error as StoreError {
            throw CommandFailure(error.message)
        }
    }

    private func compact(_ store: Store) throws {
        if !store.waitUntilRecovered(seconds: 3600) || !store.waitUntilReady(seconds: 600) {
            throw CommandFailure(
                "the directories could not be read in time; see the messages above")
        }
        let before = store.gauges.disk
        let bar = ProgressBar("compacting")
        try store.compactDisks(below: below) { now in
            bar.tell(max(0, before.diskBytes - now), of: before.diskBytes - before.diskLiveBytes)
        }
        bar.done()
        let after = store.gauges.disk
        print(
            "\(ByteCount(max(0, before.diskBytes - after.diskBytes))) given back: "
                + "\(ByteCount(before.diskBytes)) before, \(ByteCount(after.diskBytes)) now, of which "
                + "\(ByteCount(after.diskLiveBytes)) are used by "
                + "\(Format.count(after.chunksOnDisk, "chunk"))")
    }

    /// What a store on these directories takes: bytes of a segment, of memory, and of the files of
    /// each.
    private func needs() throws -> (segment: Int, memory: Int, files: [Int]) {
        let look = try DiskLook(paths: directories)
        defer { look.close() }
        let orphans = look.recovered.volumes.reduce(0) { $0 + $1.counts.orphanedChunks }
        if orphans > 0, !dropOrphans {
            throw CommandFailure(
                "\(Format.count(orphans, "chunk")) follow others that are not here; if another directory of the "
                    + "server has those, name it too, else add --drop-orphans")
        }
        let files = look.directories.map(\.segments)
        let segment = files.joined().compactMap { $0.header?.segmentBytes }.max()
        let chunk = look.recovered.spaces.map(\.chunkBytes).max() ?? 0
        return (
            segment ?? 4 << 20, max(256 << 20, 16 * chunk),
            files.map { $0.reduce(0) { $0 + $1.byteCount } }
        )
    }
}
