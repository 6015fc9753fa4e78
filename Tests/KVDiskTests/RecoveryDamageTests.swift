import Glibc
import KVDiskFormat
import KVIdentity
import KVThreads
import KVTier
import TestDisk
import TestRandom
import Testing

@testable import KVDisk

/// A good directory: segments 1 and 2 with footers, 3 without; a chain of three chunks in each.
struct Damage {
    var disk: SampleDisk
    let space: CacheSpace

    static func sample() -> Damage {
        var disk = SampleDisk(seed: 11)
        let space = disk.space([5_000])
        for number: UInt64 in 1...3 {
            let chain = disk.chain(3, of: space)
            let drop = Written(
                entry: .dropKey(disk.digest(), space: space.id, root: disk.digest(), writtenMs: 1),
                body: [])
            disk.addSegment(
                number, [[disk.description(of: space), chain[0]], [chain[1], drop], [chain[2]]],
                isClosed: number < 3)
        }
        return Damage(disk: disk, space: space)
    }

    /// The entry of a chunk. - Parameter index: its place in the chain.
    func entry(_ segment: UInt64, _ index: UInt32) -> DiskEntry {
        disk.written.first {
            $0.segment == segment && $0.entry.kind == .chunk && $0.entry.chunkIndex == index
        }!.entry
    }

    /// Writes the checksum of a block of 4096 bytes anew.
    mutating func seal(_ name: String, at offset: Int) {
        let sum = checksum([UInt8](disk.files[name]![offset..<offset + 4088]))
        put(withUnsafeBytes(of: sum.littleEndian) { [UInt8]($0) }, name, at: offset + 4088)
    }

    mutating func put(_ bytes: [UInt8], _ name: String, at offset: Int) {
        disk.files[name]!.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }

    mutating func put(_ bytes: [UInt8], _ segment: UInt64, at offset: Int) {
        put(bytes, SampleDisk.name(segment), at: offset)
    }
}

/// One way to damage the sample, and what must be left of it.
struct DamageCase: CustomTestStringConvertible, Sendable {
    let testDescription: String
    /// Segments of which all is recovered.
    var whole: Set<UInt64> = [1, 2, 3]
    /// Of segment 3, or of what is damaged: chunks of its chain that are recovered.
    var chunks = 0
    var partial: UInt64 = 3
    /// What segment 2 is told to be.
    var state = "closed"
    /// What a message says; nil: none is needed.
    var says: [String]
    let damage: @Sendable (inout Damage) -> Void

    init(
        _ what: String, whole: Set<UInt64> = [1, 2, 3], partial: UInt64 = 3, chunks: Int = 0,
        state: String = "closed", says: [String], damage: @escaping @Sendable (inout Damage) -> Void
    ) {
        testDescription = what
        self.whole = whole
        self.partial = partial
        self.chunks = chunks
        self.state = state
        self.says = says
        self.damage = damage
    }

    private static let two = SampleDisk.name(2)

