internal import CKvasir
internal import Glibc
internal import KVThreads

/// An open file. It is closed with the last reference, so a descriptor never changes its meaning
/// under a transfer.
final class OpenFile: Sendable {
    let descriptor: Int32
    let name: String
    let byteCount: Int
    let isWritable: Bool

    init(descriptor: Int32, name: String, byteCount: Int, isWritable: Bool) {
        self.descriptor = descriptor
        self.name = name
        self.byteCount = byteCount
        self.isWritable = isWritable
    }

    /// Takes an open descriptor over, which is closed if its length can't be seen.
    convenience init(opened descriptor: Int32, name: String, isWritable: Bool) throws(DiskFault) {
        var status = stat()
        if fstat(descriptor, &status) != 0 {
            let fault = DiskFault(errno: errno, "see the length of \(name)")
            close(descriptor)
            throw fault
        }
        self.init(
            descriptor: descriptor, name: name, byteCount: Int(status.st_size),
            isWritable: isWritable)
    }

    deinit {
        // A child that was forked and has not called exec has the same open file.
        flock(descriptor, LOCK_UN)
        close(descriptor)
    }

    /// Fails what can't be done with this file whatever the device does.
    func check(offset: Int, byteCount count: Int, isWrite: Bool) throws(DiskFault) {
        if isWrite, !isWritable {
            throw DiskFault(
                .readOnly, transferName(offset: offset, byteCount: count, isWrite: true))
        }
        if offset > byteCount || count > byteCount - offset {
            throw pastEnd(offset: offset, byteCount: count, isWrite: isWrite)
        }
    }

    /// The fault of a range that reaches past the end.
    func pastEnd(offset: Int, byteCount count: Int, isWrite: Bool) -> DiskFault {
        DiskFault(
            .endOfFile, transferName(offset: offset, byteCount: count, isWrite: isWrite),
            because: "the file ends at \(byteCount)")
    }

    /// The transfer in words.
    func transferName(offset: Int, byteCount count: Int, isWrite: Bool) -> String {
        "\(isWrite ? "write" : "read") \(count) bytes at \(offset) of \(name)"
    }

    /// Its length as the system has it now; nil when it doesn't say.
    var currentByteCount: Int? {
        var status = stat()
        return fstat(descriptor, &status) == 0 ? Int(status.st_size) : nil
    }
}

/// The directory behind a back end, and the files that are open in it. Every call blocks.
final class DiskFiles: Sendable {
    let path: String
    /// Whether files are opened with O_DIRECT.
    let isDirect: Bool
    private let directory: Int32
    private let allocates: Bool
    private let patienceMs: Int
    private let table = Locked<[UInt64: OpenFile]>([:])

