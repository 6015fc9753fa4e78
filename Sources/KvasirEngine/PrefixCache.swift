internal import Glibc
internal import KVClient
public import KVIdentity
public import KVPolicy
internal import KVThreads
public import ReferenceLM

/// The connector between an engine and a store: finds the chunks of a prompt, loads them into pages, saves what was computed.
///
/// A failure of the store only makes the engine slower: it is told once, counted, and for a while the store is not asked again; what it did not give is
/// computed. May be shared by engines of one model.
public final class PrefixCache: Sendable {
    /// What was done so far.
    public struct Counters: Sendable, Hashable {
        /// Tokens that came from the store.
        public var loadedTokens = 0
        /// Tokens of the chunks that were written to the store.
        public var savedTokens = 0
        /// Chunks that the store refused.
        public var refusedChunks = 0
        /// Requests that failed.
        public var failures = 0
    }

    /// What the chunks belong to.
    public let space: CacheSpace
    /// The identity of requests: others with another salt share no chunk.
    public let root: Root
    private let store: any ChunkStore
    private let state = Locked(State())
    private let pauseMs: ClosedRange<Int64>
    private let trouble: @Sendable (String) -> Void

    private struct State {
        var counters = Counters()
        /// Until when the store is left alone, in milliseconds of the monotonic clock.
        var retryAtMs: Int64 = 0
        /// What has failed and not worked since.
        var failing: Set<Walk> = []
        /// Failures since something worked.
        var inARow = 0
        /// What was told, and nothing has worked since.
        var lastTold = ""
    }

    private enum Walk {
        case load
        case save
    }

    /// A connector for chunks of `space`.
    ///
    /// - Parameters:
    ///   - salt: separates tenants; empty for none.
    ///   - pauseMs: how long the store is left alone after a failure: at first, and at most, because it doubles
    ///     with each that follows.
    ///   - trouble: told what failed, once until it works again.
    public init(
        _ store: any ChunkStore, space: CacheSpace, salt: String = "",
        pauseMs: ClosedRange<Int> = 1_000...60_000,
        trouble: @escaping @Sendable (String) -> Void = { _ in }
    ) {
        self.store = store
        self.space = space
        self.pauseMs = Int64(pauseMs.lowerBound)...Int64(pauseMs.upperBound)
        self.trouble = trouble
        root = Root(space: space.id, salt: salt)
    }

    /// What was done so far.
    public var counters: Counters { state.withLock { $0.counters } }

    /// Pages of a chunk.
    private var chunkPages: Int { space.chunkTokens / KVLayout.pageTokens }

    private func checkLayout(_ sequence: TokenSequence) {
        precondition(
            space.shardBytes == [chunkPages * sequence.model.layout.pageBytes],
            "the space is of another model")
    }

    // MARK: Loading

    /// Brings the leading chunks of `prompt` that are stored into `sequence`.
    ///
    /// At least one token is left to be computed, because logits are not stored.
    ///
    /// - Parameters:
    ///   - sequence: empty, or holding a prefix of `prompt`.
    ///   - hint: what is known of the time after this request, for the store's eviction.
    /// - Returns: how many tokens came from the store.
    public func load(
        _ prompt: [UInt32], into sequence: TokenSequence, hint: ReuseHint = .none
    ) -> Int {
        checkLayout(sequence)
        let chunkTokens = space.chunkTokens
        let wanted = (prompt.count - 1) / chunkTokens
        let first = sequence.tokens.count / chunkTokens
        guard wanted > first else { return 0 }
        let keys = ChunkKeys.chain(
            root: root, tokens: Array(prompt[..<(wanted * chunkTokens)]), chunkTokens: chunkTokens)
        let found = attempt(.load) { () throws -> Int in
            try store.load(
                space, root: root, keys: keys, from: first, hint: hint,
                room: { count in
                    // What is copied may turn out to be no good, so tokens of a chunk that is copied over go first.
                    sequence.truncate(to: first * chunkTokens)
                    try sequence.makeRoom(forTokens: count * chunkTokens)
                },
                copy: { position, bytes in copyIn(bytes, position, sequence) })
        }
        guard let found, found > first else {
            giveBackSpare(sequence)
            return 0
        }
        sequence.adopt(prompt[(first * chunkTokens)..<(found * chunkTokens)])
        giveBackSpare(sequence)
        let loaded = (found - first) * chunkTokens
        state.withLock { $0.counters.loadedTokens += loaded }
        return loaded
    }

    /// Pages that were copied into and hold no tokens may hold anything, and attention wants numbers: the pool clears them.
    private func giveBackSpare(_ sequence: TokenSequence) {
        sequence.truncate(to: sequence.tokens.count)
    }

