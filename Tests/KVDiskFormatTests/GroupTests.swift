import KVDiskFormat
import KVIdentity
import TestRandom
import Testing

@Suite("Groups, entries and footers")
struct GroupTests {
    private static let seed: UInt64 = 0x5EED_0103

    /// A group of three entries with header bytes that are all at hand.
    private struct Sample {
        let segment: SegmentHeader
        let group: SampleSegment.Group
        let bytes: [UInt8]

        init() {
            var random = SeededGenerator(seed: GroupTests.seed)
            var header = random.segment()
            header.firstSequence = 1_000
            var sample = SampleSegment(header)
            let (key, space) = (random.digest(), random.digest())
            let chunk = DiskEntry.chunk(
                key: key, parent: random.digest(), space: space, root: random.digest(), shard: 3,
                chunkIndex: 7, bodyBytes: 5_000, checksum: 1, writtenMs: 2, expiresMs: 3)
            let drop = DiskEntry.dropKey(key, space: space, root: space, writtenMs: 4)
            let description = DiskEntry.space(space, bodyBytes: 100, checksum: 5, writtenMs: 6)
            sample.add([(chunk, []), (drop, []), (description, [])])
            segment = sample.header
            group = sample.groups[0]
            bytes = group.header.encoded(group.entries)
        }

        func found(_ bytes: [UInt8]) -> DiskFormatError.Code? {
            code { () throws(DiskFormatError) in
                _ = try SampleSegment.Group(bytes, in: segment, at: 4_096)
            }
        }

        /// What is found after a change that the checksums know of.
        func sealed(_ change: (inout [UInt8]) -> Void) -> DiskFormatError.Code? {
            var changed = bytes
            change(&changed)
            sealEntries(&changed)
            return found(changed)
        }
    }

    @Test("come back as they were written")
    func roundTrips() throws {
        for seed in Self.seed..<(Self.seed + 60) {
            var random = SeededGenerator(seed: seed)
            var sample = SampleSegment(random: &random, segmentBytes: 65_536 << random.below(4))
            for group in sample.groups {
                let bytes = group.header.encoded(group.entries)
                #expect(bytes.count == group.header.headerBytes)
                let again = try SampleSegment.Group(
                    bytes, in: sample.header, at: group.header.offset)
                #expect(again == group, "seed \(seed)")
            }
            let (footer, trailer) = sample.complete()
            #expect(footer.encoded.count == trailer.footerBytes)
            let again = try SegmentFooter(footer.encoded, in: sample.header, trailer: trailer)
            #expect(again == footer, "seed \(seed)")
        }
    }

    @Test("every byte of the memory that is given is written")
    func everyByte() {
        let sample = Sample()
        var memory = [UInt8](repeating: 0xAA, count: sample.bytes.count + 1)
        memory.withUnsafeMutableBytes { sample.group.header.encode(sample.group.entries, into: $0) }
        #expect(memory == sample.bytes + [0xAA])
    }

    @Test("a group notices every flipped bit of header, entries and padding")
    func flippedBits() {
        let sample = Sample()
        var bytes = sample.bytes
        var unnoticed: [Int] = []
        for bit in 0..<(bytes.count * 8) {
            bytes[bit / 8] ^= 1 << (bit % 8)
            if sample.found(bytes) != (bit < 64 ? .foreign : .damaged) { unnoticed.append(bit) }
            bytes[bit / 8] ^= 1 << (bit % 8)
        }
        #expect(unnoticed == [])
        #expect(sample.found(bytes) == nil)
    }