    /// Opens the directory and keeps other processes out of it, where the file system has locks.
    /// - Parameters:
    ///   - wantsDirect: false: through the page cache, whatever the file system can.
    ///   - allocates: false: zeros are written even where the file system has fallocate.
    ///   - patienceMs: how long a file that another process still writes to is waited for.
    init(
        path: String, wantsDirect: Bool, allocates: Bool, patienceMs: Int = 5000
    ) throws(DiskFault) {
        let flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC
        let descriptor = Glibc.open(path, flags)
        if descriptor < 0 { throw DiskFault(errno: errno, "open the directory \(path)") }
        // Where there are no locks for directories, nothing is lost but this check.
        if flock(descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK {
            Glibc.close(descriptor)
            throw DiskFault(
                .busy, "use the directory \(path)", because: "another process uses it")
        }
        self.path = path
        self.allocates = allocates
        self.patienceMs = patienceMs
        directory = descriptor
        isDirect = wantsDirect && Self.takesDirect(directory: descriptor)
    }

    deinit { Glibc.close(directory) }

    // MARK: The table

    /// The open file of a number.
    func file(_ number: UInt64) throws(DiskFault) -> OpenFile {
        if let file = table.withLock({ $0[number] }) { return file }
        throw DiskFault(
            .notFound, "use file \(number) of \(path)", because: "no such number is open")
    }

    /// Forgets a number.
    func close(_ number: UInt64) throws(DiskFault) {
        _ = try file(number)
        table.withLock { $0[number] = nil }
    }

    /// Forgets all files, and lets others use the directory.
    func end() {
        table.withLock { $0 = [:] }
        flock(directory, LOCK_UN)
    }

    private func add(_ number: UInt64, _ file: OpenFile) throws(DiskFault) {
        let isNew = table.withLock { table in
            if table[number] != nil { return false }
            table[number] = file
            return true
        }
        if !isNew { throw numberIsTaken(number) }
    }

    private func checkFree(_ number: UInt64) throws(DiskFault) {
        if table.withLock({ $0[number] != nil }) { throw numberIsTaken(number) }
    }

    private func numberIsTaken(_ number: UInt64) -> DiskFault {
        DiskFault(.exists, "open file \(number) of \(path)", because: "the number is in use")
    }

    // MARK: Calls

    /// Opens a file; for reading only when the file system takes no writes.
    func open(_ number: UInt64, name: String) throws(DiskFault) {
        try checkFree(number)
        let flags = O_CLOEXEC | O_NOFOLLOW | (isDirect ? kv_open_flag_direct() : 0)
        var isWritable = true
        var descriptor = openat(directory, name, O_RDWR | flags)
        if descriptor < 0, errno == EROFS {
            isWritable = false
            descriptor = openat(directory, name, O_RDONLY | flags)
        }
        if descriptor < 0 { throw DiskFault(errno: errno, "open \(path)/\(name)") }
        let file = try OpenFile(
            opened: descriptor, name: "\(path)/\(name)", isWritable: isWritable)
        try lock(file)
        try add(number, file)
    }

    /// Makes a file of zeros in real blocks, durably; leaves nothing behind when it can't.
    func create(_ number: UInt64, name: String, byteCount: Int) throws(DiskFault) {
        try checkFree(number)
        let flags =
            O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW
            | (isDirect ? kv_open_flag_direct() : 0)
        let descriptor = openat(directory, name, flags, Self.mode)
        if descriptor < 0 { throw DiskFault(errno: errno, "create \(path)/\(name)") }
        let file = OpenFile(
            descriptor: descriptor, name: "\(path)/\(name)", byteCount: byteCount,
            isWritable: true)
        do {
            try lock(file)
            try allocate(file)
            try synchronize(file.descriptor, named: file.name)
            try synchronize(directory, named: path)
            try add(number, file)
        } catch {
            unlinkat(directory, name, 0)
            fsync(directory)
            throw error
        }
    }

    /// Removes a file durably; a missing one is fine.
    func remove(name: String) throws(DiskFault) {
        if unlinkat(directory, name, 0) != 0, errno != ENOENT {
            throw DiskFault(errno: errno, "remove \(path)/\(name)")
        }
        // Even when it was missing: what removed it may not have come so far.
        try synchronize(directory, named: path)
    }

    /// Makes durable what was written.
    func sync(_ number: UInt64) throws(DiskFault) {
        let file = try file(number)
        while fdatasync(file.descriptor) != 0 {
            if errno != EINTR { throw DiskFault(errno: errno, "sync \(file.name)") }
        }
    }

    /// Names and lengths of the plain files, in the order of their names.
    func list() throws(DiskFault) -> [(name: String, byteCount: Int)] {
        try Self.list(directory, path: path)
    }

    /// The same of an open directory.
    static func list(
        _ directory: Int32, path: String
    ) throws(DiskFault) -> [(name: String, byteCount: Int)] {
        let descriptor = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0, let stream = fdopendir(descriptor) else {
            throw DiskFault(errno: errno, "list \(path)")
        }
        defer { closedir(stream) }
        var files: [(name: String, byteCount: Int)] = []
        while true {
            errno = 0
            guard let entry = readdir(stream) else {
                if errno != 0 { throw DiskFault(errno: errno, "list \(path)") }
                break
            }
            // In place: an entry is shorter than the type says.
            let start = UnsafeRawPointer(entry) + MemoryLayout<dirent>.offset(of: \.d_name)!
            let name = String(cString: start.assumingMemoryBound(to: CChar.self))
            var status = stat()
            if fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) != 0 { continue }
            if status.st_mode & S_IFMT == S_IFREG { files.append((name, Int(status.st_size))) }
        }
        return files.sorted { $0.name < $1.name }
    }

