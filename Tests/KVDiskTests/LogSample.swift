import KVDiskFormat
import KVIdentity
import KVTier

@testable import KVDisk

/// A record of a test: its identity and its bytes follow from its number.
struct SampleRecord: Sendable {
    static let spaces = (0..<2).map { Digest(words: (0x5AACE, UInt64($0), 1, 1)) }
    static let disk = DiskID(words: (1, 2))

    let record: TierRecord
    let body: [UInt8]

    var key: Digest { record.key }
    var paddedBytes: Int { DiskFormat.aligned(body.count) }

    init(_ number: Int, byteCount: Int? = nil) {
        let byteCount = byteCount ?? (1 + number % 3) * 4096 - number * 37 % 4000
        let body = (0..<byteCount).map {
            UInt8(truncatingIfNeeded: number &* 131 + $0 * 7 + $0 / 256)
        }
        self.body = body
        record = TierRecord(
            key: Digest(words: (UInt64(number), 0, 0, 0xCE)), parent: nil,
            space: Self.spaces[number % 2], root: Self.root(of: number), shard: 0, chunkIndex: 0,
            byteCount: byteCount, checksum: body.withUnsafeBytes { DiskFormat.checksum($0) },
            expiresMs: 0)
    }

    /// Roots belong to one space each.
    static func root(of number: Int) -> Digest {
        Digest(words: (UInt64(number % 6), 0, 0, 0x2007))
    }

    static func json(_ space: Digest) -> [UInt8] { Array("{\"space\":\"\(space)\"}".utf8) }
}

extension DiskLog {
    mutating func knowSamples() {
        for space in SampleRecord.spaces { know(space: space, json: SampleRecord.json(space)) }
    }
}
