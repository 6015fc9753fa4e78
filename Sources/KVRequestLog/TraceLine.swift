internal import KVPolicy

/// Lines of a log of requests, as docs/formats.md has them under "Trace".
enum TraceLine {
    static let version = 1

    /// The first line of a file.
    ///
    /// - Parameter id: of the names: files with another one have nothing in common with it.
    static func header(chunkTokens: Int, id: UInt64) -> [UInt8] {
        var line: [UInt8] = []
        line += "{\"kvasir_trace\": \(version), \"chunk_tokens\": \(chunkTokens), \"log\": \"".utf8
        appendDigits(id, to: &line)
        line += "\"}\n".utf8
        return line
    }

    /// Appends the line of a request.
    ///
    /// - Parameters:
    ///   - start: nanoseconds at which the log's time is 0.
    ///   - names: of the request's chunks.
    static func append(
        _ request: LoggedRequest, names: [UInt64], since start: UInt64, to line: inout [UInt8]
    ) {
        let microseconds = (request.nanoseconds - min(start, request.nanoseconds)) / 1000
        line += "{\"ms\": \(microseconds / 1000).".utf8
        line += String(1000 + microseconds % 1000).utf8.dropFirst()
        line += ", \"tokens\": \(request.tokens), \"chunks\": [".utf8
        for (place, name) in names.enumerated() {
            line += (place == 0 ? "\"" : ", \"").utf8
            appendDigits(name, to: &line)
            line.append(UInt8(ascii: "\""))
        }
        line.append(UInt8(ascii: "]"))
        append(request.hint, to: &line)
        line += "}\n".utf8
    }

    private static func append(_ hint: ReuseHint, to line: inout [UInt8]) {
        switch hint.expectation {
        case .unknown: return
        case .closed: line += ", \"hint\": \"closed\"".utf8
        case .pending:
            line += ", \"hint\": \"pending\"".utf8
            guard let seconds = hint.seconds, !seconds.isNaN else { return }
            let ms = Int((min(max(seconds, 0), ReuseHint.mostSeconds) * 1000).rounded())
            line += ", \"expected_ms\": \(ms)".utf8
        }
    }

    /// 16 hexadecimal digits.
    private static func appendDigits(_ name: UInt64, to line: inout [UInt8]) {
        for shift in stride(from: 60, through: 0, by: -4) {
            let digit = UInt8(truncatingIfNeeded: name >> UInt64(shift)) & 15
            line.append(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
        }
    }
}
