public import KVIdentity
public import KVPolicy
internal import RESP

// Loading: match, acquire, wait, copy, release.

extension Client {
    /// The arena, mapped and, as far as the server has faulted it in, populated (about 0.1 s a GiB the first time).
    ///
    /// Leases map and populate by themselves; call this at start to have it out of the way.
    public func mapArena(timeoutMs: Int? = nil) throws(ClientError) -> Arena {
        let (arena, ready) = try request(timeoutMs) { state, timeoutMs throws(ClientError) in
            try state.mapArena(timeoutMs: timeoutMs)
        }
        arena.populate(first: ready)
        return arena
    }

    /// Makes a space known to the server. The other calls do this by themselves.
    @discardableResult
    public func open(_ space: CacheSpace, timeoutMs: Int? = nil) throws(ClientError) -> OpenSpace {
        try request(timeoutMs) { state, timeoutMs throws(ClientError) in
            try state.open(space, timeoutMs: timeoutMs)
        }
    }

    /// How many of the leading `keys` are stored, in memory or on disk, and a hold on them if `holdMs` is given.
    ///
    /// Counts as use. It brings nothing to memory: that does ``prefetch(_:root:keys:timeoutMs:)``, or an acquire on the hold.
    ///
    /// - Parameters:
    ///   - holdMs: how long the hold lasts at most.
    ///   - readers: how many read leases will be taken on it.
    ///   - hint: what is known of the time after this request, for eviction.
    ///   - pin: for so long nothing that is found is evicted, as far as half the server's memory goes.
    public func match(
        _ space: CacheSpace, root: Root, keys: [Digest], holdMs: Int? = nil, readers: Int = 1,
        hint: ReuseHint = .none, pin: PinDuration? = nil, timeoutMs: Int? = nil
    ) throws(ClientError) -> Match {
        let hints = HintArguments(hint, pin: pin)
        return try ask(
            "KV.MATCH", space, root, keys, more: (holdMs == nil ? 0 : 4) + hints.count,
            timeoutMs: timeoutMs,
            write: { writer in
                hints.write(to: &writer)
                guard let holdMs else { return }
                writer.bulk("HOLD")
                writer.bulk(decimal: holdMs)
                writer.bulk("READERS")
                writer.bulk(decimal: readers)
            },
            read: { reply, state in
                guard let values = reply.elements, values.count == 3, let count = values[0].integer,
                    (0...keys.count).contains(count), let tiers = values[1].bytes,
                    tiers.count == count,
                    let id = values[2].integer
                else { return nil }
                let hold =
                    id == 0 ? nil : Hold(id: id, count: count, incarnation: state.incarnation)
                return Match(
                    count: count, tiers: tiers.map { Tier(rawValue: $0) ?? .disk },
                    hold: hold)
            })
    }

    /// A read lease on one shard of held chunks: at once, some perhaps still pending.
    ///
    /// What is on disk only starts on its way to memory and is pending until it has arrived whole and its checksum was
    /// compared. It is gone if no memory can be had for it, or the disk fails or gives back other bytes.
    ///
    /// - Parameters:
    ///   - first: of the hold's chunks.
    ///   - count: nil for all from `first` on.
    public func acquire(
        _ hold: Hold, shard: Int = 0, from first: Int = 0, count: Int? = nil, timeoutMs: Int? = nil
    ) throws(ClientError) -> ReadLease {
        let lease = try request(timeoutMs, wanted: hold.incarnation) {
            state, timeoutMs throws(ClientError) -> ReadLease in
            let arena = try state.requireArena(timeoutMs: timeoutMs)
            let number = 2 + (first == 0 ? 0 : 2) + (count == nil ? 0 : 2)
            let reply = try state.ask("KV.ACQUIRE", arguments: number, timeoutMs: timeoutMs) {
                writer in
                writer.bulk(decimal: hold.id)
                writer.bulk(decimal: shard)
                if first != 0 {
                    writer.bulk("FROM")
                    writer.bulk(decimal: first)
                }
                if let count {
                    writer.bulk("COUNT")
                    writer.bulk(decimal: count)
                }
            }
            guard let values = reply.elements, values.count == 2, let id = values[0].integer,
                let extents = values[1].bytes.flatMap(Extent.unpack),
                extents.count == count ?? (hold.count - first),
                extents.allSatisfy({ !$0.isThere || arena.contains($0) })
            else { throw state.misunderstood("KV.ACQUIRE") }
            return ReadLease(
                id: id, shard: shard, extents: extents, arena: arena, incarnation: state.incarnation
            )
        }
        lease.arena.populate(lease.extents)
        return lease
    }