    /// Carries out everything but transfers.
    func carryOut(_ operation: DiskRequest.Operation) -> DiskOutcome {
        do throws(DiskFault) {
            switch operation {
            case .read, .write: preconditionFailure("transfers have their own threads")
            case .sync(let number): try sync(number)
            case .create(let number, let name, let byteCount):
                try create(number, name: name, byteCount: byteCount)
            case .open(let number, let name): try open(number, name: name)
            case .close(let number): try close(number)
            case .remove(let name): try remove(name: name)
            }
            return .done
        } catch {
            return .failed(error)
        }
    }

    // MARK: Steps

    /// Waits until no other process has anything under way in a file.
    ///
    /// What a ring has taken is carried out after the death of its process, too; measured were
    /// writes that came 240 ms later. The lock of the directory is free by then, but each request
    /// keeps the file that it was given open, and an open file keeps its lock.
    private func lock(_ file: OpenFile) throws(DiskFault) {
        var waitedMs = 0
        // As for the directory: where there are no locks, only this check is lost.
        while flock(file.descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK {
            if waitedMs >= patienceMs {
                throw DiskFault(
                    .busy, "use \(file.name)",
                    because: "requests of a process that was killed are still under way in it, "
                        + "or another process has locked it")
            }
            // flock waits without a limit or not at all, so it is asked again.
            usleep(1000)
            waitedMs += 1
        }
    }

    private func synchronize(_ descriptor: Int32, named name: String) throws(DiskFault) {
        while fsync(descriptor) != 0 {
            if errno != EINTR { throw DiskFault(errno: errno, "sync \(name)") }
        }
    }

    private func allocate(_ file: OpenFile) throws(DiskFault) {
        let action = "give \(file.name) its \(file.byteCount) bytes"
        let code = allocates ? kv_allocate(file.descriptor, UInt64(file.byteCount)) : EOPNOTSUPP
        if code == 0 { return }
        if code != EOPNOTSUPP && code != ENOSYS { throw DiskFault(errno: code, action) }
        let zeros = DiskMemory(byteCount: min(file.byteCount, 1 << 20))
        var offset = 0
        while offset < file.byteCount {
            let count = min(zeros.buffer.count, file.byteCount - offset)
            let piece = DiskBuffer(address: zeros.buffer.address, count: count)
            try file.transfer([piece], offset: offset, isWrite: true, isUnbounded: true)
            offset += count
        }
    }

    /// Tries O_DIRECT on a file that is removed at once: some file systems take the flag and then
    /// refuse the write.
    private static func takesDirect(directory: Int32) -> Bool {
        let name = "kvasir-probe"
        unlinkat(directory, name, 0)
        let flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW | kv_open_flag_direct()
        let descriptor = openat(directory, name, flags, mode)
        unlinkat(directory, name, 0)
        if descriptor < 0 { return false }
        defer { Glibc.close(descriptor) }
        let memory = DiskMemory(byteCount: DiskBuffer.alignment)
        let count = memory.buffer.count
        return pwrite(descriptor, memory.buffer.address, count, 0) == count
            && pread(descriptor, memory.buffer.address, count, 0) == count
    }

    /// For the owner only: it may be what a prompt said.
    private static let mode = mode_t(0o600)
}
