public import KVIdentity
public import KVPolicy
internal import RESP

// The request log of the server.

extension Client {
    /// Says that this session tells of its requests itself, by
    /// ``logRequest(_:root:keys:tokens:hint:timeoutMs:)``. Else each of its matches counts as a request.
    ///
    /// - Returns: whether the server keeps a log.
    @discardableResult
    public func logRequests(timeoutMs: Int? = nil) throws(ClientError) -> Bool {
        try ask("KV.REQUEST", timeoutMs: timeoutMs, read: { $0.integer.map { $0 != 0 } })
    }

    /// Tells of a request, for the server's log of requests.
    ///
    /// - Parameters:
    ///   - keys: of all full chunks of the prompt, from the first one on; none, if it is shorter than a chunk.
    ///   - tokens: the length of the whole prompt.
    ///   - hint: what is known of the time after it; the log has no place for its priority.
    /// - Returns: whether the server keeps a log.
    @discardableResult
    public func logRequest(
        _ space: CacheSpace, root: Root, keys: [Digest], tokens: Int, hint: ReuseHint = .none,
        timeoutMs: Int? = nil
    ) throws(ClientError) -> Bool {
        let hints = HintArguments(
            ReuseHint(hint.expectation, seconds: hint.seconds), pin: nil)
        return try ask(
            "KV.REQUEST", space, root, keys, more: 2 + hints.count, timeoutMs: timeoutMs,
            write: { writer in
                writer.bulk("TOKENS")
                writer.bulk(decimal: tokens)
                hints.write(to: &writer)
            },
            read: { reply, _ in reply.integer.map { $0 != 0 } })
    }
}
