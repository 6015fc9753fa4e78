package import KVDiskFormat
package import KVIdentity
package import TestRandom

/// What was written into a sample of a directory.
package struct Written {
    package var entry: DiskEntry
    package var body: [UInt8]
    /// The segment it is in.
    package var segment: UInt64 = 0

    package init(entry: DiskEntry, body: [UInt8], segment: UInt64 = 0) {
        self.entry = entry
        self.body = body
        self.segment = segment
    }
}

/// Makes directories: files of bytes, and what was put into them.
package struct SampleDisk {
    package var random: SeededGenerator
    package let disk: DiskID
    package var files: [String: [UInt8]] = [:]
    package var written: [Written] = []
    package var headers: [UInt64: SegmentHeader] = [:]
    /// Where the groups of a segment end.
    package var ends: [UInt64: Int] = [:]
    package var footers: [UInt64: Int] = [:]
    package var nextSequence: UInt64 = 7 << 40

    package init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        disk = .random(using: &random)
        files[DiskFormat.diskHeaderName] = DiskHeader(disk: disk, createdMs: 1).encoded
    }

    package static func name(_ segment: UInt64) -> String { DiskFormat.segmentName(segment) }

    package mutating func digest() -> Digest {
        Digest(words: (random.next(), random.next(), random.next(), random.next()))
    }

    /// A space whose shards have so many bytes.
    package mutating func space(_ shardBytes: [Int], name: String = "a model") -> CacheSpace {
        try! CacheSpace(
            model: digest(), modelName: name, dtype: "bfloat16", kind: .attention, layers: 1,
            heads: 1, headSize: 8, order: "planes/LBHNC", blockTokens: 16, chunkTokens: 16,
            ranks: shardBytes.count, shardBytes: shardBytes)
    }

    package mutating func description(of space: CacheSpace) -> Written {
        let json = [UInt8](space.json.utf8)
        return Written(
            entry: .space(
                space.id, bodyBytes: json.count, checksum: checksum(json), writtenMs: 1),
            body: json)
    }

    package mutating func bytes(_ count: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count + 8) { bytes, initialized in
            let raw = UnsafeMutableRawBufferPointer(bytes)
            for offset in stride(from: 0, to: count, by: 8) {
                raw.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
            }
            initialized = count
        }
    }

    package mutating func chunk(
        _ key: Digest, parent: Digest?, root: Digest, space: Digest, index: Int, shard: Int = 0,
        byteCount: Int, expiresMs: UInt64 = 0
    ) -> Written {
        let body = bytes(byteCount)
        return Written(
            entry: .chunk(
                key: key, parent: parent, space: space, root: root, shard: UInt32(shard),
                chunkIndex: UInt32(index), bodyBytes: byteCount, checksum: checksum(body),
                writtenMs: 1, expiresMs: expiresMs),
            body: body)
    }

    /// A chain of chunks of one shard under a new root.
    package mutating func chain(_ count: Int, of space: CacheSpace) -> [Written] {
        let root = digest()
        var parent: Digest?
        return (0..<count).map { index in
            let key = digest()
            defer { parent = key }
            return chunk(
                key, parent: parent, root: root, space: space.id, index: index,
                byteCount: space.shardBytes[0])
        }
    }

    /// Adds a segment with these groups, and a footer if `isClosed`.
    package mutating func addSegment(
        _ number: UInt64, _ groups: [[Written]], isClosed: Bool, byteCount: Int = 256 << 10
    ) {
        let header = SegmentHeader(
            disk: disk, number: number, life: random.next(), segmentBytes: byteCount,
            firstSequence: nextSequence, createdMs: 1)
        var bytes = files[Self.name(number)] ?? [UInt8](repeating: 0, count: byteCount)
        func put(_ piece: [UInt8], at offset: Int) {
            bytes.replaceSubrange(offset..<offset + piece.count, with: piece)
        }
        put(header.encoded, at: 0)
        var end = DiskFormat.segmentHeaderBytes
        var entries: [DiskEntry] = []
        for group in groups {
            var placed = group.map(\.entry)
            let made = GroupHeader(
                placing: &placed, at: end, in: header, firstSequence: nextSequence)
            put(made.encoded(placed), at: end)
            for (entry, piece) in zip(placed, group) {
                if !piece.body.isEmpty { put(piece.body, at: entry.bodyOffset) }
                written.append(Written(entry: entry, body: piece.body, segment: number))
            }
            entries += placed
            end = made.end
            nextSequence = made.nextSequence
        }
        if isClosed {
            let footer = SegmentFooter(entries, groupsEnd: end, in: header)
            let offset = header.groupsLimit(entries: entries.count)
            put(footer.encoded, at: offset)
            put(
                SegmentTrailer(of: footer, at: offset, in: header).encoded,
                at: header.trailerOffset)
            footers[number] = offset
        }
        headers[number] = header
        ends[number] = end
        files[Self.name(number)] = bytes
    }

    package mutating func flip(_ segment: UInt64, at offset: Int, bit: Int = 0) {
        files[Self.name(segment)]![offset] ^= 1 << UInt8(bit)
    }

    /// The keys of the chunks in some segments.
    package func keys(in segments: Set<UInt64>) -> Set<Digest> {
        Set(
            written.filter { segments.contains($0.segment) && $0.entry.kind == .chunk }.map(
                \.entry.key))
    }
}

package func checksum(_ bytes: [UInt8]) -> UInt64 {
    bytes.withUnsafeBytes { DiskFormat.checksum($0) }
}
