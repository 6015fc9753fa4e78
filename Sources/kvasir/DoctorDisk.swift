import Foundation
import KVDisk
import KVDiskFormat
import KVStore

/// Looks at the directories that the disk tier would use. What it makes to try them is gone when it ends.
struct DiskExamination {
    private(set) var findings: [Finding] = []

    init(_ options: DiskOptions) {
        do {
            let plan = try options.resolve()
            if plan.disks.isEmpty {
                findings = [Finding(name: "disk tier", level: .fine, found: "none: memory only")]
                return
            }
            findings = plan.disks.map { directory($0, isDefault: plan.isDefault) }
        } catch {
            findings = [Finding(name: "disk tier", level: .problem, found: "\(error)")]
        }
    }

    private func directory(_ disk: DiskConfiguration, isDefault: Bool) -> Finding {
        let path = disk.directory
        // Where nobody asked for it, a server goes on without.
        let level: Finding.Level = isDefault ? .warning : .problem
        let existing = Self.nearest(to: path)
        let isThere = existing == path
        if let wrong = Self.obstacle(existing) {
            return Finding(
                name: "disk tier", level: level, found: "\(path): \(wrong)",
                remedy: "name another directory with --disk, or do without with --memory-only")
        }
        var found = isThere ? path : "\(path) (to be made)"
        if isThere, Self.isInUse(path) { found += ", in use by a server" }
        guard let free = DiskConfiguration.freeBytes(at: existing) else {
            return Finding(
                name: "disk tier", level: level, found: "\(found): can't see how much is free",
                remedy: "name another directory with --disk")
        }
        let taken = isThere ? Self.takenBytes(path) : 0
        let size =
            disk.byteCount
            ?? DiskConfiguration.usualByteCount(freeBytes: free, takenBytes: taken)
        found += "; would use \(ByteCount(size)), \(ByteCount(free)) free"
        if taken > 0 { found += ", \(ByteCount(taken)) taken already" }
        found += "; \(Self.way(existing))"
        return finding(found, size: size, room: free + taken, level)
    }

    private func finding(
        _ found: String, size: Int, room: Int, _ level: Finding.Level
    ) -> Finding {
        if size < DiskConfiguration.smallestBytes {
            return Finding(
                name: "disk tier", level: level, found: found,
                remedy:
                    "free some: the least is \(ByteCount(DiskConfiguration.smallestBytes)); or name another directory"
            )
        }
        if size > room {
            return Finding(
                name: "disk tier", level: .warning, found: found,
                remedy:
                    "give it less with --disk-size; a disk that is full before takes what fits")
        }
        return Finding(name: "disk tier", level: .fine, found: found)
    }

    // MARK: Looking

    /// The directory itself, or the one in which it would be made.
    private static func nearest(to path: String) -> String {
        var place = URL(fileURLWithPath: path).standardizedFileURL.path
        if FileManager.default.fileExists(atPath: place) { return path }
        while place != "/", !FileManager.default.fileExists(atPath: place) {
            place = URL(fileURLWithPath: place).deletingLastPathComponent().path
        }
        return place
    }

    private static func obstacle(_ path: String) -> String? {
        var status = stat()
        if stat(path, &status) != 0 { return String(cString: strerror(errno)) }
        if status.st_mode & S_IFMT != S_IFDIR { return "\(path) is no directory" }
        if access(path, R_OK | W_OK | X_OK) != 0 {
            return "no right to write in \(path) (\(String(cString: strerror(errno))))"
        }
        return nil
    }

    private static func takenBytes(_ path: String) -> Int {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
        return names.filter { DiskFormat.segmentNumber(ofName: $0) != nil }.reduce(0) {
            var status = stat()
            return stat("\(path)/\($1)", &status) == 0 ? $0 + Int(status.st_size) : $0
        }
    }

    /// A server locks its directory; asking for a shared lock for a moment tells.
    private static func isInUse(_ path: String) -> Bool {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if descriptor < 0 { return false }
        defer { close(descriptor) }
        return flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK
    }

    /// How files there are read and written, tried in a directory that is removed at once.
    private static func way(_ path: String) -> String {
        var template = Array("\(path)/.kvasir-doctor-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            return "can't be tried (\(String(cString: strerror(errno))))"
        }
        let probe = String(cString: made)
        defer { rmdir(probe) }
        do throws(DiskFault) {
            let choice = try DiskIOKind.best(directory: probe)
            defer { choice.io.stop() }
            let name = choice.io.isDirect ? "O_DIRECT" : "the page cache (no O_DIRECT there)"
            return "reads and writes by \(choice.kind) with \(name) (\(choice.reason))"
        } catch {
            return "can't be tried (\(error.message))"
        }
    }
}
