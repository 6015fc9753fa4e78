import ArgumentParser
import Foundation
import KVPolicy
import KvasirEngine
import ReferenceLM

struct Chat: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Talk with the built-in engine, turn by turn.",
        discussion: """
            The chat so far is kept in the engine; what Kvasir has of its beginning is reused when the chat is opened \
            anew, here or on another engine. /reset forgets the chat, /quit or Ctrl-D ends it.
            """)

    @OptionGroup var model: ModelOptions
    @OptionGroup var store: StoreOptions
    @OptionGroup var sampling: SamplingOptions

    @Option(help: ArgumentHelp("A text to begin with, read from a file.", valueName: "path"))
    var system: String?

    func run() throws {
        let beginning = try system.map(TextFile.read)
        let loaded = try model.load()
        let cache = try store.cache(for: loaded)
        let engine = try running { () throws(ModelError) in
            try Engine(loaded.model, cache: cache)
        }
        var chat = Conversation(loaded, engine, beginning: beginning)
        let context = loaded.model.configuration.contextLength
        if chat.tokenCount + sampling.maxTokens >= context {
            throw CommandFailure(
                "the text to begin with has \(Format.count(chat.tokenCount, "token")); with answers of up to "
                    + "\(sampling.maxTokens) that is more than the model's context of \(context); shorten it"
            )
        }
        let isTerminal = isatty(0) == 1
        Self.say("chat with \(loaded.name); \(Self.commands)")
        while true {
            if isTerminal { Self.say("\nyou> ") }
            guard let line = readLine() else { break }
            switch line.trimmingCharacters(in: .whitespaces) {
            case "": continue
            case "/quit": return
            case "/reset":
                chat = Conversation(loaded, engine, beginning: beginning)
                Self.say("forgotten\n")
            case "/help": Self.say(Self.commands)
            case let command where command.hasPrefix("/"):
                Self.say("there is no \(command); \(Self.commands)")
            default: try turn(line, &chat)
            }
        }
        if isTerminal { Self.say("\n") }
    }

    private static let commands = "/reset forgets the chat, /quit or Ctrl-D ends it\n"

    private func turn(_ line: String, _ chat: inout Conversation) throws {
        do throws(ModelError) {
            let answer = try chat.ask(line, sampling)
            Output.write("\n")
            Self.say("\(answer.summary)\n")
        } catch {
            // The chat goes on as it was before this turn.
            Self.say("\(error.message) (/reset begins anew)\n")
        }
    }

    private static func say(_ text: String) {
        Output.tell(text)
    }
}

/// A chat so far: its tokens, and the engine's memory of them.
struct Conversation {
    private let loaded: LoadedModel
    private let engine: Engine
    private let sequence: TokenSequence
    private let template: ChatTemplate
    private var tokens: [UInt32]

    init(_ loaded: LoadedModel, _ engine: Engine, beginning: String?) {
        self.loaded = loaded
        self.engine = engine
        sequence = engine.sequence()
        template = ChatTemplate(for: loaded.tokenizer)
        tokens = loaded.tokenizer.encode("")
        if let beginning {
            tokens += Self.encode(template.message("system", beginning), loaded.tokenizer)
        }
    }

    /// Tokens of the chat so far.
    var tokenCount: Int { tokens.count }

    /// Answers one turn, printing as it goes. After an error the chat is as it was.
    mutating func ask(_ text: String, _ sampling: SamplingOptions) throws(ModelError) -> Answer {
        let question = template.message("user", text) + template.opening
        let prompt = tokens + Self.encode(question, loaded.tokenizer)
        var printer = TokenPrinter(loaded.tokenizer)
        let stop = template.stop
        let answer = try engine.answer(
            prompt, with: sequence, maximum: sampling.maxTokens, sampler: sampling.sampler,
            hint: .pending
        ) { token in
            printer.show(token)
            return stop.isEmpty || !printer.text.contains(stop)
        }
        printer.finish()
        tokens = prompt + answer.tokens
        let ends = loaded.model.configuration.endTokenIDs.map(UInt32.init)
        let hasEnded = !stop.isEmpty && printer.text.hasSuffix(stop)
        if let last = answer.tokens.last, !ends.contains(last), !hasEnded {
            tokens += Self.encode(template.closing, loaded.tokenizer)
        }
        return answer
    }

    private static func encode(_ text: String, _ tokenizer: Tokenizer) -> [UInt32] {
        tokenizer.encode(text, addSpecialTokens: false)
    }
}

/// How a chat is written for a model.
///
/// The templates in model folders are programs in a language of their own (Jinja); the usual ones are known by their tokens.
enum ChatTemplate {
    /// `<|start_header_id|>role<|end_header_id|>`, as Llama 3 has it.
    case llama3
    /// `<|im_start|>role`, as Qwen has it.
    case chatML
    /// `role: text`, a line each.
    case plain

    init(for tokenizer: Tokenizer) {
        if tokenizer.id(of: "<|start_header_id|>") != nil {
            self = .llama3
        } else if tokenizer.id(of: "<|im_start|>") != nil {
            self = .chatML
        } else {
            self = .plain
        }
    }

    func message(_ role: String, _ text: String) -> String {
        switch self {
        case .llama3: "<|start_header_id|>\(role)<|end_header_id|>\n\n\(text)<|eot_id|>"
        case .chatML: "<|im_start|>\(role)\n\(text)<|im_end|>\n"
        case .plain: "\(role): \(text)\n"
        }
    }

    /// What stands before an answer.
    var opening: String {
        switch self {
        case .llama3: "<|start_header_id|>assistant<|end_header_id|>\n\n"
        case .chatML: "<|im_start|>assistant\n"
        // Words bring their own space.
        case .plain: "assistant:"
        }
    }

    /// What stands after an answer that did not end by itself.
    var closing: String {
        switch self {
        case .llama3: "<|eot_id|>"
        case .chatML: "<|im_end|>\n"
        case .plain: "\n"
        }
    }

    /// A text at which an answer ends, for models that don't say so with a token.
    var stop: String { self == .plain ? "\n" : "" }
}
