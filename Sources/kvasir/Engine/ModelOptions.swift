import ArgumentParser
import Foundation
import KVClient
import KVIdentity
import KVSocket
import KvasirEngine
import ReferenceLM

/// What every command that runs a model takes.
struct ModelOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Folder of a Llama, Mistral or Qwen 2 model: config.json, *.safetensors, tokenizer.json.",
            valueName: "dir"))
    var model: String

    @Option(
        help: ArgumentHelp(
            "Threads that compute (default: one for each processor).", valueName: "n"))
    var threads: Int?

    func validate() throws {
        try Self.check(threads: threads)
    }

    static func check(threads: Int?) throws {
        if let threads, !(1...Model.threadsMax).contains(threads) {
            throw ValidationError("--threads takes 1 to \(Model.threadsMax), not \(threads)")
        }
    }

    /// Reads the folder, with progress where that takes long.
    func load() throws -> LoadedModel {
        try LoadedModel(path: model, threads: threads)
    }
}

/// A model that is ready, with its tokenizer and what identifies its weights.
struct LoadedModel {
    let folder: ModelFolder
    let model: Model
    let tokenizer: Tokenizer

    init(path: String, threads: Int?) throws {
        let progress = Progress()
        defer { progress.done() }
        // What can be refused at once comes before the weights, which may be many gigabytes.
        (folder, tokenizer) = try running { () throws(ModelError) in
            let folder = try ModelFolder(path: path)
            return (folder, try Tokenizer(path: folder.tokenizerPath))
        }
        let known = folder.configuration.vocabularySize
        if tokenizer.vocabularySize > known {
            throw CommandFailure(
                "\(folder.tokenizerPath) has \(tokenizer.vocabularySize) tokens, the model \(known); "
                    + "use the model's own tokenizer")
        }
        let folder = folder
        model = try running { () throws(ModelError) in
            try Model(folder, threads: threads) { share in
                progress.tell("reading \(path): \(Int(share * 100)) %")
            }
        }
    }

    /// The folder's name.
    var name: String {
        URL(fileURLWithPath: folder.path).standardizedFileURL.lastPathComponent
    }
}

/// Runs what a model may refuse; its errors are told in one sentence.
func running<Result>(_ body: () throws(ModelError) -> Result) throws -> Result {
    do throws(ModelError) {
        return try body()
    } catch {
        throw CommandFailure(error.message)
    }
}

/// Which store an engine uses.
struct StoreOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Where KV is kept: 'daemon' (at KVASIR_SOCKET or the usual place), 'none', or the path of a daemon's socket.",
            valueName: "store"))
    var store = "daemon"

    @Option(
        help: ArgumentHelp(
            "Share KV only with requests of the same salt.", valueName: "text"))
    var salt = ""

    @Option(
        name: .customLong("chunk-tokens"),
        help: ArgumentHelp(
            "Tokens of a chunk, a multiple of \(KVLayout.pageTokens); all that share KV must agree.",
            valueName: "n"))
    var chunkTokens = 256

    private static let chunkTokensMax = 1 << 16

    func validate() throws {
        if !(1...Self.chunkTokensMax).contains(chunkTokens)
            || !chunkTokens.isMultiple(of: KVLayout.pageTokens)
        {
            throw ValidationError(
                "--chunk-tokens takes a multiple of \(KVLayout.pageTokens) up to \(Self.chunkTokensMax), "
                    + "not \(chunkTokens)")
        }
    }

    /// The connector; nil if none is wanted, or the usual daemon is not there, which is said.
    func cache(
        for loaded: LoadedModel, pauseMs: ClosedRange<Int> = 1_000...60_000,
        tell: @escaping @Sendable (String) -> Void = Self.tell
    ) throws -> PrefixCache? {
        if store == "none" { return nil }
        let client: Client
        do throws(ClientError) {
            client = try Client(
                .init(socket: store == "daemon" ? nil : store, timeoutMs: 2_000))
        } catch {
            let message = error.message.replacingOccurrences(of: "--socket", with: "--store")
            if store != "daemon" { throw CommandFailure(message) }
            tell("\(message); everything is computed (--store none says nothing)")
            return nil
        }
        let weights = try running { () throws(ModelError) in
            try ModelIdentity.weights(of: loaded.folder)
        }
        let space: CacheSpace
        do throws(IdentityError) {
            space = try ModelIdentity.space(
                of: loaded.model, weights: weights, name: loaded.name, chunkTokens: chunkTokens)
        } catch {
            throw CommandFailure("the chunks of this model can't be described: \(error.message)")
        }
        return PrefixCache(
            DaemonStore(client), space: space, salt: salt, pauseMs: pauseMs, trouble: tell)
    }

    @Sendable private static func tell(_ text: String) {
        Output.tell("kvasir: \(text)\n")
    }
}

/// How tokens are chosen.
struct SamplingOptions: ParsableArguments {
    private static let maxTokensMax = 1 << 24

    @Option(help: ArgumentHelp("New tokens at most.", valueName: "n"))
    var maxTokens = 128

    @Option(
        help: ArgumentHelp(
            "0 takes the likeliest token always; 1 draws as the model has it.", valueName: "t"))
    var temperature = 0.0

    @Option(
        help: ArgumentHelp(
            "Draw from the likeliest tokens that have this share of the probability.",
            valueName: "share"))
    var topP = 1.0

    @Option(help: ArgumentHelp("Draws the same tokens for the same seed.", valueName: "n"))
    var seed: UInt64 = 0

    func validate() throws {
        if !(1...Self.maxTokensMax).contains(maxTokens) {
            throw ValidationError(
                "--max-tokens takes 1 to \(Self.maxTokensMax), not \(maxTokens)")
        }
        if !(0...100).contains(temperature) {
            throw ValidationError("--temperature takes 0 to 100, not \(temperature)")
        }
        if !(topP > 0 && topP <= 1) {
            throw ValidationError("--top-p takes more than 0, up to 1, not \(topP)")
        }
    }

    var sampler: Sampler { Sampler(temperature: temperature, topShare: topP, seed: seed) }
}
