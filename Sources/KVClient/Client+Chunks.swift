public import KVIdentity
internal import RESP

// Looking at chunks one by one: for tools, not for the paths of engines.

extension Client {
    /// The most places that the server looks at in one request.
    public static let listedChunksMax = 4_096

    /// Lists chunks, some at a time. A chunk that is there during the whole listing comes exactly once; they come in no
    /// particular order. Counts as no use.
    ///
    /// - Parameters:
    ///   - cursor: 0, then ``ChunkPage/next`` of the page before.
    ///   - count: places to look at, 1 to ``listedChunksMax``.
    public func chunks(
        _ filter: ChunkFilter = ChunkFilter(), cursor: Int = 0, count: Int = listedChunksMax,
        timeoutMs: Int? = nil
    ) throws(ClientError) -> ChunkPage {
        let options = Self.options(of: filter, count: count)
        return try ask(
            "KV.CHUNKS", arguments: 1 + options.count, timeoutMs: timeoutMs,
            write: { writer in
                writer.bulk(decimal: cursor)
                for option in options { writer.bulk(option) }
            },
            read: { reply in
                guard let values = reply.elements, values.count == 2, let next = values[0].integer,
                    let entries = values[1].elements
                else { return nil }
                let chunks = entries.compactMap(ListedChunk.init)
                if chunks.count != entries.count { return nil }
                return ChunkPage(chunks: chunks, next: next == 0 ? nil : next)
            })
    }

    /// Lists all chunks that pass the filter, in as many requests as that takes.
    public func allChunks(_ filter: ChunkFilter = ChunkFilter(), timeoutMs: Int? = nil)
        throws(ClientError) -> [ListedChunk]
    {
        var all: [ListedChunk] = []
        var cursor: Int? = 0
        while let place = cursor {
            let page = try chunks(filter, cursor: place, timeoutMs: timeoutMs)
            all += page.chunks
            cursor = page.next
        }
        return all
    }

    private static func options(of filter: ChunkFilter, count: Int) -> [String] {
        var options = ["COUNT", "\(count)"]
        if let space = filter.space { options += ["SPACE", "\(space)"] }
        if let root = filter.root { options += ["ROOT", root.digest.hex] }
        if let place = filter.place { options += ["TIER", place.rawValue] }
        if filter.idleMs > 0 { options += ["IDLE", "\(filter.idleMs)"] }
        return options
    }

    /// Has the server compare the bytes of a chunk, shard by shard, with the checksum made when they were stored.
    ///
    /// What is on disk only is brought to memory for that. Counts as use. A chunk without a checksum so far (on no disk,
    /// and not in the server's samples) gets one and is good.
    ///
    /// - Parameter timeoutMs: for each step of it.
    public func verify(
        _ space: CacheSpace, root: Root, key: Digest, timeoutMs: Int = 60_000
    ) throws(ClientError) -> Verification {
        let match = try match(
            space, root: root, keys: [key], holdMs: timeoutMs + Self.graceMs,
            readers: space.shardCount, timeoutMs: timeoutMs)
        guard let hold = match.hold else {
            return .absent(try explain(space, root: root, keys: [key]).sentence)
        }
        var isWhole = true
        for shard in 0..<space.shardCount where isWhole {
            isWhole = try verify(hold, shard: shard, timeoutMs: timeoutMs)
        }
        if isWhole { return .good }
        try release(hold)
        let why = try explain(space, root: root, keys: [key])
        switch why.code {
        case "hit":
            return .unchecked("there is no memory to read it into; everything is held or pinned")
        case "damaged", "unreadable": return .bad(why.sentence)
        default: return .absent(why.sentence)
        }
    }

    /// - Returns: whether the shard is there and good.
    private func verify(_ hold: Hold, shard: Int, timeoutMs: Int) throws(ClientError) -> Bool {
        // Without the arena: nobody here reads the bytes.
        let (lease, extents) = try ask(
            "KV.ACQUIRE", arguments: 3, timeoutMs: timeoutMs, wanted: hold.incarnation,
            write: { writer in
                writer.bulk(decimal: hold.id)
                writer.bulk(decimal: shard)
                writer.bulk("VERIFY")
            },
            read: { reply -> (Int, [Extent])? in
                guard let values = reply.elements, values.count == 2, let id = values[0].integer,
                    let extents = values[1].bytes.flatMap(Extent.unpack), extents.count == 1
                else { return nil }
                return (id, extents)
            })
        var extent = extents[0]
        if extent.isPending { extent = try waitUnmapped(lease, timeoutMs: timeoutMs) }
        _ = try release(lease, hold.incarnation, timeoutMs: timeoutMs)
        return !extent.isGone
    }

    private func waitUnmapped(_ lease: Int, timeoutMs: Int) throws(ClientError) -> Extent {
        try requestAside(timeoutMs + Self.graceMs) { state, time throws(ClientError) in
            let reply = try state.ask("KV.WAIT", arguments: 2, timeoutMs: time) {
                $0.bulk(decimal: lease)
                $0.bulk(decimal: min(max(0, timeoutMs), Self.serverWaitMsMax))
            }
            guard let extent = reply.bytes.flatMap(Extent.unpack)?.first else {
                throw state.misunderstood("KV.WAIT")
            }
            return extent
        }
    }
}

extension ListedChunk {
    /// What `KV.CHUNKS` says of a chunk; nil if it makes no sense.
    init?(_ reply: RESPValue) {
        guard let fields = Client.fields(of: reply),
            let key = fields["key"]?.text.flatMap({ Digest(hex: $0) }),
            let root = fields["root"]?.text.flatMap({ Digest(hex: $0) }),
            let parent = fields["parent"]?.text, let space = fields["space"]?.integer,
            let number = fields["number"]?.integer,
            let place = fields["location"]?.integer.flatMap(UInt8.init(exactly:)),
            let location = Location(rawValue: place), let bytes = fields["bytes"]?.integer,
            let idleMs = fields["idle_ms"]?.integer, let pinned = fields["pinned"]?.integer
        else { return nil }
        self.init(
            key: key, parent: Digest(hex: parent), root: Root(root), space: space, number: number,
            location: location, byteCount: bytes, idleMs: idleMs, isPinned: pinned != 0,
            isStatic: fields["static"]?.integer ?? 0 != 0)
    }
}