    private func copyIn(_ bytes: UnsafeRawBufferPointer, _ chunk: Int, _ sequence: TokenSequence) {
        let pageBytes = bytes.count / chunkPages
        for page in 0..<chunkPages {
            sequence.withPage(chunk * chunkPages + page) { memory in
                memory.copyMemory(
                    from: UnsafeRawBufferPointer(
                        rebasing: bytes[(page * pageBytes)..<((page + 1) * pageBytes)]))
            }
        }
    }

    // MARK: Saving

    /// What of a sequence is saved already.
    public struct Saved: Sendable {
        var keys: [Digest] = []
        /// Leading chunks that are stored.
        var chunks = 0
        /// Complete chunks when the store was last asked.
        var attempted = 0
        /// Of these, those that it refused.
        var refused = 0

        /// Nothing so far.
        public init() {}
    }

    /// Saves the chunks of `sequence` that are complete and not saved yet.
    ///
    /// - Parameters:
    ///   - saved: of this sequence; begin with an empty one, and again where tokens were taken away.
    ///   - hint: what is known of the time after this request, for the store's eviction.
    public func save(
        _ sequence: TokenSequence, _ saved: inout Saved, hint: ReuseHint = .none
    ) {
        checkLayout(sequence)
        let chunkTokens = space.chunkTokens
        let complete = sequence.tokens.count / chunkTokens
        // What was refused is tried again with the next chunk, not with every token.
        guard complete > saved.attempted else { return }
        if saved.keys.count < complete {
            let new = sequence.tokens[(saved.keys.count * chunkTokens)..<(complete * chunkTokens)]
            saved.keys += ChunkKeys.chain(
                root: root, tokens: Array(new), chunkTokens: chunkTokens, parent: saved.keys.last)
        }
        let keys = saved.keys
        let result = attempt(.save) { () throws -> SaveResult in
            saved.attempted = complete
            do {
                return try write(sequence, keys, from: saved.chunks, hint)
            } catch let failure where saved.chunks > 0 && store.isGap(failure) {
                // The chunks in front were evicted, or the daemon is a new one: all are here.
                saved.chunks = 0
                return try write(sequence, keys, from: 0, hint)
            }
        }
        guard let result else { return }
        let chunks = saved.chunks + result.covered
        let refused = complete - chunks
        state.withLock { state in
            state.counters.savedTokens += result.sealed * chunkTokens
            state.counters.refusedChunks += max(0, refused - saved.refused)
        }
        saved.chunks = chunks
        saved.refused = refused
    }

    private func write(
        _ sequence: TokenSequence, _ keys: [Digest], from first: Int, _ hint: ReuseHint
    ) throws -> SaveResult {
        try store.save(
            space, root: root, keys: Array(keys[first...]),
            parent: first == 0 ? nil : keys[first - 1], hint: hint
        ) { position, bytes in
            copyOut(sequence, first + position, bytes)
        }
    }

    private func copyOut(
        _ sequence: TokenSequence, _ chunk: Int, _ bytes: UnsafeMutableRawBufferPointer
    ) {
        let pageBytes = bytes.count / chunkPages
        for page in 0..<chunkPages {
            sequence.withPage(chunk * chunkPages + page) { memory in
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: bytes[(page * pageBytes)..<((page + 1) * pageBytes)])
                part.copyMemory(from: UnsafeRawBufferPointer(memory))
            }
        }
    }

    // MARK: Failures

    /// What `body` returns; nil where it failed, or where the store failed a moment ago.
    private func attempt<Result>(_ walk: Walk, _ body: () throws -> Result) -> Result? {
        let now = Self.nowMs()
        if state.withLock({ $0.retryAtMs > now }) { return nil }
        do {
            let result = try body()
            state.withLock { state in
                state.failing.remove(walk)
                state.inARow = 0
                state.lastTold = ""
            }
            return result
        } catch is ModelError {
            // The engine has no room for what is stored; computing will say so.
            return nil
        } catch {
            let reason = (error as? ClientError)?.message ?? "\(error)"
            let isNew = state.withLock { state in
                state.counters.failures += 1
                let pause = min(pauseMs.lowerBound << min(state.inARow, 16), pauseMs.upperBound)
                state.retryAtMs = Self.nowMs() + pause
                state.inARow += 1
                defer { state.lastTold = reason }
                return state.failing.insert(walk).inserted && reason != state.lastTold
            }
            if isNew { trouble("\(reason); what Kvasir does not give is computed") }
            return nil
        }
    }

    private static func nowMs() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Int64(time.tv_sec) * 1_000 + Int64(time.tv_nsec) / 1_000_000
    }
}
