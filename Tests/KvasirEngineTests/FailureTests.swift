import KVClient
import KVIdentity
import KVPolicy
import KVStore
import KvasirEngine
import ReferenceLM
import Synchronization
import TestSupport
import Testing

@Suite("A failure of the store only makes the engine slower")
struct FailureTests {
    @Test(
        "Loads that fail, copy rubbish or run out of time: computed, and no bit differs",
        arguments: [
            TroubledStore.Trouble.refusesLoads, .failsAfterCopying, .expires, .refusesSaves,
        ])
    func troubledStore(_ trouble: TroubledStore.Trouble) throws {
        var random = SeededRandom(seed: 5)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let store = EmbeddedStore(try Small.store())
        let prompt = Small.prompt(300, &random)
        let wanted = try Engine(model).bits(prompt).bits
        _ = try Engine(model, cache: PrefixCache(store, space: space)).answer(prompt, maximum: 1)
        let told = Told()
        let troubled = TroubledStore(store, trouble)
        let cache = PrefixCache(troubled, space: space, pauseMs: 0...0, trouble: told.tell)
        let engine = try Engine(model, cache: cache)
        let sequence = engine.sequence()
        for _ in 0..<2 {
            sequence.truncate(to: min(sequence.tokens.count, 100))
            let answer = try engine.answer(prompt, with: sequence, maximum: 6)
            #expect(Bits(answer, sequence) == wanted)
            if case .refusesSaves = trouble {} else { #expect(answer.reusedTokens == 0) }
        }
        if case .expires = trouble {
            #expect(told.all.isEmpty)
        } else {
            #expect(told.all.count == 1, "said once")
            #expect(cache.counters.failures > 1)
        }
        troubled.trouble.withLock { $0 = .none }
        let again = try engine.bits(prompt)
        #expect(again.bits == wanted)
        #expect(again.answer.reusedTokens == 256)
    }

    @Test("What a request says of the time after it reaches the store, with loads and saves")
    func hints() throws {
        var random = SeededRandom(seed: 7)
        let model = try Small.model()
        let store = TroubledStore(EmbeddedStore(try Small.store()), .none)
        let engine = try Engine(
            model, cache: PrefixCache(store, space: try Small.space(of: model)))
        let given: [ReuseHint] = [.none, .closed, .pending(seconds: 3)]
        for hint in given {
            _ = try engine.answer(Small.prompt(300, &random), maximum: 1, hint: hint)
        }
        #expect(store.hints.withLock { $0.loads } == given)
        #expect(store.hints.withLock { $0.saves } == given)
    }

    @Test("A store that gives only a part of the match: the rest is computed")
    func partialLoads() throws {
        var random = SeededRandom(seed: 6)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let store = EmbeddedStore(try Small.store())
        let prompt = Small.prompt(300, &random)
        let wanted = try Engine(model).bits(prompt).bits
        _ = try Engine(model, cache: PrefixCache(store, space: space)).answer(prompt, maximum: 1)
        for count in 0...4 {
            let cache = PrefixCache(TroubledStore(store, .gives(count)), space: space)
            let (bits, answer) = try Engine(model, cache: cache).bits(prompt)
            #expect(bits == wanted)
            #expect(answer.reusedTokens == count * 64)
        }
    }

    @Test("After a failure the store is left alone for a while")
    func pause() throws {
        var random = SeededRandom(seed: 8)
        let model = try Small.model()
        let troubled = TroubledStore(EmbeddedStore(try Small.store()), .refusesLoads)
        let cache = PrefixCache(
            troubled, space: try Small.space(of: model), pauseMs: 3_600_000...3_600_000)
        let engine = try Engine(model, cache: cache)
        for _ in 0..<3 { _ = try engine.answer(Small.prompt(100, &random), maximum: 2) }
        #expect(troubled.calls.withLock { $0.loads + $0.saves } == 1)
        #expect(cache.counters.failures == 1)
    }

    @Test("The daemon goes away and comes back, empty: computed, told once, then saved again")
    func daemonRestart() throws {
        var random = SeededRandom(seed: 9)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let server = try TestServer(memoryBytes: 16 << 20)
        let told = Told()
        let cache = PrefixCache(
            DaemonStore(try server.client()), space: space, pauseMs: 0...0, trouble: told.tell)
        let engine = try Engine(model, cache: cache)
        let prompt = Small.prompt(300, &random)
        let wanted = try Engine(model).bits(prompt).bits
        #expect(try engine.bits(prompt).bits == wanted)
        #expect(try engine.bits(prompt).answer.reusedTokens == 256)

        server.stop()
        for _ in 0..<2 {
            let (bits, answer) = try engine.bits(prompt)
            #expect(bits == wanted)
            #expect(answer.reusedTokens == 0)
        }
        #expect(told.all.count == 1)

        try server.start(isEmpty: true)
        let (bits, answer) = try engine.bits(prompt)
        #expect(bits == wanted)
        #expect(answer.reusedTokens == 0)
        let warm = try engine.bits(prompt)
        #expect(warm.bits == wanted)
        #expect(warm.answer.reusedTokens == 256)
        server.stop()
        _ = try engine.bits(prompt)
        #expect(told.all.count == 2, "said again, because it had worked in between")
    }

    @Test("A sequence whose beginning the store lost is saved again from its start")
    func gap() throws {
        var random = SeededRandom(seed: 10)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let server = try TestServer(memoryBytes: 16 << 20)
        let client = try server.client()
        let cache = PrefixCache(DaemonStore(client), space: space)
        let pool = try PagePool(for: model, tokens: 1_024)
        let sequence = TokenSequence(model, pool: pool)
        var saved = PrefixCache.Saved()
        let prompt = Small.prompt(300, &random)
        try sequence.append(prompt[..<130])
        cache.save(sequence, &saved)
        #expect(cache.counters.savedTokens == 128)
        #expect(try client.drop(space) == 2)
        try sequence.append(prompt[130...])
        cache.save(sequence, &saved)
        #expect(cache.counters.savedTokens == 128 + 256)
        #expect(cache.counters.failures == 0)
        let other = TokenSequence(model, pool: pool)
        #expect(cache.load(prompt, into: other) == 256)
    }

    @Test("A store that is too small refuses, which is counted, and no bit differs")
    func fullStore() throws {
        var random = SeededRandom(seed: 12)
        let model = try Small.model(layers: 4)
        let space = try Small.space(of: model)
        // Room for a handful of chunks; all of one prompt must be kept together.
        let store = try Small.store(bytes: 1 << 20)
        let cache = PrefixCache(EmbeddedStore(store), space: space)
        let engine = try Engine(model, cache: cache)
        let prompt = Small.prompt(1_900, &random)
        let wanted = try Engine(model).bits(prompt).bits
        for _ in 0..<2 { #expect(try engine.bits(prompt).bits == wanted) }
        #expect(cache.counters.refusedChunks > 0)
        #expect(cache.counters.failures == 0)
    }

    @Test("Refused chunks are counted once, and the store is asked again only with the next chunk")
    func refusals() throws {
        var random = SeededRandom(seed: 13)
        let model = try Small.model(layers: 4)
        let space = try Small.space(of: model)
        let store = try Small.store(bytes: 1 << 20)
        let troubled = TroubledStore(EmbeddedStore(store), .none)
        let cache = PrefixCache(troubled, space: space)
        let prompt = Small.prompt(1_930, &random)
        _ = try Engine(model, cache: cache).answer(prompt, maximum: 50)
        // 1,930 tokens and 50 are 30 whole chunks, asked for after 512, 1,024, 1,536 and 1,930 tokens.
        #expect(cache.counters.savedTokens / 64 + cache.counters.refusedChunks == 30)
        #expect(cache.counters.refusedChunks > 0)
        #expect(troubled.calls.withLock { $0.saves } == 4)
    }

    @Test("What a failed load left behind reaches no token, however they are computed")
    func rubbishIsCleared() throws {
        var random = SeededRandom(seed: 14)
        let model = try Small.model()
        let space = try Small.space(of: model)
        let store = EmbeddedStore(try Small.store())
        let prompt = Small.prompt(200, &random)
        _ = try Engine(model, cache: PrefixCache(store, space: space)).answer(prompt, maximum: 1)
        for trouble in [TroubledStore.Trouble.expires, .failsAfterCopying] {
            let cache = PrefixCache(TroubledStore(store, trouble), space: space)
            let pool = try PagePool(for: model, tokens: 256)
            let alone = try TokenSequence(model, pool: PagePool(for: model, tokens: 256)).append(
                prompt)
            let sequence = TokenSequence(model, pool: pool)
            #expect(cache.load(prompt, into: sequence) == 0)
            #expect(pool.freeCount == pool.capacity)
            var logits: [Float] = []
            for token in prompt { logits = try sequence.append(CollectionOfOne(token)) }
            #expect(logits == alone)
        }
    }

    @Test("The pause doubles with each failure in a row")
    func growingPause() throws {
        var random = SeededRandom(seed: 15)
        let model = try Small.model()
        let troubled = TroubledStore(EmbeddedStore(try Small.store()), .refusesLoads)
        let cache = PrefixCache(
            troubled, space: try Small.space(of: model), pauseMs: 1...3_600_000)
        let sequence = TokenSequence(model, pool: try PagePool(for: model, tokens: 256))
        let prompt = Small.prompt(100, &random)
        let start = ContinuousClock.now
        while cache.counters.failures < 9 { _ = cache.load(prompt, into: sequence) }
        // Eight pauses, the first of 1 ms: 1 + 2 + 4 + … + 128, each to the millisecond.
        #expect(ContinuousClock.now - start >= .milliseconds(240))
    }

    @Test("Bad input: a clear error, and the engine goes on")
    func badInput() throws {
        let model = try Small.model(context: 256)
        let engine = try Engine(model, tokens: 192)
        func message(_ prompt: [UInt32], _ maximum: Int) -> String {
            do throws(ModelError) {
                _ = try engine.answer(prompt, maximum: maximum)
                return ""
            } catch {
                #expect(error.code == .input)
                return error.message
            }
        }
        #expect(message([], 1).contains("empty"))
        #expect(message([1], 0).contains("at least one token"))
        #expect(message(Array(repeating: 1, count: 250), 7).contains("context of 256"))
        #expect(message(Array(repeating: 1, count: 190), 3).contains("room for 192"))
        #expect(message([1, 61], 1).contains("token 61"))
        #expect(message([1], .max).contains("context of 256"))
        #expect(message(Array(repeating: 1, count: 186), 6).isEmpty)
        #expect(
            try Engine(model).answer(Array(repeating: 1, count: 250), maximum: 6).tokens.count == 6)
    }
}
