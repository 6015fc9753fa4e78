import KVDiskFormat
import KVIdentity
import Testing

@testable import KVDisk

/// Reads a whole directory the simplest way, to say what a start finds there.
struct LogReader {
    struct Problem: Error, CustomStringConvertible {
        let description: String

        init(_ description: String) { self.description = description }
    }

    /// A record that can be read.
    struct Found {
        var entry: DiskEntry
        var segment: UInt64
        var body: [UInt8]
    }

    var epoch: UInt64 = 0
    var segments: [RecoveredSegment] = []
    /// By key, and by shard.
    var alive: [Digest: [UInt32: Found]] = [:]
    private var drops: [DiskEntry] = []
    private var records: [Found] = []

    init(_ io: SimulatedIO, disk: DiskID) throws {
        for (name, byteCount) in io.list() {
            let number = DiskFormat.segmentNumber(ofName: name)!
            try read(io.contents(of: name)!, number: number, byteCount: byteCount, disk: disk)
        }
        resolve()
    }

    private mutating func read(
        _ bytes: [UInt8], number: UInt64, byteCount: Int, disk: DiskID
    ) throws {
        var found = RecoveredSegment(
            number: number, header: nil, state: .free, firstSequence: 0, fileBytes: byteCount,
            tombstones: [])
        defer { segments.append(found) }
        guard byteCount >= DiskFormat.smallestSegmentBytes,
            let header = bytes.decoded({ bytes throws(DiskFormatError) in
                try SegmentHeader(decoding: bytes)
            })
        else { return }
        if header.disk != disk || header.number != number || header.segmentBytes != byteCount {
            throw Problem("a header of another file")
        }
        found.header = header
        epoch = max(epoch, header.firstSequence >> 40)
        let entries: [DiskEntry]
        if let footer = Self.footer(bytes, header) {
            found.state = .closed
            entries = footer.entries
        } else {
            let end: Int
            (entries, end) = Self.walk(bytes, header)
            guard !entries.isEmpty else { return }
            found.state =
                Self.areBodiesGood(entries, bytes)
                ? .unfinished(entries: entries, groupsEnd: end) : .walked
        }
        found.firstSequence = entries[0].sequence
        found.tombstones = entries.filter(\.kind.isDrop)
        let hasFooter = if case .closed = found.state { true } else { false }
        try take(entries, of: number, bytes, isWhole: hasFooter)
    }

    private static func areBodiesGood(_ entries: [DiskEntry], _ bytes: [UInt8]) -> Bool {
        entries.allSatisfy { entry in
            let body = bytes[entry.bodyOffset..<entry.bodyOffset + entry.bodyBytes]
            return !entry.kind.hasBody
                || body.withUnsafeBytes { DiskFormat.checksum($0) } == entry.bodyChecksum
        }
    }

    private static func footer(_ bytes: [UInt8], _ header: SegmentHeader) -> SegmentFooter? {
        bytes.decoded { bytes throws(DiskFormatError) in
            let last = UnsafeRawBufferPointer(rebasing: bytes[header.trailerOffset...])
            let trailer = try SegmentTrailer(decoding: last, in: header)
            let end = trailer.footerOffset + trailer.footerBytes
            return try SegmentFooter(
                decoding: UnsafeRawBufferPointer(rebasing: bytes[trailer.footerOffset..<end]),
                in: header, trailer: trailer)
        }
    }

    private static func walk(_ bytes: [UInt8], _ header: SegmentHeader) -> ([DiskEntry], Int) {
        var scanner = GroupScanner(header)
        var entries: [DiskEntry] = []
        while true {
            let step = bytes.withUnsafeBytes { scanner.next(in: $0, startingAt: 0) }
            guard case .group(_, let group) = step else { return (entries, scanner.offset) }
            entries += group
        }
    }

    /// Checks that each space is described before its first record.
    private mutating func take(
        _ entries: [DiskEntry], of number: UInt64, _ bytes: [UInt8], isWhole: Bool
    ) throws {
        var spaces: Set<Digest> = []
        for entry in entries {
            if entry.kind.isDrop { drops.append(entry) }
            guard entry.kind.hasBody else { continue }
            let body = bytes[entry.bodyOffset..<entry.bodyOffset + entry.bodyBytes]
            guard body.withUnsafeBytes({ DiskFormat.checksum($0) }) == entry.bodyChecksum else {
                if isWhole { throw Problem("a body of segment \(number), which has a footer") }
                continue
            }
            if entry.kind == .space { spaces.insert(entry.space) }
            guard entry.kind == .chunk else { continue }
            if isWhole && !spaces.contains(entry.space) {
                throw Problem("segment \(number) does not describe a space before its record")
            }
            records.append(Found(entry: entry, segment: number, body: Array(body)))
        }
    }

    private mutating func resolve() {
        var bounds: [[Digest]: UInt64] = [:]
        for drop in drops {
            let name = [drop.key, drop.space, drop.root]
            bounds[name] = max(bounds[name] ?? 0, drop.bound)
        }
        let zeros = Digest(words: (0, 0, 0, 0))
        for record in records {
            let entry = record.entry
            let names = [
                [entry.key, entry.space, entry.root], [zeros, entry.space, entry.root],
                [zeros, entry.space, zeros],
            ]
            if names.contains(where: { (bounds[$0] ?? 0) > entry.sequence }) { continue }
            let other = alive[entry.key]?[entry.shard]
            if let other, other.entry.sequence > entry.sequence { continue }
            alive[entry.key, default: [:]][entry.shard] = record
        }
    }
}

extension Array where Element == UInt8 {
    /// What `body` reads; nil where it throws.
    fileprivate func decoded<Value>(
        _ body: (UnsafeRawBufferPointer) throws(DiskFormatError) -> Value
    ) -> Value? {
        withUnsafeBytes { bytes in
            do throws(DiskFormatError) {
                return try body(bytes)
            } catch {
                return nil
            }
        }
    }
}
