internal import KVArena
public import KVIdentity
public import KVPolicy
internal import KVThreads
internal import Synchronization

extension Store {
    /// A session on this store: what a program that embeds the store works through. It ends when
    /// the last reference goes.
    ///
    /// - Parameter name: for messages.
    public func session(name: String) -> StoreSession {
        StoreSession(store: self, name: name)
    }
}

/// One user of an embedded store: opens spaces, saves and loads chunks. Holds and leases belong to
/// it and end with it.
///
/// Safe to use from several threads. Calls take microseconds, except those that say that they wait.
public final class StoreSession: Sendable {
    /// A space that this session has opened.
    public struct Space: Sendable, Hashable {
        /// What was opened.
        public let space: CacheSpace
        let handle: UInt32
    }

    let store: Store
    let id: StoreCore.SessionID

    private static func milliseconds(_ seconds: Double) -> UInt64 {
        UInt64(min(max(1, seconds * 1000), Double(StoreLimits.leaseMs)))
    }

    init(store: Store, name: String) {
        self.store = store
        id = store.withCore { core, _ in core.openSession(name: name) }
    }

    deinit {
        // The only process that could still write is this one, and nobody in it has a lease any
        // more: leases keep the session.
        store.withCore { core, _ in core.endSession(id, processesAlive: false) }
    }

    /// Opens a space. - Throws: `StoreError` if its chunks can't fit into the arena.
    public func open(_ space: CacheSpace) throws(StoreError) -> Space {
        let handle = try store.withCore { core, _ throws(StoreError) in
            try core.open(space, session: id).handle
        }
        return Space(space: space, handle: handle)
    }

    /// How many leading keys are there. - Complexity: O(keys).
    public func match(_ space: Space, root: Root, keys: [Digest]) throws(StoreError) -> Int {
        try store.withCore { core, now throws(StoreError) in
            try core.match(
                space: space.handle, root: root.digest, keys: keys, session: id, now: now
            ).count
        }
    }

    /// Leases the leading keys that are there, for reading one shard. Waits while sampled chunks
    /// are verified.
    ///
    /// - Parameters:
    ///   - seconds: after this the chunks may go; ``ReadLease/release()`` tells.
    ///   - hint: what is known of the time after this request, for eviction.
    /// - Returns: nil when not even the first key is there.
    public func read(
        _ space: Space, root: Root, keys: [Digest], shard: Int = 0, seconds: Double = 60,
        hint: ReuseHint = .none
    ) throws(StoreError) -> ReadLease? {
        let ms = Self.milliseconds(seconds)
        let found = try store.withCore {
            core, now throws(StoreError) -> (lease: UInt64, extents: [Extent])? in
            let match = try core.match(
                space: space.handle, root: root.digest, keys: keys, holdMs: ms, hint: hint,
                session: id, now: now)
            if match.hold == 0 { return nil }
            do throws(StoreError) {
                return try core.acquire(hold: match.hold, shard: shard, session: id, now: now)
            } catch {
                _ = try core.release(match.hold, session: id, now: now)
                throw error
            }
        }
        guard let found else { return nil }
        let lease = ReadLease(session: self, id: found.lease)
        return try lease.settle(found.extents) ? lease : nil
    }

    /// Starts to move the leading keys that are only on a disk into memory, and does not wait.
    ///
    /// - Returns: how many leading keys are in memory or on their way there now.
    @discardableResult
    public func prefetch(_ space: Space, root: Root, keys: [Digest]) throws(StoreError) -> Int {
        try store.withCore { core, now throws(StoreError) in
            try core.prefetch(
                space: space.handle, root: root.digest, keys: keys, session: id, now: now)
        }
    }

    /// Claims memory for the chunks that are not there yet, evicting others if need be.
    ///
    /// `keys` start at chunk 0, or follow `parent`. Without a `hint` that of the last read of the same
    /// prompt counts.
    /// - Throws: `StoreError` for keys that can't be; what finds no room is said in
    ///   ``WriteLease/refusal``.
    public func reserve(
        _ space: Space, root: Root, keys: [Digest], parent: Digest? = nil, seconds: Double = 60,
        hint: ReuseHint = .none
    ) throws(StoreError) -> WriteLease {
        let ms = Self.milliseconds(seconds)
        let reservation = try store.withCore { core, now throws(StoreError) in
            try core.reserve(
                space: space.handle, root: root.digest, keys: keys, parent: parent,
                timeToLiveMs: ms, hint: hint, session: id, now: now)
        }
        return WriteLease(
            session: self, reservation: reservation, shardCount: space.space.shardCount)
    }

    /// Keeps the leading keys that are there from eviction for a time, or for good: then they are
    /// static, with all that they follow. - Returns: how many.
    ///
    /// Where the store has disks, static chunks outlive it: the next one on the same directories finds
    /// them again and reads them into memory.
    @discardableResult
    public func pin(
        _ space: Space, root: Root, keys: [Digest], for duration: PinDuration
    ) throws(StoreError) -> Int {
        try store.withCore { core, now throws(StoreError) in
            try core.pin(
                space: space.handle, root: root.digest, keys: keys, for: duration, session: id,
                now: now)
        }
    }

    /// Takes pins off the given keys, those without end too. What something static follows stays
    /// static. - Returns: how many had one.
    @discardableResult
    public func unpin(_ space: Space, root: Root, keys: [Digest]) throws(StoreError) -> Int {
        try store.withCore { core, now throws(StoreError) in
            try core.unpin(
                space: space.handle, root: root.digest, keys: keys, session: id, now: now)
        }
    }

