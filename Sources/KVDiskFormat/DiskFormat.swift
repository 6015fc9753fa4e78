internal import CXXHash

/// The constants and limits of the files of a disk directory. `docs/formats.md` has the tables.
///
/// All numbers in the files are little-endian, and everything starts at a multiple of
/// ``alignment``, so that it can be read and written past the page cache.
package enum DiskFormat {
    /// The version that this code writes, and the newest that it reads.
    package static let version: UInt32 = 1

    /// What every offset and every length of an I/O request is a multiple of.
    package static let alignment = 4_096

    /// Bytes of the file `kvasir-disk`.
    package static let diskHeaderBytes = alignment
    /// Bytes of the header of a segment.
    package static let segmentHeaderBytes = alignment
    /// Bytes of a group's header before its entries, and of a footer before its entries.
    package static let entriesOffset = 64
    /// Bytes of an entry.
    package static let entryBytes = 256
    /// Bytes of the trailer, the last ones of a segment.
    package static let trailerBytes = alignment

    /// The shortest segment: one small group, footer and trailer, and some room.
    package static let smallestSegmentBytes = 64 << 10
    /// The longest segment.
    package static let largestSegmentBytes = 64 << 30
    /// The largest number of a segment: ten digits in its name.
    package static let largestSegmentNumber: UInt64 = 9_999_999_999

    /// The longest group header with its entries and padding.
    package static let largestGroupHeaderBytes = 1 << 20
    /// The most entries in a group: what ``largestGroupHeaderBytes`` has room for.
    package static let mostEntriesInGroup = (largestGroupHeaderBytes - entriesOffset) / entryBytes
    /// The most entries in a segment; its footer then has 64 MiB.
    package static let mostEntriesInSegment = 1 << 18

    /// The longest body: 4 GiB, the longest shard of a space.
    package static let largestBodyBytes = 4 << 30
    /// The longest description of a space.
    package static let largestSpaceBytes = 256 << 10

    /// Bytes of a static chunk in the list of them.
    package static let staticEntryBytes = 128
    /// The most static chunks that a list has.
    package static let mostStaticChunks = 65_536

    /// The file that says which chunks are static, and its name while it is written.
    package static let staticListName = "kvasir-static"
    package static let newStaticListName = "kvasir-static.new"

    /// The file that says which disk a directory is; the server that uses it locks it.
    package static let diskHeaderName = "kvasir-disk"

    /// The name of a segment: `segment-0000000001.kvseg`.
    ///
    /// - Precondition: `number` is 1 to ``largestSegmentNumber``.
    package static func segmentName(_ number: UInt64) -> String {
        precondition((1...largestSegmentNumber).contains(number), "a segment has ten digits")
        let digits = String(number)
        return segmentPrefix + String(repeating: "0", count: segmentDigits - digits.utf8.count)
            + digits + segmentSuffix
    }

    /// The number in the name of a segment; nil if `name` is not exactly what
    /// ``segmentName(_:)`` makes.
    package static func segmentNumber(ofName name: String) -> UInt64? {
        let length = segmentPrefix.utf8.count + segmentDigits + segmentSuffix.utf8.count
        guard
            name.utf8.count == length, name.hasPrefix(segmentPrefix), name.hasSuffix(segmentSuffix)
        else { return nil }
        var number: UInt64 = 0
        for byte in name.utf8.dropFirst(segmentPrefix.utf8.count).prefix(segmentDigits) {
            guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { return nil }
            number = number * 10 + UInt64(byte - UInt8(ascii: "0"))
        }
        return number == 0 ? nil : number
    }

    /// `byteCount` up to the next multiple of ``alignment``.
    ///
    /// - Precondition: `byteCount` is at least 0 and far from the largest `Int`.
    package static func aligned(_ byteCount: Int) -> Int {
        (byteCount + alignment - 1) / alignment * alignment
    }

    /// Bytes of the header of a group of `count` entries, with the entries and padding.
    package static func groupHeaderBytes(entries count: Int) -> Int {
        aligned(entriesOffset + count * entryBytes)
    }

    /// Bytes of the footer of a segment of `count` entries, with padding.
    package static func footerBytes(entries count: Int) -> Int {
        aligned(entriesOffset + count * entryBytes)
    }

    /// The checksum of everything on disk: XXH3-64. About 16 GB/s.
    package static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
        // SAFETY: the pointer is used during the call only, and for no more bytes than it has.
        unsafe kv_xxh3_64(bytes.baseAddress, bytes.count)
    }

    private static let segmentPrefix = "segment-"
    private static let segmentSuffix = ".kvseg"
    private static let segmentDigits = 10
}

/// The first eight bytes of each structure, as a little-endian word.
struct DiskMagic: Equatable {
    let word: UInt64

    static let disk = DiskMagic("KVASIRDK")
    static let segment = DiskMagic("KVASIRSG")
    static let group = DiskMagic("KVGROUP1")
    static let footer = DiskMagic("KVFOOTR1")
    static let trailer = DiskMagic("KVTRAIL1")
    static let staticList = DiskMagic("KVSTATIC")

    /// Whether it is the start of a file, where another one means that the file is not ours.
    var startsFile: Bool { self == .disk || self == .segment || self == .staticList }

    private init(_ text: String) {
        precondition(text.utf8.count == 8, "a magic number has eight bytes")
        word = text.utf8.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
}
