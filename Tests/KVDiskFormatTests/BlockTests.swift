import KVDiskFormat
import TestRandom
import Testing

@Suite("Disk header, segment header and trailer")
struct BlockTests {
    private static let seed: UInt64 = 0x5EED_0102

    /// The three structures of one block: bytes, and a decoder for them.
    private struct Block: Sendable, CustomTestStringConvertible {
        let name: String
        let bytes: [UInt8]
        let decode: @Sendable ([UInt8]) throws(DiskFormatError) -> Void
        var testDescription: String { name }

        static let all: [Block] = {
            var random = SeededGenerator(seed: BlockTests.seed)
            var sample = SampleSegment(random: &random)
            let header = sample.header
            let trailer = sample.complete().trailer
            return [
                Block(
                    name: "disk header",
                    bytes: DiskHeader(disk: header.disk, createdMs: 12_345).encoded,
                    decode: { bytes throws(DiskFormatError) in _ = try DiskHeader(bytes) }),
                Block(
                    name: "segment header", bytes: header.encoded,
                    decode: { bytes throws(DiskFormatError) in _ = try SegmentHeader(bytes) }),
                Block(
                    name: "trailer", bytes: trailer.encoded,
                    decode: { bytes throws(DiskFormatError) in
                        _ = try SegmentTrailer(bytes, in: header)
                    }),
            ]
        }()
    }

    @Test("come back as they were written")
    func roundTrips() throws {
        var random = SeededGenerator(seed: Self.seed)
        for _ in 0..<300 {
            let disk = DiskHeader(disk: .random(using: &random), createdMs: random.word())
            #expect(try DiskHeader(disk.encoded) == disk)
            let blocks = 16 + random.below(DiskFormat.largestSegmentBytes / 4_096 - 15)
            let segment = random.segment(bytes: blocks * 4_096)
            #expect(try SegmentHeader(segment.encoded) == segment)
        }
        for _ in 0..<20 {
            var sample = SampleSegment(random: &random, segmentBytes: 65_536 << random.below(3))
            let trailer = sample.complete().trailer
            #expect(try SegmentTrailer(trailer.encoded, in: sample.header) == trailer)
        }
    }

    @Test("notice every flipped bit", arguments: Block.all)
    private func flippedBits(block: Block) {
        var bytes = block.bytes
        var unnoticed: [Int] = []
        for bit in 0..<(bytes.count * 8) {
            bytes[bit / 8] ^= 1 << (bit % 8)
            let found = code { () throws(DiskFormatError) in try block.decode(bytes) }
            let expected: DiskFormatError.Code = bit < 64 ? .foreign : .damaged
            if found != expected { unnoticed.append(bit) }
            bytes[bit / 8] ^= 1 << (bit % 8)
        }
        #expect(unnoticed == [])
        #expect(code { () throws(DiskFormatError) in try block.decode(bytes) } == nil)
    }

    @Test("notice every truncation", arguments: Block.all)
    private func truncation(block: Block) {
        for count in 0..<block.bytes.count {
            let found = code { () throws(DiskFormatError) in
                try block.decode([UInt8](block.bytes.prefix(count)))
            }
            #expect(found == .damaged, "\(count) bytes")
        }
    }

    @Test("tell zeros, foreign bytes, newer versions and damage apart", arguments: Block.all)
    private func codes(block: Block) {
        func found(_ change: (inout [UInt8]) -> Void) -> DiskFormatError.Code? {
            var bytes = block.bytes
            change(&bytes)
            return code { () throws(DiskFormatError) in try block.decode(bytes) }
        }
        func sealed(_ change: (inout [UInt8]) -> Void) -> DiskFormatError.Code? {
            found { bytes in
                change(&bytes)
                seal(&bytes)
            }
        }
        #expect(found { $0 = [UInt8](repeating: 0, count: 4_096) } == .blank)
        #expect(found { $0 = [UInt8](repeating: 7, count: 4_096) } == .foreign)
        #expect(sealed { _ in } == nil)
        #expect(sealed { $0[8] = 2 } == .newerVersion)
        #expect(sealed { $0[11] = 255 } == .newerVersion)
        #expect(sealed { $0[8] = 0 } == .damaged)
        #expect(found { $0[8] = 2 } == .damaged)
        #expect(sealed { $0[12] ^= 1 } == .damaged, "header bytes, or a trailer's zeros")
        for offset in [80, 200, 4_087] {
            #expect(sealed { $0[offset] = 1 } == .damaged, "reserved byte \(offset)")
        }
    }

