public import KVIdentity
public import KVPolicy
internal import RESP

// Saving: reserve, copy, commit.

extension Client {
    /// Room for those of `keys` that are not stored, for all shards.
    ///
    /// - Parameters:
    ///   - keys: of consecutive chunks, from chunk 0 or, if there is one, from the one after `parent`.
    ///   - parent: the key of the chunk in front of the first.
    ///   - timeToLiveMs: after it nothing more can be committed.
    ///   - hint: what is known of the time after this request, for eviction.
    ///   - pin: for so long nothing that is sealed under the lease is evicted, as far as half the
    ///     server's memory goes.
    /// - Throws: `KVGAP` and `KVCHAIN` for keys that can't be; want of room is told in ``WriteLease/states``.
    public func reserve(
        _ space: CacheSpace, root: Root, keys: [Digest], parent: Digest? = nil,
        timeToLiveMs: Int = 60_000, hint: ReuseHint = .none, pin: PinDuration? = nil,
        timeoutMs: Int? = nil
    ) throws(ClientError) -> WriteLease {
        let hints = HintArguments(hint, pin: pin)
        let lease: WriteLease = try ask(
            "KV.RESERVE", space, root, keys, more: (parent == nil ? 2 : 4) + hints.count,
            timeoutMs: timeoutMs, mapsArena: true,
            write: { writer in
                hints.write(to: &writer)
                if let parent {
                    writer.bulk("PARENT")
                    writer.bulk(parent)
                }
                writer.bulk("TTL")
                writer.bulk(decimal: timeToLiveMs)
            },
            read: { reply, state in
                Self.writeLease(reply, keys.count, space.shardCount, state.arena, state.incarnation)
            })
        lease.arena.populate(lease.extents)
        return lease
    }

    private static func writeLease(
        _ reply: RESPValue, _ keyCount: Int, _ shardCount: Int, _ arena: Arena?, _ incarnation: Int
    ) -> WriteLease? {
        guard let values = reply.elements, values.count == 4, let id = values[0].integer,
            let packed = values[1].bytes, packed.count == keyCount,
            let extents = values[2].bytes.flatMap(Extent.unpack), let reason = values[3].text,
            let arena
        else { return nil }
        let states = packed.compactMap(Reserved.init(rawValue:))
        let granted = states.indices.filter { states[$0] == .granted }
        guard states.count == packed.count, extents.count == granted.count * shardCount,
            extents.allSatisfy({ $0.isThere && arena.contains($0) })
        else { return nil }
        return WriteLease(
            id: id, states: states, granted: granted, extents: extents, shardCount: shardCount,
            reason: reason,
            arena: arena, incarnation: incarnation)
    }

    /// Says that a shard of these chunks is written.
    ///
    /// - Parameter positions: in the keys of the reservation; nil for all that were granted.
    /// - Returns: how many chunks this sealed: others find them from now on.
    @discardableResult
    public func commit(
        _ lease: WriteLease, shard: Int = 0, positions: [Int]? = nil, timeoutMs: Int? = nil
    ) throws(ClientError) -> Int {
        try ask(
            "KV.COMMIT", arguments: 3, timeoutMs: timeoutMs, wanted: lease.incarnation,
            write: { writer in
                writer.bulk(decimal: lease.id)
                writer.bulk(decimal: shard)
                guard let positions else { return writer.bulk("ALL") }
                var packed: [UInt8] = []
                packed.reserveCapacity(positions.count * 4)
                for position in positions {
                    withUnsafeBytes(of: UInt32(clamping: position).littleEndian) { packed += $0 }
                }
                writer.bulk(packed)
            },
            read: { $0.integer })
    }

    /// Ends a write lease; what is not sealed is freed.
    ///
    /// - Parameter shard: only this shard's writer is done; the lease ends with the last.
    /// - Returns: false if its deadline had passed.
    @discardableResult
    public func release(_ lease: WriteLease, shard: Int? = nil, timeoutMs: Int? = nil)
        throws(ClientError) -> Bool
    {
        if lease.id == 0 { return true }
        return try release(lease.id, lease.incarnation, shard: shard, timeoutMs: timeoutMs)
    }
}
