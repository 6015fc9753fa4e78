internal import CKvasir
internal import Glibc

/// The few calls on Unix stream sockets that server and client share. Descriptors are
/// close-on-exec; the caller owns them.
public enum UnixSocket {
    /// Connects to a listening socket.
    public static func connect(to path: String) throws(SocketError) -> Int32 {
        let fd = try make()
        let result = withAddress(path) { Glibc.connect(fd, $0, $1) }
        if result == 0 { return fd }
        let code = errno
        close(fd)
        let what =
            code == ENOENT || code == ECONNREFUSED ? "no server listens on" : "can't connect to"
        throw SocketError(
            "\(what) \(path) (\(String(cString: strerror(code)))); start one with 'kvasir serve', or name its "
                + "socket with --socket or KVASIR_SOCKET", code: code)
    }

    /// Listens on a path, for the user alone or for a group too. A socket that nobody listens on any
    /// more is replaced. Nobody can connect before owner and mode are right.
    public static func listen(on path: String, group: UInt32?, backlog: Int32)
        throws(SocketError) -> Int32
    {
        let fd = try make()
        if let probe = try? connect(to: path) {
            close(probe)
            close(fd)
            throw SocketError(
                "a server listens on \(path) already; stop it, or name another socket with --socket",
                code: EADDRINUSE)
        }
        var status = stat()
        if lstat(path, &status) == 0 {
            guard status.st_mode & S_IFMT == S_IFSOCK else {
                close(fd)
                throw SocketError(
                    "\(path) exists and is not a socket; remove it, or name another", code: EEXIST)
            }
            unlink(path)
        }
        let before = umask(0o177)
        let bound = withAddress(path) { Glibc.bind(fd, $0, $1) }
        let code = errno
        umask(before)
        if bound != 0 {
            close(fd)
            throw SocketError(
                "can't listen on \(path): \(String(cString: strerror(code)))", code: code)
        }
        let isOpened = group.map { open(path, mode: 0o660, to: $0) } ?? true
        if !isOpened || Glibc.listen(fd, backlog) != 0 {
            let code = errno
            close(fd)
            unlink(path)
            let why = String(cString: strerror(code))
            throw SocketError(
                isOpened
                    ? "can't listen on \(path): \(why)"
                    : "can't give \(path) to group \(group ?? 0) (\(why)); name a group that you "
                        + "belong to with --socket-group", code: code)
        }
        return fd
    }

    /// Gives a file to a group, then lets it in.
    static func open(_ path: String, mode: mode_t, to group: gid_t) -> Bool {
        chown(path, uid_t.max, group) == 0 && chmod(path, mode) == 0
    }

    /// Sends bytes, with a descriptor if `passing` is one. - Returns: how many, or -1 and `errno`.
    public static func send(_ fd: Int32, _ bytes: UnsafeRawBufferPointer, passing: Int32 = -1)
        -> Int
    {
        if passing < 0 {
            return Glibc.send(fd, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
        }
        return kv_send_with_fd(fd, bytes.baseAddress, bytes.count, passing)
    }

    /// Receives bytes and perhaps a descriptor, which the caller then owns. - Returns: how many, 0
    /// at the end, or -1 and `errno`.
    public static func receive(_ fd: Int32, _ bytes: UnsafeMutableRawBufferPointer) -> (
        count: Int, passed: Int32
    ) {
        var passed: Int32 = -1
        let count = kv_receive_with_fd(fd, bytes.baseAddress, bytes.count, &passed)
        return (count, passed)
    }

    private static func make() throws(SocketError) -> Int32 {
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        if fd < 0 {
            throw SocketError(
                "can't make a socket: \(String(cString: strerror(errno)))", code: errno)
        }
        return fd
    }

    private static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        if bytes.count > SocketPath.byteCount {
            errno = ENAMETOOLONG
            return -1
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }
}
