package import KVIdentity

/// What a tier tells its owner.
package enum TierEvent: Hashable, Sendable {
    /// The record can be read from now on. It is durable after the next ``KVTier/sync(ticket:now:)``.
    case written(owner: UInt64, place: TierPlace)
    /// The record is nowhere.
    case writeFailed(owner: UInt64, fault: TierFault)
    /// The bytes are in the extent, not verified: the owner compares the checksum. With a fault
    /// the extent may hold anything.
    case read(owner: UInt64, fault: TierFault?)
    /// All that was written or dropped before the sync was asked for is durable, or some of it is
    /// not.
    case synced(ticket: UInt64, fault: TierFault?)
    /// The owner must let go of everything in the segment: forget it, or read it and write it
    /// again. Then it calls ``KVTier/reclaimed(_:now:)``. With `keepAll` nothing may be given up
    /// that can be read; else the owner chooses.
    case reclaim(segment: UInt32, keepAll: Bool)
    /// The tier does not answer. What is being read may take long, so nobody should wait for it;
    /// until it answers again, ``KVTier/isStalled`` is true and reads that had not been begun fail
    /// with ``TierFault/stalled``.
    case stalled
    /// Something that an operator should know.
    case trouble(message: String)
}

/// A place for chunks beside the arena: a disk, later a remote store or a peer.
///
/// A value without I/O, clock, lock or thread. Its owner (the store's core) calls it, then takes
/// what it has to tell from ``events``; I/O and its completions go past the owner.
///
/// `owner` is the owner's own number of a shard, unique among what is being written and among what
/// is being read. Memory named in a call belongs to the tier until its event has come. `now` is in
/// nanoseconds of a monotonic clock.
package protocol KVTier: Sendable {
    /// Tells of a space before the first write into it. `json` is its canonical description.
    mutating func know(space: Digest, json: [UInt8])
    /// The space has no records any more and gets no more.
    mutating func forget(space: Digest)

    /// Whether a shard of this length can ever be kept.
    func accepts(byteCount: Int) -> Bool
    /// Bytes of extents that the owner is preparing to write as moves, and how many records that
    /// will be. It keeps this up to date, so that others don't get room that is spoken for.
    var promisedMoves: (bytes: Int, records: Int) { get set }
    /// The same of what is being prepared to be written, and is no move.
    var promisedSaves: (bytes: Int, records: Int) { get set }
    /// False while suspended after a fault, while it does not answer, while its queue is at its
    /// bound, or while what there is of room is kept for moves.
    func takesWrites(now: UInt64) -> Bool
    /// Whether there is room to move records of so many bytes out of a segment that the owner was
    /// asked to let go of.
    func takesMove(bytes: Int, records: Int, now: UInt64) -> Bool
    /// Whether something has been under way for so long that others should not be asked for.
    var isStalled: Bool { get }

    /// Keeps a record whose bytes are in the arena; ends with ``TierEvent/written(owner:place:)`` or
    /// ``TierEvent/writeFailed(owner:fault:)``.
    ///
    /// - Parameter isMove: it is in a segment that the owner was asked to let go of, so it goes first.
    mutating func write(
        _ record: TierRecord, from extent: TierExtent, owner: UInt64, isMove: Bool, now: UInt64)
    /// Reads a record into the arena; ends with ``TierEvent/read(owner:fault:)``.
    mutating func read(_ place: TierPlace, into extent: TierExtent, owner: UInt64, now: UInt64)
    /// Nobody will read the record any more. - Parameter length: of its extent, in bytes.
    mutating func forget(_ place: TierPlace, length: Int)
    /// What was written before this, and is named by it, never comes back.
    mutating func drop(_ drop: TierDrop, now: UInt64)
    /// Ends with ``TierEvent/synced(ticket:fault:)``.
    mutating func sync(ticket: UInt64, now: UInt64)
    /// Nothing of the segment is used any more. What is being read from it may still end.
    mutating func reclaimed(_ segment: UInt32, now: UInt64)

    /// Lets time pass: syncs that are due, the end of a suspension.
    mutating func advance(to now: UInt64)
    /// When something next comes due, if anything does.
    var nextDeadline: UInt64? { get }
    /// What there is to tell, in order; the owner takes and empties it after each call.
    var events: [TierEvent] { get set }
}

extension KVTier {
    /// Keeps a record that is nowhere yet.
    package mutating func write(
        _ record: TierRecord, from extent: TierExtent, owner: UInt64, now: UInt64
    ) {
        write(record, from: extent, owner: owner, isMove: false, now: now)
    }
}
