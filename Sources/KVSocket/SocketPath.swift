internal import Glibc

/// Where the socket is: one rule for server and clients, in Swift and Python (`docs/protocol.md`).
public enum SocketPath {
    /// The kernel's limit for the path of a Unix socket.
    public static let byteCount = 107

    /// The path that applies: what is named, else `KVASIR_SOCKET`, else the user's runtime
    /// directory, else a directory in `/tmp`.
    ///
    /// - Parameter environment: the variables to look at.
    public static func resolve(_ named: String?, environment: [String: String]) throws(SocketError)
        -> String
    {
        let path = try choose(named, environment: environment)
        if path.utf8.count > byteCount {
            throw SocketError(
                "the socket path has \(path.utf8.count) bytes, the kernel takes \(byteCount): \(path); "
                    + "name a shorter one with --socket or KVASIR_SOCKET")
        }
        return path
    }

    private static func choose(_ named: String?, environment: [String: String]) throws(SocketError)
        -> String
    {
        if let named, !named.isEmpty { return named }
        if let path = environment["KVASIR_SOCKET"], !path.isEmpty { return path }
        if let directory = environment["XDG_RUNTIME_DIR"], !directory.isEmpty {
            return directory + "/kvasir/kvasir.sock"
        }
        let directory = sharedDirectory
        try checkOwner(of: directory, mayBeMissing: true)
        return directory + "/kvasir.sock"
    }

    /// The directory in `/tmp` that is used without a runtime directory.
    static var sharedDirectory: String { "/tmp/kvasir-\(geteuid())" }

    /// Refuses a directory that somebody else could have made, or can write to.
    static func checkOwner(of directory: String, mayBeMissing: Bool) throws(SocketError) {
        var status = stat()
        if lstat(directory, &status) != 0 {
            if errno == ENOENT, mayBeMissing { return }
            throw SocketError("can't look at \(directory): \(String(cString: strerror(errno)))")
        }
        let isDirectory = status.st_mode & S_IFMT == S_IFDIR
        if !isDirectory || status.st_uid != geteuid() || status.st_mode & 0o022 != 0 {
            throw SocketError(
                "\(directory) is not a directory that belongs to user \(geteuid()) alone (it may be somebody's "
                    + "trap); remove it, or name another socket with --socket or KVASIR_SOCKET")
        }
    }

    /// Makes the directory of a socket, mode 0700, and checks it where it is the one in `/tmp`.
    ///
    /// - Parameter group: may pass through the directory if it is made here (mode 0710).
    public static func prepareDirectory(for path: String, group: UInt32? = nil) throws(SocketError)
    {
        guard let slash = path.lastIndex(of: "/"), slash != path.startIndex else { return }
        let directory = String(path[..<slash])
        let isMade = mkdir(directory, 0o700) == 0
        if isMade, let group { _ = UnixSocket.open(directory, mode: 0o710, to: group) }
        if !isMade, errno != EEXIST {
            throw SocketError(
                "can't make the directory \(directory): \(String(cString: strerror(errno))); make it, or name "
                    + "another socket with --socket")
        }
        if directory == sharedDirectory { try checkOwner(of: directory, mayBeMissing: false) }
    }
}

/// Something about a socket that could not be done; the message says how to mend it.
public struct SocketError: Error, CustomStringConvertible, Sendable {
    /// What went wrong and what to do.
    public let description: String
    /// The kernel's error number, 0 if none was involved.
    public let code: Int32

    /// Makes an error.
    public init(_ message: String, code: Int32 = 0) {
        description = message
        self.code = code
    }
}
