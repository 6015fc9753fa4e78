/// How long a chunk may be served.
public struct TimeToLive: Hashable, Sendable {
    /// In milliseconds, at most ``StoreLimits/lifetimeMs``.
    public var ms: UInt64
    /// Whether it begins anew with each use: with each match that finds the chunk. Uses count by the
    /// second, so such a life ends up to a second early.
    public var isSliding: Bool

    /// A time to live.
    public init(ms: UInt64, isSliding: Bool = false) {
        self.ms = ms
        self.isSliding = isSliding
    }

    /// The shortest one that slides, in milliseconds.
    public static let shortestSlidingMs: UInt64 = 2_000
}
