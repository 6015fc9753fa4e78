import KVDiskFormat
import TestRandom
import Testing

/// A bounded fuzz: segments that were damaged from a fixed seed, most of them with checksums that
/// are right again, so that the checks behind the checksums are reached.
@Suite("Damaged segments")
struct MutationTests {
    private static let cases = 24_000
    private static let seed: UInt64 = 0x5EED_0105
    private static let interesting: [UInt64] = [
        0, 1, 2, 15, 16, 255, 4_095, 4_096, 4_097, 8_192, 57_344, 61_440, 65_535, 65_536, 65_537,
        256 << 10, 4 << 30, 4 << 30 + 1, 64 << 30, 1 << 62, 1 << 63, .max - 4_095, .max,
    ]

    private struct Sample {
        let segment: SampleSegment
        let footerOffset: Int
        /// Where the blocks with checksums are, and the bytes that they cover.
        let structures: [(offset: Int, byteCount: Int, isBlock: Bool)]
    }

    private static func samples() -> [Sample] {
        var random = SeededGenerator(seed: seed)
        return (0..<12).map { _ in
            var segment = SampleSegment(random: &random)
            let trailer = segment.complete().trailer
            var structures = segment.groups.map {
                (offset: $0.header.offset, byteCount: $0.header.headerBytes, isBlock: false)
            }
            structures.append((trailer.footerOffset, trailer.footerBytes, false))
            structures.append((0, 4_096, true))
            structures.append((segment.header.trailerOffset, 4_096, true))
            return Sample(
                segment: segment, footerOffset: trailer.footerOffset, structures: structures)
        }
    }

    @Test("crash nothing, and what is read from them lies inside of them")
    func mutations() throws {
        let samples = Self.samples()
        var random = SeededGenerator(seed: Self.seed)
        var counts = Counts()
        for number in 0..<Self.cases {
            let sample = samples[random.below(samples.count)]
            var bytes = sample.segment.bytes
            let structure = sample.structures[random.below(sample.structures.count)]
            for _ in 0..<(1 + random.below(3)) {
                Self.damage(&bytes, structure, &random)
            }
            if random.below(8) > 0 {
                let place = structure.offset..<(structure.offset + structure.byteCount)
                var piece = Array(bytes[place])
                if structure.isBlock { seal(&piece) } else { sealEntries(&piece) }
                bytes.replaceSubrange(place, with: piece)
            }
            if random.below(16) == 0 { bytes.removeLast(random.below(bytes.count)) }
            if let problem = counts.read(bytes, whole: sample.segment) {
                Issue.record("case \(number) of seed \(Self.seed): \(problem)")
                return
            }
        }
        #expect(counts.headers > Self.cases / 2, "\(counts)")
        #expect(counts.headers < Self.cases, "the damage must do damage: \(counts)")
        #expect(counts.groups > Self.cases, "\(counts)")
        #expect(counts.damagedEnds > Self.cases / 10, "\(counts)")
        #expect(counts.trailers > Self.cases / 2 && counts.footers > Self.cases / 4, "\(counts)")
        #expect(counts.footers < counts.trailers, "\(counts)")
    }

