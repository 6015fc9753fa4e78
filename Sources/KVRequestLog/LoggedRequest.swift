public import KVIdentity
public import KVPolicy

/// A request as it came: what the log needs of it, before its keys are made names.
public struct LoggedRequest: Sendable {
    /// When it came, in nanoseconds of the monotonic clock.
    public var nanoseconds: UInt64
    /// The id of the space.
    public var space: Digest
    /// What else separates its chunks from others: tenant, adapter.
    public var root: Digest
    /// The keys of the prompt's chunks, from the first on.
    public var keys: [Digest]
    /// Tokens of a chunk of the space.
    public var chunkTokens: Int
    /// Tokens of the prompt: those of its chunks and what is left behind the last full one.
    public var tokens: Int
    /// What it says of the time after it.
    public var hint: ReuseHint

    /// A request.
    ///
    /// - Parameter tokens: nil for those of its chunks.
    public init(
        nanoseconds: UInt64, space: Digest, root: Digest, keys: [Digest], chunkTokens: Int,
        tokens: Int? = nil, hint: ReuseHint = .none
    ) {
        self.nanoseconds = nanoseconds
        self.space = space
        self.root = root
        self.keys = keys
        self.chunkTokens = chunkTokens
        self.tokens = tokens ?? keys.count * chunkTokens
        self.hint = hint
    }

    /// The longest prompt that a log can have: what `kvasir simulate` reads.
    public static let mostTokens = Int(Int32.max)

    /// Whether a prompt of so many tokens has that many chunks, with or without a partial last one.
    public static func fits(tokens: Int, chunks: Int, chunkTokens: Int) -> Bool {
        let full = tokens / chunkTokens
        return chunks == full || (chunks == full + 1 && tokens % chunkTokens != 0)
    }

    /// What it takes in the queue, about.
    var queuedBytes: Int { 160 + keys.count * Digest.byteCount }
}
