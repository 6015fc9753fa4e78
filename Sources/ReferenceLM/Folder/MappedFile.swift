internal import Glibc

/// A file mapped into memory, read-only.
///
/// The mapping is private, costs no memory of its own (pages come from the page cache as they are
/// read) and ends with the object. If another process truncates the file while it is mapped,
/// reading past its new end raises SIGBUS; so weights are mapped only while they are read.
public final class MappedFile: Sendable {
    /// The path that the file was opened by.
    public let path: String

    /// The bytes of the file; valid as long as this object lives, which the caller sees to (with
    /// `withExtendedLifetime` where nothing else holds the object).
    // SAFETY: the memory is never written through this mapping, and is unmapped only by `deinit`,
    // when no thread has the object any more; so threads may share the pointer.
    public nonisolated(unsafe) let bytes: UnsafeRawBufferPointer

    /// Kept open, to be looked at again.
    private let descriptor: Int32
    /// What it looked like when it was opened.
    private let stamp: Stamp

    private struct Stamp: Equatable {
        let byteCount: Int
        let modified: (Int, Int)
        let changed: (Int, Int)

        init?(_ descriptor: Int32) {
            var status = stat()
            guard fstat(descriptor, &status) == 0 else { return nil }
            byteCount = Int(status.st_size)
            modified = (status.st_mtim.tv_sec, status.st_mtim.tv_nsec)
            changed = (status.st_ctim.tv_sec, status.st_ctim.tv_nsec)
        }

        static func == (left: Stamp, right: Stamp) -> Bool {
            left.byteCount == right.byteCount && left.modified == right.modified
                && left.changed == right.changed
        }
    }

    /// Maps a file.
    ///
    /// - Parameter path: a regular file, or a link to one.
    /// - Throws: ``ModelError`` with the code `unreadable` if it is missing, no regular file, or
    ///   can't be read.
    public init(path: String) throws(ModelError) {
        // Without O_NONBLOCK, opening a named pipe would wait for a writer.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        if descriptor < 0 { throw Self.failure(path, "can't be opened") }
        do throws(ModelError) {
            var status = stat()
            guard fstat(descriptor, &status) == 0, let stamp = Stamp(descriptor) else {
                throw Self.failure(path, "can't be looked at")
            }
            guard status.st_mode & S_IFMT == S_IFREG else {
                throw ModelError(
                    .unreadable, "\(path) is not a regular file; put the model's file in its place")
            }
            bytes = try Self.map(descriptor, byteCount: stamp.byteCount, path: path)
            self.stamp = stamp
        } catch {
            close(descriptor)
            throw error
        }
        self.path = path
        self.descriptor = descriptor
    }

    /// Makes sure that what was read since the file was opened is one version of it.
    ///
    /// - Throws: ``ModelError`` with the code `unreadable` if the file was written to in the meantime.
    public func checkUnchanged() throws(ModelError) {
        if Stamp(descriptor) == stamp { return }
        throw ModelError(
            .unreadable,
            "\(path) was changed while it was read; wait until it is written, and try again")
    }

    deinit {
        close(descriptor)
        if let address = bytes.baseAddress {
            munmap(UnsafeMutableRawPointer(mutating: address), bytes.count)
        }
    }

    /// A copy of the bytes, for files that are read as a whole.
    ///
    /// - Throws: ``ModelError`` with this code if there are more than `maximum`.
    func contents(_ code: ModelError.Code, atMost maximum: Int) throws(ModelError) -> [UInt8] {
        guard bytes.count <= maximum else {
            throw ModelError(
                code,
                "\(path) has \(bytes.count) bytes, allowed are \(maximum); restore it as it was "
                    + "published")
        }
        return withExtendedLifetime(self) { Array(bytes) }
    }

    private static func map(_ descriptor: Int32, byteCount: Int, path: String) throws(ModelError)
        -> UnsafeRawBufferPointer
    {
        // The kernel refuses to map nothing.
        if byteCount == 0 { return UnsafeRawBufferPointer(start: nil, count: 0) }
        let address = mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, descriptor, 0)
        guard let address, address != MAP_FAILED else {
            throw failure(path, "(\(byteCount) bytes) can't be mapped")
        }
        return UnsafeRawBufferPointer(start: address, count: byteCount)
    }

    /// The error of the system call that failed last.
    private static func failure(_ path: String, _ what: String) -> ModelError {
        let code = errno
        let advice =
            switch code {
            case ENOENT, ENOTDIR: "check the path"
            case EACCES, EPERM: "give this user the right to read it"
            case ENOMEM: "give the process more address space"
            default: "check the disk, or copy the file again"
            }
        return ModelError(
            .unreadable, "\(path) \(what) (\(String(cString: strerror(code)))); \(advice)")
    }
}
