import Glibc
import Testing

@testable import ReferenceLM

@Suite("Samplers")
struct SamplerTests {
    /// How often each token comes in so many draws.
    private func counts(_ sampler: Sampler, _ logits: [Float], draws: Int) -> [Int] {
        var sampler = sampler
        var counts = [Int](repeating: 0, count: logits.count)
        for _ in 0..<draws { counts[Int(sampler.next(logits))] += 1 }
        return counts
    }

    /// Pearson's sum over the tokens that can come.
    private func chiSquare(_ counts: [Int], _ shares: [Double]) -> Double {
        let draws = Double(counts.reduce(0, +))
        return zip(counts, shares).reduce(0) { sum, pair in
            let expected = pair.1 * draws
            if expected == 0 { return sum }
            return sum + (Double(pair.0) - expected) * (Double(pair.0) - expected) / expected
        }
    }

    @Test("without temperature take the largest logit, of equal ones the first")
    func greedy() {
        let cases: [(logits: [Float], token: UInt32)] = [
            ([3], 0), ([1, 2], 1), ([2, 1], 0), ([5, 5, 5], 0), ([1, 7, 2, 7, 7], 1),
            ([-3, -1, -2], 1), ([-.infinity, -1e30], 1), ([-.infinity, -.infinity], 0),
            ([0, -0.0], 0), ([-0.0, 0], 0), ([.nan, 1, 2], 2), ([1, .infinity, 2], 1),
        ]
        for (logits, token) in cases {
            #expect(Sampler.likeliest(logits) == token, "\(logits)")
            for temperature in [0, -1] {
                var sampler = Sampler(temperature: Double(temperature), topShare: 0.3, seed: 1)
                #expect(sampler.next(logits) == token, "\(logits)")
            }
        }
    }

    @Test("draw as often as the softmax says", arguments: [0.5, 1, 3])
    func temperatures(_ temperature: Double) {
        let logits: [Float] = [0.3, -1, 2, 1.5, 2, -20, 0]
        let weights = logits.map { exp(Double($0) / temperature) }
        let shares = weights.map { $0 / weights.reduce(0, +) }
        for seed in 1...5 as ClosedRange<UInt64> {
            let found = counts(
                Sampler(temperature: temperature, seed: seed), logits, draws: 4000)
            // 6 degrees of freedom: above 27.9 once in 10,000 seeds.
            let sum = chiSquare(
                Array(found[..<5] + found[6...]), Array(shares[..<5] + shares[6...]))
            #expect(sum < 27.9, "seed \(seed): \(found)")
            // Not so regular either that it would be no chance.
            #expect(sum > 0.05, "seed \(seed): \(found)")
        }
    }

    @Test("draw only from the likeliest that have the share together")
    func topShare() {
        // Shares 0.4, 0.3, 0.2, 0.1, in another order.
        let logits = [0.2, 0.4, 0.1, 0.3].map { Float(log($0)) }
        let cases: [(share: Double, shares: [Double])] = [
            (0, [0, 1, 0, 0]), (0.39, [0, 1, 0, 0]), (0.41, [0, 4.0 / 7, 0, 3.0 / 7]),
            (0.69, [0, 4.0 / 7, 0, 3.0 / 7]), (0.71, [2.0 / 9, 4.0 / 9, 0, 3.0 / 9]),
            (0.91, [0.2, 0.4, 0.1, 0.3]), (1, [0.2, 0.4, 0.1, 0.3]), (2, [0.2, 0.4, 0.1, 0.3]),
        ]
        for (share, shares) in cases {
            let sampler = Sampler(temperature: 1, topShare: share, seed: 8)
            let found = counts(sampler, logits, draws: 2000)
            for token in 0..<4 {
                #expect((found[token] > 0) == (shares[token] > 0), "share \(share): \(found)")
            }
            // 3 degrees of freedom: above 21.1 once in 10,000 seeds.
            #expect(chiSquare(found, shares) < 21.1, "seed 8, share \(share): \(found)")
        }
    }

    @Test("of equal logits keep the first")
    func topShareOfEquals() {
        let found = counts(
            Sampler(temperature: 1, topShare: 0.5, seed: 3), [1, 1, 1, 1], draws: 500)
        #expect(found[0] > 0 && found[1] > 0 && found[2] == 0 && found[3] == 0, "\(found)")
    }

    @Test("draw the same tokens from the same seed, and others from another")
    func seeds() {
        var random = SeededRandom(seed: 11)
        let steps = (0..<100).map { _ in (0..<20).map { _ in Float(random.unit()) } }
        func tokens(_ seed: UInt64) -> [UInt32] {
            var sampler = Sampler(temperature: 1, topShare: 0.9, seed: seed)
            return steps.map { sampler.next($0) }
        }
        #expect(tokens(1) == tokens(1))
        #expect(tokens(1) != tokens(2))
    }

    @Test("stand logits and temperatures of any size")
    func extremes() {
        for temperature in [1e-300, 1e-9, 1, 1e300, .infinity] {
            var sampler = Sampler(temperature: temperature, seed: 5)
            for _ in 0..<50 {
                let token = sampler.next([-3e38, 3e38, -.infinity, 0])
                // Only where all are equally likely may it be another.
                #expect(token == 1 || temperature > 1e38 && token < 4, "\(temperature)")
            }
        }
        for logits in [[.nan, .nan], [-.infinity, -.infinity], [.infinity, .infinity]] as [[Float]]
        {
            var sampler = Sampler(temperature: 1, seed: 5)
            #expect(sampler.next(logits) < 2, "\(logits)")
        }
    }
}
