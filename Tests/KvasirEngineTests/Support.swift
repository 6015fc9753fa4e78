import Foundation
import KVClient
import KVIdentity
import KVPolicy
import KVStore
import KvasirEngine
import Logging
import ReferenceLM
import Synchronization
import Testing

/// A small model of random weights: quick to compute, and no two of its logits alike.
enum Small {
    static let vocabulary = 61

    static func configuration(context: Int = 2_048, layers: Int = 2) throws -> ModelConfiguration {
        let json = """
            {"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": \(layers), "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "vocab_size": \(vocabulary), "max_position_embeddings": \(context),
            "rope_theta": 10000.0, "tie_word_embeddings": true}
            """
        return try ModelConfiguration(parsing: Array(json.utf8), file: "test")
    }

    static func model(
        weights seed: UInt64 = 1, context: Int = 2_048, layers: Int = 2, threads: Int = 1
    ) throws -> Model {
        try Model(
            configuration(context: context, layers: layers), weights: RandomWeights(seed: seed),
            threads: threads)
    }

    static func space(
        of model: Model, weights: UInt64 = 1, chunkTokens: Int = 64
    ) throws -> CacheSpace {
        try ModelIdentity.space(
            of: model, weights: Digest(words: (weights, 0, 0, 0)), chunkTokens: chunkTokens)
    }

    static func prompt(_ count: Int, _ random: inout SeededRandom) -> [UInt32] {
        (0..<count).map { _ in UInt32.random(in: 0..<UInt32(vocabulary), using: &random) }
    }

    static func store(bytes: Int = 16 << 20) throws -> Store {
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        let store = try Store(.init(memoryBytes: bytes, verifyOneIn: 1, logger: logger))
        try #require(store.waitUntilReady())
        return store
    }
}

/// Everything that must be equal to the bit.
struct Bits: Equatable {
    let tokens: [UInt32]
    let logits: Digest
    /// Of the prompt's whole pages.
    let pages: [Digest]

    init(_ answer: Answer, _ sequence: TokenSequence) {
        tokens = answer.tokens
        logits = answer.logits
        pages = (0..<(answer.promptTokens / KVLayout.pageTokens)).map { page in
            sequence.withPage(page) { Digest.sha256(of: UnsafeRawBufferPointer($0)) }
        }
    }
}

extension Engine {
    /// An answer of 6 tokens, and what must be equal of it.
    func bits(_ prompt: [UInt32]) throws -> (bits: Bits, answer: Answer) {
        let sequence = sequence()
        let answer = try answer(prompt, with: sequence, maximum: 6)
        return (Bits(answer, sequence), answer)
    }
}

/// What a cache had to tell.
final class Told: Sendable {
    private let lines = Mutex<[String]>([])

    var all: [String] { lines.withLock { $0 } }

    func tell(_ line: String) { lines.withLock { $0.append(line) } }
}

/// A store that does what a test wants with what another one does.
final class TroubledStore: ChunkStore {
    enum Trouble: Sendable {
        case none
        /// Loads throw before anything was copied.
        case refusesLoads
        /// Loads copy other bytes, then throw.
        case failsAfterCopying
        /// Loads copy other bytes, and say that the lease had run out.
        case expires
        /// Loads give no more than so many chunks.
        case gives(Int)
        /// Saves throw.
        case refusesSaves
    }

    struct Failure: Error {}

    let behind: any ChunkStore
    let trouble: Mutex<Trouble>
    let calls = Mutex((loads: 0, saves: 0))
    /// The hints of all loads and saves.
    let hints = Mutex<(loads: [ReuseHint], saves: [ReuseHint])>(([], []))

    init(_ behind: any ChunkStore, _ trouble: Trouble) {
        self.behind = behind
        self.trouble = Mutex(trouble)
    }

    func load(
        _ space: CacheSpace, root: Root, keys: [Digest], from first: Int, hint: ReuseHint,
        room: (Int) throws -> Void, copy: (Int, UnsafeRawBufferPointer) -> Void
    ) throws -> Int {
        calls.withLock { $0.loads += 1 }
        hints.withLock { $0.loads.append(hint) }
        let trouble = trouble.withLock { $0 }
        if case .refusesLoads = trouble { throw Failure() }
        if case .gives(let count) = trouble {
            return try behind.load(
                space, root: root, keys: Array(keys.prefix(count)), from: first, hint: hint,
                room: room, copy: copy)
        }
        let isBad =
            switch trouble {
            case .failsAfterCopying, .expires: true
            default: false
            }
        let count = try behind.load(
            space, root: root, keys: keys, from: first, hint: hint, room: room,
            copy: { position, bytes in
                guard isBad else { return copy(position, bytes) }
                let other = [UInt8](repeating: 0xFF, count: bytes.count)
                other.withUnsafeBytes { copy(position, $0) }
            })
        if case .failsAfterCopying = trouble { throw Failure() }
        if case .expires = trouble { return first }
        return count
    }

    func save(
        _ space: CacheSpace, root: Root, keys: [Digest], parent: Digest?, hint: ReuseHint,
        fill: (Int, UnsafeMutableRawBufferPointer) -> Void
    ) throws -> SaveResult {
        calls.withLock { $0.saves += 1 }
        hints.withLock { $0.saves.append(hint) }
        if case .refusesSaves = trouble.withLock({ $0 }) { throw Failure() }
        return try behind.save(
            space, root: root, keys: keys, parent: parent, hint: hint, fill: fill)
    }

    func isGap(_ error: any Error) -> Bool { behind.isGap(error) }
}
