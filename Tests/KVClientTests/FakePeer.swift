import Glibc
import KVSocket
import Synchronization
import TestSupport
import Testing

/// Something on a socket that answers each request with the next of its replies, whatever was asked.
final class FakePeer: Sendable {
    enum Answer: Sendable {
        case bytes(String)
        case silence
        case hangUp
    }

    let socket: String
    private let directory: String
    private let listener: Int32
    private let thread: Mutex<pthread_t?>

    /// - Parameter answers: to the requests after KV.SESSION, which gets its OK.
    init(_ answers: [Answer], greeting: Answer = .bytes("+OK\r\n")) throws {
        var template = Array("/tmp/kvasir-fake-XXXXXX".utf8CString)
        directory = String(cString: try #require(mkdtemp(&template)))
        socket = directory + "/fake.sock"
        listener = try UnixSocket.listen(on: socket, group: nil, backlog: 8)
        thread = Mutex(nil)
        let started = Running.start { [listener] in Self.serve(listener, greeting, answers) }
        thread.withLock { $0 = started }
    }

    private static func serve(_ listener: Int32, _ greeting: Answer, _ answers: [Answer]) {
        var left = answers
        while true {
            let fd = accept(listener, nil, nil)
            if fd < 0 { return }
            defer { close(fd) }
            var next = greeting
            var buffer = [UInt8](repeating: 0, count: 4096)
            while recv(fd, &buffer, buffer.count, 0) > 0 {
                guard case .bytes(let text) = next else {
                    if case .hangUp = next { break }
                    continue
                }
                let bytes = Array(text.utf8)
                _ = send(fd, bytes, bytes.count, Int32(MSG_NOSIGNAL))
                next = left.isEmpty ? .silence : left.removeFirst()
            }
        }
    }

    /// Ends the peer once its connections have ended.
    func stop() {
        shutdown(listener, Int32(SHUT_RDWR))
        let ended = thread.withLock { thread -> pthread_t? in
            defer { thread = nil }
            return thread
        }
        if let ended { pthread_join(ended, nil) }
        close(listener)
        unlink(socket)
        rmdir(directory)
    }
}
