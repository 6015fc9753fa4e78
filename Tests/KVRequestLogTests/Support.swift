import Foundation
import KVIdentity
import KVPolicy
import KVSimulator
import Logging

@testable import KVRequestLog

/// A directory of the test's own, gone with this object.
final class Scratch {
    let path: String

    init() {
        path =
            FileManager.default.temporaryDirectory
            .appendingPathComponent("kvasir-requests-\(UUID().uuidString)").path
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// The names of the files in it, sorted.
    var files: [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted()
    }

    func text(_ name: String) -> String {
        String(
            decoding: FileManager.default.contents(atPath: "\(path)/\(name)") ?? Data(),
            as: UTF8.self)
    }

    func bytes(_ name: String) -> Int {
        // Foundation leaks what it reads of an empty file.
        var status = stat()
        return stat("\(path)/\(name)", &status) == 0 ? Int(status.st_size) : -1
    }

    func mode(_ name: String = "") -> Int {
        let attributes = try? FileManager.default.attributesOfItem(atPath: "\(path)/\(name)")
        return (attributes?[.posixPermissions] as? NSNumber)?.intValue ?? -1
    }
}

/// A digest that stands for a number.
func digest(_ number: UInt64) -> Digest { Digest(words: (number, ~number, number &* 0x9E37, 7)) }

/// A request of chunks with these numbers.
func request(
    _ chunks: [UInt64], ms: UInt64 = 0, space: UInt64 = 1, root: UInt64 = 1, chunkTokens: Int = 16,
    tokens: Int? = nil, hint: ReuseHint = .none, since: UInt64 = 0
) -> LoggedRequest {
    LoggedRequest(
        nanoseconds: since + ms * 1_000_000, space: digest(space), root: digest(root),
        keys: chunks.map(digest), chunkTokens: chunkTokens, tokens: tokens, hint: hint)
}

/// What the simulator makes of a file.
func replayable(_ text: String) throws -> Trace {
    var reader = TraceReader(TraceReader.Options(format: .kvasir))
    try Array(text.utf8).withUnsafeBufferPointer { try reader.read($0, file: "log") }
    return try reader.finish()
}

/// The lines of a text, without the header.
func requestLines(_ text: String) -> [Substring] { Array(text.split(separator: "\n").dropFirst()) }

/// Collects what is logged.
final class Messages: @unchecked Sendable {
    // SAFETY: only touched under the lock.
    private let lock = NSLock()
    private var lines: [String] = []

    var all: [String] { lock.withLock { lines } }
    func append(_ line: String) { lock.withLock { lines.append(line) } }

    var logger: Logger { Logger(label: "test") { [self] _ in Handler(messages: self) } }

    private struct Handler: LogHandler {
        let messages: Messages
        var metadata: Logger.Metadata = [:]
        var logLevel: Logger.Level = .info

        subscript(metadataKey key: String) -> Logger.Metadata.Value? {
            get { metadata[key] }
            set { metadata[key] = newValue }
        }

        func log(event: LogEvent) { messages.append("\(event.message)") }
    }
}
