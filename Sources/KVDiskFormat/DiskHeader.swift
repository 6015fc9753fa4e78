/// The content of the file `kvasir-disk`: which disk a directory is.
///
/// The server that uses the directory keeps the file locked, so that no other uses it too.
package struct DiskHeader: Hashable, Sendable {
    /// The identity that every segment of the directory repeats.
    package var disk: DiskID
    /// When the directory was made, in milliseconds since 1970.
    package var createdMs: UInt64

    /// A header.
    package init(disk: DiskID, createdMs: UInt64) {
        self.disk = disk
        self.createdMs = createdMs
    }

    /// The 4,096 bytes of the file.
    package var encoded: [UInt8] {
        unsafe DiskFormat.bytes(DiskFormat.diskHeaderBytes) { unsafe encode(into: $0) }
    }

    /// Writes the 4,096 bytes of the file.
    ///
    /// - Precondition: `destination` has room for them.
    package func encode(into destination: UnsafeMutableRawBufferPointer) {
        let writer = unsafe FieldWriter(destination, byteCount: DiskFormat.diskHeaderBytes)
        writer.store(DiskMagic.disk.word, at: 0)
        writer.store(DiskFormat.version, at: 8)
        writer.store(count: DiskFormat.diskHeaderBytes, at: 12)
        writer.store(disk.words.0, at: 16)
        writer.store(disk.words.1, at: 24)
        writer.store(createdMs, at: 32)
        writer.storeBlockChecksum()
    }

    /// Reads the file's bytes. What follows the first 4,096 is not looked at.
    package init(decoding bytes: UnsafeRawBufferPointer) throws(DiskFormatError) {
        let reader = try unsafe FieldReader(
            bytes, "disk header", at: 0, byteCount: DiskFormat.diskHeaderBytes)
        try reader.requireBlock(.disk)
        let headerBytes = DiskFormat.diskHeaderBytes
        _ = try reader.count(at: 12, "header bytes", from: headerBytes, to: headerBytes)
        try reader.requireZeros(40..<FieldReader.blockChecksumOffset, "reserved")
        disk = DiskID(words: (reader.u64(at: 16), reader.u64(at: 24)))
        createdMs = reader.u64(at: 32)
    }
}
