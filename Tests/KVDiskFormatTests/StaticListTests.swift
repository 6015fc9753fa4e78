import FoundationEssentials
import KVDiskFormat
import KVIdentity
import TestRandom
import Testing

/// `python/tools/make_disk_golden.py` makes the golden one, from the table of `docs/formats.md`.
@Suite("The list of static chunks")
struct StaticListTests {
    private let disk = DiskID(words: (0xD7D6_D5D4_D3D2_D1D0, 0xDFDE_DDDC_DBDA_D9D8))

    private func decode(_ bytes: [UInt8], of disk: DiskID? = nil) throws -> StaticList {
        try bytes.withUnsafeBytes { try StaticList(decoding: $0, of: disk ?? self.disk) }
    }

    private func digest(_ first: UInt8) -> Digest { Digest((0..<32).map { first &+ $0 })! }

    @Test("is what the golden file has, and what the encoder writes")
    func golden() throws {
        let directory = URL(filePath: #filePath).deletingLastPathComponent()
        let bytes = [UInt8](
            try Data(contentsOf: directory.appending(path: "Resources/kvasir-static-v1.golden")))
        let (root, space) = (digest(0x60), digest(0x20))
        let expected = StaticList(
            disk: disk, generation: 7, writtenMs: 1_767_225_600_000,
            entries: [
                .init(key: digest(0x80), parent: nil, root: root, space: space),
                .init(key: digest(0xA0), parent: digest(0x80), root: root, space: space),
            ])
        #expect(try decode(bytes) == expected)
        #expect(expected.encoded == bytes)
    }

    @Test("comes back as it was written, empty and full", arguments: [0, 1, 31, 32, 33, 65_536])
    func sizes(count: Int) throws {
        var random = SeededGenerator(seed: UInt64(count))
        let list = StaticList(
            disk: disk, generation: .max, writtenMs: 0,
            entries: (0..<count).map { index in
                .init(
                    key: random.digest(), parent: index % 3 == 0 ? nil : random.digest(),
                    root: random.digest(), space: random.digest())
            })
        let bytes = list.encoded
        #expect(bytes.count == StaticList.fileBytes(entries: count))
        #expect(bytes.count <= StaticList.mostFileBytes)
        #expect(try decode(bytes) == list)
    }

    @Test("is refused where any bit is another, where it is cut, and on another disk")
    func damage() throws {
        let list = StaticList(
            disk: disk, generation: 3, writtenMs: 5,
            entries: [.init(key: digest(1), parent: nil, root: digest(2), space: digest(3))])
        let good = list.encoded
        for place in good.indices {
            var bytes = good
            bytes[place] ^= 1 << UInt8(place % 8)
            #expect(throws: DiskFormatError.self, "byte \(place)") { try decode(bytes) }
        }
        for count in [0, 1, 4095, 4096, 4096 + 128, good.count - 1] {
            let error = #expect(throws: DiskFormatError.self) {
                try decode(Array(good.prefix(count)))
            }
            #expect(error?.code == .damaged)
        }
        let other = #expect(throws: DiskFormatError.self) {
            try decode(good, of: DiskID(words: (1, 2)))
        }
        #expect(other?.code == .foreign)
        let blank = #expect(throws: DiskFormatError.self) {
            try decode([UInt8](repeating: 0, count: 8192))
        }
        #expect(blank?.code == .blank)
    }
}
