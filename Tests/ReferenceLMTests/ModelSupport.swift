import FoundationEssentials
import Testing

@testable import ReferenceLM

extension SeededRandom {
    mutating func below(_ bound: Int) -> Int {
        Int(truncatingIfNeeded: next() >> 33) % bound
    }

    mutating func pick<Element>(_ elements: [Element]) -> Element {
        elements[below(elements.count)]
    }

    mutating func tokens(_ count: Int, _ vocabulary: Int) -> [UInt32] {
        (0..<count).map { _ in UInt32(below(vocabulary)) }
    }
}

extension ModelConfiguration {
    /// A configuration from the text of a small `config.json`, with fields replaced.
    static func small(
        _ changes: KeyValuePairs<String, String?> = [:]
    ) throws(ModelError) -> ModelConfiguration {
        try ModelConfiguration(
            parsing: Array(configurationText(changes).utf8), file: "config.json")
    }

    /// A small configuration of any architecture; heads and widths of any size.
    static func random(_ random: inout SeededRandom) throws -> ModelConfiguration {
        let kvHeads = 1 + random.below(3)
        func boolean() -> String { random.below(2) == 0 ? "true" : "false" }
        return try small([
            "architectures": "[\"\(random.pick(Architecture.allCases).rawValue)\"]",
            "sliding_window": "null",
            "vocab_size": "\(2 + random.below(80))",
            "hidden_size": "\(1 + random.below(70))",
            "intermediate_size": "\(1 + random.below(90))",
            "num_hidden_layers": "\(1 + random.below(3))",
            "num_attention_heads": "\(kvHeads * (1 + random.below(3)))",
            "num_key_value_heads": "\(kvHeads)",
            "head_dim": "\(random.pick([2, 4, 6, 10, 16, 18, 24, 32]))",
            "max_position_embeddings": "400",
            "attention_bias": boolean(),
            "mlp_bias": boolean(),
            "tie_word_embeddings": boolean(),
        ])
    }

    /// What matters to a computation, in a line.
    var summary: String {
        "\(architecture.rawValue), \(layerCount) layers of \(hiddenSize) and \(feedForwardSize), "
            + "\(kvHeadCount) of \(headCount) heads × \(headSize), vocabulary \(vocabularySize)"
            + (hasTiedEmbeddings ? ", tied" : "") + (hasQueryKeyValueBias ? ", biases" : "")
    }
}

/// What a sequence has computed: logits of each position, and the bytes of its pages.
struct Computed {
    var logits: [Float] = []
    var pages: [[UInt8]] = []

    /// Computes tokens in batches of these sizes, the last of which repeats.
    init(
        _ model: Model, _ tokens: [UInt32], batches: [Int], in pool: PagePool? = nil
    ) throws {
        let pool = try pool ?? PagePool(for: model, tokens: tokens.count)
        let sequence = TokenSequence(model, pool: pool)
        var (next, number) = (0, 0)
        while next < tokens.count {
            let end = min(tokens.count, next + batches[min(number, batches.count - 1)])
            logits += try sequence.logits(tokens[next..<end], batchTokens: end - next)
            (next, number) = (end, number + 1)
        }
        pages = sequence.pageBytes
    }

    /// Where the pages or the logits of the last positions differ in a bit, in words.
    func difference(from expected: Computed) -> String? {
        if let page = pages.indices.first(where: { pages[$0] != expected.pages[$0] }) {
            return "page \(page) differs"
        }
        return bitDifference(logits, expected.logits.suffix(logits.count))
    }
}

/// The first place where floats differ in a bit, in words; nil where they are equal.
func bitDifference(_ result: some Collection<Float>, _ expected: some Collection<Float>) -> String?
{
    if result.count != expected.count { return "\(result.count) values, not \(expected.count)" }
    for (index, (left, right)) in zip(result, expected).enumerated()
    where left.bitPattern != right.bitPattern {
        return "[\(index)] is \(left), not \(right)"
    }
    return nil
}

extension TokenSequence {
    /// Appends tokens and returns the logits of them all, one position after the other.
    func logits(_ new: some Collection<UInt32>, batchTokens: Int = 128) throws -> [Float] {
        var result: [Float] = []
        var indices: [Int] = []
        try append(new, batchTokens: batchTokens) { index, logits in
            indices.append(index)
            result += logits
        }
        #expect(indices == Array(0..<new.count))
        return result
    }

    /// The bytes of all pages that hold tokens.
    var pageBytes: [[UInt8]] {
        (0..<KVLayout.pages(forTokens: tokens.count)).map { withPage($0) { Array($0) } }
    }

    /// Of the pages that are full only: behind the last token anything may be.
    var fullPageBytes: [[UInt8]] {
        Array(pageBytes.prefix(tokens.count / KVLayout.pageTokens))
    }
}

/// A folder with a model, and what PyTorch computes with it.
struct GoldenModel: Sendable, CustomTestStringConvertible {
    static let all = ["multi-head", "grouped", "multi-query"].map(GoldenModel.init(name:))

    let name: String

    var testDescription: String { name }

    var path: String {
        URL(filePath: #filePath).deletingLastPathComponent()
            .appending(path: "Resources/models/\(name)").path
    }

    var tokens: [UInt32] {
        get throws { try numbers("tokens.u32", UInt32.self).map(UInt32.init(littleEndian:)) }
    }

    /// Of all positions, one after the other.
    var logits: [Float] {
        get throws {
            try numbers("logits.f32", UInt32.self).map {
                Float(bitPattern: UInt32(littleEndian: $0))
            }
        }
    }

    private func numbers<Number: BitwiseCopyable>(
        _ file: String, _ type: Number.Type
    ) throws -> [Number] {
        let bytes = Array(try Data(contentsOf: URL(filePath: path + "/" + file)))
        return bytes.withUnsafeBytes { bytes in
            stride(from: 0, to: bytes.count, by: MemoryLayout<Number>.size).map {
                bytes.loadUnaligned(fromByteOffset: $0, as: type)
            }
        }
    }
}
