internal import KVIdentity

/// Reads the little-endian fields of one structure, and says where in the file one is wrong.
///
/// Every access is checked against the bytes that there are: a place outside of them is a mistake
/// of this code, which the initializer's length check rules out for any input.
@safe
struct FieldReader {
    private let bytes: UnsafeRawBufferPointer
    private let structure: StaticString
    private let fileOffset: Int

    /// Reads the first `byteCount` of `bytes`, which must be there.
    init(
        _ bytes: UnsafeRawBufferPointer, _ structure: StaticString, at fileOffset: Int,
        byteCount: Int
    ) throws(DiskFormatError) {
        self.structure = structure
        self.fileOffset = fileOffset
        guard bytes.count >= byteCount else {
            throw DiskFormatError(
                .damaged, structure, at: fileOffset,
                "ends after \(bytes.count) of \(byteCount) bytes")
        }
        // SAFETY: a prefix of the caller's bytes; a reader lives no longer than the call that
        // made it.
        unsafe self.bytes = UnsafeRawBufferPointer(rebasing: bytes[..<byteCount])
    }

    // MARK: Values

    func u8(at offset: Int) -> UInt8 {
        check(offset, 1)
        // SAFETY: checked above.
        return unsafe bytes[offset]
    }

    func u32(at offset: Int) -> UInt32 {
        check(offset, 4)
        // SAFETY: checked above; needs no alignment.
        return unsafe UInt32(
            littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    func u64(at offset: Int) -> UInt64 {
        check(offset, 8)
        // SAFETY: checked above; needs no alignment.
        return unsafe UInt64(
            littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    func digest(at offset: Int) -> Digest {
        check(offset, Digest.byteCount)
        // SAFETY: checked above.
        return unsafe Digest(bytes, at: offset)
    }

    func checksum(_ range: Range<Int>) -> UInt64 {
        check(range.lowerBound, range.count)
        // SAFETY: checked above.
        return unsafe DiskFormat.checksum(UnsafeRawBufferPointer(rebasing: bytes[range]))
    }

    func isZero(_ range: Range<Int>) -> Bool {
        check(range.lowerBound, range.count)
        var offset = range.lowerBound
        while range.upperBound - offset >= 8 {
            if u64(at: offset) != 0 { return false }
            offset += 8
        }
        while offset < range.upperBound {
            if u8(at: offset) != 0 { return false }
            offset += 1
        }
        return true
    }

    /// The count, a `u32`, at `offset`, which is `least` to `most`.
    func count(
        at offset: Int, _ field: StaticString, from least: Int, to most: Int
    ) throws(DiskFormatError) -> Int {
        let value = u32(at: offset)
        guard let count = Int(exactly: value), count >= least, count <= most else {
            throw damaged(offset, field, "is \(value), not \(least) to \(most)")
        }
        return count
    }

    /// The offset or length, a `u64`, at `offset`: `least` to `most`.
    func size(
        at offset: Int, _ field: StaticString, from least: Int, to most: Int
    ) throws(DiskFormatError) -> Int {
        let value = u64(at: offset)
        guard let size = Int(exactly: value), size >= least, size <= most else {
            throw damaged(offset, field, "is \(value), not \(least) to \(most)")
        }
        return size
    }

    /// The same, and a multiple of the alignment.
    func alignedSize(
        at offset: Int, _ field: StaticString, from least: Int, to most: Int
    ) throws(DiskFormatError) -> Int {
        let size = try size(at: offset, field, from: least, to: most)
        guard size % DiskFormat.alignment == 0 else {
            throw damaged(offset, field, "is \(size), not a multiple of \(DiskFormat.alignment)")
        }
        return size
    }

    // MARK: Requirements

    func require(magic: DiskMagic) throws(DiskFormatError) {
        guard u64(at: 0) == magic.word else {
            throw DiskFormatError(
                .foreign, structure, at: fileOffset, "does not start as Kvasir writes it",
                advice: magic.startsFile
                    ? nil
                    : "an earlier use of the file left it, or it was not written completely; "
                        + "nothing needs to be done")
        }
    }

    /// The version at `offset` of a structure whose checksum is right.
    func requireVersion(at offset: Int) throws(DiskFormatError) {
        let version = u32(at: offset)
        guard version <= DiskFormat.version else {
            throw DiskFormatError(
                .newerVersion, structure, at: fileOffset,
                "format version \(version) is of a newer Kvasir, this one knows "
                    + "\(DiskFormat.version)")
        }
        guard version == DiskFormat.version else {
            throw damaged(offset, "version", "is \(version), not \(DiskFormat.version)")
        }
    }

    func require(
        checksum offset: Int, _ field: StaticString, of range: Range<Int>
    ) throws(DiskFormatError) {
        guard checksum(range) == u64(at: offset) else {
            throw damaged(
                offset, field,
                "is not that of bytes \(fileOffset &+ range.lowerBound) to "
                    + "\(fileOffset &+ range.upperBound)")
        }
    }

    func require(life: UInt64, at offset: Int) throws(DiskFormatError) {
        let found = u64(at: offset)
        guard found == life else {
            throw DiskFormatError(
                .staleLife, structure, at: fileOffset,
                "is of life \(String(found, radix: 16)), the segment's is "
                    + String(life, radix: 16))
        }
    }

    func requireZeros(_ range: Range<Int>, _ field: StaticString) throws(DiskFormatError) {
        guard isZero(range) else {
            throw damaged(range.lowerBound, field, "is not zero")
        }
    }

    /// What disk header, segment header and trailer have in common: a magic number at 0, a
    /// version at 8, and in the last 8 of 4,096 bytes the checksum of those before. All versions
    /// will have these, so that a flipped bit is not taken for a newer version.
    func requireBlock(_ magic: DiskMagic) throws(DiskFormatError) {
        if isZero(0..<DiskFormat.alignment) {
            throw DiskFormatError(.blank, structure, at: fileOffset, "is all zeros")
        }
        try require(magic: magic)
        try require(
            checksum: Self.blockChecksumOffset, "checksum", of: 0..<Self.blockChecksumOffset)
        try requireVersion(at: 8)
    }

    static let blockChecksumOffset = DiskFormat.alignment - 8

    /// An error about the field at `offset`.
    func damaged(_ offset: Int, _ field: StaticString, _ problem: String) -> DiskFormatError {
        DiskFormatError(
            .damaged, structure, at: fileOffset,
            "\(field) (byte \(fileOffset &+ offset)) \(problem)")
    }

    private func check(_ offset: Int, _ byteCount: Int) {
        // SAFETY: only the count is read.
        let count = unsafe bytes.count
        precondition(
            offset >= 0 && byteCount >= 0 && byteCount <= count && offset <= count - byteCount,
            "a field lies outside of its structure")
    }
}
