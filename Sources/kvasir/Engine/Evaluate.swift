import ArgumentParser
import Foundation
import KvasirEngine
import ReferenceLM

struct Evaluate: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eval",
        abstract:
            "Measure a model's perplexity, and what reusing its KV costs beside the exact run.",
        discussion: """
            The text is cut into windows. Each is computed exactly; then the keys and values of its first half are taken \
            on the way that is judged, and the second half is computed on them. Through the store no bit may change \
            (KL 0, agreement 100 %); rounded ones show what a lossy way costs.

              kvasir eval --model models/tiny-kjv --text models/tiny-kjv/corpus.txt --contexts 512,2048
            """)

    @OptionGroup var model: ModelOptions

    @Option(help: ArgumentHelp("UTF-8 text to read; '-' is standard input.", valueName: "path"))
    var text: String

    @Option(
        help: ArgumentHelp("Tokens of a window; several with commas.", valueName: "n,n"))
    var contexts = "512,2048"

    @Option(help: ArgumentHelp("Windows for each context at most.", valueName: "n"))
    var windows = 4

    @Option(
        help: ArgumentHelp(
            "The way that KV takes: store, bfloat16 or float16. (default: store)", valueName: "way"),
        transform: { word in
            guard let way = Evaluation.Reuse(rawValue: word) else {
                let all = Evaluation.Reuse.allCases.map(\.rawValue).joined(separator: ", ")
                throw ValidationError("--reuse takes one of \(all), not '\(word)'")
            }
            return way
        })
    var reuse = Evaluation.Reuse.store

    @Option(
        help: ArgumentHelp(
            "Write tokens.u32 and logits.f32 of the longest context's first window into this folder.",
            valueName: "dir"))
    var dump: String?

    @Flag(help: "Print one line of JSON.")
    var json = false

    func validate() throws {
        if windows < 1 { throw ValidationError("--windows takes 1 or more, not \(windows)") }
        _ = try contextList()
    }

    private func contextList() throws -> [Int] {
        let words = contexts.split(separator: ",")
        if words.isEmpty { throw ValidationError("--contexts takes numbers with commas") }
        let numbers = try words.map { word in
            guard let number = Int(word.trimmingCharacters(in: .whitespaces)), number > 0 else {
                throw ValidationError("--contexts takes numbers with commas, not '\(contexts)'")
            }
            return number
        }
        // Each once.
        return numbers.enumerated().filter { !numbers[..<$0.offset].contains($0.element) }
            .map(\.element)
    }

    func run() throws {
        let contexts = try contextList()
        let content = try TextFile.read(text)
        let loaded = try model.load()
        let tokens = loaded.tokenizer.encode(content, addSpecialTokens: false)
        let progress = Progress()
        var report = EvaluateReport(model: loaded.name, textTokens: tokens.count, results: [])
        let longest = contexts.max() ?? 0
        let writer = try dump.map { try LogitsFile(folder: $0, tokens: tokens.prefix(longest)) }
        do {
            let evaluation = try Evaluation(loaded.model, reuse: reuse, contextTokens: longest)
            for context in contexts {
                report.results.append(
                    try evaluation.run(
                        tokens, context: context, windows: windows,
                        progress: { done, all in
                            progress.tell("contexts of \(context): \(done) of \(all) tokens")
                        },
                        logits: { window, _, row in
                            if window == 0 && context == longest { writer?.append(row) }
                        }))
            }
            progress.done()
            try writer?.close()
        } catch let error as ModelError {
            progress.done()
            throw CommandFailure(error.message)
        }
        if json { try JSONOutput.print(report, isPretty: false) } else { print(report.text) }
    }
}

/// What `kvasir eval` prints.
struct EvaluateReport: Encodable {
    let model: String
    let textTokens: Int
    var results: [Evaluation.Result]

    enum CodingKeys: String, CodingKey {
        case model, results
        case textTokens = "text_tokens"
    }

    var text: String {
        var table = TextTable(
            "context", "windows", "perplexity", "KV reused", "second half: exact", "reused",
            "KL mean",
            "KL max", "same token")
        for result in results {
            table.rows.append([
                Format.number(result.context), "\(result.windows)",
                Format.fixed(result.perplexity, 3),
                "\(Format.number(result.reusedTokens)), \(result.reuse)",
                Format.fixed(result.perplexityExact, 3), Format.fixed(result.perplexityReused, 3),
                Self.small(result.klMean), Self.small(result.klMax),
                Format.fixed(result.greedyAgreement * 100, 2) + " %",
            ])
        }
        return "\(model), text of \(Format.number(textTokens)) tokens\n\n\(table.text)"
    }

    private static func small(_ value: Double) -> String {
        value == 0 ? "0" : String(format: "%.2e", value)
    }
}

/// Logits as plain float32, row after row, beside their tokens.
private final class LogitsFile {
    private let path: String
    private let handle: FileHandle
    private var failure: (any Error)?

    init(folder: String, tokens: some Sequence<UInt32>) throws {
        path = "\(folder)/logits.f32"
        do {
            try FileManager.default.createDirectory(
                atPath: folder, withIntermediateDirectories: true)
            let ids = tokens.map(\.littleEndian).withUnsafeBytes { Data($0) }
            try ids.write(to: URL(fileURLWithPath: "\(folder)/tokens.u32"))
            try Data().write(to: URL(fileURLWithPath: path))
            handle = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
        } catch {
            throw CommandFailure("can't write into \(folder): \(error.localizedDescription)")
        }
    }

    func append(_ row: UnsafeBufferPointer<Float>) {
        if failure != nil { return }
        do { try handle.write(contentsOf: Data(buffer: row)) } catch { failure = error }
    }

    func close() throws {
        try? handle.close()
        if let failure {
            throw CommandFailure("can't write \(path): \(failure.localizedDescription)")
        }
    }
}
