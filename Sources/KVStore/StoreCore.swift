internal import KVArena
package import KVDisk
package import KVIdentity
package import KVPolicy
package import KVTier

/// The state machine at the heart of Kvasir: index, holds, leases, memory, eviction.
///
/// It is one value, owned by whoever drives it. Every call is an event that comes with the time
/// (`now`, nanoseconds of a monotonic clock); what has to happen outside is left in ``effects``.
/// There is no I/O, no clock, no lock and no pointer into the arena in it, so tests and the
/// simulator run exactly this code.
///
/// Files: this one has the state, sessions and spaces; `+Load`, `+Save`, `+Memory` (eviction),
/// `+Removal`, `+Deadlines`, `+Checks`, `+Housekeeping`, `+Pins` and `+Static` have the calls, `Disk/`
/// what disks add.
package struct StoreCore: ~Copyable {
    /// What the core is made with.
    package struct Configuration: Sendable {
        /// Bytes of the arena; what does not fill a slab is not used.
        package var arenaBytes: Int
        /// Bytes of a slab; nil for the size that suits the arena.
        package var slabBytes: Int?
        /// One acquire, and one seal, in this many is checked: 1 for all, 0 for none.
        package var checkOneIn: Int
        /// Mixed into the index, and the seed of the sampling of checks.
        package var secret: (UInt64, UInt64)
        /// Which chunks go to disk.
        package var admission: DiskAdmission
        /// Added to `now` in milliseconds it gives the milliseconds since 1970.
        package var wallOffsetMs: UInt64
        /// Bytes that go to one disk before the next one has its turn.
        package var diskTurnBytes: Int

        package init(
            arenaBytes: Int, slabBytes: Int? = nil, checkOneIn: Int = 64,
            secret: (UInt64, UInt64), admission: DiskAdmission = .all, wallOffsetMs: UInt64 = 0,
            diskTurnBytes: Int = 8 << 20
        ) {
            self.admission = admission
            self.wallOffsetMs = wallOffsetMs
            self.diskTurnBytes = diskTurnBytes
            self.arenaBytes = arenaBytes
            self.slabBytes = slabBytes
            self.checkOneIn = checkOneIn
            self.secret = secret
        }
    }

    /// What has to happen outside the core.
    package enum Effect: Sendable, Equatable {
        /// Hash the bytes of an extent and report with `checkCompleted`.
        case check(job: UInt64, offset: UInt64, length: UInt64)
        /// The same for bytes that go to a disk; what pads the extent to whole pages is to be made
        /// zeros.
        case prepare(job: UInt64, offset: UInt64, length: UInt64)
        /// Have a disk do this and report with `diskCompleted`.
        case io(volume: Int, LogRequest)
        /// All that was sealed or dropped before `sync` is durable, or why it is not.
        case synced(ticket: UInt64, fault: TierFault?)
        /// Nothing of this read lease is pending any more.
        case leaseReady(UInt64)
        /// Which chunks are static has changed: keep ``StoreCore/staticList`` on all disks.
        case keepStatics
        /// Tell the operator.
        case warning(String)
    }

    /// A session's id inside the core.
    package typealias SessionID = UInt64

    struct Session {
        var name: String
        var holds: Set<UInt64> = []
        var readLeases: Set<UInt64> = []
        var writeLeases: Set<UInt64> = []
        var spaces: Set<UInt32> = []
        /// Chunks in its holds and read leases.
        var heldChunks = 0
        /// Its connections are gone; only quarantined extents of its write leases are left.
        var hasEnded = false
    }

    let configuration: Configuration
    var policy: any EvictionPolicy
    var allocator: ExtentAllocator
    var chunks = SegmentedStorage<Chunk>()
    var vacantChunks: [UInt32] = []
    var shards = SegmentedStorage<ShardRecord>()
    /// Freed runs of shard records, by length.
    var vacantShards: [Int: [UInt32]] = [:]
    var index: KeyIndex

    var spaces: [UInt32: SpaceState] = [:]
    var spaceHandles: [Digest: UInt32] = [:]
    var lastSpaceHandle: UInt32
    var groups: [[Int]: UInt32] = [:]
    var vacantGroups: [UInt32] = []
    /// Which groups have an extent of this length in pages.
    var groupsByLength: [Int: [UInt32]] = [:]
    var roots: [RootState] = []
    var vacantRoots: [UInt32] = []
    var rootSlots: [Digest: UInt32] = [:]

    var sessions: [SessionID: Session] = [:]
    var holds: [UInt64: Hold] = [:]
    var readLeases: [UInt64: ReadClaim] = [:]
    var writeLeases: [UInt64: WriteClaim] = [:]
    /// Which write lease fills a chunk that is being written, and at which position.
    var writers: [UInt32: (lease: UInt64, position: Int)] = [:]
    /// The last id given to a session, hold, lease or check. Ids start at a random number, so that
    /// one that a client kept from another life of the server names nothing here.
    var lastID: UInt64
    let firstID: UInt64

    /// The latest time that an event came with.
    var currentTime: UInt64 = 0
    var deadlines = DeadlineQueue()
    /// Names of sessions that sealed chunks, by ``Chunk/writerName``.
    var writerNames = ["one of many (more names than are kept)"]
    var writerNameSlots: [String: UInt32] = [:]
    var lives: [UInt32: ChunkLife] = [:]
    var pinsUntil: [UInt32: UInt64] = [:]
    var statics = StaticState()
    var checks: [UInt64: Check] = [:]
    var checksOfChunk: [UInt32: [UInt64]] = [:]
    var sampler: UInt64
    var fates = FateLog()
    var pinnedBytes = 0
    var quarantinedPages = 0
    var doomedCount = 0
    var disk = DiskState()

    /// What has to happen outside, in order; whoever drives the core takes and empties it after
    /// each call.
    package var effects: [Effect] = []
    /// What happened so far.
    package var counters = StoreCounters()

    /// An empty store; no part of its arena is ready yet.
    package init(_ configuration: Configuration, policy: any EvictionPolicy = LeastRecentlyUsed()) {
        self.configuration = configuration
        self.policy = policy
        allocator = ExtentAllocator(
            arenaBytes: configuration.arenaBytes, slabBytes: configuration.slabBytes)
        index = KeyIndex(secret: configuration.secret)
        sampler = configuration.secret.1 | 1
        firstID = configuration.secret.0 >> 17
        lastID = firstID
        lastSpaceHandle = UInt32(truncatingIfNeeded: configuration.secret.1 >> 40)
    }

    mutating func nextID() -> UInt64 {
        lastID += 1
        return lastID
    }

    func wasIssued(_ id: UInt64) -> Bool { id > firstID && id <= lastID }

    /// Slabs of the arena have been faulted in.
    package mutating func slabsBecameReady(_ slabs: Range<Int>) {
        allocator.slabsBecameReady(slabs)
    }

    /// What the store holds now.
    package var gauges: StoreGauges {
        StoreGauges(
            chunks: index.count, chunksWriting: writers.count, chunksDoomed: doomedCount,
            spaces: spaces.count, roots: rootSlots.count, sessions: sessions.count,
            holds: holds.count, readLeases: readLeases.count, writeLeases: writeLeases.count,
            arenaBytes: allocator.slabCount * allocator.slabPages * ExtentAllocator.pageBytes,
            arenaReadyBytes: allocator.readySlabs * allocator.slabPages * ExtentAllocator.pageBytes,
            usedBytes: allocator.usedPages * ExtentAllocator.pageBytes,
            quarantinedBytes: quarantinedPages * ExtentAllocator.pageBytes,
            pinnedBytes: pinnedBytes, chunksStatic: statics.marks.count, disk: diskGauges)
    }
}

