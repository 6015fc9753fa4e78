import ArgumentParser
import Foundation
import KVIdentity
import KVPolicy
import KvasirEngine
import ReferenceLM

struct Generate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Continue a prompt with the built-in engine, reusing what Kvasir has of it.",
        discussion: """
            The engine computes in float32 on the processor. It takes from the daemon what any engine of the same \
            model has computed of the prompt, and saves the rest; run it twice with a long prompt to see the \
            difference.

              kvasir generate --model models/tiny-kjv "In the beginning"
              kvasir generate --model models/tiny-kjv -f book.txt --max-tokens 64
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var store: StoreOptions
    @OptionGroup var sampling: SamplingOptions

    @Option(
        name: .shortAndLong,
        help: ArgumentHelp("Read the prompt from a file; '-' is standard input.", valueName: "path")
    )
    var file: String?

    @Option(
        help: ArgumentHelp(
            "What comes after this request, for eviction: 'closed' (nobody goes on from here), 'pending' (somebody does), or 'pending:SECONDS' (when).",
            valueName: "hint"),
        transform: Self.hint)
    var hint = ReuseHint.none

    private static func hint(_ text: String) throws -> ReuseHint {
        guard let hint = ReuseHint(text) else {
            throw ValidationError(
                "--hint takes none, closed, pending or pending:SECONDS (up to a year), not '\(text)'"
            )
        }
        return hint
    }

    @Flag(help: "Print one line of JSON instead of text and figures.")
    var json = false

    @Argument(help: "The prompt.")
    var prompt: String?

    func validate() throws {
        if (prompt == nil) == (file == nil) {
            throw ValidationError("give a prompt, or -f FILE, but not both")
        }
    }

    func run() throws {
        let text = try prompt ?? TextFile.read(file ?? "-")
        let loaded = try model.load()
        let tokens = loaded.tokenizer.encode(text)
        let cache = try store.cache(for: loaded)
        var printer = TokenPrinter(loaded.tokenizer, isSilent: json)
        let answer = try running { () throws(ModelError) in
            let engine = try Engine(
                loaded.model, cache: cache, tokens: tokens.count + sampling.maxTokens)
            return try engine.answer(
                tokens, maximum: sampling.maxTokens, sampler: sampling.sampler, hint: hint
            ) { token in
                printer.show(token)
                return true
            }
        }
        printer.finish()
        if json {
            try JSONOutput.print(
                GenerateReport(answer, text: loaded.tokenizer.decode(answer.tokens)),
                isPretty: false)
        } else {
            Output.write("\n")
            Output.tell("\(answer.summary)\n")
        }
    }
}

/// What `kvasir generate --json` prints.
struct GenerateReport: Encodable {
    let text: String
    let tokens: [UInt32]
    let promptTokens: Int
    let reusedTokens: Int
    let computedTokens: Int
    let ttftMs: Double
    let tokensPerSecond: Double
    /// SHA-256 over the bits of all logits.
    let logits: String

    enum CodingKeys: String, CodingKey {
        case text, tokens, logits
        case promptTokens = "prompt_tokens"
        case reusedTokens = "reused_tokens"
        case computedTokens = "computed_tokens"
        case ttftMs = "ttft_ms"
        case tokensPerSecond = "tokens_per_second"
    }

    init(_ answer: Answer, text: String) {
        self.text = text
        tokens = answer.tokens
        promptTokens = answer.promptTokens
        reusedTokens = answer.reusedTokens
        computedTokens = answer.computedTokens
        ttftMs = answer.ttftSeconds * 1000
        tokensPerSecond = answer.tokensPerSecond
        logits = answer.logits.hex
    }
}

extension Answer {
    /// Tokens of the prompt that were computed.
    var computedTokens: Int { promptTokens - reusedTokens - keptTokens }

    /// One line for a person.
    var summary: String {
        var parts = ["\(Format.number(reusedTokens)) from Kvasir"]
        if keptTokens > 0 { parts.append("\(Format.number(keptTokens)) kept by the engine") }
        parts.append("\(Format.number(computedTokens)) computed")
        var text =
            "prompt of \(Format.count(promptTokens, "token")): \(parts.joined(separator: ", "))"
            + " · first token after \(Format.milliseconds(ttftSeconds * 1000))"
            + " · \(Format.count(tokens.count, "new token"))"
        if tokens.count > 1 { text += " at \(Format.fixed(tokensPerSecond, 0)) a second" }
        return text
    }
}

/// Prints tokens as they come, whole characters only.
struct TokenPrinter {
    private var decoder: StreamingDecoder
    private let isSilent: Bool
    /// All that was shown.
    private(set) var text = ""

    init(_ tokenizer: Tokenizer, isSilent: Bool = false) {
        decoder = StreamingDecoder(tokenizer)
        self.isSilent = isSilent
    }

    mutating func show(_ token: UInt32) { write(decoder.append(token)) }

    mutating func finish() { write(decoder.finish()) }

    private mutating func write(_ piece: String) {
        text += piece
        if !isSilent { Output.write(piece) }
    }
}

enum TextFile {
    /// The text of a file, or of standard input for '-'.
    static func read(_ path: String) throws -> String {
        let data: Data
        if path == "-" {
            data = FileHandle.standardInput.readDataToEndOfFile()
        } else {
            do {
                data = try Data(contentsOf: URL(fileURLWithPath: path))
            } catch {
                throw CommandFailure("can't read \(path): give a file that is there and readable")
            }
        }
        guard let text = String(bytes: data, encoding: .utf8) else {
            throw CommandFailure("\(path) is not UTF-8 text; convert it first (iconv -t UTF-8)")
        }
        return text
    }
}
