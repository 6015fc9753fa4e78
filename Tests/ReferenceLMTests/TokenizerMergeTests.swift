import Testing

@testable import ReferenceLM

@Suite("Joining byte pairs")
struct TokenizerMergeTests {
    /// Joins as the definition says: of all pairs the one of the lowest rank, the leftmost first.
    private static func oracle(
        _ ids: [UInt32], _ merges: [UInt64: BytePairModel.Merge]
    ) -> [UInt32] {
        var ids = ids
        while true {
            let ranked = zip(ids, ids.dropFirst()).enumerated().compactMap { index, pair in
                merges[BytePairModel.key(pair.0, pair.1)].map { (index, $0) }
            }
            guard let (index, merge) = ranked.min(by: { $0.1.rank < $1.1.rank }) else { return ids }
            ids.replaceSubrange(index...index + 1, with: [merge.id])
        }
    }

    /// A few merges over three letters, later ones of what earlier ones made.
    private static func randomMerges(
        _ random: inout SeededRandom
    ) -> [UInt64: BytePairModel.Merge] {
        var merges: [UInt64: BytePairModel.Merge] = [:]
        var texts = ["a", "b", "c"]
        for rank in 0..<UInt32.random(in: 0...12, using: &random) {
            let left = texts.indices.randomElement(using: &random)!
            let right = texts.indices.randomElement(using: &random)!
            let text = texts[left] + texts[right]
            let id = texts.firstIndex(of: text) ?? texts.count
            if id == texts.count { texts.append(text) }
            let key = BytePairModel.key(UInt32(left), UInt32(right))
            merges[key] = .init(rank: rank, id: UInt32(id))
        }
        return merges
    }

    @Test("The heap joins what a plain search joins")
    func heap() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        for _ in 0..<500 {
            let merges = Self.randomMerges(&random)
            let count = Int.random(in: 0...30, using: &random)
            let ids = (0..<count).map { _ in UInt32.random(in: 0...2, using: &random) }
            var word = BytePairWord(ids)
            word.mergeAll(merges)
            var joined: [UInt32] = []
            word.append(to: &joined)
            #expect(joined == Self.oracle(ids, merges), "seed \(seed)")
        }
    }
}
