import ArgumentParser
import Foundation
import KVDisk
import KVDiskFormat
import KVIdentity
import TestDisk
import Testing

@testable import kvasir

/// A directory with two segments on a real file system, removed with the last reference.
private final class DiskFolder {
    let url: URL
    var disk: SampleDisk
    let chunkBytes = 6_000

    init(seed: UInt64 = 21) throws {
        disk = SampleDisk(seed: seed)
        url = FileManager.default.temporaryDirectory.appending(path: "kvasir-disk-\(UUID())")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        let space = disk.space([chunkBytes], name: "acme/model-7b")
        for number: UInt64 in 1...2 {
            let chain = disk.chain(4, of: space)
            disk.addSegment(
                number, [[disk.description(of: space)] + chain], isClosed: number == 1)
        }
        try save()
    }

    deinit { try? FileManager.default.removeItem(at: url) }

    func save() throws {
        for (name, bytes) in disk.files { try Data(bytes).write(to: url.appending(path: name)) }
    }

    /// Turns a bit of a chunk's body.
    func damage(_ segment: UInt64, _ index: UInt32) throws {
        let entry = disk.written.first {
            $0.segment == segment && $0.entry.kind == .chunk && $0.entry.chunkIndex == index
        }!.entry
        disk.flip(segment, at: entry.bodyOffset + 77)
        try save()
    }

    var verification: DiskVerification? {
        get throws {
            let look = try DiskLook(paths: [url.path])
            defer { look.close() }
            return DiskVerification(look.directories, look.recovered)
        }
    }

    var report: DiskReport {
        get throws {
            let look = try DiskLook(paths: [url.path])
            defer { look.close() }
            return DiskReport.all(look)[0]
        }
    }
}

@Suite("kvasir disk")
struct DiskCommandTests {
    @Test("inspect shows segments, spaces and what is live")
    func inspect() throws {
        let folder = try DiskFolder()
        let report = try folder.report
        #expect(report.disk == folder.disk.disk.description && report.chunks == 8)
        #expect(report.segments.map(\.state) == ["closed", "open"])
        #expect(report.segments.map(\.liveShards) == [4, 4])
        #expect(report.segments.map(\.entries) == [5, 5])
        #expect(report.liveBytes == 8 * 8192 && report.bytes == 2 * 256 << 10)
        #expect(report.spaces.map(\.modelName) == ["acme/model-7b"])
        #expect(report.spaces.map(\.bytes) == [8 * folder.chunkBytes])
        #expect(report.problems.isEmpty && report.leftOut.isEmpty)
        for part in [
            report.disk, "acme/model-7b", "2 segments", "8 chunks", "closed", "open",
            "on the move",
        ] {
            #expect(report.text.contains(part), "\(part) in \(report.text)")
        }
        let json = String(decoding: try JSONEncoder().encode(report), as: UTF8.self)
        for name in ["live_bytes", "left_out", "model_name", "shard_bytes", "created_ms"] {
            #expect(json.contains("\"\(name)\""))
        }
    }

    @Test("inspect shows what is damaged, and what to do")
    func inspectDamage() throws {
        let folder = try DiskFolder()
        folder.disk.flip(1, at: 100)
        try folder.save()
        let report = try folder.report
        #expect(report.segments.map(\.state) == ["free", "open"] && report.chunks == 4)
        #expect(report.text.contains("problem: segment-0000000001.kvseg"))
        #expect(report.text.contains("check the device"))
    }

