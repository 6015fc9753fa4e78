internal import KVDiskFormat
internal import KVIdentity

/// Valid chunks, in the order in which they are handed over.
struct ResolvedChunks {
    struct Chunk {
        /// A place in ``ChunkTable/versions``.
        let version: UInt32
        /// The number of its parent; ``ChunkTable/none`` at chunk 0.
        let parent: UInt32
        /// Where its shards start in ``shards``.
        let firstShard: Int
    }

    var chunks: [Chunk] = []
    /// Places in ``ChunkTable/shards``.
    var shards: [UInt32] = []
    /// The spaces of the chunks.
    var spaces: [CacheSpace] = []
    /// By the place of a space in the ``RootTable``: its place in ``spaces``, -1 if it has no
    /// chunks.
    var spacePlaces: [Int] = []
}

/// Finds out which chunks are valid: one pass from the first chunks of all prompts to the last
/// ones, so that parents are known before their children.
///
/// Sequences of different volumes can't be compared, so every drop is written to all volumes, and a
/// path has a bound for each: what of it is on a volume must not be below that volume's bound.
struct ChunkResolver {
    private(set) var found: FoundEntries
    private(set) var resolved = ResolvedChunks()
    private let wallMs: UInt64
    private let volumeCount: Int

    /// By version and volume: what has a lower sequence there is dropped, on its own or with an
    /// ancestor.
    private var bounds: [UInt64]
    /// By version: its number among the valid chunks.
    private var numbers: [UInt32]
    /// By root and volume: the bound of the root and of its space.
    private var rootBounds: [UInt64]
    /// By the place of a space in the ``RootTable``: the lengths of its shards; none where there is
    /// no readable description.
    private let lengths: [[Int]]
    /// The shards of the chunk at hand.
    private var chain: [UInt32] = []

    init(_ found: consuming FoundEntries, wallMs: UInt64) {
        found.applyExpiries()
        self.wallMs = wallMs
        volumeCount = found.volumes.count
        let versionCount = found.chunks.versions.count
        bounds = [UInt64](repeating: 0, count: versionCount * volumeCount)
        numbers = [UInt32](repeating: ChunkTable.none, count: versionCount)
        rootBounds = []
        rootBounds.reserveCapacity(found.roots.roots.count * volumeCount)
        for root in found.roots.roots {
            for volume in 0..<volumeCount {
                rootBounds.append(found.bound(of: root, on: volume))
            }
        }
        lengths = found.roots.spaces.indices.map { place in
            place < found.spaces.count ? found.spaces[place]?.shardBytes ?? [] : []
        }
        resolved.spacePlaces = [Int](repeating: -1, count: found.roots.spaces.count)
        resolved.chunks.reserveCapacity(versionCount)
        resolved.shards.reserveCapacity(found.chunks.shards.count)
        self.found = found
    }

    /// Fills ``resolved``, and what is live of each segment.
    mutating func resolve(_ segments: inout [SegmentSummary]) {
        var order = found.chunks.versions.enumerated().map { place, version in
            UInt64(version.chunkIndex) << 32 | UInt64(place)
        }
        order.sort()
        for packed in order { resolve(Int(packed & 0xFFFF_FFFF)) }
        for chunk in resolved.chunks {
            let volume = Int(found.chunks.versions[Int(chunk.version)].volume)
            found.volumes[volume].counts.chunks += 1
        }
        for place in resolved.shards {
            let shard = found.chunks.shards[Int(place)]
            segments[Int(shard.segment)].liveShardCount += 1
            segments[Int(shard.segment)].liveBytes += DiskFormat.aligned(shard.byteCount)
        }
    }

    private mutating func resolve(_ place: Int) {
        guard found.chunks.isNewest(place) else {
            count(\.supersededChunks, place)
            return
        }
        if volumeCount > 1, found.chunks.versions[place].hasRivals {
            resolve(amongRivals: place)
        } else {
            _ = take(place)
        }
    }

    // MARK: Several volumes

    /// Of the newest versions on all volumes the one written last says what the chunk is. Of its
    /// copies the first is taken that is valid.
    private mutating func resolve(amongRivals place: Int) {
        if isDroppedItself(place) {
            count(\.droppedChunks, place)
            return
        }
        let rivals = rivals(of: place)
        guard found.chunks.areCopies(rivals[0], place) else {
            count(\.supersededChunks, place)
            return
        }
        let copies = rivals.filter { found.chunks.areCopies($0, place) }
        // Once for all of them.
        guard place == copies.min() else { return }
        var isSettled = false
        for copy in copies {
            if isSettled {
                count(\.supersededChunks, copy)
            } else {
                // The one written last says when the chunk ends, so no other one comes after it.
                isSettled = hasExpired(copy)
                if take(copy) { isSettled = true }
            }
        }
    }

