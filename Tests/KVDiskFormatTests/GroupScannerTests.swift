import KVDiskFormat
import KVIdentity
import TestRandom
import Testing

@Suite("Walking the groups of a segment")
struct GroupScannerTests {
    private static let seed: UInt64 = 0x5EED_0104

    @Test("finds every group, and the footer behind the last one or the room before it")
    func allGroups() throws {
        for seed in Self.seed..<(Self.seed + 40) {
            var random = SeededGenerator(seed: seed)
            var sample = SampleSegment(random: &random, segmentBytes: 65_536 << random.below(4))
            let open = scan(sample.bytes, of: sample.header)
            #expect(open.groups == sample.groups, "seed \(seed)")
            #expect(open.offset == sample.end, "seed \(seed)")
            let isFull = sample.end >= sample.header.groupsLimit(entries: sample.entries.count + 1)
            #expect(open.end == (isFull ? .full : .zeros), "seed \(seed)")
            let footer = sample.complete().footer
            let closed = scan(sample.bytes, of: sample.header)
            #expect(closed.groups == sample.groups, "seed \(seed)")
            let meets = sample.end == sample.header.groupsLimit(entries: footer.entries.count)
            #expect(closed.end == (meets ? .footer : isFull ? .full : .zeros), "seed \(seed)")
            #expect(footer.entries == closed.groups.flatMap(\.entries))
        }
    }

    @Test("tells zeros, an earlier life, a footer and damage apart")
    func ends() throws {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random.segment())
        sample.add([random.entry(bodyBytes: 100)])
        #expect(scan(sample.bytes, of: sample.header).end == .zeros)

        var other = sample.header
        other.life &+= 1
        var entries = [DiskEntry.dropSpace(random.digest(), writtenMs: 1)]
        let stale = GroupHeader(
            placing: &entries, at: sample.end, in: other, firstSequence: sample.nextSequence)
        var remains = sample
        remains.put(stale.encoded(entries), at: sample.end)
        #expect(scan(remains.bytes, of: sample.header).end == .staleLife)

        var inside = sample
        inside.put(Array("the inside of a body".utf8), at: sample.end)
        #expect(scan(inside.bytes, of: sample.header).end == .staleLife)

        var footer = sample
        footer.put(
            SegmentFooter(sample.entries, groupsEnd: sample.end, in: sample.header).encoded,
            at: sample.end)
        #expect(scan(footer.bytes, of: sample.header).end == .footer)
        footer.bytes[sample.end + 16] ^= 1
        let torn = scan(footer.bytes, of: sample.header)
        #expect(torn.offset == sample.end)
        guard case .damaged(let error) = torn.end else {
            Issue.record("\(String(describing: torn.end))")
            return
        }
        #expect(error.code == .damaged)
        #expect(error.fileOffset == sample.end)
        #expect(error.message.hasPrefix("footer at byte \(sample.end): checksum (byte "))

