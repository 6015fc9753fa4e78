internal import KVIdentity
package import KVTier

// Static chunks: pinned for good, found again after a restart, and read into memory then. The mark of
// a chunk is by its key and outlives the chunk: what is damaged or lost is static again once it is
// saved again. Only who unpins or drops it, or lets it expire, takes the mark away.
//
// What a static chunk follows is static as well, because it could not be found without.

/// A mark, beside its key.
struct StaticMark {
    var parent: Digest?
    var root: Digest
    var space: Digest
    /// Of the chunk's extents; 0 while it is missing.
    var bytes: Int
}

/// Which chunks are static, and those of them that are to come to memory.
struct StaticState {
    private(set) var marks: [Digest: StaticMark] = [:]
    /// The keys of those that are missing, by what they followed.
    private(set) var missing: [Digest: Set<Digest>] = [:]
    /// Of those that are here: their bytes, and how many that are.
    private(set) var bytes = 0
    private(set) var presentCount = 0
    /// There is something to be kept that nobody was told of.
    var hasChanged = false
    /// Some are not pinned, because half the arena was.
    var isShortOfPins = false
    /// All are looked at again, not before ``retryAt``.
    var isPassWanted = false
    /// Keys of those that are to be pinned or read, parents first.
    var queue: ArraySlice<Digest> = []
    var retryAt: UInt64 = 0
    var retryNs = StoreCore.shortestStaticRetryNs

    var missingCount: Int { marks.count - presentCount }
    var isWaiting: Bool { isPassWanted || !queue.isEmpty }

    mutating func set(_ mark: StaticMark, of key: Digest) {
        let old = marks.updateValue(mark, forKey: key)
        if let old { forgetMissing(key, old) }
        if mark.bytes == 0 { rememberMissing(key, mark) }
        bytes += mark.bytes - (old?.bytes ?? 0)
        presentCount += (mark.bytes > 0 ? 1 : 0) - (old?.bytes ?? 0 > 0 ? 1 : 0)
        let isSame =
            old?.parent == mark.parent && old?.root == mark.root && old?.space == mark.space
        if !isSame || old == nil { hasChanged = true }
    }

    /// The chunk is gone, and not because anybody wanted it.
    mutating func markMissing(_ key: Digest) {
        guard let old = marks[key], old.bytes > 0 else { return }
        marks[key]!.bytes = 0
        rememberMissing(key, old)
        bytes -= old.bytes
        presentCount -= 1
    }

    private mutating func rememberMissing(_ key: Digest, _ mark: StaticMark) {
        if let parent = mark.parent { missing[parent, default: []].insert(key) }
    }

    private mutating func forgetMissing(_ key: Digest, _ mark: StaticMark) {
        guard let parent = mark.parent, missing[parent]?.remove(key) != nil else { return }
        if missing[parent]!.isEmpty { missing[parent] = nil }
    }

    mutating func remove(_ key: Digest) {
        guard let old = marks.removeValue(forKey: key) else { return }
        forgetMissing(key, old)
        bytes -= old.bytes
        if old.bytes > 0 { presentCount -= 1 }
        hasChanged = true
    }
}

extension StoreCore {
    static var secondNs: UInt64 { 1_000_000_000 }
    /// How long what is to be read waits when there is no memory for it.
    static var shortestStaticRetryNs: UInt64 { 50_000_000 }
    static var longestStaticRetryNs: UInt64 { 2_000_000_000 }
    /// Reads under way above which no static chunk is read unasked.
    static var staticLoadsAtOnce: Int { 32 }

    // MARK: The list

    /// All marks, in any order.
    package var staticList: [TierMark] {
        statics.marks.map { key, mark in
            TierMark(key: key, parent: mark.parent, root: mark.root, space: mark.space)
        }
    }

    /// What a list of an earlier start says; before anything is found or saved.
    package mutating func restoreStatics(_ list: [TierMark]) {
        for mark in list.prefix(StoreLimits.staticChunks) {
            statics.set(
                StaticMark(parent: mark.parent, root: mark.root, space: mark.space, bytes: 0),
                of: mark.key)
        }
        statics.hasChanged = false
    }

