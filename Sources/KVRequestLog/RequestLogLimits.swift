/// The request log's named limits.
public enum RequestLogLimits {
    /// Bytes of all files of one start, unless it is told otherwise.
    public static let defaultBytes = 1 << 30
    /// Requests that wait to be written, at most; beyond it they are left out.
    public static let queuedRequests = 16_384
    /// Bytes that they take, at most.
    public static let queuedBytes = 64 << 20
    /// Chunk sizes that get a file each.
    public static let files = 64
    /// Files of one chunk size and second, of servers that share a directory.
    static let sameNames = 1_000
    /// How long requests are gathered before they are written, in milliseconds.
    static let gatherMs = 250
    /// Keys that are named, and bytes that are written, in one piece, about: a tenth of a second.
    static let pieceKeys = 65_536
    static let pieceBytes = 1 << 20
    /// How long a stop waits for what is queued to be written.
    static let stopSeconds = 5.0
    /// Trouble of one kind is told once in so many seconds, at most.
    static let quietSeconds: UInt64 = 60
}