    static let all: [DamageCase] = [
        DamageCase(
            "a bit of a segment's header", whole: [1, 3], state: "free",
            says: [two, "checksum", "left out"]
        ) { $0.disk.flip(2, at: 33) },
        DamageCase(
            "a bit of a segment's magic number", whole: [1, 3], state: "untouchable",
            says: [two, "move it away"]
        ) { $0.disk.flip(2, at: 3) },
        DamageCase("a torn first header", whole: [1, 3], state: "free", says: []) {
            $0.put([UInt8](repeating: 0, count: 512), 2, at: 0)
        },
        DamageCase("a header of zeros", whole: [1, 3], state: "free", says: []) {
            $0.put([UInt8](repeating: 0, count: 4096), 2, at: 0)
        },
        DamageCase("a bit of a footer's entries", state: "unfinished", says: [two, "footer"]) {
            $0.disk.flip(2, at: $0.disk.footers[2]! + 300)
        },
        DamageCase("a bit of a footer's header", state: "unfinished", says: [two, "footer"]) {
            $0.disk.flip(2, at: $0.disk.footers[2]! + 40)
        },
        DamageCase("a bit of a footer's magic number", state: "unfinished", says: [two, "footer"]) {
            $0.disk.flip(2, at: $0.disk.footers[2]!)
        },
        DamageCase("a bit of a trailer", state: "unfinished", says: [two, "trailer"]) {
            $0.disk.flip(2, at: (256 << 10) - 4096 + 24)
        },
        DamageCase("a bit of a trailer's magic number", state: "unfinished", says: []) {
            $0.disk.flip(2, at: (256 << 10) - 4096)
        },
        DamageCase("a trailer that points outside", state: "unfinished", says: [two, "trailer"]) {
            $0.put([255, 255, 255, 255, 255, 255, 255, 127], 2, at: (256 << 10) - 4096 + 24)
            $0.seal(two, at: (256 << 10) - 4096)
        },
        DamageCase("a trailer that points at a body", state: "unfinished", says: [two, "footer"]) {
            $0.put([0, 48, 0, 0, 0, 0, 0, 0], 2, at: (256 << 10) - 4096 + 24)
            $0.seal(two, at: (256 << 10) - 4096)
        },
        DamageCase(
            "a trailer of a newer version", whole: [1, 3], state: "untouchable",
            says: [two, "newer Kvasir", "run that version"]
        ) {
            $0.put([2, 0, 0, 0], 2, at: (256 << 10) - 4096 + 8)
            $0.seal(two, at: (256 << 10) - 4096)
        },
        DamageCase(
            "a footer of a newer version", whole: [1, 3], state: "untouchable",
            says: [two, "newer Kvasir", "run that version"]
        ) {
            let offset = $0.disk.footers[2]!
            $0.put([2, 0, 0, 0], 2, at: offset + 12)
            let sum = checksum([UInt8]($0.disk.files[two]![offset..<offset + 56]))
            $0.put(withUnsafeBytes(of: sum.littleEndian) { [UInt8]($0) }, 2, at: offset + 56)
        },
        DamageCase(
            "a header of a newer version", whole: [1, 3], state: "untouchable",
            says: [two, "newer Kvasir", "run that version"]
        ) {
            $0.put([2, 0, 0, 0], 2, at: 8)
            $0.seal(two, at: 0)
        },
        DamageCase(
            "a segment of another disk", whole: [1, 3], state: "untouchable",
            says: [two, "belongs to disk", "move it away"]
        ) {
            $0.put([1, 2, 3], 2, at: 16)
            $0.seal(two, at: 0)
        },
        DamageCase(
            "somebody else's file with our name", whole: [1, 3], state: "untouchable",
            says: [two, "move it away"]
        ) { $0.disk.files[two] = [UInt8](repeating: 65, count: 100_000) },
        DamageCase(
            "a short file of somebody else", whole: [1, 3], state: "untouchable",
            says: [two, "has 100 bytes"]
        ) { $0.disk.files[two] = [UInt8](repeating: 65, count: 100) },
        DamageCase("an empty file", whole: [1, 3], state: "gone", says: []) {
            $0.disk.files[two] = []
        },
        DamageCase("a file that was never made completely", whole: [1, 3], state: "gone", says: [])
        {
            $0.disk.files[two] = [UInt8](repeating: 0, count: 8192)
        },
        DamageCase(
            "a cut file", whole: [1, 3], state: "untouchable",
            says: [two, "the file has 200704", "remove it"]
        ) { $0.disk.files[two]!.removeLast((256 << 10) - 200_704) },
        DamageCase(
            "two segments that claim one number", whole: [2, 3], state: "closed",
            says: [SampleDisk.name(1), "the file's name says 1", "remove it"]
        ) { $0.disk.files[SampleDisk.name(1)] = $0.disk.files[two] },
        DamageCase("files with other names", says: []) {
            $0.disk.files["segment-2.kvseg"] = $0.disk.files[two]
            $0.disk.files["lost+found"] = [1]
            $0.disk.files["kvasir-probe"] = []
        },
        DamageCase("a bit of a body in an unfinished segment", whole: [1, 2], chunks: 2, says: []) {
            $0.disk.flip(3, at: $0.entry(3, 2).bodyOffset + 4_999, bit: 3)
        },
        DamageCase("a bit of the first body in an unfinished segment", whole: [1, 2], says: []) {
            $0.disk.flip(3, at: $0.entry(3, 0).bodyOffset)
        },
        DamageCase(
            "a bit of the last group in an unfinished segment", whole: [1, 2], chunks: 2,
            says: [SampleDisk.name(3), "the log ends at byte"]
        ) { $0.disk.flip(3, at: $0.entry(3, 2).bodyOffset - 4096 + 70) },
        DamageCase(
            "a bit of the second group in an unfinished segment", whole: [1, 2], chunks: 1,
            says: [SampleDisk.name(3), "the log ends at byte"]
        ) { $0.disk.flip(3, at: $0.entry(3, 1).bodyOffset - 4096 + 40) },
        DamageCase(
            "the description of the space in all segments but one", whole: [1, 2], chunks: 3,
            says: [two, "description of space"]
        ) {
            for segment: UInt64 in [2, 3] {
                let entry = $0.disk.written.first { $0.segment == segment }!.entry
                $0.disk.flip(segment, at: entry.bodyOffset + 5)
            }
        },
    ]
}

