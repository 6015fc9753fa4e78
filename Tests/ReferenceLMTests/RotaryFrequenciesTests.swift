import FoundationEssentials
import Testing

@testable import ReferenceLM

/// `Resources/rotary.json` is made by `python/tools/make_rotary_goldens.py`.
@Suite("Rotary frequencies")
struct RotaryFrequenciesTests {
    struct Golden: Sendable, CustomTestStringConvertible {
        let name: String
        let configuration: [UInt8]
        let attentionFactor: Double
        let inverse: [Double]

        var testDescription: String { name }
    }

    @Test("are those of transformers", arguments: try Self.goldens())
    func golden(_ golden: Golden) throws {
        let configuration = try ModelConfiguration(parsing: golden.configuration, file: "config")
        let frequencies = RotaryFrequencies(configuration)
        #expect(
            abs(Double(frequencies.attentionFactor) - golden.attentionFactor)
                <= golden.attentionFactor * 1e-6)
        try #require(frequencies.inverse.count == golden.inverse.count)
        #expect(frequencies.inverse.count == configuration.headSize / 2)
        for (index, (found, expected)) in zip(frequencies.inverse, golden.inverse).enumerated() {
            #expect(abs(Double(found) - expected) <= expected * 1e-6, "pair \(index)")
        }
    }

    @Test("are tested for every kind of scaling")
    func kinds() throws {
        var kinds: Set<String> = []
        for golden in try Self.goldens() {
            let scaling = try ModelConfiguration(parsing: golden.configuration, file: "config")
                .ropeScaling
            switch scaling {
            case .none: kinds.insert("none")
            case .linear: kinds.insert("linear")
            case .llama3: kinds.insert("llama3")
            case .yarn: kinds.insert("yarn")
            }
        }
        #expect(kinds == ["none", "linear", "llama3", "yarn"])
    }

    @Test("are finite and never negative for whatever a configuration may say")
    func extremes() throws {
        let seed: UInt64 = 0x40_7A27
        var random = SeededRandom(seed: seed)
        for number in 0..<2_000 {
            let text = Self.anyConfiguration(&random)
            do throws(ModelError) {
                let configuration = try ModelConfiguration(
                    parsing: Array(text.utf8), file: "config")
                let frequencies = RotaryFrequencies(configuration)
                #expect(
                    frequencies.inverse.allSatisfy { $0.isFinite && $0 >= 0 },
                    "seed \(seed), case \(number): \(text)")
                #expect(frequencies.attentionFactor.isFinite && frequencies.attentionFactor > 0)
            } catch {
                #expect(error.code == .configuration, "seed \(seed), case \(number): \(error)")
            }
        }
    }

    private static func anyConfiguration(_ random: inout SeededRandom) -> String {
        func pick(_ values: [String]) -> String { values[random.below(values.count)] }
        let numbers = ["0.000001", "0.5", "1", "2.5", "32", "1000000"]
        let scaling = [
            "\"type\": \(pick(["\"linear\"", "\"llama3\"", "\"yarn\""]))",
            "\"factor\": \(pick(numbers))",
            "\"low_freq_factor\": \(pick(numbers))", "\"high_freq_factor\": \(pick(numbers))",
            "\"beta_fast\": \(pick(numbers))", "\"beta_slow\": \(pick(numbers))",
            "\"mscale\": \(pick(numbers))", "\"mscale_all_dim\": \(pick(numbers))",
            "\"truncate\": \(pick(["true", "false"]))",
            "\"original_max_position_embeddings\": \(pick(["1", "4096", "16777216"]))",
        ]
        return configurationText([
            "rope_scaling": "{\(scaling.joined(separator: ", "))}",
            "rope_theta": pick(["1.001", "2", "10000", "1000000", "1e15"]),
            "head_dim": pick(["2", "64", "4096"]),
        ])
    }

    /// The golden values; each configuration stays text, to be read by the reader under test.
    private static func goldens() throws -> [Golden] {
        let directory = URL(filePath: #filePath).deletingLastPathComponent()
        let data = try Data(contentsOf: directory.appending(path: "Resources/rotary.json"))
        guard let cases = try JSON(parsing: Array(data)).object?["cases"]?.array else {
            throw Unreadable()
        }
        return try cases.map { value in
            guard let fields = value.object, let name = fields["name"]?.string,
                let configuration = fields["config"], let inverse = fields["inverse"]?.array,
                let attentionFactor = fields["attention_factor"]?.double
            else { throw Unreadable() }
            return Golden(
                name: name, configuration: Array(text(of: configuration).utf8),
                attentionFactor: attentionFactor, inverse: inverse.compactMap(\.double))
        }
    }

    private struct Unreadable: Error {}

    private static func text(of value: JSON) -> String {
        switch value {
        case .null: "null"
        case .boolean(let boolean): "\(boolean)"
        case .number(let literal): literal
        case .string(let string): string.text.quoted
        case .array(let elements): "[" + elements.map(text).joined(separator: ",") + "]"
        case .object(let object):
            "{"
                + object.members.map { "\($0.name.text.quoted):\(text(of: $0.value))" }
                .joined(separator: ",") + "}"
        }
    }
}
