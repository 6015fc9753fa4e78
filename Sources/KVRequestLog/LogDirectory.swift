internal import Glibc

/// The directory that the files are in. It owns its descriptor.
final class LogDirectory: Sendable {
    let path: String
    private let descriptor: Int32

    /// Opens the directory, and makes it (mode 0700) if it is missing.
    init(_ path: String) throws(RequestLogError) {
        self.path = path
        if path.isEmpty {
            throw RequestLogError("a request log needs a directory; name one with --request-log")
        }
        var reason = Self.make(path)
        let opened = reason == 0 ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1
        if reason == 0, opened < 0 { reason = errno }
        if reason == 0, faccessat(opened, ".", W_OK | X_OK, 0) != 0 {
            reason = errno
            close(opened)
        }
        if reason != 0 {
            throw RequestLogError(
                "the request log can't be kept in \(path): \(Self.text(reason)); name a directory "
                    + "that can be written to with --request-log")
        }
        descriptor = opened
    }

    deinit { close(descriptor) }

    /// Makes it and what is missing above it. - Returns: the error number; 0 if it is there.
    private static func make(_ path: String) -> Int32 {
        if mkdir(path, 0o700) == 0 || errno == EEXIST { return 0 }
        let reason = errno
        let parts = path.split(separator: "/", omittingEmptySubsequences: true)
        guard reason == ENOENT, parts.count > 1 else { return reason }
        let parent = (path.hasPrefix("/") ? "/" : "") + parts.dropLast().joined(separator: "/")
        let above = make(parent)
        if above != 0 { return above }
        return mkdir(path, 0o700) == 0 || errno == EEXIST ? 0 : errno
    }

    /// Makes a file (mode 0600) that was not there before.
    ///
    /// - Parameter name: of the file, without its extension; a number is added if it is taken.
    func makeFile(named name: String) throws(RequestLogError) -> (descriptor: Int32, name: String) {
        for number in 1...RequestLogLimits.sameNames {
            let whole = name + (number == 1 ? "" : "-\(number)") + ".jsonl"
            let file = openat(
                descriptor, whole, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
            if file >= 0 { return (file, whole) }
            if errno != EEXIST {
                throw RequestLogError("can't make \(path)/\(whole): \(Self.text(errno))")
            }
        }
        throw RequestLogError("can't make \(path)/\(name).jsonl: too many files have that name")
    }

    func remove(_ name: String) { unlinkat(descriptor, name, 0) }

    static func text(_ reason: Int32) -> String { String(cString: strerror(reason)) }
}