@Suite("Damaged directories")
struct RecoveryDamageTests {
    @Test("lose what is damaged and nothing else, and say what to do", arguments: DamageCase.all)
    func corpus(damage: DamageCase) throws {
        var sample = Damage.sample()
        damage.damage(&sample)
        let io = MemoryIO(sample.disk.files)
        let recovered = try Recovered(io)
        var expected = sample.disk.keys(in: damage.whole)
        for index in 0..<damage.chunks {
            expected.insert(sample.entry(damage.partial, UInt32(index)).key)
        }
        #expect(recovered.keys == expected)
        #expect(recovered.complaint(sample.disk.files, sample.disk.written) == nil)
        #expect(recovered.state(2) == damage.state)
        for part in damage.says {
            #expect(recovered.problems.contains(part), "\(recovered.problems)")
        }
        // Nothing but what never was a segment is touched.
        if damage.state == "gone" { sample.disk.files[SampleDisk.name(2)] = nil }
        #expect(io.files == sample.disk.files)
        // To look changes nothing at all, and finds the same.
        let looked = MemoryIO(sample.disk.files)
        let disk = try #require(DiskRecovery([.look(looked)], wallMs: 0).run())
        #expect(disk.chunkCount == expected.count && looked.files == sample.disk.files)
    }

    @Test("what an earlier life of a file left never comes back")
    func earlierLife() throws {
        var sample = Damage.sample()
        let before = sample.disk.keys(in: [2])
        let chain = sample.disk.chain(1, of: sample.space)
        sample.disk.addSegment(
            2, [[sample.disk.description(of: sample.space), chain[0]]], isClosed: false)
        let recovered = try Recovered(MemoryIO(sample.disk.files))
        #expect(recovered.keys.isDisjoint(with: before))
        #expect(recovered.keys == sample.disk.keys(in: [1, 3]).union([chain[0].entry.key]))
        #expect(recovered.state(2) == "unfinished" && recovered.problems.isEmpty)
        sample.disk.addSegment(2, [], isClosed: false)
        let empty = try Recovered(MemoryIO(sample.disk.files))
        #expect(empty.keys == sample.disk.keys(in: [1, 3]) && empty.state(2) == "free")
    }

