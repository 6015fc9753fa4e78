import KVIdentity
import KVPolicy
import KVStore
import Testing

/// A space with shards of these sizes.
func makeSpace(_ name: String = "a", shardBytes: [Int] = [4096], stages: Int = 1) throws
    -> CacheSpace
{
    try CacheSpace(
        model: Digest(words: (1, 2, 3, UInt64(name.utf8.reduce(0) { $0 * 31 + Int($1) }))),
        modelName: name,
        dtype: "float32", kind: .attention, layers: 2, heads: 2, headSize: 64, order: "test",
        byteOrder: .little, blockTokens: 16, chunkTokens: 16, stages: stages,
        ranks: shardBytes.count / stages, shardBytes: shardBytes, generation: "")
}

/// A key that stands for a path: the same path gives the same key.
func key(_ path: UInt64...) -> Digest { key(path) }

func key(_ path: [UInt64]) -> Digest {
    var words: (UInt64, UInt64) = (0x1234_5678_9ABC_DEF1, 0x0FED_CBA9_8765_4321)
    for step in path {
        words.0 = (words.0 ^ step) &* 0x9E37_79B9_7F4A_7C15
        words.0 ^= words.0 >> 29
        words.1 = (words.1 &+ words.0) &* 0xBF58_476D_1CE4_E5B9
    }
    return Digest(words: (words.0, words.1, words.0 ^ words.1, words.0 &+ words.1))
}

/// A core whose arena is ready.
func makeCore(
    pages: Int, slabPages: Int = 16, checkOneIn: Int = 0, policy: PolicyName = .lru
) -> StoreCore {
    var core = StoreCore(
        .init(
            arenaBytes: pages * 4096, slabBytes: slabPages * 4096, checkOneIn: checkOneIn,
            secret: (7, 11)), policy: policy.make())
    core.slabsBecameReady(0..<(pages / slabPages))
    return core
}

let second: UInt64 = 1_000_000_000