    /// Drops the given keys and all that follow them. - Returns: how many chunks went.
    @discardableResult
    public func drop(_ space: Space, root: Root, keys: [Digest]) throws(StoreError) -> Int {
        try store.withCore { core, now throws(StoreError) in
            try core.drop(space: space.handle, root: root.digest, keys: keys, session: id, now: now)
        }
    }

    /// Has the leading keys that are there dropped after a time, with all that follow them; nil takes
    /// the limit away. It holds after a restart, too. - Returns: for how many chunks.
    @discardableResult
    public func expire(
        _ space: Space, root: Root, keys: [Digest], after life: TimeToLive?
    ) throws(StoreError) -> Int {
        try store.withCore { core, now throws(StoreError) in
            try core.expire(
                space: space.handle, root: root.digest, keys: keys, after: life, session: id,
                now: now)
        }
    }

    /// Has chunks that are saved into the space from now on dropped after a time; nil for never. It
    /// holds as long as the space is open or has chunks.
    public func setTimeToLive(_ life: TimeToLive?, of space: Space) throws(StoreError) {
        try store.withCore { core, now throws(StoreError) in
            try core.setLife(ofSpace: space.handle, life, session: id, now: now)
        }
    }

    /// Why the first key that is not there is not there.
    public func explain(_ space: Space, root: Root, keys: [Digest]) throws(StoreError) -> String {
        try store.withCore { core, now throws(StoreError) in
            try core.explain(
                space: space.handle, root: root.digest, keys: keys, session: id, now: now
            ).sentence
        }
    }
}

/// Chunks that stay for as long as they are read. Ends when released, or when the last reference
/// goes.
public final class ReadLease: Sendable {
    private let session: StoreSession
    private let id: UInt64
    private let extents = Locked<[Extent]>([])
    private let isOver = Atomic<Bool>(false)

    init(session: StoreSession, id: UInt64) {
        self.session = session
        self.id = id
    }

    deinit { _ = try? release() }

    /// How many chunks are leased: a prefix of the keys that were asked for.
    public var count: Int { extents.withLock { $0.count } }

    /// The bytes of the leased chunk at `position`. They must not be used after the closure, nor
    /// after the release.
    public func withBytes<Result>(
        of position: Int, _ body: (UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        let extent = extents.withLock { $0[position] }
        return try body(
            UnsafeRawBufferPointer(
                session.store.arena.bytes(offset: extent.offset, length: extent.length)))
    }

    /// Ends the lease.
    ///
    /// - Returns: false when its time had run out: what was read must be discarded.
    @discardableResult
    public func release() throws(StoreError) -> Bool {
        if isOver.exchange(true, ordering: .acquiringAndReleasing) { return false }
        return try session.store.withCore { core, now throws(StoreError) in
            try core.release(id, session: session.id, now: now)
        }
    }

    /// Waits until nothing is pending, then keeps the prefix that is good. - Returns: false if
    /// nothing is.
    func settle(_ first: [Extent]) throws(StoreError) -> Bool {
        var current = first
        while current.contains(.pending) {
            session.store.waitUntilSettled(id)
            current = try session.store.withCore { core, now throws(StoreError) in
                try core.extents(lease: id, session: session.id, now: now)
            }
        }
        let good = Array(current.prefix { $0 != .gone })
        extents.withLock { $0 = good }
        return !good.isEmpty
    }
}

/// Memory for chunks that are not sealed yet. What is not committed is freed when it is released or
/// the last reference goes.
public final class WriteLease: Sendable {
    /// The positions, in the keys that were given, of the chunks to be written.
    public let positions: [Int]
    /// Why the other chunks that are not there were refused; empty if none was.
    public let refusal: String
    /// Leading keys that are stored, granted, or being written by somebody else: all in front of the first refused one.
    public let coveredCount: Int

    private let session: StoreSession
    private let id: UInt64
    private let extents: [[Extent]]
    private let placeOfPosition: [Int: Int]

    init(session: StoreSession, reservation: StoreCore.Reservation, shardCount: Int) {
        self.session = session
        id = reservation.lease
        refusal = reservation.reason
        coveredCount = reservation.states.prefix { $0 != .refused }.count
        positions = reservation.states.indices.filter { reservation.states[$0] == .granted }
        extents = positions.indices.map {
            Array(reservation.extents[($0 * shardCount)..<(($0 + 1) * shardCount)])
        }
        placeOfPosition = Dictionary(uniqueKeysWithValues: positions.enumerated().map { ($1, $0) })
    }

    deinit { _ = try? release() }

    /// The memory of one shard of the chunk at `position`, one of ``positions``. It must not be
    /// written after its commit.
    public func withBytes<Result>(
        of position: Int, shard: Int = 0, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        guard let place = placeOfPosition[position] else {
            preconditionFailure(
                "position \(position) was not granted; positions has those that were")
        }
        let extent = extents[place][shard]
        return try body(session.store.arena.bytes(offset: extent.offset, length: extent.length))
    }

    /// Seals what was written: one shard of all chunks, or of some.
    ///
    /// - Returns: how many chunks are complete with this.
    @discardableResult
    public func commit(shard: Int = 0, positions chosen: [Int]? = nil) throws(StoreError) -> Int {
        if id == 0 { return 0 }
        return try session.store.withCore { core, now throws(StoreError) in
            try core.commit(
                lease: id, shard: shard, positions: chosen, session: session.id, now: now)
        }
    }

    /// Gives up what is not committed. - Returns: false when the time had run out.
    @discardableResult
    public func release() throws(StoreError) -> Bool {
        if id == 0 { return true }
        return try session.store.withCore { core, now throws(StoreError) in
            try core.release(id, session: session.id, now: now)
        }
    }
}