    @Test("verify reads every live body, and fails when one is bad")
    func verify() throws {
        let folder = try DiskFolder()
        let good = try #require(try folder.verification)
        #expect(good.shardCount == 8 && good.byteCount == 8 * folder.chunkBytes)
        #expect(good.badCount == 0 && good.goneCount == 0)
        try DiskVerify.parse([folder.url.path]).run()
        try folder.damage(1, 2)
        let bad = try #require(try folder.verification)
        #expect(bad.shardCount == 8 && bad.badCount == 1)
        let shard = try #require(bad.bad.first)
        let written = try #require(
            folder.disk.written.first {
                $0.segment == 1 && $0.entry.kind == .chunk && $0.entry.chunkIndex == 2
            })
        #expect(shard.key == written.entry.key && shard.offset == written.entry.bodyOffset)
        #expect(shard.file == "segment-0000000001.kvseg" && shard.reason.contains("checksum"))
        #expect(throws: ExitCode(1)) { try DiskVerify.parse([folder.url.path]).run() }
    }

    @Test("verify doesn't blame what a server has used again meanwhile")
    func verifyLive() throws {
        let folder = try DiskFolder()
        let look = try DiskLook(paths: [folder.url.path])
        defer { look.close() }
        let space = folder.disk.space([9_000])
        let chain = folder.disk.chain(6, of: space)
        folder.disk.addSegment(1, [[folder.disk.description(of: space)] + chain], isClosed: true)
        try folder.save()
        let again = try #require(DiskVerification(look.directories, look.recovered))
        #expect(again.badCount == 0 && again.goneCount > 0)
        try FileManager.default.removeItem(
            at: folder.url.appending(path: "segment-0000000002.kvseg"))
        let removed = try #require(DiskVerification(look.directories, look.recovered))
        #expect(removed.badCount == 0 && removed.goneCount == again.goneCount + 4)
    }

    @Test("a directory that is none, and one that is missing, are refused in a sentence")
    func noDirectory() throws {
        let folder = try DiskFolder()
        let missing = #expect(throws: CommandFailure.self) {
            try DiskLook(paths: [folder.url.path + "/nothing"])
        }
        #expect(missing?.description.contains("open the directory") == true)
        try FileManager.default.removeItem(at: folder.url.appending(path: "kvasir-disk"))
        let before = try FileManager.default.contentsOfDirectory(atPath: folder.url.path).sorted()
        let foreign = #expect(throws: CommandFailure.self) {
            try DiskLook(paths: [folder.url.path])
        }
        #expect(foreign?.description.contains("there is no file kvasir-disk") == true)
        let after = try FileManager.default.contentsOfDirectory(atPath: folder.url.path).sorted()
        #expect(before == after)
    }

    @Test("directories of one server are judged together")
    func together() throws {
        let (one, two) = (try DiskFolder(), try DiskFolder(seed: 22))
        let space = one.disk.space([one.chunkBytes])
        let chain = one.disk.chain(4, of: space)
        one.disk.addSegment(
            3, [[one.disk.description(of: space), chain[0], chain[2]]], isClosed: true)
        two.disk.addSegment(
            3, [[two.disk.description(of: space), chain[1], chain[3]]], isClosed: true)
        try one.save()
        try two.save()
        let alone = try two.report
        #expect(alone.chunks == 8 && alone.leftOut == ["orphaned_chunks": 2])
        #expect(alone.problems.isEmpty && alone.text.contains("may be on another one"))
        try DiskVerify.parse([two.url.path]).run()
        let look = try DiskLook(paths: [one.url.path, two.url.path])
        defer { look.close() }
        let reports = DiskReport.all(look)
        #expect(reports.map(\.chunks) == [10, 10] && reports.map(\.leftOut) == [[:], [:]])
        #expect(reports.map(\.directory) == look.paths && reports[0].disk != reports[1].disk)
        #expect(reports.map { $0.spaces.count } == [2, 2] && reports[1].notes.isEmpty)
        let verification = try #require(DiskVerification(look.directories, look.recovered))
        #expect(verification.shardCount == 20 && verification.badCount == 0)
        try DiskInspect.parse([one.url.path, two.url.path, "--json"]).run()
        let twice = #expect(throws: CommandFailure.self) {
            try DiskLook(paths: [one.url.path, one.url.path])
        }
        #expect(twice?.description.contains("name it once") == true)
    }

    @Test("the bar fills")
    func bar() {
        #expect(ProgressBar.text("reading", 0, of: 4 << 20).hasSuffix("░ 0 % of 4 MiB"))
        #expect(ProgressBar.text("reading", 1 << 20, of: 4 << 20).contains("█░"))
        #expect(ProgressBar.text("reading", 4 << 20, of: 4 << 20).hasSuffix("█ 100 % of 4 MiB"))
        #expect(ProgressBar.text("reading", 0, of: 0).contains("100 %"))
    }
}
