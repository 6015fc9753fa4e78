public import KVIdentity
public import KVPolicy
internal import RESP

extension Client {
    /// How long the server takes to answer, in nanoseconds.
    public func ping(timeoutMs: Int? = nil) throws(ClientError) -> UInt64 {
        let started = monotonicNanoseconds()
        let end = try ask(
            "PING", timeoutMs: timeoutMs, read: { $0.text == "PONG" ? monotonicNanoseconds() : nil }
        )
        return end - started
    }

    /// What the server is.
    public func version(timeoutMs: Int? = nil) throws(ClientError) -> ServerVersion {
        try ask(
            "KV.VERSION", timeoutMs: timeoutMs,
            read: { reply in
                guard let fields = Self.fields(of: reply), let server = fields["server"]?.text,
                    let number = fields["protocol"]?.integer, let process = fields["pid"]?.integer,
                    let uptimeMs = fields["uptime_ms"]?.integer
                else { return nil }
                return ServerVersion(
                    server: server, protocolVersion: number, processID: process, uptimeMs: uptimeMs)
            })
    }

    /// The server's gauges and counters, in its order.
    public func stats(timeoutMs: Int? = nil) throws(ClientError) -> [Statistic] {
        try ask(
            "KV.STATS", timeoutMs: timeoutMs,
            read: { reply in
                reply.pairs?.compactMap { pair in
                    guard let name = pair.key.text, let value = pair.value.integer else {
                        return nil
                    }
                    return Statistic(name: name, value: value)
                }
            })
    }

    /// What the server knows of each space: fields by name, as `KV.SPACES` has them.
    public func spaces(timeoutMs: Int? = nil) throws(ClientError) -> [[String: String]] {
        try ask(
            "KV.SPACES", timeoutMs: timeoutMs,
            read: { reply in
                reply.elements?.compactMap { entry in
                    Self.fields(of: entry)?.compactMapValues {
                        $0.text ?? $0.integer.map(String.init)
                    }
                }
            })
    }

    static func fields(of reply: RESPValue) -> [String: RESPValue]? {
        guard let pairs = reply.pairs else { return nil }
        var result: [String: RESPValue] = [:]
        for pair in pairs {
            guard let name = pair.key.text else { return nil }
            result[name] = pair.value
        }
        return result
    }

    /// Where each of the chunks is. Counts as no use.
    public func locate(_ space: CacheSpace, root: Root, keys: [Digest], timeoutMs: Int? = nil)
        throws(ClientError) -> [Location]
    {
        try ask(
            "KV.LOCATE", space, root, keys, timeoutMs: timeoutMs,
            read: { reply, _ in
                guard let bytes = reply.bytes, bytes.count == keys.count else { return nil }
                let places = bytes.compactMap(Location.init(rawValue:))
                return places.count == bytes.count ? places : nil
            })
    }

    /// Why the first key that doesn't match doesn't.
    public func explain(_ space: CacheSpace, root: Root, keys: [Digest], timeoutMs: Int? = nil)
        throws(ClientError) -> Explanation
    {
        try ask(
            "KV.EXPLAIN", space, root, keys, timeoutMs: timeoutMs,
            read: { reply, _ in
                guard let values = reply.elements, values.count == 3,
                    let matched = values[0].integer,
                    let code = values[1].text, let sentence = values[2].text
                else { return nil }
                return Explanation(matched: matched, code: code, sentence: sentence)
            })
    }

    /// Has leading chunks brought from disk to memory, without a hold on them and without waiting.
    ///
    /// Counts as no use. It stops at the first chunk for which no memory can be had.
    ///
    /// - Returns: how many leading chunks are in memory or on their way there now.
    public func prefetch(_ space: CacheSpace, root: Root, keys: [Digest], timeoutMs: Int? = nil)
        throws(ClientError) -> Int
    {
        try count("KV.PREFETCH", space, root, keys, timeoutMs)
    }

    /// Keeps leading chunks from eviction for a time, or for good. - Returns: how many.
    public func pin(
        _ space: CacheSpace, root: Root, keys: [Digest], for duration: PinDuration,
        timeoutMs: Int? = nil
    )
        throws(ClientError) -> Int
    {
        try count("KV.PIN", space, root, keys, timeoutMs, more: 1) { $0.bulk(duration.text) }
    }

    /// Takes pins away, those without end too; what is pinned without end keeps what it follows.
    ///
    /// - Returns: of how many chunks.
    public func unpin(_ space: CacheSpace, root: Root, keys: [Digest], timeoutMs: Int? = nil)
        throws(ClientError) -> Int
    {
        try count("KV.UNPIN", space, root, keys, timeoutMs)
    }

