import ArgumentParser
import CKvasir
import Foundation
import KVSocket

/// The other end of the raw ping-pong: epoll, receive, send, and nothing else.
struct RawPeer: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench-peer", abstract: "Part of 'kvasir bench'.", shouldDisplay: false)

    @Option var socket: String
    @Option var request: Int
    @Option var reply: Int

    func run() throws {
        ChildProcess.followParent()
        let listener = try UnixSocket.listen(on: socket, group: nil, backlog: 16)
        let poll = epoll_create1(0)
        Self.watch(poll, listener)
        var events = [epoll_event](repeating: epoll_event(), count: 16)
        var buffer = [UInt8](repeating: 0, count: max(request, 64 << 10))
        let answer = [UInt8](repeating: 0, count: reply)
        while true {
            let count = epoll_wait(poll, &events, Int32(events.count), -1)
            for index in 0..<max(0, Int(count)) {
                let fd = events[index].data.fd
                if fd == listener {
                    let accepted = kv_accept(listener)
                    if accepted >= 0 { Self.watch(poll, accepted) }
                    continue
                }
                let received = recv(fd, &buffer, buffer.count, 0)
                if received <= 0 {
                    close(fd)
                } else {
                    _ = send(fd, answer, answer.count, Int32(MSG_NOSIGNAL))
                }
            }
        }
    }

    private static func watch(_ poll: Int32, _ fd: Int32) {
        var event = epoll_event()
        event.events = EPOLLIN.rawValue
        event.data.fd = fd
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)
    }
}

/// This end of it.
final class RawClient {
    private let fd: Int32
    private let request: [UInt8]
    private let replyBytes: Int
    private var buffer: [UInt8]

    init(socket: String, request: [UInt8], replyBytes: Int, greeting: [UInt8] = []) throws {
        fd = try UnixSocket.connect(to: socket)
        self.request = request
        self.replyBytes = replyBytes
        buffer = [UInt8](repeating: 0, count: max(replyBytes, 4096))
        if greeting.isEmpty { return }
        let sent = send(fd, greeting, greeting.count, Int32(MSG_NOSIGNAL))
        if sent != greeting.count || recv(fd, &buffer, buffer.count, 0) <= 0 {
            throw CommandFailure("the server does not answer")
        }
    }

    deinit { close(fd) }

    func roundTrip() throws {
        var received = 0
        var isDone = send(fd, request, request.count, Int32(MSG_NOSIGNAL)) == request.count
        while isDone, received < replyBytes {
            let count = recv(fd, &buffer, buffer.count, 0)
            isDone = count > 0
            received += count
        }
        if !isDone { throw CommandFailure("the raw peer went away") }
    }
}
