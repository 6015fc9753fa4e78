import FoundationEssentials
import KVDiskFormat
import KVIdentity
import Testing

/// `python/tools/make_disk_golden.py` made it and the disk header, from the tables of `docs/formats.md`.
@Suite("The golden segment")
struct GoldenSegmentTests {
    private static let createdMs: UInt64 = 1_767_225_600_000

    private let bytes: [UInt8]
    private let header = SegmentHeader(
        disk: DiskID(words: (0xD7D6_D5D4_D3D2_D1D0, 0xDFDE_DDDC_DBDA_D9D8)), number: 42,
        life: 0x1122_3344_5566_7788, segmentBytes: 65_536, firstSequence: 1_000,
        createdMs: Self.createdMs)

    init() throws {
        bytes = try Self.resource("segment-v1.kvseg.golden")
    }

    private static func resource(_ name: String) throws -> [UInt8] {
        let directory = URL(filePath: #filePath).deletingLastPathComponent()
        return [UInt8](try Data(contentsOf: directory.appending(path: "Resources/\(name)")))
    }

    @Test("lies on a disk whose header is the golden one")
    func diskHeader() throws {
        let golden = try Self.resource("kvasir-disk-v1.golden")
        let expected = DiskHeader(disk: header.disk, createdMs: Self.createdMs)
        #expect(try DiskHeader(golden) == expected)
        #expect(expected.encoded == golden)
    }

    @Test("decodes to what the script says")
    func decodes() throws {
        let expected = expectedSegment()
        #expect(bytes.count == 65_536)
        #expect(try SegmentHeader(bytes) == header)
        let found = scan(bytes, of: header)
        #expect(found.groups == expected.groups)
        #expect(found.end == .staleLife)
        #expect(found.offset == 32_768)
        let trailer = try SegmentTrailer([UInt8](bytes[61_440...]), in: header)
        #expect(trailer.footerOffset == 57_344)
        #expect(trailer.footerBytes == 4_096)
        #expect(trailer.count == 6)
        let footer = try SegmentFooter(
            [UInt8](bytes[57_344..<61_440]), in: header, trailer: trailer)
        #expect(footer.groupsEnd == 32_768)
        #expect(footer.entries == expected.entries)
    }

    @Test("has the values of docs/formats.md, seen without the encoder")
    func values() throws {
        let groups = scan(bytes, of: header).groups
        try #require(groups.count == 2)
        #expect(groups.map(\.header.offset) == [4_096, 24_576])
        #expect(groups.map(\.header.groupBytes) == [20_480, 8_192])
        #expect(groups.map(\.header.firstSequence) == [1_005, 1_008])
        let entries = groups.flatMap(\.entries)
        #expect(entries.map(\.kind) == [.space, .chunk, .chunk, .dropKey, .chunk, .expireKey])
        #expect(entries.map(\.sequence) == Array(1_005...1_010))
        #expect(entries.map(\.bodyBytes) == [13, 5_000, 4_096, 0, 1, 0])
        #expect(entries.map(\.bodyOffset) == [8_192, 12_288, 20_480, 0, 28_672, 0])
        #expect(entries.map(\.shard) == [0, 1, 0, 0, 7, 0])
        #expect(entries.map(\.chunkIndex) == [0, 0, 1, 0, 1, 0])
        #expect(entries[2].expiresMs == Self.createdMs + 60_000)
        #expect(entries[2].parent == entries[1].key)
        #expect(entries[3].key == entries[2].key)
        #expect(entries[5].key == entries[1].key)
        #expect(entries[5].expiresMs == Self.createdMs + 120_000)
        #expect(entries.map(\.bound) == [0, 0, 0, 1_008, 0, 1_010])
        for entry in entries where entry.kind.hasBody {
            let body = bytes[entry.bodyOffset..<(entry.bodyOffset + entry.bodyBytes)]
            #expect(checksum([UInt8](body)) == entry.bodyChecksum)
        }
    }

    @Test("is what the encoder writes")
    func encodes() {
        var segment = expectedSegment()
        var later = header
        later.life = 0x8877_6655_4433_2211
        var drop = [DiskEntry.dropSpace(Self.digest(0x20), writtenMs: Self.createdMs)]
        let stale = GroupHeader(
            placing: &drop, at: segment.end, in: later, firstSequence: segment.nextSequence)
        segment.put(stale.encoded(drop), at: segment.end)
        _ = segment.complete()
        #expect(segment.bytes.count == bytes.count)
        let differing = bytes.indices.filter { segment.bytes[$0] != bytes[$0] }
        #expect(differing == [])
    }

    private static func digest(_ first: UInt8) -> Digest {
        Digest((0..<32).map { first &+ $0 })!
    }

    private func expectedSegment() -> SampleSegment {
        let (space, root) = (Self.digest(0x20), Self.digest(0x40))
        let (first, second) = (Self.digest(0x60), Self.digest(0x80))
        func pattern(_ count: Int, _ start: Int) -> [UInt8] {
            (0..<count).map { UInt8(truncatingIfNeeded: start + $0 * 7 + $0 / 256) }
        }
        func chunk(
            _ key: Digest, after parent: Digest?, shard: UInt32, index: UInt32, _ body: [UInt8],
            writtenMs: UInt64, expiresMs: UInt64 = 0
        ) -> (entry: DiskEntry, body: [UInt8]) {
            let entry = DiskEntry.chunk(
                key: key, parent: parent, space: space, root: root, shard: shard,
                chunkIndex: index, bodyBytes: body.count, checksum: checksum(body),
                writtenMs: Self.createdMs + writtenMs, expiresMs: expiresMs)
            return (entry, body)
        }
        let json = Array(#"{"version":1}"#.utf8)
        let description = DiskEntry.space(
            space, bodyBytes: json.count, checksum: checksum(json),
            writtenMs: Self.createdMs + 1)
        let drop = DiskEntry.dropKey(
            second, space: space, root: root, writtenMs: Self.createdMs + 4)
        let expiry = DiskEntry.expireKey(
            first, space: space, root: root, expiresMs: Self.createdMs + 120_000,
            writtenMs: Self.createdMs + 6)
        var segment = SampleSegment(header)
        segment.nextSequence = 1_005
        segment.add([
            (description, json),
            chunk(first, after: nil, shard: 1, index: 0, pattern(5_000, 3), writtenMs: 2),
            chunk(
                second, after: first, shard: 0, index: 1, pattern(4_096, 5), writtenMs: 3,
                expiresMs: Self.createdMs + 60_000),
        ])
        segment.add([
            (drop, []),
            chunk(Self.digest(0xA0), after: first, shard: 7, index: 1, [0xFF], writtenMs: 5),
            (expiry, []),
        ])
        return segment
    }
}
