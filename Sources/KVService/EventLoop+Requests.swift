internal import KVIdentity
internal import KVPolicy
internal import KVRequestLog
internal import KVStore
internal import RESP

// What goes to the request log. docs/protocol.md says what counts as a request.

extension EventLoop {
    /// `KV.REQUEST [space root keys [TOKENS n] [HINT h] [HEX]]`.
    func request(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        if arguments.count > 1 {
            if arguments.count < 4 {
                throw CommandError(
                    "ERR", "syntax error; KV.REQUEST [space root keys [TOKENS n] [HINT h] [HEX]]")
            }
            try record(arguments, connection)
        }
        connection.session.tellsRequests = true
        connection.writer.integer(configuration.requestLog?.isRecording ?? false ? 1 : 0)
    }

    private func record(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let isHex = arguments.matches(arguments.count - 1, "HEX")
        let handle = try space(arguments, 1)
        let root = try arguments.digest(2, "the root", isHex: isHex)
        let options = try options(arguments, from: 4, ["TOKENS", "HINT"])
        var tokens: Int?
        if let index = options["TOKENS"] {
            tokens = try arguments.integer(index, "TOKENS", 1...LoggedRequest.mostTokens)
        }
        // A prompt that is shorter than a chunk has no key.
        let isShort = tokens != nil && arguments[3].isEmpty
        let keys = isShort ? [] : try arguments.digests(3, isHex: isHex)
        let hint = try hint(arguments, options)
        let session = connection.session.id
        let space = try apply { core, _ throws(StoreError) in
            try core.identity(ofSpace: handle, session: session)
        }
        if let tokens,
            !LoggedRequest.fits(tokens: tokens, chunks: keys.count, chunkTokens: space.chunkTokens)
        {
            throw CommandError(
                "KVARG",
                "TOKENS is \(tokens), but there are \(keys.count) keys of \(space.chunkTokens) "
                    + "tokens; give the length of the whole prompt, and the keys of all its chunks")
        }
        let request = LoggedRequest(
            nanoseconds: Store.now(), space: space.id, root: root, keys: keys,
            chunkTokens: space.chunkTokens, tokens: tokens, hint: hint)
        if request.tokens > LoggedRequest.mostTokens {
            throw CommandError(
                "KVARG",
                "\(keys.count) chunks of \(space.chunkTokens) tokens are more than the "
                    + "\(LoggedRequest.mostTokens) tokens that a request can have in the log")
        }
        configuration.requestLog?.record(request)
    }

    /// A match counts as a request where its session does not tell of requests itself, and where it
    /// is not seen to begin in the middle of a prompt.
    func logMatch(
        _ target: Target, _ match: StoreCore.Match, _ hint: ReuseHint, _ connection: Connection
    ) {
        guard let log = configuration.requestLog, !connection.session.tellsRequests,
            match.before == 0
        else { return }
        let session = connection.session.id
        let space = try? store.withCore { core, _ throws(StoreError) in
            try core.identity(ofSpace: target.space, session: session)
        }
        // It was matched in, so it is there.
        guard let space else { return }
        let request = LoggedRequest(
            nanoseconds: Store.now(), space: space.id, root: target.root, keys: target.keys,
            chunkTokens: space.chunkTokens, hint: hint)
        // No model takes such a prompt, and no replay.
        if request.tokens <= LoggedRequest.mostTokens { log.record(request) }
    }
}
