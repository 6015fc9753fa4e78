import Glibc
import KVDiskFormat
import KVIdentity
import TestDisk
import TestRandom
import Testing

@testable import KVDisk

/// How long a start takes. Asked for with `KVASIR_RECOVERY_CHUNKS=1000000 swift test --filter
/// RecoverySpeedTests`; `KVASIR_RECOVERY_DIRECTORY` keeps the (sparse) files for other tools.
@Suite(.enabled(if: getenv("KVASIR_RECOVERY_CHUNKS") != nil))
struct RecoverySpeedTests {
    @Test func manyChunks() throws {
        let count = try #require(Int(String(cString: getenv("KVASIR_RECOVERY_CHUNKS"))))
        let temporary = try TemporaryDirectory()
        let path = getenv("KVASIR_RECOVERY_DIRECTORY").map { String(cString: $0) }
        let folder = path ?? temporary.path
        mkdir(folder, 0o700)
        try Self.make(folder, chunks: count)
        let io = try ReadOnlyIO(directory: folder)
        let clock = ContinuousClock()
        var directory: DiskDirectory?
        var disks: RecoveredDisks?
        var handed = 0
        let headers = try clock.measure { directory = try DiskDirectory.look(io) }
        let recovery = clock.measure { disks = DiskRecovery([directory!], wallMs: 0).run() }
        let handing = clock.measure {
            disks!.forEachBatch {
                handed += $0.chunks.count
                return true
            }
        }
        print("\(count) chunks: headers \(headers), recovery \(recovery), handed over \(handing)")
        #expect(handed == count && disks!.volumes[0].problems.isEmpty)
        io.stop()
    }

    /// Segments with footers and without groups: what a start doesn't read isn't there.
    private static func make(_ folder: String, chunks: Int) throws {
        var sample = SampleDisk(seed: 1)
        let space = sample.space([4096])
        let json = [UInt8](space.json.utf8)
        try write(folder, DiskFormat.diskHeaderName, 4096, [(0, sample.files["kvasir-disk"]!)])
        let perSegment = 200_000
        var made = 0
        var number: UInt64 = 0
        var sequence: UInt64 = 1 << 40
        var (root, parent, index) = (sample.digest(), Digest?.none, 0)
        while made < chunks {
            let count = min(perSegment, chunks - made)
            number += 1
            let header = SegmentHeader(
                disk: sample.disk, number: number, life: number, segmentBytes: 1 << 30,
                firstSequence: sequence, createdMs: 1)
            var entries = [
                DiskEntry.space(
                    space.id, bodyBytes: json.count, checksum: checksum(json), writtenMs: 1)
            ]
            entries[0].bodyOffset = 8192
            for place in 0..<count {
                if index == 200 { (root, parent, index) = (sample.digest(), nil, 0) }
                let key = sample.digest()
                var entry = DiskEntry.chunk(
                    key: key, parent: parent, space: space.id, root: root, shard: 0,
                    chunkIndex: UInt32(index), bodyBytes: 4096, checksum: 7, writtenMs: 1,
                    expiresMs: 0)
                entry.bodyOffset = 12_288 + place * 4096
                entries.append(entry)
                (parent, index) = (key, index + 1)
            }
            for place in entries.indices { entries[place].sequence = sequence + UInt64(place) }
            sequence += UInt64(entries.count)
            let footer = SegmentFooter(
                entries, groupsEnd: 12_288 + count * 4096, in: header)
            let offset = header.groupsLimit(entries: entries.count)
            try write(
                folder, DiskFormat.segmentName(number), 1 << 30,
                [
                    (0, header.encoded), (8192, json), (offset, footer.encoded),
                    (
                        header.trailerOffset,
                        SegmentTrailer(of: footer, at: offset, in: header).encoded
                    ),
                ])
            made += count
        }
    }

    private static func write(
        _ folder: String, _ name: String, _ byteCount: Int, _ pieces: [(Int, [UInt8])]
    ) throws {
        let file = open("\(folder)/\(name)", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        guard file >= 0 else { throw DiskFault(.other(errno), "make \(folder)/\(name)") }
        defer { close(file) }
        #expect(ftruncate(file, byteCount) == 0)
        for (offset, bytes) in pieces {
            let count = bytes.withUnsafeBytes { pwrite(file, $0.baseAddress, $0.count, offset) }
            #expect(count == bytes.count)
        }
    }
}