// MARK: Sessions

extension StoreCore {
    /// A new session. - Parameter name: for messages.
    package mutating func openSession(name: String) -> SessionID {
        let id = nextID()
        sessions[id] = Session(name: name)
        return id
    }

    /// The session's last connection has closed.
    ///
    /// Its holds and read leases end. What its write leases have not committed is freed, or, while
    /// one of its processes may still be alive and writing, quarantined until
    /// ``processesGone(_:)``.
    package mutating func endSession(_ id: SessionID, processesAlive: Bool) {
        guard var session = sessions[id], !session.hasEnded else { return }
        for lease in session.readLeases.sorted() { endReadLease(lease, countsForHold: false) }
        for hold in session.holds.sorted() { endHold(hold) }
        for handle in session.spaces {
            spaces[handle]?.openSessions.remove(id)
            forgetSpaceIfUnused(handle)
        }
        for lease in session.writeLeases.sorted() {
            if processesAlive { expireWriteLease(lease) } else { endWriteLease(lease) }
        }
        session = sessions[id]!
        if session.writeLeases.isEmpty {
            sessions[id] = nil
        } else {
            session.hasEnded = true
            session.spaces = []
            sessions[id] = session
        }
    }

    /// Whether the session is known; an ended one is while its extents are quarantined.
    package func hasSession(_ id: SessionID) -> Bool { sessions[id] != nil }

