internal import CKvasir
internal import Glibc
internal import KVThreads

/// A directory that is only read, beside a server that may be using it.
///
/// It takes no lock, makes no file and answers whatever would change something with a fault. One
/// thread carries out one request after the other, through the page cache.
package final class ReadOnlyIO: DiskIO {
    private let files: ReadOnlyFiles
    private let queue: ServiceQueue

    /// Opens a directory, which must exist.
    package init(directory path: String) throws(DiskFault) {
        let directory = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if directory < 0 { throw DiskFault(errno: errno, "open the directory \(path)") }
        let files = ReadOnlyFiles(path: path, directory: directory)
        self.files = files
        queue = try ServiceQueue("kv-disk-look") { files.carryOut($0) }
    }

    package var isDirect: Bool { false }

    package func submit(
        _ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void
    ) {
        if let misuse = request.operation.misuse { preconditionFailure(misuse) }
        queue.submit(Submission(request: request, completion: completion))
    }

    package func list() throws(DiskFault) -> [(name: String, byteCount: Int)] {
        try files.list()
    }

    package func stop() { queue.stop() }
}

/// The files that are open in a directory that is only read.
private final class ReadOnlyFiles: Sendable {
    private let path: String
    private let directory: Int32
    private let table = Locked<[UInt64: OpenFile]>([:])

    init(path: String, directory: Int32) {
        self.path = path
        self.directory = directory
    }

    deinit { Glibc.close(directory) }

    func list() throws(DiskFault) -> [(name: String, byteCount: Int)] {
        try DiskFiles.list(directory, path: path)
    }

    func carryOut(_ operation: DiskRequest.Operation) -> DiskOutcome {
        do throws(DiskFault) {
            switch operation {
            case .read(let number, let offset, let buffers):
                try file(number).transfer(buffers, offset: offset, isWrite: false)
            case .open(let number, let name): try open(number, name: name)
            case .close(let number):
                _ = try file(number)
                table.withLock { $0[number] = nil }
            case .write, .sync, .create, .remove:
                throw DiskFault(.readOnly, "change \(path), which is open for reading only")
            }
            return .done
        } catch {
            return .failed(error)
        }
    }

    private func file(_ number: UInt64) throws(DiskFault) -> OpenFile {
        if let file = table.withLock({ $0[number] }) { return file }
        throw DiskFault(
            .notFound, "use file \(number) of \(path)", because: "no such number is open")
    }

    private func open(_ number: UInt64, name: String) throws(DiskFault) {
        if table.withLock({ $0[number] != nil }) {
            throw DiskFault(.exists, "open file \(number) of \(path)")
        }
        // O_NONBLOCK: not to wait for the writer of a pipe that has this name.
        let flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK
        let descriptor = openat(directory, name, flags)
        if descriptor < 0 { throw DiskFault(errno: errno, "open \(path)/\(name)") }
        let file = try OpenFile(
            opened: descriptor, name: "\(path)/\(name)", isWritable: false)
        table.withLock { $0[number] = file }
    }
}
