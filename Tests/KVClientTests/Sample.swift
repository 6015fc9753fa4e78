import KVClient
import KVIdentity

enum Sample {
    static func space(shardBytes: [Int] = [5_000], number: UInt64 = 0) throws -> CacheSpace {
        try CacheSpace(
            model: Digest(words: (1, 2, 3, number)), dtype: "float32", kind: .opaque, layers: 1,
            heads: 1, headSize: 1,
            order: "bytes", blockTokens: 16, chunkTokens: 16, ranks: shardBytes.count,
            shardBytes: shardBytes)
    }

    static func keys(_ count: Int, _ space: CacheSpace, first: UInt32 = 0) -> (
        root: Root, keys: [Digest]
    ) {
        let root = Root(space: space.id)
        let tokens = (0..<UInt32(count * 16)).map { $0 + first }
        return (root, ChunkKeys.chain(root: root, tokens: tokens, chunkTokens: 16))
    }

    static func byte(_ chunk: Int, _ shard: Int, _ index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: chunk &* 131 &+ shard &* 17 &+ index &* 7)
    }

    /// Reserves, fills every shard, and commits.
    @discardableResult
    static func save(_ client: Client, _ space: CacheSpace, _ root: Root, _ keys: [Digest]) throws
        -> KVClient.WriteLease
    {
        let lease = try client.reserve(space, root: root, keys: keys)
        for shard in 0..<space.shardCount {
            for chunk in lease.granted {
                try lease.withMutableBytes(of: chunk, shard: shard) { bytes in
                    for index in bytes.indices { bytes[index] = byte(chunk, shard, index) }
                }
            }
            if !lease.granted.isEmpty { try client.commit(lease, shard: shard) }
        }
        return lease
    }
}