    @Test("a footer notices every flipped bit and every truncation")
    func footerBits() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random: &random)
        let (footer, trailer) = sample.complete()
        var bytes = footer.encoded
        func found(_ bytes: [UInt8]) -> DiskFormatError.Code? {
            code { () throws(DiskFormatError) in
                _ = try SegmentFooter(bytes, in: sample.header, trailer: trailer)
            }
        }
        var unnoticed: [Int] = []
        for bit in 0..<(bytes.count * 8) {
            bytes[bit / 8] ^= 1 << (bit % 8)
            if found(bytes) != (bit < 64 ? .foreign : .damaged) { unnoticed.append(bit) }
            bytes[bit / 8] ^= 1 << (bit % 8)
        }
        #expect(unnoticed == [])
        for count in bytes.indices {
            #expect(found([UInt8](bytes[..<count])) == .damaged, "\(count) bytes")
        }
    }

    @Test("a group notices every truncation")
    func truncation() {
        let sample = Sample()
        for count in sample.bytes.indices {
            #expect(sample.found([UInt8](sample.bytes[..<count])) == .damaged, "\(count) bytes")
        }
    }

    @Test("a group of an earlier life is stale, whatever else is in it")
    func staleLife() {
        let sample = Sample()
        #expect(sample.sealed { $0[24] ^= 1 } == .staleLife)
        #expect(
            sample.sealed {
                $0[24] ^= 1
                store(.max, in: &$0, at: 16)
                store(.max, in: &$0, at: 32)
                store(.max, in: &$0, at: 40)
            } == .staleLife)
    }

    @Test("a group's fields have limits, from both sides")
    func headerLimits() {
        let sample = Sample()
        // Two bodies of 8,192 and 4,096 bytes behind 4,096 of header.
        let size: UInt64 = 16_384
        let first = sample.group.header.firstSequence
        let fields: [(at: Int, values: [UInt64])] = [
            (16, [0, 4_096, size - 4_096, size - 1, size + 1, size + 4_096, 1 << 63, .max]),
            (32, [0, 4_095, 8_192, 1 << 63, .max]),
            (40, [0, first - 1, first + 1, .max - 3, .max - 2, .max]),
        ]
        for field in fields {
            for value in field.values {
                #expect(
                    sample.sealed { store(value, in: &$0, at: field.at) } == .damaged,
                    "\(value) at \(field.at)")
            }
        }
        for count in [0, 1, 2, 4, 15, 16, 4_095, 4_096, 65_535] {
            #expect(
                sample.sealed {
                    $0[8] = UInt8(count & 255)
                    $0[9] = UInt8(count >> 8)
                } == .damaged, "\(count) entries")
        }
        for byte in 12..<16 { #expect(sample.sealed { $0[byte] ^= 0x10 } == .damaged) }
    }

    @Test("every byte of an entry that must be zero, or of a kind that is known, is checked")
    func entryFields() {
        let sample = Sample()
        // The chunk's reserved ones; kind, codec, cipher, flags; the cipher's key.
        for place in Array(200..<256) + Array(129..<132) + Array(140..<144) {
            #expect(sample.sealed { $0[64 + place] = 1 } == .damaged, "byte \(place)")
        }
        for kind in UInt8.min ... .max where kind != 1 {
            #expect(sample.sealed { $0[64 + 128] = kind } == .damaged, "kind \(kind)")
        }
        // An expiry is a drop with a time, and nothing else becomes one.
        for kind in UInt8.min ... .max where kind != 2 && kind != 6 {
            #expect(sample.sealed { $0[320 + 128] = kind } == .damaged, "tombstone \(kind)")
        }
        #expect(sample.sealed { $0[320 + 128] = 6 } == nil)
        // What a tombstone and a space have no use for.
        let parent = 32..<64
        let rest = Array(parent) + Array(132..<140) + Array(192..<200)
        for place in rest + Array(152..<184) {
            #expect(sample.sealed { $0[320 + place] ^= 16 } == .damaged, "tombstone, \(place)")
        }
        for place in rest + Array(0..<32) + Array(96..<128) {
            #expect(sample.sealed { $0[576 + place] ^= 16 } == .damaged, "space, \(place)")
        }
        // What may be anything.
        for place in [0, 32, 64, 96, 132, 136, 176, 184, 192] {
            #expect(sample.sealed { $0[64 + place] ^= 16 } == nil, "chunk, \(place)")
        }
        // A chunk 0 has no parent.
        #expect(sample.sealed { $0[64 + 136] = 0 } == .damaged)
        #expect(
            sample.sealed {
                $0[64 + 136] = 0
                for place in parent { $0[64 + place] = 0 }
            } == nil)
    }

    @Test("a drop has a bound, which is its own sequence when it is first written")
    func bounds() throws {
        let sample = Sample()
        let (chunk, drop, space) = (64 + 224, 320 + 224, 576 + 224)
        let sequence = sample.group.entries[1].sequence
        #expect(sample.group.entries.map(\.bound) == [0, sequence, 0])
        #expect(load(sample.bytes, at: drop) == sequence)
        for bound: UInt64 in [1, sequence - 1, sequence] {
            #expect(sample.sealed { store(bound, in: &$0, at: drop) } == nil, "\(bound)")
        }
        for bound: UInt64 in [0, sequence + 1, .max] {
            #expect(sample.sealed { store(bound, in: &$0, at: drop) } == .damaged, "\(bound)")
        }
        for place in [chunk, space] {
            #expect(sample.sealed { store(1, in: &$0, at: place) } == .damaged)
        }
    }

    @Test("a drop that is written again keeps its bound")
    func boundsStay() throws {
        var random = SeededGenerator(seed: Self.seed)
        var header = random.segment()
        header.firstSequence = 1_000
        var sample = SampleSegment(header)
        var drop = DiskEntry.dropRoot(random.digest(), space: random.digest(), writtenMs: 1)
        drop.bound = 7
        sample.add([(drop, [])])
        let bytes = sample.groups[0].header.encoded(sample.entries)
        let again = try SampleSegment.Group(bytes, in: sample.header, at: 4_096)
        #expect(again.entries.map(\.bound) == [7])
        #expect(again.entries.map(\.sequence) == [1_000])
    }

    @Test("sequences of a group are consecutive")
    func sequences() {
        let sample = Sample()
        for entry in 0..<3 {
            let place = 64 + entry * 256 + 144
            for change: UInt64 in [1, 2, 1 << 63, .max] {
                #expect(
                    sample.sealed {
                        store(load($0, at: place) &+ change, in: &$0, at: place)
                    } == .damaged)
            }
        }
    }

    @Test("sequences do not begin before the segment's, and do not wrap around")
    func sequenceLimits() throws {
        var random = SeededGenerator(seed: Self.seed)
        for (first, isRight) in [(UInt64.max - 3, true), (.max - 2, false), (.max, false)] {
            var header = random.segment()
            header.firstSequence = UInt64.max - 100
            var sample = SampleSegment(header)
            sample.add((0..<3).map { _ in (.dropSpace(random.digest(), writtenMs: 0), []) })
            let (footer, trailer) = sample.complete()
            func renumbered(_ bytes: [UInt8], _ places: [Int]) -> [UInt8] {
                var bytes = bytes
                for place in places { store(first, in: &bytes, at: place) }
                for entry in 0..<3 {
                    store(first &+ UInt64(entry), in: &bytes, at: 64 + entry * 256 + 144)
                }
                sealEntries(&bytes)
                return bytes
            }
            let group = renumbered(sample.groups[0].header.encoded(sample.entries), [40])
            var footerBytes = renumbered(footer.encoded, [24])
            store(first &+ 2, in: &footerBytes, at: 32)
            sealEntries(&footerBytes)
            let expected: DiskFormatError.Code? = isRight ? nil : .damaged
            #expect(
                code { () throws(DiskFormatError) in
                    _ = try SampleSegment.Group(group, in: header, at: 4_096)
                } == expected, "\(first)")
            #expect(
                code { () throws(DiskFormatError) in
                    _ = try SegmentFooter(footerBytes, in: header, trailer: trailer)
                } == expected, "\(first)")

            header.firstSequence += 1
            #expect(
                code { () throws(DiskFormatError) in
                    _ = try SampleSegment.Group(
                        [UInt8](sample.bytes[4_096...]), in: header, at: 4_096)
                } == .damaged)
            #expect(
                code { () throws(DiskFormatError) in
                    _ = try SegmentFooter(footer.encoded, in: header, trailer: trailer)
                } == .damaged)
        }
    }

    @Test("bodies fill the rest of the group, aligned and in order")
    func bodies() {
        let sample = Sample()
        let (chunk, space) = (64, 576)
        func change(_ entry: Int, _ field: Int, _ value: UInt64) -> DiskFormatError.Code? {
            sample.sealed { store(value, in: &$0, at: entry + field) }
        }
        func resize(_ entry: Int, _ value: UInt64) -> DiskFormatError.Code? {
            sample.sealed {
                store(value, in: &$0, at: entry + 152)
                store(value, in: &$0, at: entry + 160)
            }
        }
        #expect(change(chunk, 168, 8_192) == nil, "where it is")
        #expect(change(space, 168, 16_384) == nil, "where it is")
        for value: UInt64 in [0, 4_096, 8_193, 12_288, 16_384, 1 << 40, 1 << 63, .max] {
            #expect(change(chunk, 168, value) == .damaged, "\(value)")
        }
        for value: UInt64 in [0, 8_192, 12_288, 20_480, 24_576, .max - 4_095] {
            #expect(change(space, 168, value) == .damaged, "\(value)")
        }
        #expect(resize(chunk, 4_097) == nil)
        #expect(resize(chunk, 8_192) == nil)
        #expect(resize(space, 1) == nil)
        #expect(resize(space, 4_096) == nil)
        for value: UInt64 in [0, 4_096, 8_193, 4 << 30, 4 << 30 + 1, 1 << 63, .max] {
            #expect(resize(chunk, value) == .damaged, "\(value)")
            #expect(change(chunk, 160, value) == .damaged, "decoded \(value)")
        }
        for value: UInt64 in [0, 4_097, 256 << 10, 256 << 10 + 1] {
            #expect(resize(space, value) == .damaged, "\(value)")
        }
    }

    @Test("the longest body and the most entries come back; one more is refused")
    func largest() throws {
        var random = SeededGenerator(seed: Self.seed)
        let segment = random.segment(bytes: DiskFormat.largestSegmentBytes)
        func chunk(_ byteCount: Int) -> DiskEntry {
            .chunk(
                key: random.digest(), parent: nil, space: random.digest(), root: random.digest(),
                shard: .max, chunkIndex: 0, bodyBytes: byteCount, checksum: .max, writtenMs: .max,
                expiresMs: .max)
        }
        var long = [chunk(DiskFormat.largestBodyBytes)]
        let group = GroupHeader(
            placing: &long, at: 4_096, in: segment, firstSequence: .max - 1)
        #expect(group.nextSequence == .max)
        var bytes = group.encoded(long)
        let again = try SampleSegment.Group(bytes, in: segment, at: 4_096)
        #expect(again == .init(header: group, entries: long))
        let larger = UInt64(DiskFormat.largestBodyBytes + 1)
        store(larger, in: &bytes, at: 64 + 152)
        store(larger, in: &bytes, at: 64 + 160)
        store(UInt64(group.groupBytes + 4_096), in: &bytes, at: 16)
        sealEntries(&bytes)
        #expect(
            code { () throws(DiskFormatError) in
                _ = try SampleSegment.Group(bytes, in: segment, at: 4_096)
            } == .damaged)

        var many = (0..<DiskFormat.mostEntriesInGroup).map { _ in chunk(1) }
        let offset = DiskFormat.largestSegmentBytes / 2
        let crowd = GroupHeader(
            placing: &many, at: offset, in: segment, firstSequence: segment.firstSequence)
        let crowdAgain = try SampleSegment.Group(crowd.encoded(many), in: segment, at: offset)
        #expect(crowdAgain == .init(header: crowd, entries: many))
    }

    @Test("a group that ends where the footer must have room is refused")
    func footerRoom() throws {
        var random = SeededGenerator(seed: Self.seed)
        var segment = random.segment()
        // Header, group header, body, footer, trailer: the body takes all that is left.
        let most = segment.segmentBytes - 4 * 4_096
        var entries = [
            DiskEntry.chunk(
                key: random.digest(), parent: nil, space: random.digest(), root: random.digest(),
                shard: 0, chunkIndex: 0, bodyBytes: most, checksum: 0, writtenMs: 0, expiresMs: 0)
        ]
        let group = GroupHeader(
            placing: &entries, at: 4_096, in: segment, firstSequence: segment.firstSequence)
        #expect(group.end == segment.groupsLimit(entries: 1))
        let bytes = group.encoded(entries)
        #expect(try SampleSegment.Group(bytes, in: segment, at: 4_096).entries == entries)
        segment.segmentBytes -= 4_096
        #expect(
            code { () throws(DiskFormatError) in
                _ = try SampleSegment.Group(bytes, in: segment, at: 4_096)
            } == .damaged)
    }

    @Test("a footer's fields have limits, from both sides")
    func footerLimits() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random: &random)
        let (footer, trailer) = sample.complete()
        func sealed(_ change: (inout [UInt8]) -> Void) -> DiskFormatError.Code? {
            var bytes = footer.encoded
            change(&bytes)
            sealEntries(&bytes)
            return code { () throws(DiskFormatError) in
                _ = try SegmentFooter(bytes, in: sample.header, trailer: trailer)
            }
        }
        #expect(sealed { _ in } == nil)
        #expect(sealed { $0[12] = 2 } == .newerVersion)
        #expect(sealed { $0[12] = 0 } == .damaged)
        #expect(sealed { $0[16] ^= 1 } == .staleLife)
        for place in [8, 11, 24, 31, 32, 39] {
            #expect(sealed { $0[place] &+= 1 } == .damaged, "byte \(place)")
        }
        let end = UInt64(footer.groupsEnd)
        let offset = UInt64(trailer.footerOffset)
        let bodiesEnd = footer.entries.map { UInt64($0.bodyOffset + $0.paddedBodyBytes) }.max()!
        let ends = [0, 4_096, bodiesEnd - 4_096, end + 1, offset + 4_096, 1 << 63, UInt64.max]
        for value in ends {
            #expect(sealed { store(value, in: &$0, at: 40) } == .damaged, "groups end at \(value)")
        }
        // Two bodies in one place, and a body in the place of a header.
        let bodies = footer.entries.indices.filter { footer.entries[$0].kind.hasBody }
        let place = 64 + bodies[1] * 256 + 168
        let earlier = UInt64(footer.entries[bodies[0]].bodyOffset)
        for value in [earlier, 4_096, end, 1 << 63, UInt64.max - 4_095] {
            #expect(sealed { store(value, in: &$0, at: place) } == .damaged, "body at \(value)")
        }
    }

    @Test("mistakes of a program end it: too many entries, no room, an entry that was not placed")
    func programmerErrors() async {
        await #expect(processExitsWith: .failure) {
            var random = SeededGenerator(seed: 1)
            let segment = random.segment(bytes: 1 << 30)
            var entries = (0...DiskFormat.mostEntriesInGroup).map { _ in
                DiskEntry.dropSpace(random.digest(), writtenMs: 0)
            }
            _ = GroupHeader(
                placing: &entries, at: 4_096, in: segment, firstSequence: segment.firstSequence)
        }
        await #expect(processExitsWith: .failure) {
            var random = SeededGenerator(seed: 1)
            let segment = random.segment()
            var entries = [DiskEntry.dropSpace(random.digest(), writtenMs: 0)]
            _ = GroupHeader(
                placing: &entries, at: segment.groupsLimit(entries: 1), in: segment,
                firstSequence: segment.firstSequence)
        }
        await #expect(processExitsWith: .failure) {
            var random = SeededGenerator(seed: 1)
            let segment = random.segment()
            var entries = [DiskEntry.dropSpace(random.digest(), writtenMs: 0)]
            let header = GroupHeader(
                placing: &entries, at: 4_096, in: segment,
                firstSequence: segment.firstSequence + 1)
            entries[0].sequence = 0
            _ = header.encoded(entries)
        }
    }
}

/// Makes the checksums of a group's header or of a footer right again.
func sealEntries(_ bytes: inout [UInt8]) {
    store(checksum([UInt8](bytes[64...])), in: &bytes, at: 48)
    store(checksum([UInt8](bytes[..<56])), in: &bytes, at: 56)
}
