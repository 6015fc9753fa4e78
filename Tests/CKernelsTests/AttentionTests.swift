import CKernels
import TestRandom
import Testing

@Suite("Attention")
struct AttentionTests {
    @Test("is a softmax over all tokens up to the query's", arguments: 0..<24 as Range<UInt64>)
    func exact(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let some = AttentionCase(random: &random)
        let pages = Pages(of: some)
        let pool = try Pool()
        let first = max(0, some.tokens - 1 - random.below(5))
        let exact = (first..<some.tokens).flatMap(some.oracle)
        for kind in Kind.all {
            let note = "seed \(seed), \(kind.name), \(some), from \(first)"
            let result = some.attend(kind, pool, first..<some.tokens, over: pages, note)
            let off: Double = zip(result, exact).reduce(0) { max($0, abs(Double($1.0) - $1.1)) }
            // Values are below 3; scores of up to 60 round by 2e-6, and weights as much.
            #expect(off <= 1e-5, "\(note)")
            #expect(result.allSatisfy { $0.isFinite }, "\(note)")
        }
    }

    @Test("gives a query the same bits alone, in any block and at any split", arguments: Kind.all)
    func blocks(_ kind: Kind) throws {
        let pool = try Pool()
        for seed in 100..<112 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let some = AttentionCase(random: &random)
            let pages = Pages(of: some)
            let note = "seed \(seed), \(kind.name), \(some)"
            let whole = some.attend(kind, pool, 0..<some.tokens, over: pages, note)
            let alone = (0..<some.tokens).flatMap {
                some.attend(kind, pool, $0..<$0 + 1, over: pages, padding: 0, note)
            }
            #expect(difference(alone, whole) == nil, "alone, \(note)")
            for _ in 0..<3 {
                var (next, parts) = (0, [Float]())
                while next < some.tokens {
                    let end = next + 1 + random.below(min(70, some.tokens - next))
                    parts += some.attend(kind, pool, next..<end, over: pages, note)
                    next = end
                }
                #expect(difference(parts, whole) == nil, "split, \(note)")
            }
        }
    }

    @Test("does not see what is behind the last token, to the bit", arguments: Kind.all)
    func garbage(_ kind: Kind) throws {
        let pool = try Pool()
        for seed in 200..<212 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let some = AttentionCase(random: &random)
            let note = "seed \(seed), \(kind.name), \(some)"
            let all = 0..<some.tokens
            let expected = some.attend(kind, pool, all, over: Pages(of: some), note)
            for garbage in [1e30, -1e30, 3e38, -0.0, .leastNonzeroMagnitude] as [Float] {
                let pages = Pages(for: some, tokens: some.tokens) {
                    random.below(2) == 0 ? garbage : random.value() * garbage
                }
                pages.store(some, all)
                let result = some.attend(kind, pool, all, over: pages, note)
                #expect(difference(result, expected) == nil, "\(garbage), \(note)")
            }
        }
    }

    @Test("does not see later tokens that are there already, to the bit", arguments: Kind.all)
    func laterTokens(_ kind: Kind) throws {
        let pool = try Pool()
        for seed in 300..<312 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let some = AttentionCase(random: &random)
            let note = "seed \(seed), \(kind.name), \(some)"
            let complete = Pages(of: some)
            let whole = some.attend(kind, pool, 0..<some.tokens, over: complete, note)
            // Keys and values come in one batch after the other, as in a prefill.
            let growing = Pages(for: some, tokens: some.tokens)
            var next = 0
            while next < some.tokens {
                let end = next + 1 + random.below(min(50, some.tokens - next))
                growing.store(some, next..<end)
                let result = some.attend(kind, pool, next..<end, over: growing, note)
                let expected = Array(whole[next * some.width..<end * some.width])
                #expect(difference(result, expected) == nil, "\(next)..<\(end), \(note)")
                next = end
            }
            #expect(difference(growing.contents, complete.contents) == nil, "\(note)")
        }
    }

    @Test("of the tiniest values does not see the sign of what is behind", arguments: Kind.all)
    func signOfZero(_ kind: Kind) throws {
        let pool = try Pool()
        var random = SeededGenerator(seed: 400)
        for tokens in [2, 3, 40, 63, 66, 100] {
            var some = AttentionCase(
                kvHeads: 1, group: 2, headSize: 16, tokens: tokens, &random)
            // Weighed with less than a half, the least value rounds to a zero that is negative.
            some.values = some.values.map { $0 < 0 ? -.leastNonzeroMagnitude : -0.0 }
            let all = 0..<tokens
            let results = [1, -1].map { (garbage: Float) in
                let pages = Pages(for: some, tokens: tokens) { garbage }
                pages.store(some, all)
                return some.attend(kind, pool, all, over: pages, "\(tokens) tokens")
            }
            let found = difference(results[0], results[1])
            #expect(found == nil, "seed 400, \(kind.name), \(tokens) tokens")
            let alone = Pages(for: some, tokens: tokens)
            let steps = all.flatMap {
                alone.store(some, $0..<$0 + 1)
                return some.attend(kind, pool, $0..<$0 + 1, over: alone, "\(tokens) tokens")
            }
            let other = difference(results[0], steps)
            #expect(other == nil, "seed 400, \(kind.name), \(tokens) tokens")
        }
    }

    @Test("gives the same bits on any number of threads", arguments: Kind.all)
    func threads(_ kind: Kind) throws {
        for seed in 500..<503 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let tokens = 200 + random.below(60)
            let some = AttentionCase(
                kvHeads: 2, group: 2, headSize: [16, 24, 32][random.below(3)], tokens: tokens,
                &random)
            let note = "seed \(seed), \(kind.name), \(some)"
            #expect(Double(2 * tokens * tokens * some.width) >= worthWaking, "\(note)")
            let pages = Pages(of: some)
            let expected = some.attend(kind, try Pool(), 0..<tokens, over: pages, note)
            for threads in [2, 3, 5] as [Int32] {
                let pool = try Pool(threads: threads)
                let result = some.attend(kind, pool, 0..<tokens, over: pages, note)
                #expect(difference(result, expected) == nil, "\(threads) threads, \(note)")
            }
        }
    }

    @Test("agrees to the bit on all processors that fuse")
    func kinds() throws {
        let pool = try Pool()
        for seed in 600..<620 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let some = AttentionCase(random: &random)
            let pages = Pages(of: some)
            let results = Kind.fused.map {
                let note = "seed \(seed), \($0.name), \(some)"
                return some.attend($0, pool, 0..<some.tokens, over: pages, note)
            }
            for index in results.indices.dropFirst() {
                let found = difference(results[index], results[0])
                #expect(found == nil, "seed \(seed), \(Kind.fused[index].name), \(some)")
            }
        }
    }

    @Test("finds keys and values where the header says that they are")
    func layout() {
        for seed in 700..<720 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let some = AttentionCase(random: &random)
            let (size, padded) = (some.headSize, (some.headSize + 15) / 16 * 16)
            let pages = Pages(for: some, tokens: some.tokens) { untouched }
            #expect(kvk_padded_head_size(size) == padded)
            #expect(pages.floats == some.kvHeads * (size + padded) * 64)
            pages.store(some, 0..<some.tokens)
            var expected = [Float](
                repeating: untouched, count: (some.tokens + 63) / 64 * pages.floats)
            for token in 0..<some.tokens {
                let (page, slot) = (token / 64 * pages.floats, token % 64)
                for head in 0..<some.kvHeads {
                    for element in 0..<size {
                        let from = token * some.kvWidth + head * size + element
                        let key = page + (head * size + element) * 64 + slot
                        let value =
                            page + some.kvHeads * size * 64 + (head * 64 + slot) * padded + element
                        expected[key] = some.keys[from]
                        expected[value] = some.values[from]
                    }
                    for element in size..<padded {
                        expected[
                            page + some.kvHeads * size * 64 + (head * 64 + slot) * padded + element] =
                            0
                    }
                }
            }
            let found = difference(pages.contents, expected)
            #expect(found == nil, "seed \(seed), \(some)")
        }
    }
}
