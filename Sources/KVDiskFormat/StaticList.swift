package import KVIdentity

/// The content of the file `kvasir-static`: which chunks are static, on whatever disk they are.
///
/// Every directory of a store has the whole list; the one of the highest generation counts.
package struct StaticList: Hashable, Sendable {
    /// A chunk that is kept for good.
    package struct Entry: Hashable, Sendable {
        /// The key of the chunk.
        package var key: Digest
        /// The chunk before it; nil for the first of its root.
        package var parent: Digest?
        /// Its root and its space.
        package var root: Digest
        package var space: Digest

        /// An entry.
        package init(key: Digest, parent: Digest?, root: Digest, space: Digest) {
            self.key = key
            self.parent = parent
            self.root = root
            self.space = space
        }
    }

    /// The disk whose directory the file is in.
    package var disk: DiskID
    /// Counts the lists that were written.
    package var generation: UInt64
    /// When it was written, in milliseconds since 1970.
    package var writtenMs: UInt64
    /// At most ``DiskFormat/mostStaticChunks``, in any order, each key once.
    package var entries: [Entry]

    private enum Place {
        static let headerBytes = 12
        static let disk = 16
        static let generation = 32
        static let writtenMs = 40
        static let count = 48
        static let zero = 52
        static let checksum = 56
        static let rest = 64
    }

    private static let noParent = Digest(words: (0, 0, 0, 0))

    /// A list.
    package init(disk: DiskID, generation: UInt64, writtenMs: UInt64, entries: [Entry]) {
        self.disk = disk
        self.generation = generation
        self.writtenMs = writtenMs
        self.entries = entries
    }

    /// Bytes of a file with so many entries: the header, the entries and padding.
    package static func fileBytes(entries count: Int) -> Int {
        DiskFormat.alignment + DiskFormat.aligned(count * DiskFormat.staticEntryBytes)
    }

    /// Bytes of the longest file.
    package static let mostFileBytes = fileBytes(entries: DiskFormat.mostStaticChunks)

    /// The bytes of the file.
    ///
    /// - Precondition: there are no more entries than a list may have.
    package var encoded: [UInt8] {
        precondition(entries.count <= DiskFormat.mostStaticChunks, "too many static chunks")
        let byteCount = Self.fileBytes(entries: entries.count)
        return unsafe DiskFormat.bytes(byteCount) { unsafe encode(into: $0) }
    }

    private func encode(into destination: UnsafeMutableRawBufferPointer) {
        // SAFETY: only the count is read.
        let byteCount = unsafe destination.count
        let writer = unsafe FieldWriter(destination, byteCount: byteCount)
        for (number, entry) in entries.enumerated() {
            let start = DiskFormat.alignment + number * DiskFormat.staticEntryBytes
            writer.store(entry.key, at: start)
            writer.store(entry.parent ?? Self.noParent, at: start + 32)
            writer.store(entry.root, at: start + 64)
            writer.store(entry.space, at: start + 96)
        }
        writer.store(DiskMagic.staticList.word, at: 0)
        writer.store(DiskFormat.version, at: 8)
        writer.store(count: DiskFormat.alignment, at: Place.headerBytes)
        writer.store(disk.words.0, at: Place.disk)
        writer.store(disk.words.1, at: Place.disk + 8)
        writer.store(generation, at: Place.generation)
        writer.store(writtenMs, at: Place.writtenMs)
        writer.store(count: entries.count, at: Place.count)
        writer.storeChecksum(of: DiskFormat.alignment..<byteCount, at: Place.checksum)
        writer.storeBlockChecksum()
    }

    /// Reads a whole file.
    ///
    /// - Throws: `foreign` if it is not ours or of another disk, `damaged` if it was not written
    ///   completely.
    package init(decoding bytes: UnsafeRawBufferPointer, of disk: DiskID) throws(DiskFormatError) {
        let header = try unsafe FieldReader(
            bytes, "list of static chunks", at: 0, byteCount: DiskFormat.alignment)
        try header.requireBlock(.staticList)
        let headerBytes = DiskFormat.alignment
        _ = try header.count(
            at: Place.headerBytes, "header bytes", from: headerBytes, to: headerBytes)
        let found = DiskID(words: (header.u64(at: Place.disk), header.u64(at: Place.disk + 8)))
        guard found == disk else {
            throw DiskFormatError(
                .foreign, "list of static chunks", at: 0, "is of disk \(found), not of \(disk)")
        }
        let count = try header.count(
            at: Place.count, "count of entries", from: 0, to: DiskFormat.mostStaticChunks)
        try header.requireZeros(Place.zero..<Place.checksum, "reserved")
        try header.requireZeros(Place.rest..<FieldReader.blockChecksumOffset, "reserved")
        let byteCount = Self.fileBytes(entries: count)
        let reader = try unsafe FieldReader(
            bytes, "list of static chunks", at: 0, byteCount: byteCount)
        try reader.require(
            checksum: Place.checksum, "checksum of entries", of: headerBytes..<byteCount)
        self.disk = disk
        generation = header.u64(at: Place.generation)
        writtenMs = header.u64(at: Place.writtenMs)
        entries = (0..<count).map { number in
            let start = headerBytes + number * DiskFormat.staticEntryBytes
            let parent = reader.digest(at: start + 32)
            return Entry(
                key: reader.digest(at: start), parent: parent == Self.noParent ? nil : parent,
                root: reader.digest(at: start + 64), space: reader.digest(at: start + 96))
        }
    }
}