    /// Whether the session has neither holds nor leases.
    package func isIdle(_ id: SessionID) -> Bool {
        guard let session = sessions[id] else { return true }
        return session.holds.isEmpty && session.readLeases.isEmpty && session.writeLeases.isEmpty
    }

    /// Every process of an ended session is gone: nothing can write into its extents any more.
    package mutating func processesGone(_ id: SessionID) {
        guard let session = sessions[id], session.hasEnded else { return }
        for lease in session.writeLeases.sorted() { endWriteLease(lease) }
        sessions[id] = nil
    }

    func requireSession(_ id: SessionID) throws(StoreError) -> Session {
        guard let session = sessions[id], !session.hasEnded else {
            throw StoreError(.argument, "this session has ended; open a new one")
        }
        return session
    }

    func requireRoomForLease(_ id: SessionID) throws(StoreError) {
        let session = try requireSession(id)
        let count = session.holds.count + session.readLeases.count + session.writeLeases.count
        if count >= StoreLimits.leasesPerSession {
            throw StoreError(
                .limit,
                "a session can have \(StoreLimits.leasesPerSession) holds and leases; release some")
        }
    }
}

extension StoreCore {
    func requireRoomForChunks(_ count: Int, _ id: SessionID) throws(StoreError) {
        if sessions[id]!.heldChunks + count > StoreLimits.chunksHeldPerSession {
            throw StoreError(
                .limit,
                "a session can hold \(StoreLimits.chunksHeldPerSession) chunks at a time; release some"
            )
        }
    }
}

// MARK: Spaces and roots

extension StoreCore {
    /// Opens a space for a session. The same space always gets the same handle while it is known.
    package mutating func open(_ space: CacheSpace, session id: SessionID) throws(StoreError)
        -> (handle: UInt32, id: Digest)
    {
        _ = try requireSession(id)
        let digest = space.id
        if let handle = spaceHandles[digest] {
            spaces[handle]!.openSessions.insert(id)
            sessions[id]!.spaces.insert(handle)
            return (handle, digest)
        }
        let handle = try enter(space)
        spaces[handle]!.openSessions.insert(id)
        sessions[id]!.spaces.insert(handle)
        return (handle, digest)
    }