    @Test("what a device doesn't give is lost, and no more than that")
    func unreadable() throws {
        let sample = Damage.sample()
        func recover(_ segment: UInt64, _ range: Range<Int>) throws -> Recovered {
            let io = MemoryIO(sample.disk.files)
            io.state.withLock { $0.badRanges = [SampleDisk.name(segment): range] }
            return try Recovered(io)
        }
        let header = try recover(2, 0..<1)
        #expect(header.keys == sample.disk.keys(in: [1, 3]) && header.state(2) == "untouchable")
        #expect(header.directory.nextEpoch == 7 + 64)
        #expect(header.problems.contains("dmesg"))
        let trailer = try recover(2, (256 << 10) - 1..<256 << 10)
        #expect(
            trailer.keys == sample.disk.keys(in: [1, 2, 3]) && trailer.state(2) == "unfinished")
        let body = try recover(3, sample.disk.ends[3]! - 1..<sample.disk.ends[3]!)
        // The others in its segment count, which gets no footer, so that it is read again.
        #expect(body.keys.isSuperset(of: sample.disk.keys(in: [1, 2])))
        #expect(body.keys.count == sample.disk.keys(in: [1, 2, 3]).count - 1)
        #expect(body.state(3) == "walked")
        #expect(body.problems.contains(SampleDisk.name(3)))
    }

    @Test("kvasir-disk is made where nothing is, and never over somebody's data")
    func diskHeader() throws {
        let name = DiskFormat.diskHeaderName
        let sample = Damage.sample()
        func open(_ header: [UInt8]?, withSegments: Bool) -> Result<Recovered, any Error> {
            var files = withSegments ? sample.disk.files : [:]
            files[name] = header
            let io = MemoryIO(files)
            let result = Result { try Recovered(io) }
            if case .failure = result { #expect(io.files == files, "it was changed") }
            return result
        }
        func message(_ result: Result<Recovered, any Error>) -> String {
            if case .failure(let error) = result { return "\(error)" }
            return "no error"
        }
        let good = sample.disk.files[name]!
        var flipped = good
        flipped[20] ^= 1
        var torn = good
        torn.replaceSubrange(0..<512, with: [UInt8](repeating: 0, count: 512))
        let unfinished = [
            nil, [], [UInt8](repeating: 0, count: 4096), flipped, torn,
        ]
        for header in unfinished {
            let made = try open(header, withSegments: false).get()
            #expect(made.directory.isNew && made.directory.segments.isEmpty)
            let refusal = message(open(header, withSegments: true))
            #expect(refusal.contains(name) && refusal.contains("move the segments away"))
        }
        // Ours is never shorter, so this may be somebody's data.
        for short in [Array(good[..<100]), Array("precious".utf8)] {
            #expect(message(open(short, withSegments: false)).contains("a directory of its own"))
            #expect(message(open(short, withSegments: true)).contains("move the segments away"))
        }
        var newer = Damage.sample()
        newer.put([2, 0, 0, 0], name, at: 8)
        newer.seal(name, at: 0)
        for withSegments in [false, true] {
            let foreign = message(
                open([UInt8](repeating: 66, count: 5000), withSegments: withSegments))
            #expect(foreign.contains(name) && foreign.contains("a directory of its own"))
            let refusal = message(open(newer.disk.files[name], withSegments: withSegments))
            #expect(refusal.contains("newer Kvasir") && refusal.contains("run that version"))
        }
        #expect(throws: TierFault.self) { try DiskDirectory.look(MemoryIO([:])) }
        #expect(throws: TierFault.self) {
            try DiskDirectory.look(MemoryIO([name: [UInt8](repeating: 0, count: 4096)]))
        }
    }

    @Test("real files: a directory in the place of a file is no file")
    func realFiles() throws {
        let sample = Damage.sample()
        let directory = try TemporaryDirectory()
        for (name, bytes) in sample.disk.files { try directory.write(bytes, to: name) }
        let made = mkdir("\(directory.path)/\(SampleDisk.name(5))", 0o700)
        #expect(made == 0)
        defer { rmdir("\(directory.path)/\(SampleDisk.name(5))") }
        let io = try ReadOnlyIO(directory: directory.path)
        let disks = try #require(DiskRecovery([.look(io)], wallMs: 0).run())
        let disk = disks.volumes[0]
        #expect(disks.chunkCount == 9 && disk.segments.count == 3 && disk.problems.isEmpty)
        io.stop()
        // A server holds the lock; whoever looks needs none.
        let server = try ThreadIO(directory: directory.path)
        let beside = try ReadOnlyIO(directory: directory.path)
        #expect(try DiskRecovery([.look(beside)], wallMs: 0).run()?.chunkCount == 9)
        let calls = try DiskCalls(beside)
        let fault = #expect(throws: DiskFault.self) {
            try calls.perform(.create(file: 1, name: "a", byteCount: 4096))
        }
        #expect(fault?.code == .readOnly)
        beside.stop()
        #expect(try Recovered(server).chunks.count == 9)
        server.stop()
    }

    @Test("whatever bits are wrong: nothing crashes, and no byte is taken for another's")
    func mutations() throws {
        let seed = seedOfThisRun()
        print("mutations: seed \(seed)")
        var random = SeededGenerator(seed: seed)
        var (chunkCount, problemCount, lossless) = (0, 0, 0)
        for round in 0..<20 {
            var log = RandomLog(seed: seed &+ UInt64(round))
            log.write(segments: 3)
            let whole = try Recovered(MemoryIO(log.disk.files)).chunks.count
            for _ in 0..<25 {
                var files = log.disk.files
                for _ in 0..<(1 + random.below(4)) { Self.mutate(&files, log.disk, &random) }
                guard let recovered = try? Recovered(MemoryIO(files)) else {
                    problemCount += 1
                    continue
                }
                chunkCount += recovered.chunks.count
                if recovered.chunks.count == whole { lossless += 1 }
                if !recovered.disk.problems.isEmpty { problemCount += 1 }
                if let complaint = recovered.complaint(files, log.disk.written) {
                    Issue.record("seed \(seed), round \(round): \(complaint)")
                    return
                }
            }
        }
        #expect(chunkCount > 300 && problemCount > 50 && lossless < 450, "no damage was done")
    }

    @Test("entries with any values and right checksums: nothing crashes, all places are inside")
    func resealed() throws {
        let seed = seedOfThisRun()
        print("resealed: seed \(seed)")
        var random = SeededGenerator(seed: seed)
        var footerCount = 0
        for round in 0..<10 {
            var log = RandomLog(seed: seed &+ UInt64(round))
            log.write(segments: 2)
            let (name, footer) = (SampleDisk.name(1), log.disk.footers[1]!)
            for _ in 0..<30 {
                var files = log.disk.files
                let end = files[name]!.count - 4096
                for _ in 0..<(1 + random.below(3)) {
                    let entry = random.below((end - footer) / 256 - 1)
                    let place = footer + 64 + entry * 256 + random.below(29) * 8
                    let value = [0, 1, .max, 4096, 1 << 32, random.next()][random.below(6)]
                    files[name]!.store(value, at: place)
                }
                files[name]!.store(
                    checksum([UInt8](files[name]![footer + 64..<end])), at: footer + 48)
                files[name]!.store(
                    checksum([UInt8](files[name]![footer..<footer + 56])), at: footer + 56)
                let recovered = try Recovered(MemoryIO(files))
                if recovered.state(1) == "closed" { footerCount += 1 }
                for (chunk, shards) in recovered.chunks {
                    let lengths = recovered.disks.spaces[chunk.space].shardBytes
                    for (shard, place) in shards.enumerated() {
                        let end = Int(place.place.page) * 4096 + lengths[shard]
                        #expect(end <= files[name]!.count, "seed \(seed), round \(round)")
                    }
                }
                let verification = DiskVerification([recovered.directory], recovered.disks)
                #expect(verification != nil)
            }
        }
        #expect(footerCount > 20, "nothing was read")
    }

    /// Turns a bit where it matters, cuts a file, or puts a piece of a file into another place.
    private static func mutate(
        _ files: inout [String: [UInt8]], _ disk: SampleDisk, _ random: inout SeededGenerator
    ) {
        let names = files.keys.sorted()
        let name = names[random.below(names.count)]
        let count = files[name]!.count
        if count < 8192 {
            if count > 0 { files[name]![random.below(count)] ^= 1 << UInt8(random.below(8)) }
            return
        }
        let number = DiskFormat.segmentNumber(ofName: name)!
        let end = min(disk.ends[number]!, count)
        switch random.below(12) {
        case 0: files[name]!.removeLast(random.below(count / 4096) * 4096)
        case 1:
            let (from, to) = (random.below(count / 4096) * 4096, random.below(count / 4096) * 4096)
            let piece = files[name]![from..<from + 4096]
            files[name]!.replaceSubrange(to..<to + 4096, with: piece)
        case 2, 3:
            let footer = disk.footers[number] ?? count - 4096
            if footer < count {
                files[name]![footer + random.below(count - footer)] ^= 1 << UInt8(random.below(8))
            }
        case 4: files[name]![random.below(4096)] ^= 1 << UInt8(random.below(8))
        default: files[name]![random.below(end)] ^= 1 << UInt8(random.below(8))
        }
    }
}

extension [UInt8] {
    fileprivate mutating func store(_ value: UInt64, at offset: Int) {
        withUnsafeMutableBytes {
            $0.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self)
        }
    }
}

extension TemporaryDirectory {
    func write(_ bytes: [UInt8], to name: String) throws {
        let file = open("\(path)/\(name)", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        guard file >= 0 else { throw DiskFault(.other(errno), "make \(name)") }
        defer { close(file) }
        #expect(
            bytes.withUnsafeBytes { Glibc.write(file, $0.baseAddress, $0.count) } == bytes.count)
    }
}
