internal import KVIdentity

/// Writes little-endian fields into memory that it has filled with zeros.
@safe
struct FieldWriter {
    private let bytes: UnsafeMutableRawBufferPointer

    /// Fills the first `byteCount` of `bytes` with zeros.
    ///
    /// - Precondition: `bytes` has room for them.
    init(_ bytes: UnsafeMutableRawBufferPointer, byteCount: Int) {
        precondition(bytes.count >= byteCount, "there is no room for \(byteCount) bytes")
        // SAFETY: a prefix of the caller's memory; a writer lives no longer than the call that
        // made it.
        unsafe self.bytes = UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount])
        unsafe self.bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    func store(_ value: UInt8, at offset: Int) {
        check(offset, 1)
        // SAFETY: checked above.
        unsafe bytes[offset] = value
    }

    func store(_ value: UInt32, at offset: Int) {
        check(offset, 4)
        // SAFETY: checked above; needs no alignment.
        unsafe bytes.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt32.self)
    }

    func store(_ value: UInt64, at offset: Int) {
        check(offset, 8)
        // SAFETY: checked above; needs no alignment.
        unsafe bytes.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self)
    }

    func store(_ value: Digest, at offset: Int) {
        check(offset, Digest.byteCount)
        // SAFETY: checked above.
        unsafe value.copyBytes(to: UnsafeMutableRawBufferPointer(rebasing: bytes[offset...]))
    }

    /// A count that the caller has checked to fit.
    func store(count: Int, at offset: Int) {
        store(UInt32(count), at: offset)
    }

    /// An offset or a length.
    func store(size: Int, at offset: Int) {
        store(UInt64(size), at: offset)
    }

    /// Writes the checksum of `range`, which is complete, to `offset`.
    func storeChecksum(of range: Range<Int>, at offset: Int) {
        check(range.lowerBound, range.count)
        // SAFETY: checked above.
        let checksum = unsafe DiskFormat.checksum(UnsafeRawBufferPointer(rebasing: bytes[range]))
        store(checksum, at: offset)
    }

    /// Ends what ``FieldReader/requireBlock(_:)`` reads.
    func storeBlockChecksum() {
        storeChecksum(
            of: 0..<FieldReader.blockChecksumOffset, at: FieldReader.blockChecksumOffset)
    }

    private func check(_ offset: Int, _ byteCount: Int) {
        // SAFETY: only the count is read.
        let count = unsafe bytes.count
        precondition(
            offset >= 0 && byteCount >= 0 && byteCount <= count && offset <= count - byteCount,
            "a field lies outside of its structure")
    }
}

extension DiskFormat {
    /// `byteCount` bytes that `encode` writes.
    static func bytes(
        _ byteCount: Int, _ encode: (UnsafeMutableRawBufferPointer) -> Void
    ) -> [UInt8] {
        // SAFETY: all encoders fill all bytes that they are given.
        unsafe [UInt8](unsafeUninitializedCapacity: byteCount) { buffer, initialized in
            unsafe encode(
                UnsafeMutableRawBufferPointer(
                    UnsafeMutableBufferPointer(rebasing: buffer[..<byteCount])))
            initialized = byteCount
        }
    }
}
