public import KVIdentity
public import ReferenceLM

/// What a model must have in common with another for their KV to be interchangeable.
public enum ModelIdentity {
    /// The identity of weights: SHA-256 over name and every byte of each file.
    ///
    /// - Complexity: reads all of them; about 0.6 s a GiB.
    /// - Throws: `unreadable` if a file was written to since the folder was opened: a model that was read of it before may be
    ///   of other weights.
    public static func weights(of folder: ModelFolder) throws(ModelError) -> Digest {
        var parts: [UInt8] = Array("kvasir.engine.weights.1\0".utf8)
        for file in folder.weightFiles {
            let name = Array((file.path.split(separator: "/").last ?? "").utf8)
            withUnsafeBytes(of: UInt64(name.count).littleEndian) { parts += $0 }
            parts += name
            parts += Digest.sha256(of: file.bytes).bytes
        }
        for file in folder.weightFiles { try file.checkUnchanged() }
        return Digest.sha256(of: parts)
    }

    /// The space of a model's chunks.
    ///
    /// The identity covers the weights, the whole configuration and how multiply-adds round, so that no chunk is taken for another
    /// that differs in one bit. (The configuration is spelled out by reflection: a field that is added later
    /// counts by itself.)
    ///
    /// - Parameters:
    ///   - weights: of ``weights(of:)``.
    ///   - chunkTokens: tokens of a chunk, a multiple of a page's.
    /// - Throws: `IdentityError` for a chunk that is no whole number of pages.
    public static func space(
        of model: Model, weights: Digest, name: String? = nil, chunkTokens: Int = 256
    ) throws(IdentityError) -> CacheSpace {
        var parts: [UInt8] = Array("kvasir.engine.model.1\0".utf8) + weights.bytes
        parts += Array("\(model.numerics)\0\(String(reflecting: model.configuration))".utf8)
        let layout = model.layout
        return try CacheSpace(
            model: Digest.sha256(of: parts), modelName: name, dtype: "float32", kind: .attention,
            layers: layout.layers, heads: layout.kvHeads, headSize: 2 * layout.headSize,
            order: KVLayout.order, blockTokens: KVLayout.pageTokens, chunkTokens: chunkTokens,
            shardBytes: [max(1, chunkTokens / KVLayout.pageTokens) * layout.pageBytes])
    }
}
