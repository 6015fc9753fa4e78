import Testing

@testable import ReferenceLM

@Suite("Logits of PyTorch")
struct GoldenLogitsTests {
    /// Logits are up to 8, and sums are taken in another order than PyTorch's: 6e-6 was measured.
    /// Builds of PyTorch differ among themselves by up to 2e-5; see `make_reference_goldens.py`.
    static let tolerance: Float = 2e-5

    @Test("come out, to within a few roundings, on every processor", arguments: GoldenModel.all)
    func logits(_ golden: GoldenModel) throws {
        let folder = try ModelFolder(path: golden.path)
        let (tokens, expected) = (try golden.tokens, try golden.logits)
        #expect(expected.count == tokens.count * folder.configuration.vocabularySize)
        for kernels in Kernels.available {
            let model = try Model(folder, threads: 2, kernels: kernels)
            let pool = try PagePool(for: model, tokens: tokens.count)
            let logits = try TokenSequence(model, pool: pool).logits(tokens)
            try #require(logits.count == expected.count)
            let largest: Float = zip(logits, expected).reduce(0) { max($0, abs($1.0 - $1.1)) }
            #expect(largest <= Self.tolerance, "\(golden.name), \(kernels)")
        }
    }
}
