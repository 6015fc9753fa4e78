import Glibc
import KVClient
import KVIdentity
import KVStore
import KvasirEngine
import ReferenceLM
import TestSupport
import Testing

@Suite("What is reused changes no bit of tokens, logits, keys and values")
struct ExactnessTests {
    enum Kind: CaseIterable {
        case embedded
        case daemon
    }

    /// Makes connectors to one store.
    private final class Stores {
        private let store: Store?
        private let server: TestServer?

        init(_ kind: Kind) throws {
            store = kind == .embedded ? try Small.store() : nil
            server = kind == .daemon ? try TestServer(memoryBytes: 16 << 20, verifyOneIn: 1) : nil
        }

        func connect() throws -> any ChunkStore {
            if let store { return EmbeddedStore(store) }
            guard let server else { preconditionFailure("one of the two") }
            return DaemonStore(try server.client())
        }
    }

    @Test("Loaded at every chunk boundary, from both kinds of store", arguments: Kind.allCases)
    func everyBoundary(_ kind: Kind) throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        let model = try Small.model()
        for chunkTokens in [64, 128] {
            let prompt = Small.prompt(Int.random(in: 330...450, using: &random), &random)
            let alone = try Engine(model).bits(prompt)
            let space = try Small.space(of: model, chunkTokens: chunkTokens)
            for boundary in 0...(prompt.count / chunkTokens) {
                let stores = try Stores(kind)
                if boundary > 0 {
                    // Somebody has computed exactly so many chunks, and something else behind them.
                    let writer = PrefixCache(try stores.connect(), space: space)
                    let beginning =
                        prompt[..<(boundary * chunkTokens)] + Small.prompt(chunkTokens - 1, &random)
                    _ = try Engine(model, cache: writer).answer(Array(beginning), maximum: 1)
                }
                let reader = PrefixCache(try stores.connect(), space: space)
                let (bits, answer) = try Engine(model, cache: reader).bits(prompt)
                #expect(bits == alone.bits, "seed \(seed), boundary \(boundary)")
                let wanted = min(boundary, (prompt.count - 1) / chunkTokens) * chunkTokens
                #expect(answer.reusedTokens == wanted, "seed \(seed), boundary \(boundary)")
                #expect(reader.counters.failures == 0)
            }
        }
    }

    @Test("A prompt that ends at a chunk's end leaves one chunk to be computed")
    func wholeChunks() throws {
        var random = SeededRandom(seed: 7)
        let model = try Small.model()
        let store = try Small.store()
        let space = try Small.space(of: model)
        let prompt = Small.prompt(256, &random)
        let alone = try Engine(model).bits(prompt)
        for expected in [0, 192] {
            let cache = PrefixCache(EmbeddedStore(store), space: space)
            let (bits, answer) = try Engine(model, cache: cache).bits(prompt)
            #expect(bits == alone.bits)
            #expect(answer.reusedTokens == expected)
        }
    }

    @Test("Two engines share one daemon, each going on where the other was")
    func twoEngines() throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let server = try TestServer(memoryBytes: 16 << 20, verifyOneIn: 1)
        let engines = try (0..<2).map { _ in
            try Engine(model, cache: PrefixCache(DaemonStore(server.client()), space: space))
        }
        var prompt = Small.prompt(100, &random)
        for turn in 0..<8 {
            let (bits, answer) = try engines[turn % 2].bits(prompt)
            #expect(try bits == Engine(model).bits(prompt).bits, "seed \(seed), turn \(turn)")
            if turn > 0 { #expect(answer.reusedTokens > 0, "seed \(seed), turn \(turn)") }
            prompt += answer.tokens + Small.prompt(Int.random(in: 40...90, using: &random), &random)
        }
    }

    @Test("Two engines at once, on threads of their own, save and load the same prompts")
    func concurrentEngines() throws {
        let model = try Small.model()
        let space = try Small.space(of: model)
        let server = try TestServer(memoryBytes: 16 << 20)
        var random = SeededRandom(seed: 11)
        let shared = Small.prompt(200, &random)
        let prompts = (0..<6).map { _ in shared + Small.prompt(70, &random) }
        let wanted = try prompts.map { try Engine(model).bits($0).bits }
        let found = Told()
        let threads = try (0..<2).map { number in
            let client = try server.client()
            return Running.start {
                do {
                    let engine = try Engine(
                        model, cache: PrefixCache(DaemonStore(client), space: space))
                    for (prompt, wanted) in zip(prompts, wanted)
                    where try engine.bits(prompt).bits != wanted {
                        found.tell("engine \(number) differs")
                    }
                } catch {
                    found.tell("\(error)")
                }
            }
        }
        for thread in threads { pthread_join(thread, nil) }
        #expect(found.all.isEmpty)
    }

    @Test("A sequence that is kept and one that is loaded give the same as one that is computed")
    func keptSequences() throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        let model = try Small.model()
        let store = try Small.store()
        let space = try Small.space(of: model)
        let engine = try Engine(model, cache: PrefixCache(EmbeddedStore(store), space: space))
        let sequence = engine.sequence()
        var prompt = Small.prompt(150, &random)
        for turn in 0..<12 {
            let answer = try engine.answer(prompt, with: sequence, maximum: 6)
            let bits = Bits(answer, sequence)
            #expect(try bits == Engine(model).bits(prompt).bits, "seed \(seed), turn \(turn)")
            #expect(answer.reusedTokens + answer.keptTokens < prompt.count)
            // Goes on, or back to somewhere and on from there.
            if Bool.random(using: &random) { prompt += answer.tokens }
            prompt.removeLast(Int.random(in: 0..<min(120, prompt.count), using: &random))
            prompt += Small.prompt(Int.random(in: 1...100, using: &random), &random)
        }
    }

    @Test("Other salts share nothing, and neither do other models")
    func nothingShared() throws {
        var random = SeededRandom(seed: 3)
        let store = try Small.store()
        let prompt = Small.prompt(200, &random)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let writer = PrefixCache(EmbeddedStore(store), space: space, salt: "a")
        _ = try Engine(model, cache: writer).answer(prompt, maximum: 1)
        #expect(writer.counters.savedTokens == 192)
        let other = PrefixCache(EmbeddedStore(store), space: space, salt: "b")
        #expect(try Engine(model, cache: other).answer(prompt, maximum: 1).reusedTokens == 0)
        let otherModel = try Small.model(weights: 2)
        let otherSpace = try Small.space(of: otherModel, weights: 2)
        let third = PrefixCache(EmbeddedStore(store), space: otherSpace, salt: "a")
        #expect(try Engine(otherModel, cache: third).answer(prompt, maximum: 1).reusedTokens == 0)
    }
}
