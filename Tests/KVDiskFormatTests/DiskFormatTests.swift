import KVDiskFormat
import TestRandom
import Testing

@Suite("The constants of the disk format")
struct DiskFormatTests {
    @Test("limits go together")
    func limits() {
        #expect(DiskFormat.mostEntriesInGroup == 4_095)
        #expect(
            DiskFormat.groupHeaderBytes(entries: DiskFormat.mostEntriesInGroup)
                == DiskFormat.largestGroupHeaderBytes)
        #expect(
            DiskFormat.groupHeaderBytes(entries: DiskFormat.mostEntriesInGroup + 1)
                > DiskFormat.largestGroupHeaderBytes)
        #expect(DiskFormat.groupHeaderBytes(entries: 15) == 4_096)
        #expect(DiskFormat.groupHeaderBytes(entries: 16) == 8_192)
        #expect(DiskFormat.largestSegmentBytes > DiskFormat.largestBodyBytes + 65_536)
        for size in [DiskFormat.smallestSegmentBytes, DiskFormat.largestSegmentBytes] {
            #expect(size % DiskFormat.alignment == 0)
        }
    }

    @Test("lengths are rounded up to 4,096")
    func alignment() {
        let lengths = [0, 1, 4_095, 4_096, 4_097, 8_192]
        #expect(lengths.map(DiskFormat.aligned) == [0, 4_096, 4_096, 4_096, 8_192, 8_192])
    }

    @Test("a segment's name says its number, and no other name does")
    func names() {
        #expect(DiskFormat.segmentName(1) == "segment-0000000001.kvseg")
        #expect(DiskFormat.segmentName(9_999_999_999) == "segment-9999999999.kvseg")
        var random = SeededGenerator(seed: 0x5EED_0101)
        for _ in 0..<1_000 {
            let number = 1 + random.next() % DiskFormat.largestSegmentNumber
            #expect(DiskFormat.segmentNumber(ofName: DiskFormat.segmentName(number)) == number)
        }
        let others = [
            "", "segment-.kvseg", "segment-0000000000.kvseg", "segment-000000001.kvseg",
            "segment-00000000001.kvseg", "segment-0000000001.kvse", "segment-000000000a.kvseg",
            "segment-+000000001.kvseg", "segment--000000001.kvseg", "Segment-0000000001.kvseg",
            "segment-0000000001.kvseg ", "segment-00000001é.kvseg", "segment-00000000١.kvseg",
            "kvasir-disk",
        ]
        for name in others { #expect(DiskFormat.segmentNumber(ofName: name) == nil, "\(name)") }
    }

    @Test("checksums are XXH3-64")
    func checksums() {
        // Of xxHash's own vectors: XXH3_64bits of nothing, with seed 0.
        #expect(checksum([]) == 0x2D06_8005_38D3_94C2)
    }

    @Test("a disk's identity prints its bytes in their order")
    func diskID() {
        let disk = DiskID(words: (0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908))
        #expect(disk.description == "000102030405060708090a0b0c0d0e0f")
        #expect(DiskHeader(disk: disk, createdMs: 0).encoded[16..<32].elementsEqual(0..<16))
    }

    @Test("no segment has more digits than its name")
    func tooLargeNumber() async {
        await #expect(processExitsWith: .failure) {
            _ = DiskFormat.segmentName(DiskFormat.largestSegmentNumber + 1)
        }
    }
}