    /// Has leading chunks dropped after a time; 0 takes the limit away. - Returns: how many.
    ///
    /// - Parameter isSliding: the time begins anew with each match that finds the chunk; from 2,000
    ///   ms on, by the second.
    public func expire(
        _ space: CacheSpace, root: Root, keys: [Digest], afterMs: Int, isSliding: Bool = false,
        timeoutMs: Int? = nil
    )
        throws(ClientError) -> Int
    {
        try count("KV.EXPIRE", space, root, keys, timeoutMs, more: isSliding ? 2 : 1) {
            $0.bulk(decimal: afterMs)
            if isSliding { $0.bulk("SLIDING") }
        }
    }

    /// Has chunks that are saved into the space from now on dropped after a time; 0 takes the limit
    /// away. The server keeps the rule as long as the space is open or has chunks.
    ///
    /// - Parameter isSliding: as of ``expire(_:root:keys:afterMs:isSliding:timeoutMs:)``.
    public func setTimeToLive(
        _ space: CacheSpace, ms: Int, isSliding: Bool = false, timeoutMs: Int? = nil
    ) throws(ClientError) {
        try request(timeoutMs) { state, timeoutMs throws(ClientError) in
            let handle = try state.open(space, timeoutMs: timeoutMs).handle
            let reply = try state.ask(
                "KV.EXPIRE", arguments: isSliding ? 4 : 3, timeoutMs: timeoutMs
            ) { writer in
                writer.bulk(decimal: handle)
                writer.bulk("SPACE")
                writer.bulk(decimal: ms)
                if isSliding { writer.bulk("SLIDING") }
            }
            if reply.text != "OK" { throw state.misunderstood("KV.EXPIRE") }
        }
    }

    /// Drops chunks and all that follow them. - Returns: how many.
    public func drop(_ space: CacheSpace, root: Root, keys: [Digest], timeoutMs: Int? = nil)
        throws(ClientError) -> Int
    {
        try ask(
            "KV.DROP", space, root, keys, before: "KEYS", timeoutMs: timeoutMs,
            read: { reply, _ in reply.integer })
    }

    /// Drops all chunks of a root. - Returns: how many.
    public func drop(_ space: CacheSpace, root: Root, timeoutMs: Int? = nil) throws(ClientError)
        -> Int
    {
        try drop(space, "ROOT", root, timeoutMs)
    }

    /// Drops all chunks of a space. - Returns: how many.
    public func drop(_ space: CacheSpace, timeoutMs: Int? = nil) throws(ClientError) -> Int {
        try drop(space, "SPACE", nil, timeoutMs)
    }

    /// Returns once all that was sealed or dropped before is durable. Other requests go on meanwhile.
    ///
    /// - Throws: `KVNOTIER` when the server has no disk, `KVDISK` when a disk failed (nothing is said
    ///   of durability then), `KVTIMEOUT` when it took longer than `timeoutMs`.
    public func sync(timeoutMs: Int = 60_000) throws(ClientError) {
        let isOK = try requestAside(timeoutMs + Self.graceMs) { state, time throws(ClientError) in
            try state.ask("KV.SYNC", timeoutMs: time) {
                $0.bulk(decimal: min(max(0, timeoutMs), Self.serverWaitMsMax))
            }.text == "OK"
        }
        if !isOK { throw .badReply(to: "KV.SYNC") }
    }

    private func drop(_ space: CacheSpace, _ what: String, _ root: Root?, _ timeoutMs: Int?)
        throws(ClientError) -> Int
    {
        try request(timeoutMs) { state, timeoutMs throws(ClientError) in
            let handle = try state.open(space, timeoutMs: timeoutMs).handle
            let reply = try state.ask(
                "KV.DROP", arguments: root == nil ? 2 : 3, timeoutMs: timeoutMs
            ) { writer in
                writer.bulk(what)
                writer.bulk(decimal: handle)
                if let root { writer.bulk(root.digest) }
            }
            guard let count = reply.integer else { throw state.misunderstood("KV.DROP") }
            return count
        }
    }

    private func count(
        _ name: String, _ space: CacheSpace, _ root: Root, _ keys: [Digest], _ timeoutMs: Int?,
        more: Int = 0,
        write: (inout ReplyWriter) -> Void = { _ in }
    ) throws(ClientError) -> Int {
        try ask(
            name, space, root, keys, more: more, timeoutMs: timeoutMs, write: write,
            read: { reply, _ in reply.integer })
    }
}
