import ArgumentParser
import Foundation
import KVIdentity
import KvasirEngine
import ReferenceLM

/// One line to an engine of the demo.
struct DemoQuestion: Codable {
    var prompt: [UInt32]
    var maximum: Int
}

/// One line from it.
struct DemoAnswer: Codable {
    var tokens: [UInt32]
    var promptTokens: Int
    var reusedTokens: Int
    var keptTokens: Int
    var ttftMs: Double
    /// SHA-256 over the bits of all logits.
    var logits: String
}

/// An engine process of the demo: a question a line on standard input, an answer a line on standard output.
struct DemoEngine: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo-engine", abstract: "Part of 'kvasir demo'.", shouldDisplay: false)

    @OptionGroup var model: ModelOptions
    @OptionGroup var store: StoreOptions

    @Option var tokens: Int

    /// Short, so that nobody has to wait for an engine that looks for its daemon again.
    static let pauseMs = 200...400

    func run() throws {
        ChildProcess.followParent()
        let loaded = try model.load()
        let cache = try store.cache(for: loaded, pauseMs: Self.pauseMs) { text in
            Output.tell("  the engine says: \(text)\n")
        }
        let engine = try running { () throws(ModelError) in
            try Engine(loaded.model, cache: cache, tokens: tokens)
        }
        // What the engine remembers by itself: the last request.
        let sequence = engine.sequence()
        print("{}")
        fflush(nil)
        while let line = readLine() {
            let question = try JSONDecoder().decode(DemoQuestion.self, from: Data(line.utf8))
            let answer = try running { () throws(ModelError) in
                try engine.answer(question.prompt, with: sequence, maximum: question.maximum)
            }
            try JSONOutput.print(
                DemoAnswer(
                    tokens: answer.tokens, promptTokens: answer.promptTokens,
                    reusedTokens: answer.reusedTokens, keptTokens: answer.keptTokens,
                    ttftMs: answer.ttftSeconds * 1000, logits: answer.logits.hex),
                isPretty: false)
            fflush(nil)
        }
    }
}

/// The demo's end of an engine process.
final class EngineProcess {
    let name: String
    private let child: ChildProcess
    private let toChild: FileHandle
    private let fromChild: LineReader

    /// Starts an engine; `socket` is its daemon's, nil for none.
    init(_ name: String, model: String, socket: String?, tokens: Int, threads: Int?) throws {
        self.name = name
        // A child that is gone is told by an error of the write.
        signal(SIGPIPE, SIG_IGN)
        let (input, output) = (Pipe(), Pipe())
        var arguments = [
            "demo-engine", "--model", model, "--store", socket ?? "none", "--tokens", "\(tokens)",
        ]
        if let threads { arguments += ["--threads", "\(threads)"] }
        // The child must see the end of its input when this process is gone.
        for handle in [input.fileHandleForWriting, output.fileHandleForReading] {
            _ = fcntl(handle.fileDescriptor, F_SETFD, FD_CLOEXEC)
        }
        child = try ChildProcess(
            arguments, input: input.fileHandleForReading.fileDescriptor,
            output: output.fileHandleForWriting.fileDescriptor)
        try? input.fileHandleForReading.close()
        try? output.fileHandleForWriting.close()
        toChild = input.fileHandleForWriting
        fromChild = LineReader(output.fileHandleForReading)
    }

    var process: Int32 { child.process }

    /// Returns once the model is loaded.
    func waitUntilReady() throws { _ = try line() }

    func ask(_ question: DemoQuestion) throws -> DemoAnswer {
        var data = try JSONEncoder().encode(question)
        data.append(UInt8(ascii: "\n"))
        do {
            try toChild.write(contentsOf: data)
        } catch {
            throw ChildProcess.unexpectedEnd(of: name)
        }
        return try JSONDecoder().decode(DemoAnswer.self, from: Data(try line().utf8))
    }

    private func line() throws -> String {
        guard let line = fromChild.next() else {
            throw ChildProcess.unexpectedEnd(of: name)
        }
        return line
    }

    /// Ends it at once, as a crash would.
    func kill() { child.kill() }
}

/// Lines of a pipe.
private final class LineReader {
    private let handle: FileHandle
    private var buffer = Data()

    init(_ handle: FileHandle) {
        self.handle = handle
    }

    func next() -> String? {
        while true {
            if let end = buffer.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: buffer[buffer.startIndex..<end], as: UTF8.self)
                buffer.removeSubrange(buffer.startIndex...end)
                return line
            }
            let more = handle.availableData
            if more.isEmpty { return nil }
            buffer.append(more)
        }
    }
}
