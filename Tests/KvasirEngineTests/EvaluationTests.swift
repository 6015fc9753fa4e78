import Foundation
import KvasirEngine
import ReferenceLM
import Testing

@Suite("What reuse costs")
struct EvaluationTests {
    private func text(_ count: Int, seed: UInt64) -> [UInt32] {
        var random = SeededRandom(seed: seed)
        return Small.prompt(count, &random)
    }

    @Test("Through the store no bit changes: KL 0, every token the same")
    func store() throws {
        let model = try Small.model()
        let evaluation = try Evaluation(model, reuse: .store, contextTokens: 300)
        for context in [128, 200, 300] {
            let result = try evaluation.run(text(700, seed: 1), context: context, windows: 2)
            #expect(result.windows == 2)
            #expect(result.tokens == 2 * (context - 1))
            #expect(result.reusedTokens == context / 2 / 64 * 64)
            #expect(result.comparedTokens == 2 * (context - result.reusedTokens))
            #expect(result.klMax == 0)
            #expect(result.klMean == 0)
            #expect(result.greedyAgreement == 1)
            #expect(result.perplexityExact == result.perplexityReused)
        }
    }

    @Test("Rounded keys and values are told apart, the coarser the farther")
    func rounded() throws {
        let model = try Small.model()
        let tokens = text(512, seed: 2)
        var found: [Evaluation.Reuse: Double] = [:]
        for reuse in [Evaluation.Reuse.float16, .bfloat16] {
            let result = try Evaluation(model, reuse: reuse, contextTokens: 256)
                .run(tokens, context: 256, windows: 2)
            #expect(result.klMean > 0)
            #expect(result.klMax >= result.klMean)
            #expect(result.greedyAgreement > 0.9)
            #expect(result.perplexityExact != result.perplexityReused)
            found[reuse] = result.klMean
        }
        #expect(try #require(found[.bfloat16]) > 4 * (try #require(found[.float16])))
    }

    @Test("Perplexity is e to the mean negative log likelihood of each next token")
    func perplexity() throws {
        let model = try Small.model()
        let tokens = text(260, seed: 3)
        let context = 130
        var loss = 0.0
        var count = 0
        for window in 0..<2 {
            let part = Array(tokens[(window * context)..<((window + 1) * context)])
            let pool = try PagePool(for: model, tokens: context)
            try TokenSequence(model, pool: pool).append(part) { index, logits in
                guard index + 1 < context else { return }
                let sum = logits.reduce(0.0) { $0 + exp(Double($1)) }
                loss += log(sum) - Double(logits[Int(part[index + 1])])
                count += 1
            }
        }
        var seen: [String] = []
        let result = try Evaluation(model, reuse: .store, contextTokens: context).run(
            tokens, context: context, windows: 9
        ) { _, _ in
        } logits: { window, position, _ in
            seen.append("\(window).\(position)")
        }
        #expect(abs(result.perplexity / exp(loss / Double(count)) - 1) < 1e-9)
        #expect(seen == (0..<2).flatMap { window in (0..<context).map { "\(window).\($0)" } })
    }

    @Test("Contexts that the model or the text can't give are refused, with what to do")
    func limits() throws {
        let model = try Small.model(context: 512)
        let evaluation = try Evaluation(model, reuse: .bfloat16, contextTokens: 512)
        func code(_ count: Int, _ context: Int) -> ModelError.Code? {
            do {
                _ = try evaluation.run(text(count, seed: 4), context: context, windows: 1)
                return nil
            } catch {
                return (error as? ModelError)?.code
            }
        }
        #expect(code(600, 127) == .input)
        #expect(code(600, 128) == nil)
        #expect(code(600, 513) == .input)
        #expect(code(600, 512) == nil)
        #expect(code(511, 512) == .input)
        for context in [127, 513, Int.max] {
            let error = #expect(throws: ModelError.self) {
                try Evaluation(model, reuse: .store, contextTokens: context)
            }
            #expect(error?.code == .input)
        }
    }

    @Test("A way that can't hold the values is an error, not a divergence of 0")
    func overflow() throws {
        // The same function, with values 2²⁰ times as large in between: beyond half precision.
        struct Scaled: WeightSource {
            func check(_ name: String, shape: [Int]) {}
            func read(
                _ name: String, shape: [Int], into destination: UnsafeMutableBufferPointer<Float>
            ) {
                RandomWeights(seed: 1).read(name, shape: shape, into: destination)
                let factor: Float =
                    name.contains("v_proj") ? 0x1p20 : name.contains("o_proj") ? 0x1p-20 : 1
                for index in destination.indices { destination[index] *= factor }
            }
        }
        let model = try Model(Small.configuration(), weights: Scaled(), threads: 1)
        let tokens = text(256, seed: 5)
        let error = #expect(throws: ModelError.self) {
            try Evaluation(model, reuse: .float16, contextTokens: 256)
                .run(tokens, context: 256, windows: 1)
        }
        #expect(error?.code == .unsupported)
        let exact = try Evaluation(model, reuse: .bfloat16, contextTokens: 256)
            .run(tokens, context: 256, windows: 1)
        #expect(exact.klMax.isFinite)
    }
}