    @Test("of nothing but noise crash nothing either")
    func noise() {
        var random = SeededGenerator(seed: Self.seed + 1)
        let header = random.segment()
        for number in 0..<5_000 {
            var bytes = (0..<512).map { _ in random.next() }
                .flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
            bytes.removeLast(random.below(2) * random.below(4_096))
            let structures: [[UInt8]] = [
                Array("KVASIRSG".utf8), Array("KVASIRDK".utf8), Array("KVGROUP1".utf8),
                Array("KVFOOTR1".utf8), Array("KVTRAIL1".utf8),
            ]
            let magic = structures[number % 5]
            if bytes.count == 4_096 {
                bytes.replaceSubrange(0..<8, with: magic)
                if number % 2 == 0 { seal(&bytes) } else { sealEntries(&bytes) }
            }
            #expect(code { () throws(DiskFormatError) in _ = try DiskHeader(bytes) } != nil)
            #expect(code { () throws(DiskFormatError) in _ = try SegmentHeader(bytes) } != nil)
            #expect(
                code { () throws(DiskFormatError) in
                    _ = try SegmentTrailer(bytes, in: header)
                } != nil)
            #expect(
                code { () throws(DiskFormatError) in
                    _ = try SampleSegment.Group(bytes, in: header, at: 4_096)
                } != nil)
        }
    }

    private static func damage(
        _ bytes: inout [UInt8], _ structure: (offset: Int, byteCount: Int, isBlock: Bool),
        _ random: inout SeededGenerator
    ) {
        // Mostly where something stands: the header, or the first entries.
        let place =
            random.below(4) == 0 ? random.below(structure.byteCount) : 8 + random.below(400)
        switch random.below(4) {
        case 0:
            bytes[structure.offset + place] ^= 1 << UInt8(random.below(8))
        case 1:
            bytes[structure.offset + place] = UInt8(truncatingIfNeeded: random.next())
        case 2:
            let aligned = min(place / 8 * 8, structure.byteCount - 8)
            let value = interesting[random.below(interesting.count)]
            store(value, in: &bytes, at: structure.offset + aligned)
        default:
            let aligned = min(place / 8 * 8, structure.byteCount - 8)
            let step = [1, -1, 4_096, -4_096, 1 << 32][random.below(5)]
            let value = load(bytes, at: structure.offset + aligned)
            store(
                value &+ UInt64(bitPattern: Int64(step)), in: &bytes,
                at: structure.offset + aligned)
        }
    }

    /// Reads a segment as a start does, and checks every value that comes of it.
    private struct Counts {
        var headers = 0
        var trailers = 0
        var footers = 0
        var groups = 0
        var damagedEnds = 0

        /// What is wrong with what was read; nil if nothing.
        mutating func read(_ bytes: [UInt8], whole: SampleSegment) -> String? {
            if let header = try? SegmentHeader(bytes) {
                headers += 1
                if let problem = check(header) { return problem }
                if let problem = walk(bytes, header) { return problem }
            }
            // The rest with the header that is right, too.
            if let problem = walk(bytes, whole.header) { return problem }
            guard bytes.count == whole.bytes.count else { return nil }
            let last = [UInt8](bytes[whole.header.trailerOffset...])
            guard let trailer = try? SegmentTrailer(last, in: whole.header) else { return nil }
            trailers += 1
            let end = trailer.footerOffset + trailer.footerBytes
            guard trailer.footerOffset >= 8_192, end <= whole.header.trailerOffset else {
                return "a footer outside of the segment: \(trailer)"
            }
            let piece = [UInt8](bytes[trailer.footerOffset..<end])
            guard let footer = try? SegmentFooter(piece, in: whole.header, trailer: trailer) else {
                return nil
            }
            footers += 1
            guard footer.groupsEnd <= trailer.footerOffset, footer.entries.count == trailer.count
            else { return "a footer that says otherwise than its trailer: \(footer)" }
            return check(
                footer.entries, from: 8_192, to: footer.groupsEnd,
                firstSequence: footer.entries[0].sequence)
        }

        private func check(_ header: SegmentHeader) -> String? {
            let sizes = DiskFormat.smallestSegmentBytes...DiskFormat.largestSegmentBytes
            let isRight =
                sizes.contains(header.segmentBytes) && header.segmentBytes % 4_096 == 0
                && (1...DiskFormat.largestSegmentNumber).contains(header.number)
            return isRight ? nil : "a header beyond the limits: \(header)"
        }

        private mutating func walk(_ bytes: [UInt8], _ header: SegmentHeader) -> String? {
            let found = scan(bytes, of: header)
            groups += found.groups.count
            if case .damaged = found.end { damagedEnds += 1 }
            var end = 4_096
            var next = found.groups.first?.header.firstSequence ?? 0
            var count = 0
            for group in found.groups {
                count += group.entries.count
                guard
                    group.header.offset == end, group.header.end > end,
                    group.header.end <= header.groupsLimit(entries: count),
                    group.header.firstSequence == next, group.entries.count == group.header.count,
                    next >= header.firstSequence
                else { return "a group that does not follow: \(group.header)" }
                if let problem = check(
                    group.entries, from: end + group.header.headerBytes, to: group.header.end,
                    firstSequence: next)
                {
                    return problem
                }
                end = group.header.end
                next = group.header.nextSequence
            }
            return end == found.offset ? nil : "the log ends at \(found.offset), not \(end)"
        }

        private func check(
            _ entries: [DiskEntry], from start: Int, to end: Int, firstSequence: UInt64
        ) -> String? {
            var place = start
            for (index, entry) in entries.enumerated() {
                guard entry.sequence == firstSequence + UInt64(index) else {
                    return "a sequence that does not follow: \(entry)"
                }
                guard entry.kind.hasBody else {
                    if entry.bodyBytes != 0 || entry.bodyOffset != 0 { return "\(entry)" }
                    continue
                }
                guard
                    entry.bodyBytes > 0, entry.bodyOffset >= place, entry.bodyOffset % 4_096 == 0,
                    entry.bodyOffset + entry.paddedBodyBytes <= end
                else { return "a body outside of its place: \(entry)" }
                place = entry.bodyOffset + entry.paddedBodyBytes
            }
            return nil
        }
    }
}
