/// Decides which chunk goes when memory runs short.
///
/// A policy is pure bookkeeping: it does no I/O, reads no clock (each request brings its time) and
/// gives the same answers for the same calls. Chunks are small integers (slots of the store's
/// table, reused after ``remove(_:wasEvicted:)``). Chunks of different layouts can't use each
/// other's memory, so they live in *groups*, and a victim is asked for in one group.
///
/// Leaves go before parents: the store tells with ``setEvictable(_:_:)`` which chunks are leaves
/// that nobody holds, and only those may be named as victims.
///
/// The calls of one request come in this order: ``begin(_:)``; ``touch(_:)`` for each chunk that it
/// found and for all their ancestors, tail first; ``insert(_:_:)`` for each new chunk, parents
/// first, with ``victim(in:)`` and ``remove(_:wasEvicted:)`` between them where room is needed.
public protocol EvictionPolicy: Sendable {
    /// A request begins: what follows, up to the next one, is because of it. O(1).
    mutating func begin(_ request: PolicyRequest)
    /// A chunk became known. It isn't evictable yet. O(1) expected.
    mutating func insert(_ chunk: UInt32, _ facts: NewChunk)
    /// A chunk was found by the request; again is no use if the request is a refresh. The chunk may
    /// be one that isn't resident. O(1) for chunks that aren't evictable, else O(log n).
    /// - Returns: what the chunk is worth now.
    @discardableResult
    mutating func touch(_ chunk: UInt32) -> UInt64
    /// The chunk may, or may no longer, be named as a victim. O(log n).
    mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool)
    /// The chunk lost its memory but is still known (a disk has it), or has memory again. Without
    /// memory it isn't evictable. O(log n).
    mutating func setResident(_ chunk: UInt32, _ resident: Bool)
    /// The chunk is gone; its number may come back. O(log n).
    /// - Parameter wasEvicted: to make room, so that its return would have been a hit.
    mutating func remove(_ chunk: UInt32, wasEvicted: Bool)
    /// The evictable chunk of the group that should go first, or nil when there is none. Asking
    /// twice gives the same answer. O(log n).
    mutating func victim(in group: UInt32) -> UInt32?
    /// The least worth that an evictable chunk of the group has; nil when there is none. O(log n).
    mutating func leastWorth(in group: UInt32) -> UInt64?
    /// What the chunk is worth: comparable between groups, for memory that moves from one group to
    /// another and for what is kept on disk. Changes only with the chunk's own touches.
    func worth(of chunk: UInt32) -> UInt64
    /// What a chunk is worth that would be used now.
    var worthNow: UInt64 { get }
    /// Figures for people and tests, by name: what the policy learned, how much it keeps.
    var figures: [(name: String, value: Double)] { get }
}

extension EvictionPolicy {
    public mutating func leastWorth(in group: UInt32) -> UInt64? {
        victim(in: group).map { worth(of: $0) }
    }

    public var figures: [(name: String, value: Double)] { [] }
}

/// A request as a policy sees it.
public struct PolicyRequest: Sendable, Equatable {
    /// Nanoseconds of a monotonic clock. Time that stands still or goes back does no harm.
    public var now: UInt64
    /// What the request says of the time after it.
    public var hint: ReuseHint
    /// How many chunks it asks for, found or not; 0 if that isn't known.
    public var length: Int
    /// It belongs to a request that was told of already (it saves what that one computed): what it
    /// touches is not used once more, only kept as recent.
    public var isRefresh: Bool

    public init(now: UInt64, hint: ReuseHint = .none, length: Int = 0, isRefresh: Bool = false) {
        self.now = now
        self.hint = hint
        self.length = length
        self.isRefresh = isRefresh
    }
}

/// What a request says of the chunks it uses: whether, and when, they will be asked for again.
///
/// A hint is evidence, not a command: policies that use hints learn how far each kind can be
/// believed.
public struct ReuseHint: Sendable, Equatable {
    /// What will come.
    public enum Expectation: UInt8, Sendable, CaseIterable {
        /// Nothing was said.
        case unknown
        /// The session is closed: nobody will go on from here.
        case closed
        /// The session goes on: a tool is out, or somebody is typing.
        case pending
    }

    /// What will come.
    public var expectation: Expectation
    /// When it is expected, in seconds from the request; nil if that wasn't said.
    public var seconds: Double?
    /// 0 is ordinary; chunks of lower priority count less, of higher more. From ``leastPriority`` to
    /// ``mostPriority``; policies may tell fewer levels apart.
    public var priority: Int

    /// The lowest priority.
    public static let leastPriority = -8
    /// The highest priority.
    public static let mostPriority = 7
    /// The longest time that can be named, in seconds: a year.
    public static let mostSeconds = 31_536_000.0

    public init(_ expectation: Expectation, seconds: Double? = nil, priority: Int = 0) {
        self.expectation = expectation
        self.seconds = seconds
        self.priority = priority
    }

    /// Reads `closed`, `pending`, `pending:SECONDS` or `none`; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        switch (parts[0], parts.count) {
        case ("none", 1): self = .none
        case ("closed", 1): self = .closed
        case ("pending", 1): self = .pending
        case ("pending", 2):
            guard let seconds = Double(parts[1]), (0...Self.mostSeconds).contains(seconds) else {
                return nil
            }
            self = .pending(seconds: seconds)
        default: return nil
        }
    }

    /// What it says of what will come, as ``init(_:)-(String)`` reads it; times by the millisecond.
    public var text: String {
        switch expectation {
        case .unknown: return "none"
        case .closed: return "closed"
        case .pending:
            guard let seconds, !seconds.isNaN else { return "pending" }
            let ms = Int((min(max(seconds, 0), Self.mostSeconds) * 1000).rounded())
            let fraction = String(1000 + ms % 1000).dropFirst()
            return "pending:\(ms / 1000).\(fraction)"
        }
    }

    /// Nothing is said.
    public static let none = ReuseHint(.unknown)
    /// Nobody will go on from here.
    public static let closed = ReuseHint(.closed)
    /// Somebody will go on from here.
    public static let pending = ReuseHint(.pending)
    /// Somebody will go on from here in about so many seconds.
    public static func pending(seconds: Double) -> ReuseHint { .init(.pending, seconds: seconds) }
}

/// What is known of a chunk when it becomes known.
public struct NewChunk: Sendable, Equatable {
    /// Chunks of one layout are one group; small integers.
    public var group: UInt32
    /// The chunk before it; nil for the first of a root. It is known already.
    public var parent: UInt32?
    /// Stands for the chunk's key, so that a chunk that comes back is recognised; the same in every
    /// run. Uniformly distributed, unless a client chooses keys that aren't.
    public var fingerprint: UInt64
    /// It has memory. (Not so what a disk had when the store was opened.)
    public var isResident: Bool

    public init(group: UInt32, parent: UInt32?, fingerprint: UInt64, isResident: Bool = true) {
        self.group = group
        self.parent = parent
        self.fingerprint = fingerprint
        self.isResident = isResident
    }
}