    func isStatic(_ chunk: UInt32) -> Bool {
        if statics.marks.isEmpty { return false }
        let entry = chunks[chunk]
        guard let mark = statics.marks[entry.key] else { return false }
        return mark.root == roots[Int(entry.root)].digest && mark.space == spaces[entry.space]!.id
    }

    /// Static chunks by where they are: pinned in memory or on their way there, and missing.
    package var staticPlaces: (all: Int, pinned: Int, missing: Int) {
        let pinned = pinsUntil.values.count { $0 == Self.never }
        return (statics.marks.count, pinned, statics.missingCount)
    }

    // MARK: Limits

    /// How many more chunks may become static, and of how many bytes.
    var roomForMarks: (count: Int, bytes: Int) {
        let count = StoreLimits.staticChunks - statics.marks.count
        guard let smallest = disk.volumes.map(\.budgetBytes).min() else { return (count, .max) }
        let most = smallest / StoreLimits.staticShareOfDisk * disk.volumes.count
        return (count, most - statics.bytes)
    }

    /// Whether a chunk is static, and is to keep a place on the disk: not where static chunks are so
    /// many, because disks were given less than before, that each would push out the next for ever.
    func isKeptStatic(_ chunk: UInt32) -> Bool {
        guard isStatic(chunk), let smallest = disk.volumes.map(\.budgetBytes).min() else {
            return false
        }
        return statics.bytes <= smallest / 2 * disk.volumes.count
    }

    func requireRoomForMarks(_ run: [UInt32]) throws(StoreError) {
        let room = roomForMarks
        let new = run.filter { !isStatic($0) }
        if new.isEmpty { return }
        if new.count > room.count {
            throw StoreError(
                .limit,
                "\(statics.marks.count) chunks are pinned without end; with these \(new.count) it would "
                    + "be more than \(StoreLimits.staticChunks); unpin some")
        }
        let added = new.reduce(0) { $0 + chunkBytes(of: $1) }
        if added > room.bytes {
            throw StoreError(
                .limit,
                "\(statics.bytes) bytes are pinned without end; with these \(added) it would be more than a "
                    + "quarter of what the disks may take; unpin some, or give --disk-size more")
        }
    }

    // MARK: Marks

    /// A run with what it follows and is not static yet.
    func withAncestors(_ run: [UInt32]) -> [UInt32] {
        guard let first = run.first else { return run }
        var before: [UInt32] = []
        var next = chunks[first].parent
        while next != Chunk.none, !isStatic(next) {
            before.append(next)
            next = chunks[next].parent
        }
        return before.reversed() + run
    }

    /// Makes a chunk static. It lives until it is dropped, or until somebody says otherwise later.
    mutating func mark(_ chunk: UInt32) {
        setMark(of: chunk)
        takeLife(of: chunk)
        bringToPlace(chunk)
    }

    private mutating func setMark(of chunk: UInt32) {
        let entry = chunks[chunk]
        statics.set(
            StaticMark(
                parent: entry.parent == Chunk.none ? nil : chunks[entry.parent].key,
                root: roots[Int(entry.root)].digest, space: spaces[entry.space]!.id,
                bytes: chunkBytes(of: chunk)),
            of: entry.key)
    }

    /// What is static is to be on a disk and in memory.
    private mutating func bringToPlace(_ chunk: UInt32) {
        if chunks[chunk].disk == .none { enqueueForDisk(chunk) }
        if chunks[chunk].memory == .absent { wantStatics(in: 0) }
    }

    /// A chunk was sealed or found on a disk: if it has a mark, it is static again.
    ///
    /// - Parameter isNew: it was sealed, so the rule of its space gave it its life.
    mutating func settleMark(of chunk: UInt32, isNew: Bool) {
        guard isStatic(chunk) else { return }
        for ancestor in withAncestors([chunk]).dropLast() where roomForMarks.count > 0 {
            setMark(of: ancestor)
            pinForGood(ancestor)
            bringToPlace(ancestor)
        }
        setMark(of: chunk)
        if isNew { takeLife(of: chunk) }
        pinForGood(chunk)
        bringToPlace(chunk)
    }

    /// Pins a static chunk if half the arena isn't pinned yet.
    private mutating func pinForGood(_ chunk: UInt32) {
        if chunks[chunk].isPinnedUntil || chunkBytes(of: chunk) <= pinnableBytes {
            pin(chunk, until: Self.never)
        } else {
            statics.isShortOfPins = true
        }
    }

