internal import Crypto

/// Keys of chunks, each chained to the one before it.
///
/// `key[i] = SHA-256(key[i-1] ‖ tokens of chunk i as u32 ‖ extra[i])`, and the root stands in front
/// of the first. So a key says everything that came before it, and equal keys mean equal prefixes.
public enum ChunkKeys {
    /// The keys of the whole chunks of `tokens`; tokens of an incomplete last chunk are left out.
    ///
    /// - Parameters:
    ///   - root: what the first key is chained from, if there is no parent.
    ///   - tokens: token ids, from the start of a chunk on.
    ///   - chunkTokens: tokens of a chunk, as the space has it.
    ///   - extra: what else goes into a key, by the chunk's position in `tokens`; absent is empty.
    ///   - parent: the key of the chunk in front of `tokens`; nil at the start of the prompt.
    /// - Returns: `tokens.count / chunkTokens` keys.
    /// - Precondition: `chunkTokens` is positive.
    /// - Complexity: O(tokens), one SHA-256 for each chunk.
    public static func chain(
        root: Root,
        tokens: Span<UInt32>,
        chunkTokens: Int,
        extra: [Int: Extra] = [:],
        parent: Digest? = nil
    ) -> [Digest] {
        precondition(chunkTokens > 0, "a chunk has at least one token")
        let count = tokens.count / chunkTokens
        var keys: [Digest] = []
        keys.reserveCapacity(count)
        var previous = parent ?? root.digest
        for chunk in 0..<count {
            var hasher = SHA256()
            unsafe previous.withUnsafeBytes { unsafe hasher.update(bufferPointer: $0) }
            let first = chunk * chunkTokens
            update(&hasher, tokens.extracting(first..<(first + chunkTokens)))
            if !extra.isEmpty, let extra = extra[chunk] {
                hasher.update(data: extra.encoded)
            }
            previous = Digest(hasher.finalize())
            keys.append(previous)
        }
        return keys
    }

    /// The keys of the whole chunks of `tokens`. See
    /// ``chain(root:tokens:chunkTokens:extra:parent:)``.
    public static func chain(
        root: Root,
        tokens: [UInt32],
        chunkTokens: Int,
        extra: [Int: Extra] = [:],
        parent: Digest? = nil
    ) -> [Digest] {
        chain(
            root: root, tokens: tokens.span, chunkTokens: chunkTokens, extra: extra, parent: parent)
    }

    /// Keys one behind the other, 32 bytes each, as commands carry them.
    public static func packed(_ keys: [Digest]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(keys.count * Digest.byteCount)
        for key in keys { unsafe key.withUnsafeBytes { unsafe bytes.append(contentsOf: $0) } }
        return bytes
    }

    private static func update(_ hasher: inout SHA256, _ tokens: Span<UInt32>) {
        #if _endian(little)
            // SAFETY: the pointer does not leave the closure.
            unsafe tokens.withUnsafeBytes { unsafe hasher.update(bufferPointer: $0) }
        #else
            for index in 0..<tokens.count {
                // SAFETY: the pointer does not leave the closure.
                unsafe withUnsafeBytes(of: tokens[index].littleEndian) {
                    unsafe hasher.update(bufferPointer: $0)
                }
            }
        #endif
    }
}
