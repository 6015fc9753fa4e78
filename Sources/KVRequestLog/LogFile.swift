internal import Glibc

/// One file of the log: whole lines, gathered and written in pieces.
///
/// A piece that can't be written whole is taken back, so that every line of the file is whole as
/// long as the system lives. It owns its descriptor.
final class LogFile {
    let name: String
    private let descriptor: Int32
    /// Where the next line goes.
    private var end = 0
    private var waiting: [UInt8] = []
    private(set) var waitingCount = 0

    /// Makes the file, with its header.
    init(_ directory: LogDirectory, name: String, header: [UInt8]) throws(RequestLogError) {
        (descriptor, self.name) = try directory.makeFile(named: name)
        waiting = header
        if let reason = write() {
            directory.remove(self.name)
            throw RequestLogError(
                "can't write \(directory.path)/\(self.name): \(LogDirectory.text(reason))")
        }
    }

    deinit { close(descriptor) }

    var waitingBytes: Int { waiting.count }

    /// Nothing can be said of what is in the file behind its last whole line.
    private(set) var isTorn = false

    /// Somebody has removed it, or made it shorter: what goes there now would be lost, or stand behind
    /// rubbish.
    var isGone: Bool {
        var status = stat()
        return fstat(descriptor, &status) != 0 || status.st_nlink == 0
            || Int(status.st_size) != end
    }

    func append(_ line: [UInt8]) {
        waiting += line
        waitingCount += 1
    }

    /// Writes what waits; what can't be written is given up. - Returns: why it could not, or nil.
    func write() -> Int32? {
        defer {
            waiting.removeAll(keepingCapacity: true)
            waitingCount = 0
        }
        var done = 0
        while done < waiting.count {
            let count = waiting.withUnsafeBytes {
                pwrite(descriptor, $0.baseAddress! + done, $0.count - done, off_t(end + done))
            }
            if count > 0 {
                done += count
                continue
            }
            // A disk that takes nothing and says nothing is full.
            let reason = count == 0 ? ENOSPC : errno
            if reason == EINTR { continue }
            if done > 0, ftruncate(descriptor, off_t(end)) != 0 { isTorn = true }
            return reason
        }
        end += done
        return nil
    }
}