    /// Makes a space known that is not. - Returns: its handle.
    mutating func enter(_ space: CacheSpace) throws(StoreError) -> UInt32 {
        let digest = space.id
        let pages = space.shardBytes.map { ExtentAllocator.pages(forBytes: $0) }
        for (shard, count) in pages.enumerated() where !allocator.canHold(extentPages: count) {
            throw StoreError(
                .argument,
                "shard \(shard) has \(space.shardBytes[shard]) bytes a chunk, more than the arena holds "
                    + "(\(configuration.arenaBytes)); start the server with more --memory or use smaller chunks"
            )
        }
        // Every length in use takes whole regions.
        var slabs = 0
        for length in Set(pages) {
            let width = allocator.slabsPerRegion(extentPages: length)
            let extents = width * allocator.slabPages / length
            slabs += (pages.count { $0 == length } + extents - 1) / extents * width
        }
        if slabs > allocator.slabCount {
            throw StoreError(
                .argument,
                "a chunk with all its shards takes more than the arena holds "
                    + "(\(configuration.arenaBytes) bytes); start the server with more --memory or "
                    + "use smaller chunks")
        }
        if spaces.count >= StoreLimits.spaces {
            throw StoreError(
                .limit,
                "\(StoreLimits.spaces) spaces are open or hold chunks; drop one with KV.DROP SPACE")
        }
        repeat {
            lastSpaceHandle = lastSpaceHandle &+ 1
        } while lastSpaceHandle == 0
            || spaces[lastSpaceHandle] != nil
        let handle = lastSpaceHandle
        let group = groups[pages] ?? vacantGroups.popLast() ?? UInt32(groups.count)
        if groups[pages] == nil {
            groups[pages] = group
            for length in Set(pages) { groupsByLength[length, default: []].append(group) }
        }
        spaces[handle] = SpaceState(
            handle: handle, space: space, id: digest, shardPages: pages, group: group)
        spaceHandles[digest] = handle
        tellDisks(of: space)
        return handle
    }

    /// What is known of every space, by handle.
    package var spaceList:
        [(handle: UInt32, space: CacheSpace, chunks: Int, bytes: Int, sessions: Int)]
    {
        spaces.values.sorted { $0.handle < $1.handle }.map {
            (
                $0.handle, $0.space, $0.chunkCount, $0.chunkCount * $0.chunkBytes,
                $0.openSessions.count
            )
        }
    }

    func requireSpace(_ handle: UInt32, session: SessionID) throws(StoreError) -> SpaceState {
        guard let space = spaces[handle], space.openSessions.contains(session) else {
            throw StoreError(
                .unknownSpace,
                "this session has no space with the handle \(handle); open it with KV.OPEN")
        }
        return space
    }

    /// The id of a space that the session has opened, and the tokens of its chunks.
    package func identity(
        ofSpace handle: UInt32, session: SessionID
    ) throws(StoreError) -> (id: Digest, chunkTokens: Int) {
        let space = try requireSpace(handle, session: session)
        return (space.id, space.space.chunkTokens)
    }

    mutating func forgetSpaceIfUnused(_ handle: UInt32) {
        guard let space = spaces[handle], space.chunkCount == 0, space.openSessions.isEmpty else {
            return
        }
        spaces[handle] = nil
        spaceHandles[space.id] = nil
        for volume in disk.volumes.indices { disk.volumes[volume].log.forget(space: space.id) }
        if spaces.values.contains(where: { $0.group == space.group }) { return }
        groups[space.shardPages] = nil
        vacantGroups.append(space.group)
        for length in Set(space.shardPages) {
            groupsByLength[length]?.removeAll { $0 == space.group }
            if groupsByLength[length]?.isEmpty ?? false { groupsByLength[length] = nil }
        }
    }

    mutating func rootSlot(_ digest: Digest, space: UInt32) -> UInt32 {
        if let slot = rootSlots[digest] { return slot }
        let state = RootState(digest: digest, space: space)
        let slot = vacantRoots.popLast() ?? UInt32(roots.count)
        if Int(slot) == roots.count { roots.append(state) } else { roots[Int(slot)] = state }
        rootSlots[digest] = slot
        spaces[space]!.roots.insert(slot)
        return slot
    }

    mutating func forgetRootIfUnused(_ slot: UInt32) {
        let state = roots[Int(slot)]
        if state.chunkCount > 0 { return }
        rootSlots[state.digest] = nil
        spaces[state.space]?.roots.remove(slot)
        vacantRoots.append(slot)
    }
}
