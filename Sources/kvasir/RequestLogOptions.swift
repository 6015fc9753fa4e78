import ArgumentParser
import Foundation
import KVRequestLog
import Logging

/// The options of the request log.
struct RequestLogOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Directory for a log of requests, which 'kvasir simulate' and 'kvasir plan' replay: times, lengths and keyed hashes, no content. [KVASIR_REQUEST_LOG] (default: none is kept)",
            valueName: "directory"))
    var requestLog: String?

    @Option(
        help: ArgumentHelp(
            "Most bytes that the log's files of this start take, e.g. 4GiB. [KVASIR_REQUEST_LOG_LIMIT] (default: \(ByteCount(RequestLogLimits.defaultBytes)))",
            valueName: "size"))
    var requestLogLimit: ByteCount?

    /// What a log is to be; nil for none.
    func resolve() throws -> (directory: String, byteLimit: Int)? {
        let limit = try Setting.value(
            requestLogLimit, "KVASIR_REQUEST_LOG_LIMIT",
            default: ByteCount(RequestLogLimits.defaultBytes))
        if limit.bytes < 1 { throw ValidationError("--request-log-limit takes at least 1 byte") }
        if let requestLog, requestLog.isEmpty {
            throw ValidationError("--request-log takes the path of a directory")
        }
        let directory = try Setting.value(requestLog, "KVASIR_REQUEST_LOG", default: "")
        if directory.isEmpty {
            if requestLogLimit != nil {
                throw ValidationError(
                    "--request-log-limit is of no use without --request-log; give both")
            }
            return nil
        }
        return (directory, limit.bytes)
    }
}