    /// The newest versions of a key on all volumes, without those that were dropped themselves:
    /// what was written last comes first, at the same time that of the lower volume.
    private func rivals(of place: Int) -> [Int] {
        let (chunks, key) = (found.chunks, found.chunks.versions[place].key)
        return chunks.newest(of: key).filter { !isDroppedItself($0) }.sorted { left, right in
            let (some, other) = (chunks.writtenMs[left], chunks.writtenMs[right])
            if some != other { return some > other }
            return chunks.versions[left].volume < chunks.versions[right].volume
        }
    }

    /// Whether its key, its root or its space was dropped.
    private func isDroppedItself(_ place: Int) -> Bool {
        let version = found.chunks.versions[place]
        let volume = Int(version.volume)
        let bound = max(
            rootBounds[Int(version.root) * volumeCount + volume],
            found.bound(of: version.key, on: volume))
        return version.sequence < bound
    }

    // MARK: One version

    /// Makes a chunk of a version if it is valid; false, and counted, if it is not.
    private mutating func take(_ place: Int) -> Bool {
        let version = found.chunks.versions[place]
        var known: Int?
        if version.chunkIndex > 0 {
            known = parent(of: version)
            if known == nil {
                count(\.orphanedChunks, place)
                return false
            }
        }
        setBounds(place, parent: known)
        let spacePlace = Int(found.roots.roots[Int(version.root)].space)
        guard !lengths[spacePlace].isEmpty else {
            count(\.unknownSpaceChunks, place)
            return false
        }
        let firstShard = resolved.shards.count
        guard isValid(place, lengths[spacePlace]) else {
            resolved.shards.removeLast(resolved.shards.count - firstShard)
            return false
        }
        if resolved.spacePlaces[spacePlace] < 0 {
            resolved.spacePlaces[spacePlace] = resolved.spaces.count
            resolved.spaces.append(found.spaces[spacePlace]!)
        }
        numbers[place] = UInt32(resolved.chunks.count)
        resolved.chunks.append(
            ResolvedChunks.Chunk(
                version: UInt32(place), parent: known.map { numbers[$0] } ?? ChunkTable.none,
                firstShard: firstShard))
        return true
    }

    /// The valid version of the parent, on whatever volume.
    private func parent(of version: ChunkTable.Version) -> Int? {
        found.chunks.find(
            version.parent, root: version.root, chunkIndex: version.chunkIndex - 1
        ) { numbers[$0] != ChunkTable.none }
    }

    private mutating func setBounds(_ place: Int, parent: Int?) {
        let version = found.chunks.versions[place]
        for volume in 0..<volumeCount {
            var bound = max(
                rootBounds[Int(version.root) * volumeCount + volume],
                found.bound(of: version.key, on: volume))
            if let parent { bound = max(bound, bounds[parent * volumeCount + volume]) }
            bounds[place * volumeCount + volume] = bound
        }
    }

    @inline(__always)
    private mutating func count(_ reason: WritableKeyPath<RecoveryCounts, Int>, _ place: Int) {
        let volume = Int(found.chunks.versions[place].volume)
        found.volumes[volume].counts[keyPath: reason] += 1
    }

    private func hasExpired(_ place: Int) -> Bool {
        let expiresMs = found.chunks.versions[place].expiresMs
        return expiresMs != 0 && expiresMs < wallMs
    }

    /// Whether a chunk is valid but for its parents; appends its shards, if not always all.
    private mutating func isValid(_ place: Int, _ lengths: [Int]) -> Bool {
        let version = found.chunks.versions[place]
        let bound = bounds[place * volumeCount + Int(version.volume)]
        if version.sequence < bound {
            count(\.droppedChunks, place)
            return false
        }
        if hasExpired(place) {
            count(\.expiredChunks, place)
            return false
        }
        if !takeShards(of: version, lengths, bound: bound) {
            count(\.incompleteChunks, place)
            return false
        }
        return true
    }

    /// Appends the newest place of each shard; false if one isn't there.
    private mutating func takeShards(
        of version: ChunkTable.Version, _ lengths: [Int], bound: UInt64
    ) -> Bool {
        let shards = found.chunks.shards
        chain.removeAll(keepingCapacity: true)
        var place = version.lastShard
        while place != ChunkTable.none {
            chain.append(place)
            place = shards[Int(place)].previous
        }
        // Of each number the newest first; of equal ones it doesn't matter which, but always the
        // same.
        if chain.count > 1 {
            chain.sort { left, right in
                let (some, other) = (shards[Int(left)], shards[Int(right)])
                if some.number != other.number { return some.number < other.number }
                return (some.sequence, left) > (other.sequence, right)
            }
        }
        var next = 0
        var last: UInt32?
        for place in chain {
            let shard = shards[Int(place)]
            if shard.number == last {
                found.volumes[Int(version.volume)].counts.supersededShards += 1
                continue
            }
            last = shard.number
            guard next < lengths.count, shard.number == next else { continue }
            let isRight =
                shard.sequence >= bound && shard.byteCount == lengths[next]
            if !isRight { continue }
            resolved.shards.append(place)
            next += 1
        }
        return next == lengths.count
    }
}
