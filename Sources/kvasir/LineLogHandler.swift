import Foundation
import Logging

/// Writes one line for each message to standard error: time, level, message.
struct LineLogHandler: LogHandler {
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level = .info

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let time = Date().formatted(
            .iso8601.time(includingFractionalSeconds: true).dateSeparator(.dash).year().month()
                .day())
        let line = "\(time) \(event.level.rawValue) \(event.message)\n"
        FileHandle.standardError.write(Data(line.utf8))
    }
}