    /// Whether something that follows the chunk directly is static and here.
    func hasStaticChild(_ chunk: UInt32) -> Bool {
        if statics.marks.isEmpty { return false }
        var child = chunks[chunk].firstChild
        while child != Chunk.none {
            if isStatic(child) { return true }
            child = chunks[child].nextSibling
        }
        return false
    }

    /// A chunk leaves the index. What was not meant to go keeps its mark.
    mutating func leaveStatics(_ chunk: UInt32, fate: Fate) {
        guard isStatic(chunk) else { return }
        let key = chunks[chunk].key
        if fate == .dropped || fate == .expired {
            statics.remove(key)
        } else {
            statics.markMissing(key)
        }
    }

    // MARK: Marks of what is missing

    /// Ends the marks of the keys among these that are missing, and of what followed them.
    mutating func endMarks(ofMissing keys: [Digest], root: Digest, space: Digest) {
        if statics.missingCount == 0 { return }
        for key in keys {
            guard let mark = statics.marks[key], mark.bytes == 0, mark.root == root,
                mark.space == space
            else { continue }
            statics.remove(key)
        }
        endMarks(following: keys, root: root)
    }

    mutating func endMarksOfMissing(where isOver: (StaticMark) -> Bool) {
        if statics.missingCount == 0 { return }
        for (key, mark) in statics.marks where mark.bytes == 0 && isOver(mark) {
            statics.remove(key)
        }
    }

    /// Ends the marks of missing chunks that followed any of these, which are gone for good.
    mutating func endMarks(following keys: [Digest], root: Digest) {
        if statics.missingCount == 0 { return }
        var work = keys
        while let next = work.popLast() {
            for key in statics.missing[next] ?? [] where statics.marks[key]!.root == root {
                statics.remove(key)
                work.append(key)
            }
        }
    }

    // MARK: To memory

    /// Has all static chunks looked at, a time from now.
    mutating func wantStatics(in nanoseconds: UInt64) {
        statics.isPassWanted = true
        statics.isShortOfPins = false
        statics.retryAt = max(statics.retryAt, currentTime + nanoseconds)
    }

    /// Goes on with what is to be pinned and read, once all disks are known. Engines' reads go first.
    mutating func continueStatics() {
        if statics.hasChanged, hasDisks {
            statics.hasChanged = false
            effects.append(.keepStatics)
        }
        if !statics.isWaiting || isRecovering || statics.retryAt > currentTime { return }
        if statics.isPassWanted { planStatics() }
        while let key = statics.queue.first, disk.loads.count < Self.staticLoadsAtOnce {
            if let chunk = index.find(key, chunks), isStatic(chunk), chunks[chunk].isVisible,
                !comesToMemory(chunk)
            {
                statics.retryAt = currentTime + statics.retryNs
                statics.retryNs = min(statics.retryNs * 2, Self.longestStaticRetryNs)
                return
            }
            statics.queue.removeFirst()
            statics.retryNs = Self.shortestStaticRetryNs
        }
    }

    /// What comes first in a prompt comes first: without it the rest is of no use.
    private mutating func planStatics() {
        statics.isPassWanted = false
        var wanted: [UInt32] = []
        for (key, mark) in statics.marks where mark.bytes > 0 {
            guard let chunk = index.find(key, chunks), chunks[chunk].isVisible,
                pinsUntil[chunk] != Self.never || chunks[chunk].memory == .absent
            else { continue }
            wanted.append(chunk)
        }
        wanted.sort { (chunks[$0].number, $0) < (chunks[$1].number, $1) }
        statics.queue = ArraySlice(wanted.map { chunks[$0].key })
    }

    /// Pins a static chunk, and has it read. What is beyond half the arena stays where it is.
    ///
    /// - Returns: false if there is no memory for it now.
    private mutating func comesToMemory(_ chunk: UInt32) -> Bool {
        if pinsUntil[chunk] != Self.never { pinForGood(chunk) }
        if pinsUntil[chunk] != Self.never || chunks[chunk].memory != .absent { return true }
        return load(chunk)
    }
}