    /// The lease once nothing of it is pending. Other requests go on meanwhile.
    ///
    /// - Throws: `KVTIMEOUT` when that took longer than `timeoutMs`.
    public func wait(for lease: ReadLease, timeoutMs: Int = 5_000) throws(ClientError) -> ReadLease
    {
        if !lease.isPending { return lease }
        try request(nil, wanted: lease.incarnation) { _, _ throws(ClientError) in }
        let extents = try requestAside(timeoutMs + Self.graceMs) {
            state, time throws(ClientError) -> [Extent] in
            let reply = try state.ask("KV.WAIT", arguments: 2, timeoutMs: time) {
                $0.bulk(decimal: lease.id)
                $0.bulk(decimal: max(0, timeoutMs))
            }
            guard let extents = reply.bytes.flatMap(Extent.unpack),
                extents.count == lease.extents.count,
                extents.allSatisfy({ !$0.isThere || lease.arena.contains($0) })
            else { throw state.misunderstood("KV.WAIT") }
            return extents
        }
        lease.arena.populate(extents)
        return ReadLease(
            id: lease.id, shard: lease.shard, extents: extents, arena: lease.arena,
            incarnation: lease.incarnation)
    }

    /// Ends a hold. - Returns: false if its deadline had passed.
    @discardableResult
    public func release(_ hold: Hold, timeoutMs: Int? = nil) throws(ClientError) -> Bool {
        try release(hold.id, hold.incarnation, timeoutMs: timeoutMs)
    }

    /// Ends a read lease. - Returns: false if its deadline had passed: **what was copied must be discarded**.
    public func release(_ lease: ReadLease, timeoutMs: Int? = nil) throws(ClientError) -> Bool {
        try release(lease.id, lease.incarnation, timeoutMs: timeoutMs)
    }

    func release(_ id: Int, _ incarnation: Int, shard: Int? = nil, timeoutMs: Int?)
        throws(ClientError) -> Bool
    {
        try ask(
            "KV.RELEASE", arguments: shard == nil ? 1 : 3, timeoutMs: timeoutMs,
            wanted: incarnation,
            write: { writer in
                writer.bulk(decimal: id)
                guard let shard else { return }
                writer.bulk("SHARD")
                writer.bulk(decimal: shard)
            },
            read: { reply in reply.text == "OK" ? true : reply.text == "EXPIRED" ? false : nil })
    }
}

extension Client {
    /// Sends a command that starts with `space root keys`.
    ///
    /// - Parameter more: arguments beyond these, which `write` writes.
    func ask<Result: Sendable>(
        _ name: String, _ space: CacheSpace, _ root: Root, _ keys: [Digest], more: Int = 0,
        before: String? = nil,
        timeoutMs: Int?, mapsArena: Bool = false, write: (inout ReplyWriter) -> Void = { _ in },
        read: (RESPValue, borrowing ClientState) -> Result?
    ) throws(ClientError) -> Result {
        try request(timeoutMs) { state, timeoutMs throws(ClientError) in
            if mapsArena { _ = try state.requireArena(timeoutMs: timeoutMs) }
            let reply = try Self.ask(
                &state, name, space, root, keys, more: more, before: before, timeoutMs, write: write
            )
            guard let result = read(reply, state) else { throw state.misunderstood(name) }
            return result
        }
    }

    private static func ask(
        _ state: inout ClientState, _ name: String, _ space: CacheSpace, _ root: Root,
        _ keys: [Digest], more: Int,
        before: String?, _ timeoutMs: Int, write: (inout ReplyWriter) -> Void
    ) throws(ClientError) -> RESPValue {
        var attempt = 0
        while true {
            let handle = try state.open(space, timeoutMs: timeoutMs).handle
            do throws(ClientError) {
                return try state.ask(
                    name, arguments: 3 + more + (before == nil ? 0 : 1), timeoutMs: timeoutMs
                ) { writer in
                    if let before { writer.bulk(before) }
                    writer.bulk(decimal: handle)
                    writer.bulk(root.digest)
                    writer.bulk(keys)
                    write(&writer)
                }
            } catch {
                // The space was dropped and forgotten since it was opened here.
                guard error.code == .unknownSpace, attempt == 0 else { throw error }
                state.forget(space)
                attempt += 1
            }
        }
    }
}
