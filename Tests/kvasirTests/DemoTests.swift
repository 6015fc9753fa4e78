import Foundation
import ReferenceLM
import Testing

@testable import kvasir

@Suite("The demo's verdict")
struct DemoTests {
    private func answer(
        tokens: [UInt32] = [1, 2], logits: String = "aa", reused: Int = 0, ttftMs: Double = 10
    ) -> DemoAnswer {
        DemoAnswer(
            tokens: tokens, promptTokens: 1_000, reusedTokens: reused, keptTokens: 0,
            ttftMs: ttftMs, logits: logits)
    }

    private static func tiers(_ disk: Int) -> DemoOutcome.Tiers {
        .init(memory: 7, disk: disk, recovered: 9, isRecovering: false)
    }

    private func outcome(
        filling: DemoAnswer? = nil, restarted: DemoAnswer? = nil, beside: DemoAnswer? = nil,
        revived: DemoAnswer? = nil, afterDeath: DemoAnswer? = nil, again: DemoAnswer? = nil,
        fromDisk: Int = 5
    ) -> DemoOutcome {
        let warm = answer(reused: 900, ttftMs: 1)
        return DemoOutcome(
            labels: ["a document", "a chat"], isChat: [false, true],
            cold: [answer(), answer()], filling: [answer(), filling ?? answer()],
            restarted: [warm, restarted ?? warm], beside: [warm, beside ?? warm],
            revived: [warm, revived ?? warm],
            afterDeath: [
                .init(pass: "dead", number: 1, wanted: .computes, answer: afterDeath ?? answer()),
                .init(pass: "anew", number: 0, wanted: .reuses, answer: again ?? warm),
            ], tiers: Self.tiers(3), revivedTiers: Self.tiers(fromDisk))
    }

    @Test("Equal tokens and logits everywhere are identical")
    func identical() {
        #expect(outcome().isIdentical)
        #expect(outcome().hasReused)
        #expect(outcome().differences.isEmpty)
        #expect(outcome().summary.contains("all outputs identical"))
    }

    @Test("One other token or one other bit of the logits, in any pass, is not")
    func different() {
        for other in [answer(tokens: [1, 3], reused: 900), answer(logits: "ab", reused: 900)] {
            for changed in [
                outcome(filling: other), outcome(restarted: other), outcome(beside: other),
                outcome(revived: other), outcome(afterDeath: other),
            ] {
                #expect(!changed.isIdentical)
                #expect(changed.same(0))
                #expect(!changed.same(1))
                #expect(changed.differences.contains("a chat"))
                #expect(changed.summary.contains("OUTPUTS DIFFER"))
                #expect(changed.table.contains("NO"))
                #expect(!changed.line.identical)
            }
        }
    }

    @Test("Engines that took nothing from the store have shown nothing")
    func nothingReused() {
        let cold = answer()
        let outcome = DemoOutcome(
            labels: ["a"], isChat: [false], cold: [cold], filling: [cold], restarted: [cold],
            beside: [answer(reused: 5)], revived: [answer(reused: 5)], afterDeath: [],
            tiers: Self.tiers(0), revivedTiers: Self.tiers(1))
        #expect(outcome.isIdentical)
        #expect(!outcome.hasReused)
        #expect(!self.outcome(again: cold).hasReused)
        #expect(!self.outcome(fromDisk: 0).hasReused)
        #expect(!self.outcome(afterDeath: answer(reused: 5)).hasReused)
    }

    @Test("The pass that differs is named")
    func named() {
        let changed = outcome(afterDeath: answer(tokens: [7, 7]))
        #expect(changed.differences.contains("dead: tokens [7, 7]"))
    }

    @Test("The last line has the fields of the vLLM demo, and those of the disk")
    func line() throws {
        let data = try JSONEncoder().encode(outcome().line)
        let fields = try #require(
            try JSONSerialization.jsonObject(with: data) as? [String: Any])
        #expect(
            Set(fields.keys) == [
                "demo", "requests", "identical", "ttft_cold_ms_p50", "ttft_warm_ms_p50",
                "tokens_reused", "tokens_total", "ttft_after_crash_ms_p50",
                "tokens_reused_after_crash", "chunks_matched_on_disk",
            ])
        #expect(fields["demo"] as? String == "builtin")
        #expect(fields["ttft_cold_ms_p50"] as? Double == 10)
        #expect(fields["tokens_reused"] as? Int == 1_800)
        #expect(fields["tokens_total"] as? Int == 2_000)
    }

    @Test("The longest bar is the slowest pass, and none vanishes")
    func chart() {
        let lines = outcome().chart.split(separator: "\n").dropFirst()
        #expect(lines.count == 8)
        let lengths = lines.map { line in line.filter { "█▉▊▋▌▍▎▏".contains($0) }.count }
        #expect(lengths.max() == lengths.first)
        #expect(lengths.allSatisfy { $0 > 0 })
    }
}

@Suite("How a chat is written")
struct ChatTemplateTests {
    @Test("Templates are known by the tokens of their models")
    func detection() throws {
        func tokenizer(_ special: String) throws -> Tokenizer {
            let json = """
                {"added_tokens": [{"id": 2, "content": "\(special)", "special": true}],
                "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
                """
            return try Tokenizer(json: Array(json.utf8), name: "test")
        }
        #expect(ChatTemplate(for: try tokenizer("<|start_header_id|>")) == .llama3)
        #expect(ChatTemplate(for: try tokenizer("<|im_start|>")) == .chatML)
        #expect(ChatTemplate(for: try tokenizer("</s>")) == .plain)
    }

    @Test("Messages are written as the models have them")
    func messages() {
        #expect(
            ChatTemplate.llama3.message("user", "Hi")
                == "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>")
        #expect(ChatTemplate.chatML.message("user", "Hi") == "<|im_start|>user\nHi<|im_end|>\n")
        #expect(ChatTemplate.plain.message("user", "Hi") == "user: Hi\n")
    }
}