        var damaged = sample
        damaged.bytes[sample.groups[0].header.offset + 64 + 150] ^= 1
        let nothing = scan(damaged.bytes, of: sample.header)
        #expect(nothing.groups == [] && nothing.offset == 4_096)
        guard case .damaged(let error) = nothing.end else {
            Issue.record("\(String(describing: nothing.end))")
            return
        }
        #expect(error.message.hasPrefix("group at byte 4096: checksum of the entries (byte 4144)"))
    }

    @Test("tells a damaged footer that stands right behind the last group")
    func damagedFooter() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random.segment())
        // One group up to the footer of its one entry.
        let most = sample.header.groupsLimit(entries: 1) - 2 * 4_096
        let chunk = DiskEntry.chunk(
            key: random.digest(), parent: nil, space: random.digest(), root: random.digest(),
            shard: 0, chunkIndex: 0, bodyBytes: most, checksum: 0, writtenMs: 0, expiresMs: 0)
        sample.add([(chunk, [])])
        #expect(scan(sample.bytes, of: sample.header).end == .full)
        _ = sample.complete()
        #expect(scan(sample.bytes, of: sample.header).end == .footer)
        sample.bytes[sample.end + 32] ^= 1
        guard case .damaged = scan(sample.bytes, of: sample.header).end else {
            Issue.record("the damage was not noticed")
            return
        }
    }

    @Test("asks for what it needs, and goes on from there")
    func pieces() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random.segment(bytes: 1 << 20))
        for count in [1, 15, 16, 40] {
            let drops = (0..<count).map { _ in
                (entry: DiskEntry.dropSpace(random.digest(), writtenMs: 0), body: [UInt8]())
            }
            sample.add(drops)
        }
        var scanner = GroupScanner(sample.header)
        var groups: [SampleSegment.Group] = []
        var asked: [Int] = []
        var given = 0
        while true {
            let end = min(scanner.offset + given, sample.bytes.count)
            let step = sample.bytes[scanner.offset..<end].withUnsafeBytes { scanner.next($0) }
            switch step {
            case .group(let header, let entries):
                groups.append(.init(header: header, entries: entries))
                given = 0
            case .needs(let count):
                #expect(count > given)
                given = count
                asked.append(count)
            case .end(let end):
                #expect(end == .zeros)
                #expect(groups == sample.groups)
                #expect(asked == [4_096, 4_096, 4_096, 8_192, 4_096, 12_288, 4_096])
                #expect(scanner.entryCount == 72)
                #expect(scanner.nextSequence == sample.nextSequence)
                // It stays there.
                let again = sample.bytes.withUnsafeBytes { scanner.next(in: $0, startingAt: 0) }
                guard case .end(.zeros) = again else {
                    Issue.record("the end is not the end")
                    return
                }
                return
            }
        }
    }

    @Test("does not follow a group whose sequence does not go on from the one before")
    func sequences() {
        var random = SeededGenerator(seed: Self.seed)
        for change: Int64 in [-1, 1, 1_000] {
            var sample = SampleSegment(random.segment())
            sample.nextSequence += 2_000
            sample.add([random.entry()])
            #expect(scan(sample.bytes, of: sample.header).groups == sample.groups)
            sample.nextSequence &+= UInt64(bitPattern: change)
            sample.add([random.entry()])
            let found = scan(sample.bytes, of: sample.header)
            #expect(found.groups == [sample.groups[0]])
            guard case .damaged = found.end else {
                Issue.record("\(String(describing: found.end))")
                return
            }
        }
    }

    @Test("sees no group of a copy at another place")
    func misplaced() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random.segment())
        sample.add([(.dropSpace(random.digest(), writtenMs: 0), [])])
        let header = sample.groups[0].header
        sample.put([UInt8](sample.bytes[header.offset..<header.end]), at: header.end)
        let found = scan(sample.bytes, of: sample.header)
        #expect(found.groups == sample.groups && found.offset == header.end)
        guard case .damaged = found.end else {
            Issue.record("\(String(describing: found.end))")
            return
        }
    }

    @Test("lets no group into the room of the footer of all entries")
    func footerRoom() {
        var random = SeededGenerator(seed: Self.seed)
        var sample = SampleSegment(random.segment())
        // Fifteen entries fill one block of a footer; the sixteenth needs a second one.
        let drops = (0..<15).map { _ in
            (entry: DiskEntry.dropSpace(random.digest(), writtenMs: 0), body: [UInt8]())
        }
        sample.add(drops)
        let header = sample.header
        let most = header.groupsLimit(entries: 1) - sample.end - 4_096
        var chunk = [
            DiskEntry.chunk(
                key: random.digest(), parent: nil, space: random.digest(), root: random.digest(),
                shard: 0, chunkIndex: 0, bodyBytes: most, checksum: 0, writtenMs: 0, expiresMs: 0)
        ]
        let group = GroupHeader(
            placing: &chunk, at: sample.end, in: header, firstSequence: sample.nextSequence)
        sample.put(group.encoded(chunk), at: sample.end)
        let found = scan(sample.bytes, of: header)
        #expect(found.groups == sample.groups)
        guard case .damaged(let error) = found.end else {
            Issue.record("\(String(describing: found.end))")
            return
        }
        #expect(error.message.contains("where the footer must have room"))
    }

    @Test("stops inside every truncation of a segment without a group too many")
    func truncation() {
        var random = SeededGenerator(seed: Self.seed)
        let sample = SampleSegment(random: &random)
        for count in stride(from: 0, through: sample.bytes.count, by: 97) {
            let found = scan([UInt8](sample.bytes[..<max(count, 4_096)]), of: sample.header)
            let expected = sample.groups.filter {
                $0.header.offset + max(4_096, $0.header.headerBytes) <= count
            }
            // A group is whole when its header is; its bodies may be missing.
            if found.end == nil { #expect(found.groups == expected, "\(count) bytes") }
            #expect(found.groups.count <= sample.groups.count)
        }
    }
}
