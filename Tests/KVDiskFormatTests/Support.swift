import KVDiskFormat
import KVIdentity
import TestRandom

extension SeededGenerator {
    mutating func digest() -> Digest {
        Digest(words: (next(), next(), next(), next()))
    }

    /// Often an extreme one.
    mutating func word() -> UInt64 {
        switch below(6) {
        case 0: 0
        case 1: .max
        case 2: 1 << next() % 64
        default: next() >> next() % 64
        }
    }

    mutating func body(_ most: Int) -> [UInt8] {
        let count = [1, most, 4_096, 1 + below(most)][below(4)]
        return (0..<min(count, most)).map { _ in UInt8(truncatingIfNeeded: next()) }
    }

    /// An entry without sequence and place, and its body.
    mutating func entry(bodyBytes most: Int = 9_000) -> (entry: DiskEntry, body: [UInt8]) {
        switch below(9) {
        case 8:
            let entry = DiskEntry.expireKey(
                digest(), space: digest(), root: digest(), expiresMs: word(), writtenMs: word())
            return (entry, [])
        case 0:
            return (.dropKey(digest(), space: digest(), root: digest(), writtenMs: word()), [])
        case 1:
            return (.dropRoot(digest(), space: digest(), writtenMs: word()), [])
        case 2:
            return (.dropSpace(digest(), writtenMs: word()), [])
        case 3:
            let body = body(most)
            let entry = DiskEntry.space(
                digest(), bodyBytes: body.count, checksum: checksum(body), writtenMs: word())
            return (entry, body)
        default:
            let body = body(most)
            let index = UInt32(truncatingIfNeeded: word())
            let entry = DiskEntry.chunk(
                key: digest(), parent: index == 0 ? nil : digest(), space: digest(),
                root: digest(), shard: UInt32(truncatingIfNeeded: word()), chunkIndex: index,
                bodyBytes: body.count, checksum: checksum(body), writtenMs: word(),
                expiresMs: word())
            return (entry, body)
        }
    }

    mutating func segment(bytes: Int = DiskFormat.smallestSegmentBytes) -> SegmentHeader {
        SegmentHeader(
            disk: .random(using: &self), number: 1 + next() % DiskFormat.largestSegmentNumber,
            life: next(), segmentBytes: bytes, firstSequence: max(1, word() >> 1),
            createdMs: word())
    }
}

/// A segment in memory, and what was put into it.
struct SampleSegment {
    struct Group: Equatable {
        let header: GroupHeader
        let entries: [DiskEntry]
    }

    let header: SegmentHeader
    var bytes: [UInt8]
    var groups: [Group] = []
    var end = DiskFormat.segmentHeaderBytes
    var nextSequence: UInt64

    var entries: [DiskEntry] { groups.flatMap(\.entries) }

    /// `filler` is what stands where nothing was written.
    init(_ header: SegmentHeader, filler: UInt8 = 0) {
        self.header = header
        bytes = [UInt8](repeating: filler, count: header.segmentBytes)
        nextSequence = header.firstSequence
        put(header.encoded, at: 0)
    }

    /// Random groups until one does not fit.
    init(random: inout SeededGenerator, segmentBytes: Int = DiskFormat.smallestSegmentBytes) {
        self.init(random.segment(bytes: segmentBytes))
        while append((0..<(1 + random.below(4))).map { _ in random.entry() }) {}
    }

    /// Appends a group; false if there is no room for it.
    mutating func append(_ pieces: [(entry: DiskEntry, body: [UInt8])]) -> Bool {
        var placed = pieces.map(\.entry)
        let byteCount =
            DiskFormat.groupHeaderBytes(entries: placed.count)
            + placed.reduce(0) { $0 + $1.paddedBodyBytes }
        guard end + byteCount <= header.groupsLimit(entries: entries.count + placed.count) else {
            return false
        }
        let group = GroupHeader(
            placing: &placed, at: end, in: header, firstSequence: nextSequence)
        put(group.encoded(placed), at: end)
        for (entry, piece) in zip(placed, pieces) { put(piece.body, at: entry.bodyOffset) }
        groups.append(Group(header: group, entries: placed))
        end = group.end
        nextSequence = group.nextSequence
        return true
    }

