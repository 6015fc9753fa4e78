import Testing

@testable import ReferenceLM

@Suite("Pages")
struct PagePropertyTests {
    static let poolPages = 7
    static let contextTokens = 250

    /// Sequences of a pool, and what they should be.
    private struct State {
        let model: Model
        let pool: PagePool
        var sequences: [TokenSequence] = []
        /// The tokens of each.
        var tokens: [[UInt32]] = []
        /// The pages that each has.
        var pages: [Int] = []

        init() throws {
            model = try Model(
                .small([
                    "hidden_size": "8", "intermediate_size": "8", "num_attention_heads": "2",
                    "num_key_value_heads": "1", "num_hidden_layers": "1",
                    "max_position_embeddings": "\(PagePropertyTests.contextTokens)",
                ]), weights: RandomWeights(seed: 1), threads: 1)
            pool = try PagePool(for: model, tokens: PagePropertyTests.poolPages * 64)
            for _ in 0..<3 { begin() }
        }

        mutating func begin() {
            sequences.append(TokenSequence(model, pool: pool))
            tokens.append([])
            pages.append(0)
        }

        var freePages: Int { PagePropertyTests.poolPages - pages.reduce(0, +) }

        /// Whether a sequence may get so long.
        func fits(_ index: Int, _ count: Int) -> Bool {
            count <= PagePropertyTests.contextTokens
                && max(0, KVLayout.pages(forTokens: count) - pages[index]) <= freePages
        }
    }

    @Test(
        "belong to one sequence at a time, and are neither lost nor doubled",
        arguments: 0..<8 as Range<UInt64>)
    func operations(_ seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        var state = try State()
        var refused = 0
        for step in 0..<60 {
            let index = random.below(state.sequences.count)
            let note = "seed \(seed), step \(step), sequence \(index)"
            switch random.below(8) {
            case 0...3:
                if try !append(&state, index, &random, note) { refused += 1 }
            case 4:
                let count = random.below(state.tokens[index].count + 1)
                state.sequences[index].truncate(to: count)
                state.tokens[index].removeLast(state.tokens[index].count - count)
                state.pages[index] = KVLayout.pages(forTokens: count)
            case 5:
                let count = random.below(300)
                let fits = state.fits(index, count)
                let error = makeRoom(state.sequences[index], count)
                try #require((error == nil) == fits, "\(note), room for \(count): \(error)")
                if fits {
                    let pages = KVLayout.pages(forTokens: count)
                    state.pages[index] = max(state.pages[index], pages)
                }
            case 6:
                try adopt(&state, from: index, &random, note)
            default:
                state.sequences.remove(at: index)
                state.tokens.remove(at: index)
                state.pages.remove(at: index)
                state.begin()
            }
            check(state, note)
        }
        // The limits were met; otherwise this has tested less than it says.
        #expect(refused > 0, "seed \(seed)")
        state.sequences.removeAll()
        #expect(state.pool.freeCount == Self.poolPages, "seed \(seed)")
    }

    /// Appends tokens, or expects that nothing happens; false if they don't fit.
    private func append(
        _ state: inout State, _ index: Int, _ random: inout SeededRandom, _ note: String
    ) throws -> Bool {
        let new = random.tokens(1 + random.below(120), 100)
        let count = state.tokens[index].count + new.count
        guard state.fits(index, count) else {
            expectError(.input, [count > Self.contextTokens ? "context" : "more pages"]) {
                () throws(ModelError) in try state.sequences[index].append(new)
            }
            return false
        }
        let last = try state.sequences[index].append(new, batchTokens: 1 + random.below(100))
        state.tokens[index] += new
        state.pages[index] = max(state.pages[index], KVLayout.pages(forTokens: count))
        let expected = try Computed(state.model, state.tokens[index], batches: [count])
        #expect(bitDifference(last, expected.logits.suffix(last.count)) == nil, "\(note)")
        return true
    }

    /// Begins another sequence with the full pages of one, in the place of a third.
    private func adopt(
        _ state: inout State, from index: Int, _ random: inout SeededRandom, _ note: String
    ) throws {
        let target = (index + 1 + random.below(state.sequences.count - 1)) % state.sequences.count
        let pages = state.tokens[index].count / KVLayout.pageTokens
        let count = pages * KVLayout.pageTokens
        state.sequences[target].truncate(to: 0)
        state.tokens[target] = []
        state.pages[target] = 0
        guard state.fits(target, count) else { return }
        try state.sequences[target].makeRoom(forTokens: count)
        for page in 0..<pages {
            state.sequences[index].withPage(page) { from in
                state.sequences[target].withPage(page) { to in
                    to.copyMemory(from: UnsafeRawBufferPointer(from))
                }
            }
        }
        state.sequences[target].adopt(state.tokens[index][..<count])
        state.tokens[target] = Array(state.tokens[index][..<count])
        state.pages[target] = pages
    }

    private func makeRoom(_ sequence: TokenSequence, _ count: Int) -> ModelError? {
        do {
            try sequence.makeRoom(forTokens: count)
            return nil
        } catch {
            return error
        }
    }

    private func check(_ state: State, _ note: String) {
        #expect(state.pool.freeCount == state.freePages, "\(note)")
        var addresses: [UnsafeRawPointer] = []
        for (sequence, (tokens, pages)) in zip(state.sequences, zip(state.tokens, state.pages)) {
            #expect(sequence.tokens == tokens, "\(note)")
            for page in 0..<pages {
                sequence.withPage(page) {
                    #expect($0.count == state.pool.layout.pageBytes, "\(note)")
                    addresses.append(UnsafeRawPointer($0.baseAddress!))
                }
            }
        }
        addresses.sort()
        for (one, next) in zip(addresses, addresses.dropFirst()) {
            #expect(one + state.pool.layout.pageBytes <= next, "two pages overlap; \(note)")
        }
    }

    @Test("are zeros when a sequence gets them, whoever had them before")
    func zeros() throws {
        let model = try Model(.small(), weights: RandomWeights(seed: 1), threads: 1)
        let pool = try PagePool(for: model, tokens: 128)
        for _ in 0..<3 {
            let sequence = TokenSequence(model, pool: pool)
            try sequence.makeRoom(forTokens: 65)
            for page in 0..<2 {
                sequence.withPage(page) { bytes in
                    #expect(bytes.allSatisfy { $0 == 0 })
                    bytes.initializeMemory(as: UInt8.self, repeating: 0xAA)
                }
            }
        }
    }
}
