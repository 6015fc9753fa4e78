import ArgumentParser
import Foundation
import KVClient
import KvasirEngine
import ReferenceLM

struct Demo: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract:
            "Show what Kvasir does: engines and the daemon are killed, and new ones go on from what they left.",
        discussion: """
            Runs a daemon and engines of its own, in processes of their own, on a small Llama; needs no network, no GPU \
            and no Python. Questions on documents of 8,000 tokens and a growing chat are asked without Kvasir, then with \
            it, then again of two new engines that share what the first one left, then of one more after everything was \
            killed. Memory is smaller than what is kept, so part of it comes from disk: a temporary directory, removed at \
            the end. Ends with status 1 if one token or one bit of the logits differs. The last line is JSON.
            """)

    @Option(
        help: ArgumentHelp(
            "Folder with the model and corpus.txt (default: models/tiny-kjv, here or in the source tree).",
            valueName: "dir"))
    var model: String?

    @Option(help: ArgumentHelp("Memory of the daemon.", valueName: "size"))
    var memory = ByteCount(64 << 20)

    @Option(
        help: ArgumentHelp(
            "Threads of an engine (default: one for each processor).", valueName: "n"))
    var threads: Int?

    /// With less, two engines can't hold a document each.
    private static let memoryBytesMin = 64 << 20

    func validate() throws {
        try ModelOptions.check(threads: threads)
        if memory.bytes < Self.memoryBytesMin {
            throw ValidationError(
                "--memory takes \(ByteCount(Self.memoryBytesMin)) or more, not \(memory)")
        }
    }

    func run() throws {
        let began = Date()
        let folder = try model ?? Self.findModel()
        let (opened, tokenizer) = try running { () throws(ModelError) in
            let opened = try ModelFolder(path: folder)
            return (opened, try Tokenizer(path: opened.tokenizerPath))
        }
        let scenario = try DemoScenario(corpus: folder + "/corpus.txt", tokenizer: tokenizer)
        Output.write(Self.introduction(opened))
        let stage = try DemoStage(
            scenario, folder: folder, memoryBytes: memory.bytes, threads: threads)
        let outcome = try stage.play()
        print("\n\(outcome.table)\n\n\(outcome.chart)\n")
        if !outcome.isIdentical { print(outcome.differences + "\n") }
        print(outcome.summary)
        if !outcome.hasReused { print("  NOTHING CAME FROM KVASIR") }
        print("  the whole demo took \(Format.fixed(Date().timeIntervalSince(began), 0)) s")
        try JSONOutput.print(outcome.line, isPretty: false)
        if !outcome.isIdentical || !outcome.hasReused { throw ExitCode(1) }
    }

    private static func introduction(_ folder: ModelFolder) -> String {
        let configuration = folder.configuration
        let name = URL(fileURLWithPath: folder.path).standardizedFileURL.lastPathComponent
        return """
            Kvasir demo: an engine keeps its KV cache in Kvasir and is killed; new engines go on from there.

              model      \(name): \(configuration.layerCount) layers × \(configuration.hiddenSize), float32, \
            on this machine's processors
              documents  \(DemoScenario.documentNames): 8,000 tokens and more each, three questions
              chat       about \(DemoScenario.chatName), \(DemoScenario.chatTurns) turns
              engines    each remembers its last request by itself, and the users take turns

            """
    }

    private static func findModel() throws -> String {
        let place = "models/tiny-kjv"
        var folders = [FileManager.default.currentDirectoryPath]
        if let program = try? FileManager.default.destinationOfSymbolicLink(
            atPath: "/proc/self/exe")
        {
            // The source tree is above .build/…/kvasir.
            var folder = URL(fileURLWithPath: program)
            for _ in 0..<5 {
                folder.deleteLastPathComponent()
                folders.append(folder.path)
            }
        }
        for folder in folders
        where FileManager.default.fileExists(atPath: "\(folder)/\(place)/config.json") {
            return "\(folder)/\(place)"
        }
        throw CommandFailure(
            "there is no \(place) here; run the demo in the source tree, or name its folder with --model"
        )
    }
}

/// The processes of the demo, and what they are asked.
private final class DemoStage {
    private let scenario: DemoScenario
    private let folder: String
    private let memoryBytes: Int
    private let threads: Int?
    private let directory: TemporaryDirectory
    private let progress = Progress()
    /// The first engine's answers: what a chat goes on from.
    private var answers: [[UInt32]] = []

    init(_ scenario: DemoScenario, folder: String, memoryBytes: Int, threads: Int?) throws {
        self.scenario = scenario
        self.folder = folder
        self.memoryBytes = memoryBytes
        self.threads = threads
        directory = try TemporaryDirectory()
    }

    func play() throws -> DemoOutcome {
        heading("1. An engine without Kvasir")
        let plain = try engine("an engine without Kvasir", socket: nil)
        let cold = try ask(plain)
        plain.kill()

        heading("2. A daemon, and an engine that keeps its KV cache in it")
        var daemon: ChildProcess? = try startDaemon()
        let first = try engine("an engine with Kvasir", socket: socket)
        let filling = try ask(first)
        first.kill()
        tell("that engine is killed (kill -9): all that it knew is gone, but for what Kvasir holds")

        heading("3. A new engine, and a second one beside it")
        let new = try engine("a new engine", socket: socket)
        let second = try engine("a second engine", socket: socket)
        let (restarted, beside) = try askInTurns(new, second)
        new.kill()

        let tiers = try statistics()

        heading(
            "4. The daemon is killed (kill -9), then the last engine: nothing is left but the disk")
        daemon?.kill()
        daemon = nil
        let afterDeath = [
            try askAgain(second, 0, .computes, "computes what it can't get, and answers")
        ]
        second.kill()
        daemon = try startDaemon()
        let found = try waitUntilRecovered()
        tell("the new daemon found \(Format.number(found)) chunks on disk")
        let third = try engine("a third engine", socket: socket)
        let revived = try ask(third)
        let revivedTiers = try statistics()
        withExtendedLifetime(daemon) {}
        return DemoOutcome(
            labels: scenario.requests.map(\.label), isChat: scenario.requests.map(\.isChat),
            cold: cold, filling: filling, restarted: restarted, beside: beside,
            revived: revived, afterDeath: afterDeath, tiers: tiers, revivedTiers: revivedTiers)
    }