    /// Appends a group that has room.
    mutating func add(_ pieces: [(entry: DiskEntry, body: [UInt8])]) {
        let isThere = append(pieces)
        precondition(isThere, "the sample is too small")
    }

    /// Writes footer and trailer.
    mutating func complete() -> (footer: SegmentFooter, trailer: SegmentTrailer) {
        let footer = SegmentFooter(entries, groupsEnd: end, in: header)
        let offset = header.groupsLimit(entries: footer.entries.count)
        let trailer = SegmentTrailer(of: footer, at: offset, in: header)
        put(footer.encoded, at: offset)
        put(trailer.encoded, at: header.trailerOffset)
        return (footer, trailer)
    }

    mutating func put(_ piece: [UInt8], at offset: Int) {
        bytes.replaceSubrange(offset..<(offset + piece.count), with: piece)
    }
}

func checksum(_ bytes: [UInt8]) -> UInt64 {
    bytes.withUnsafeBytes { DiskFormat.checksum($0) }
}

/// Walks groups as long as there are any.
func scan(_ bytes: [UInt8], of header: SegmentHeader) -> (
    groups: [SampleSegment.Group], end: GroupScanner.End?, offset: Int
) {
    var scanner = GroupScanner(header)
    var groups: [SampleSegment.Group] = []
    while true {
        let step = bytes.withUnsafeBytes { scanner.next(in: $0, startingAt: 0) }
        switch step {
        case .group(let header, let entries):
            groups.append(.init(header: header, entries: entries))
        case .needs: return (groups, nil, scanner.offset)
        case .end(let end): return (groups, end, scanner.offset)
        }
    }
}

/// What `body` makes of the bytes; the library's own call knows no types of errors.
private func decoding<Value>(
    _ bytes: [UInt8], _ body: (UnsafeRawBufferPointer) throws(DiskFormatError) -> Value
) throws(DiskFormatError) -> Value {
    try bytes.withUnsafeBytes { bytes in
        Result { () throws(DiskFormatError) in try body(bytes) }
    }.get()
}

extension DiskHeader {
    init(_ bytes: [UInt8]) throws(DiskFormatError) {
        self = try decoding(bytes) { bytes throws(DiskFormatError) in
            try DiskHeader(decoding: bytes)
        }
    }
}

extension SegmentHeader {
    init(_ bytes: [UInt8]) throws(DiskFormatError) {
        self = try decoding(bytes) { bytes throws(DiskFormatError) in
            try SegmentHeader(decoding: bytes)
        }
    }
}

extension SegmentTrailer {
    init(_ bytes: [UInt8], in segment: SegmentHeader) throws(DiskFormatError) {
        self = try decoding(bytes) { bytes throws(DiskFormatError) in
            try SegmentTrailer(decoding: bytes, in: segment)
        }
    }
}

extension SegmentFooter {
    init(
        _ bytes: [UInt8], in segment: SegmentHeader, trailer: SegmentTrailer
    ) throws(DiskFormatError) {
        self = try decoding(bytes) { bytes throws(DiskFormatError) in
            try SegmentFooter(decoding: bytes, in: segment, trailer: trailer)
        }
    }
}

extension SampleSegment.Group {
    init(
        _ bytes: [UInt8], in segment: SegmentHeader, at offset: Int
    ) throws(DiskFormatError) {
        self = try decoding(bytes) { bytes throws(DiskFormatError) in
            let header = try GroupHeader(decoding: bytes, in: segment, at: offset)
            return .init(header: header, entries: try header.entries(decoding: bytes))
        }
    }
}

/// The code of what `body` throws; nil if it throws nothing.
func code(_ body: () throws(DiskFormatError) -> Void) -> DiskFormatError.Code? {
    do {
        try body()
        return nil
    } catch {
        return error.code
    }
}
