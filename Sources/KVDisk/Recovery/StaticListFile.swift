internal import Glibc
package import KVDiskFormat
package import KVTier

/// The file `kvasir-static` of a disk directory. Every call blocks.
///
/// It is replaced as a whole: written under another name, synced, renamed. So there is always an
/// old list or a new one.
package struct StaticListFile: Sendable {
    /// What is there.
    package enum Content: Sendable {
        /// No file.
        case none
        /// The list, and the number of its generation.
        case list(generation: UInt64, marks: [TierMark])
        /// What is wrong with the file; a foreign one, or a newer version's, is never replaced.
        case unusable(problem: String, mayBeReplaced: Bool)
    }

    private let directory: String
    private let disk: DiskID

    /// The file of a directory, which is this disk's.
    package init(directory: String, disk: DiskID) {
        self.directory = directory
        self.disk = disk
    }

    private var path: String { "\(directory)/\(DiskFormat.staticListName)" }

    /// Reads it.
    package func read() -> Content {
        do throws(DiskFault) {
            guard let bytes = try load() else { return .none }
            return decode(bytes)
        } catch {
            return .unusable(
                problem: "\(DiskFormat.staticListName): \(error.message)", mayBeReplaced: false)
        }
    }

    private func decode(_ bytes: [UInt8]) -> Content {
        do throws(DiskFormatError) {
            let decoded = bytes.withUnsafeBytes { bytes in
                Result { () throws(DiskFormatError) in
                    try StaticList(decoding: bytes, of: disk)
                }
            }
            let list = try decoded.get()
            let marks = list.entries.map {
                TierMark(key: $0.key, parent: $0.parent, root: $0.root, space: $0.space)
            }
            return .list(generation: list.generation, marks: marks)
        } catch {
            let isOurs = error.code == .damaged || error.code == .blank
            let what = error.message.split(separator: ";", maxSplits: 1)[0]
            let advice =
                isOurs
                ? "it is left out: pin again what this server is to keep for good"
                : "Kvasir leaves it alone, and keeps no list there; move it away"
            return .unusable(
                problem: "\(DiskFormat.staticListName): \(what); \(advice)", mayBeReplaced: isOurs)
        }
    }

    /// The bytes of the file, or of its beginning; nil if there is none.
    private func load() throws(DiskFault) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
        if descriptor < 0 {
            if errno == ENOENT { return nil }
            throw DiskFault(errno: errno, "open \(path)")
        }
        defer { close(descriptor) }
        var status = stat()
        if fstat(descriptor, &status) != 0 {
            throw DiskFault(errno: errno, "see the length of \(path)")
        }
        let byteCount = min(Int(status.st_size), StaticList.mostFileBytes)
        var bytes = [UInt8](repeating: 0, count: byteCount)
        var done = 0
        while done < byteCount {
            let count = bytes.withUnsafeMutableBytes {
                pread(descriptor, $0.baseAddress! + done, byteCount - done, off_t(done))
            }
            if count < 0, errno == EINTR { continue }
            if count < 0 { throw DiskFault(errno: errno, "read \(path)") }
            if count == 0 { break }
            done += count
        }
        return Array(bytes.prefix(done))
    }

    /// Replaces it, durably.
    package func write(generation: UInt64, _ marks: [TierMark], nowMs: UInt64) throws(DiskFault) {
        let entries = marks.map {
            StaticList.Entry(key: $0.key, parent: $0.parent, root: $0.root, space: $0.space)
        }
        let list = StaticList(
            disk: disk, generation: generation, writtenMs: nowMs, entries: entries)
        let folder = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if folder < 0 { throw DiskFault(errno: errno, "open the directory \(directory)") }
        defer { close(folder) }
        do throws(DiskFault) {
            try store(list.encoded, in: folder)
            if renameat(folder, DiskFormat.newStaticListName, folder, DiskFormat.staticListName)
                != 0
            {
                throw DiskFault(errno: errno, "rename \(path)")
            }
        } catch {
            unlinkat(folder, DiskFormat.newStaticListName, 0)
            throw error
        }
        try synchronize(folder, named: directory)
    }

    /// Writes the new file, and syncs it.
    private func store(_ bytes: [UInt8], in folder: Int32) throws(DiskFault) {
        let name = DiskFormat.newStaticListName
        // One that a crash left is ours by its name.
        unlinkat(folder, name, 0)
        let flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW
        // For the owner only, as all files there.
        let descriptor = openat(folder, name, flags, mode_t(0o600))
        if descriptor < 0 { throw DiskFault(errno: errno, "create \(directory)/\(name)") }
        defer { close(descriptor) }
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress! + done, bytes.count - done)
            }
            if count < 0, errno == EINTR { continue }
            if count < 0 { throw DiskFault(errno: errno, "write \(directory)/\(name)") }
            done += count
        }
        try synchronize(descriptor, named: "\(directory)/\(name)")
    }

    private func synchronize(_ descriptor: Int32, named name: String) throws(DiskFault) {
        while fsync(descriptor) != 0 {
            if errno != EINTR { throw DiskFault(errno: errno, "sync \(name)") }
        }
    }
}
