import ArgumentParser
import Foundation
import KVSimulator

/// How a trace is read; `simulate` and `plan` share it.
struct TraceOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "mooncake, kvasir or vllm-events; told from the first line unless it is given.",
            valueName: "format"))
    var format: TraceFormatName?

    @Option(
        help: ArgumentHelp("Tokens of a block of a Mooncake trace (512).", valueName: "n"))
    var blockTokens: Int?

    @Option(
        help: ArgumentHelp(
            "Unit of a Mooncake trace's timestamps, ms (the default) or s.", valueName: "unit"))
    var timeUnit: TimeUnit?

    @Option(
        help: ArgumentHelp(
            "Tokens of a simulated chunk: a multiple of the trace's own, which is the default.",
            valueName: "n"))
    var chunkTokens: Int?

    enum TraceFormatName: String, ExpressibleByArgument, CaseIterable {
        case mooncake, kvasir
        case vllmEvents = "vllm-events"
    }

    enum TimeUnit: String, ExpressibleByArgument, CaseIterable {
        case ms, s
    }

    func validate() throws {
        for (name, value) in [("block-tokens", blockTokens), ("chunk-tokens", chunkTokens)] {
            if let value, !(1...1 << 20).contains(value) {
                throw ValidationError("--\(name) takes 1 to 1048576, not \(value)")
            }
        }
        if let format, format != .mooncake {
            if blockTokens != nil {
                throw ValidationError(
                    "--block-tokens is for Mooncake traces; the others say it themselves")
            }
            if timeUnit != nil { throw ValidationError("--time-unit is for Mooncake traces") }
        }
    }

    /// Reads files, one after the other, `-` being standard input.
    func read(_ paths: [String], _ bar: StageProgress) throws -> Trace {
        var options = TraceReader.Options(
            format: format.flatMap { TraceFormat(rawValue: $0.rawValue) })
        if let blockTokens { options.blockTokens = blockTokens }
        if timeUnit == .s { options.timeUnitNanoseconds = 1e9 }
        options.chunkTokens = chunkTokens
        var reader = TraceReader(options)
        for path in paths {
            let name = path == "-" ? "standard input" : path
            let data = try Self.data(path)
            try data.withUnsafeBytes { raw in
                try reader.read(raw.bindMemory(to: UInt8.self), file: name) {
                    bar.show("reading \(name)", $0)
                }
            }
        }
        let trace: Trace
        do {
            trace = try reader.finish()
        } catch {
            throw CommandFailure("\(paths.joined(separator: ", ")): \(error)")
        }
        bar.done()
        for warning in trace.warnings { Output.tell("Warning: \(warning)\n") }
        return trace
    }

    private static func data(_ path: String) throws -> Data {
        do {
            if path == "-" { return try FileHandle.standardInput.readToEnd() ?? Data() }
            return try Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe)
        } catch {
            throw CommandFailure(
                "can't read the trace \(path) (\(FileProblem.reason(path, error)))")
        }
    }
}

/// Why a file can't be read or written, in a few words.
enum FileProblem {
    static func reason(_ path: String, _ error: any Error) -> String {
        var isDirectory: ObjCBool = false
        if FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory),
            isDirectory.boolValue
        {
            return "it is a directory"
        }
        let missing: [CocoaError.Code] = [.fileNoSuchFile, .fileReadNoSuchFile]
        if let code = (error as? CocoaError)?.code, missing.contains(code) {
            return "no such file or folder"
        }
        let underlying = (error as NSError).userInfo[NSUnderlyingErrorKey] as? NSError
        if let underlying, underlying.domain == NSPOSIXErrorDomain {
            return String(cString: strerror(Int32(underlying.code)))
        }
        return error.localizedDescription
    }
}

/// The progress bars of a job of several parts, one after the other.
final class StageProgress {
    private let start = Date()
    private var title = ""
    private var bar: ProgressBar?

    /// - Parameter share: of this part, from 0 to 1.
    func show(_ title: String, _ share: Double) {
        if title != self.title {
            bar?.done()
            self.title = title
            bar = ProgressBar(title, since: start)
        }
        bar?.tell(share: share)
    }

    func done() {
        bar?.done()
        title = ""
    }
}
