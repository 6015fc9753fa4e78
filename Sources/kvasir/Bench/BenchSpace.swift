import KVIdentity
import ReferenceLM

enum BenchSpace {
    /// A space of one shard whose chunks have so many bytes; `number` tells spaces of one size apart.
    static func make(chunkBytes: Int, number: Int = 0) throws -> CacheSpace {
        var random = SeededRandom(seed: UInt64(chunkBytes) << 16 ^ UInt64(number))
        return try CacheSpace(
            model: Digest(random: &random), modelName: "kvasir bench", dtype: "bfloat16",
            kind: .opaque, layers: 1,
            heads: 1, headSize: 1, order: "bytes", blockTokens: 16, chunkTokens: 256,
            shardBytes: [chunkBytes])
    }
}

extension Digest {
    /// Any digest: for the store one key is like another.
    init(random: inout SeededRandom) {
        self.init(words: (random.next(), random.next(), random.next(), random.next()))
    }

    static func random(_ count: Int, _ random: inout SeededRandom) -> [Digest] {
        (0..<count).map { _ in Digest(random: &random) }
    }
}
