import KVIdentity
import TestRandom
import Testing

@Suite("Roots and chunk keys")
struct ChunkKeyTests {
    @Test("a root depends on space, adapter and salt, and on nothing twice")
    func roots() {
        var random = SeededGenerator(seed: 21)
        let (space, adapter) = (random.digest(), random.digest())
        let roots: [Root] = [
            Root(space: space),
            Root(space: random.digest()),
            Root(space: space, adapter: adapter),
            Root(space: space, adapter: random.digest()),
            Root(space: space, salt: "a"),
            Root(space: space, salt: "b"),
            Root(space: space, salt: "a\u{0}"),
            Root(space: space, adapter: adapter, salt: "a"),
            // Alike for the eye and for Swift's ==, different bytes.
            Root(space: space, salt: "\u{E9}"),
            Root(space: space, salt: "e\u{301}"),
        ]
        #expect(Set(roots).count == roots.count)
        #expect(Root(space: space, salt: "") == Root(space: space))
    }

    @Test("splitting the tokens at chunks and going on from the parent changes no key")
    func splitting() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        for _ in 0..<50 {
            let root = Root(random.digest())
            let chunkTokens = 1 + random.below(40)
            let count = random.below(30) * chunkTokens + random.below(chunkTokens)
            let tokens = (0..<count).map { _ in UInt32(truncatingIfNeeded: random.next()) }
            var extra: [Int: Extra] = [:]
            for chunk in 0..<(count / chunkTokens) where random.below(4) == 0 {
                extra[chunk] = Extra([.init(kind: "mm", identifier: random.text(9), offset: -chunk)]
                )
            }
            let whole = ChunkKeys.chain(
                root: root, tokens: tokens, chunkTokens: chunkTokens, extra: extra)
            #expect(whole.count == count / chunkTokens, "seed \(seed)")
            #expect(Set(whole).count == whole.count, "seed \(seed)")
            let place = random.below(whole.count + 1)
            let first = ChunkKeys.chain(
                root: root, tokens: Array(tokens[..<(place * chunkTokens)]),
                chunkTokens: chunkTokens, extra: extra)
            let later = extra.filter { $0.key >= place }.map { ($0.key - place, $0.value) }
            let second = ChunkKeys.chain(
                root: root, tokens: Array(tokens[(place * chunkTokens)...]),
                chunkTokens: chunkTokens, extra: Dictionary(uniqueKeysWithValues: later),
                parent: first.last)
            #expect(first + second == whole, "seed \(seed)")
        }
    }

    @Test("a change of one token changes its chunk's key and every later one, and no earlier one")
    func oneToken() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        let root = Root(random.digest())
        let tokens = (0..<100).map { _ in UInt32(truncatingIfNeeded: random.next()) }
        let keys = ChunkKeys.chain(root: root, tokens: tokens, chunkTokens: 10)
        for place in tokens.indices {
            var changed = tokens
            changed[place] ^= 1 << UInt32(random.below(32))
            let others = ChunkKeys.chain(root: root, tokens: changed, chunkTokens: 10)
            for chunk in keys.indices {
                #expect((keys[chunk] == others[chunk]) == (chunk < place / 10), "seed \(seed)")
            }
        }
    }

    @Test("no two lists of extras have the same bytes")
    func extrasAreUnambiguous() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        var seen: [[UInt8]: Extra] = [:]
        // Few letters and short words, so that a format that ran its parts together would collide.
        for _ in 0..<20_000 {
            let items = (0..<random.below(4)).map { _ in
                Extra.Item(
                    kind: String(random.text(3, from: "a\u{0}\u{1}").dropFirst()),
                    identifier: String(random.text(3, from: "a\u{0}\u{1}").dropFirst()),
                    offset: random.below(3) - 1)
            }
            let extra = Extra(items)
            if let other = seen.updateValue(extra, forKey: extra.encoded), other != extra {
                Issue.record("seed \(seed): \(extra) and \(other)")
                return
            }
        }
        #expect(Extra().encoded.isEmpty)
    }

    @Test("an extra changes its chunk's key, by each of its parts")
    func extraParts() {
        let tokens = [UInt32](repeating: 7, count: 4)
        func key(_ items: [Extra.Item]) -> Digest? {
            ChunkKeys.chain(
                root: Root(Digest(words: (1, 2, 3, 4))), tokens: tokens, chunkTokens: 4,
                extra: [0: Extra(items)]
            ).first
        }
        let a = Extra.Item(kind: "mm", identifier: "a", offset: 0)
        let b = Extra.Item(kind: "mm", identifier: "b", offset: 0)
        let keys = [
            key([]), key([a]), key([b]), key([a, b]), key([b, a]), key([a, a]),
            key([.init(kind: "mma", identifier: "", offset: 0)]),
            key([.init(kind: "mm", identifier: "a", offset: 1)]),
            key([.init(kind: "mm", identifier: "a", offset: -1)]),
        ]
        #expect(Set(keys).count == keys.count)
        #expect(
            key([])
                == ChunkKeys.chain(
                    root: Root(Digest(words: (1, 2, 3, 4))), tokens: tokens, chunkTokens: 4
                ).first)
    }

    @Test("items that only look alike are not equal")
    func normalization() {
        let composed = Extra.Item(kind: "mm", identifier: "\u{E9}", offset: 0)
        let decomposed = Extra.Item(kind: "mm", identifier: "e\u{301}", offset: 0)
        #expect(composed != decomposed)
        #expect(Extra([composed]).encoded != Extra([decomposed]).encoded)
    }

    @Test("keys are packed as commands carry them")
    func packed() {
        var random = SeededGenerator(seed: 5)
        let keys = (0..<3).map { _ in random.digest() }
        #expect(ChunkKeys.packed(keys) == keys.flatMap(\.bytes))
    }
}