    /// How many chunks of the engines' matches were in memory, and how many on disk only.
    private func statistics() throws -> DemoOutcome.Tiers {
        let client = try asking { () throws(ClientError) in try Client(.init(socket: socket)) }
        defer { client.close() }
        let all = try asking { () throws(ClientError) in try client.stats() }
        func value(_ name: String) -> Int { all.first { $0.name == name }?.value ?? 0 }
        let onDisk = value("matched_keys_on_disk")
        return .init(
            memory: value("matched_keys_hit") - onDisk, disk: onDisk,
            recovered: value("chunks_recovered"), isRecovering: value("disks_recovering") > 0)
    }

    /// - Returns: how many chunks the daemon found on disk.
    private func waitUntilRecovered() throws -> Int {
        let deadline = Date().addingTimeInterval(10)
        while true {
            let now = try statistics()
            if !now.isRecovering { return now.recovered }
            if Date() > deadline {
                throw CommandFailure("the daemon does not get through its disk")
            }
            usleep(5_000)
        }
    }

    private var socket: String { directory.path + "/kvasir.sock" }

    private func heading(_ text: String) { Output.write("\n\(text)\n") }

    private func tell(_ text: String) { Output.write("  \(text)\n") }

    private func startDaemon() throws -> ChildProcess {
        let child = try ChildProcess([
            "serve", "--socket", socket, "--memory", "\(memoryBytes)", "--disk",
            directory.path + "/disk", "--disk-size", "\(Self.diskBytes)", "--log-level", "error",
        ])
        let deadline = Date().addingTimeInterval(10)
        while true {
            if let client = try? Client(.init(socket: socket)) {
                client.close()
                break
            }
            if child.isOver { throw ChildProcess.unexpectedEnd(of: "the daemon") }
            if Date() > deadline { throw CommandFailure("the daemon does not answer") }
            usleep(5_000)
        }
        tell(
            "kvasir serve: \(ByteCount(memoryBytes)) of shared memory, "
                + "\(ByteCount(Self.diskBytes)) of disk (pid \(child.process))")
        return child
    }

    private static let diskBytes = 1 << 30

    private func engine(_ name: String, socket: String?) throws -> EngineProcess {
        let engine = try EngineProcess(
            name, model: folder, socket: socket, tokens: 12_288, threads: threads)
        try engine.waitUntilReady()
        return engine
    }

    private func ask(_ engine: EngineProcess) throws -> [DemoAnswer] {
        var results: [DemoAnswer] = []
        for number in scenario.requests.indices {
            results.append(try askOne(engine, number))
            if answers.count == number { answers.append(results[number].tokens) }
        }
        sumUp(engine, results)
        return results
    }

    /// Each request of both, one after the other: two users of one store.
    private func askInTurns(
        _ first: EngineProcess, _ second: EngineProcess
    ) throws -> ([DemoAnswer], [DemoAnswer]) {
        var results: ([DemoAnswer], [DemoAnswer]) = ([], [])
        for number in scenario.requests.indices {
            results.0.append(try askOne(first, number))
            results.1.append(try askOne(second, number))
        }
        sumUp(first, results.0)
        sumUp(second, results.1)
        return results
    }

    private func askOne(_ engine: EngineProcess, _ number: Int) throws -> DemoAnswer {
        progress.tell(
            "  \(engine.name): request \(number + 1) of \(scenario.requests.count): "
                + scenario.requests[number].label)
        return try ask(engine, number)
    }

    private func sumUp(_ engine: EngineProcess, _ results: [DemoAnswer]) {
        progress.done()
        tell(
            "\(engine.name) (pid \(engine.process)): \(results.count) answers, median TTFT "
                + "\(Format.milliseconds(DemoOutcome.ttftMs(results))), "
                + "\(Format.number(DemoOutcome.reused(results))) tokens from Kvasir")
    }

    /// The first question on one of the documents, which the engine does not remember by itself.
    private func askAgain(
        _ engine: EngineProcess, _ document: Int, _ wanted: DemoOutcome.Again.Wanted,
        _ what: String
    ) throws -> DemoOutcome.Again {
        let documents = scenario.requests.indices.filter { !scenario.requests[$0].isChat }
        let number = documents[document]
        progress.tell("  \(engine.name): \(scenario.requests[number].label)")
        let answer = try ask(engine, number)
        progress.done()
        tell(
            "\(engine.name) \(what): TTFT \(Format.milliseconds(answer.ttftMs)), "
                + "\(Format.number(answer.reusedTokens)) tokens from Kvasir")
        return .init(pass: "\(engine.name) \(what)", number: number, wanted: wanted, answer: answer)
    }

    private func ask(_ engine: EngineProcess, _ number: Int) throws -> DemoAnswer {
        try engine.ask(
            DemoQuestion(
                prompt: scenario.prompt(number, answers: answers),
                maximum: DemoScenario.answerTokens))
    }
}