    @Test("a segment's number and length have limits, and its length is aligned")
    func segmentLimits() {
        var random = SeededGenerator(seed: Self.seed)
        let valid = random.segment().encoded
        let fields: [(at: Int, good: [UInt64], bad: [UInt64])] = [
            (32, [1, 9_999_999_999], [0, 10_000_000_000, 1 << 63, .max]),
            (
                48, [65_536, 69_632, 64 << 30],
                [0, 61_440, 65_535, 65_537, 66_048, 64 << 30 + 4_096, 1 << 63, .max]
            ),
        ]
        for field in fields {
            for (values, expected) in expectations(field.good, field.bad) {
                for value in values {
                    var bytes = valid
                    store(value, in: &bytes, at: field.at)
                    seal(&bytes)
                    let found = code { () throws(DiskFormatError) in _ = try SegmentHeader(bytes) }
                    #expect(found == expected, "\(value) at \(field.at)")
                }
            }
        }
    }

    @Test("a segment of another disk, number or length is refused")
    func segmentPlace() {
        var random = SeededGenerator(seed: Self.seed)
        let header = random.segment()
        let (disk, number, length) = (header.disk, header.number, header.segmentBytes)
        let other = DiskID.random(using: &random)
        func found(_ disk: DiskID, _ number: UInt64, _ length: Int) -> DiskFormatError.Code? {
            code { () throws(DiskFormatError) in
                try header.check(disk: disk, number: number, fileBytes: length)
            }
        }
        #expect(found(disk, number, length) == nil)
        #expect(found(other, number, length) == .foreign)
        #expect(found(disk, number + 1, length) == .damaged)
        #expect(found(disk, number, length - 1) == .damaged)
    }

    @Test("a trailer of another life is stale, and its footer stays inside the segment")
    func trailerLimits() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random.segment())
        sample.add([random.entry(bodyBytes: 4_096), random.entry(bodyBytes: 4_096)])
        let trailer = sample.complete().trailer
        let limit = UInt64(sample.header.groupsLimit(entries: 2))
        let fields: [(at: Int, good: [UInt64], bad: [UInt64])] = [
            (24, [8_192, limit - 4_096, limit], [0, 4_096, 8_193, limit + 4_096, 1 << 63, .max]),
            (32, [4_096], [0, 4_095, 8_192, .max]),
            (40, [1, 2, 15], [0, 16, 1 << 18, 1 << 18 + 1, 1 << 32 + 2, .max]),
        ]
        for field in fields {
            for (values, expected) in expectations(field.good, field.bad) {
                for value in values {
                    var bytes = trailer.encoded
                    store(value, in: &bytes, at: field.at)
                    seal(&bytes)
                    let found = code { () throws(DiskFormatError) in
                        _ = try SegmentTrailer(bytes, in: sample.header)
                    }
                    #expect(found == expected, "\(value) at \(field.at)")
                }
            }
        }
        var later = sample.header
        later.life &+= 1
        #expect(
            code { () throws(DiskFormatError) in
                _ = try SegmentTrailer(trailer.encoded, in: later)
            } == .staleLife)
    }

    @Test("an error says where, what and what to do")
    func messages() {
        var bytes = Block.all[1].bytes
        store(12, in: &bytes, at: 48)
        seal(&bytes)
        let error = #expect(throws: DiskFormatError.self) { try SegmentHeader(bytes) }
        #expect(
            error?.message
                == "segment header at byte 0: segment bytes (byte 48) is 12, not 65536 to "
                + "68719476736; it is left out, and what it held is computed again; if this happens "
                + "again, check the device")
    }
}

private func expectations(
    _ good: [UInt64], _ bad: [UInt64]
) -> [(values: [UInt64], code: DiskFormatError.Code?)] {
    [(good, nil), (bad, .damaged)]
}

/// Makes the checksum of a block right again.
func seal(_ block: inout [UInt8]) {
    store(checksum([UInt8](block[..<4_088])), in: &block, at: 4_088)
}

func store(_ value: UInt64, in bytes: inout [UInt8], at offset: Int) {
    for index in 0..<8 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (index * 8)) }
}

func load(_ bytes: [UInt8], at offset: Int) -> UInt64 {
    (0..<8).reduce(0) { $0 | UInt64(bytes[offset + $1]) << ($1 * 8) }
}
