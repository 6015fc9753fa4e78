internal import KVDiskFormat
internal import KVIdentity

/// What one volume says, but for its chunks.
struct FoundVolume {
    /// The highest bound of each kind of drop.
    var droppedKeys: [Digest: UInt64] = [:]
    var droppedRoots: [RootTable.Root: UInt64] = [:]
    var droppedSpaces: [UInt32: UInt64] = [:]
    /// Of each key the time with the highest bound.
    var expiries: [Digest: (bound: UInt64, expiresMs: UInt64)] = [:]
    var counts = RecoveryCounts()
    var problems: ProblemList
    var notes = ProblemList()
    /// Shards that were taken.
    var takenCount = 0
}

/// The entries of all segments of all volumes, gathered.
struct FoundEntries {
    private(set) var chunks: ChunkTable
    private(set) var roots = RootTable()
    /// By the place of the space in ``roots``; nil where there is no readable description.
    private(set) var spaces: [CacheSpace?] = []
    var volumes: [FoundVolume]

    /// Of one volume.
    private let mostShards: Int
    private var spaceCount = 0

    /// - Parameters:
    ///   - mostShards: that are taken of all volumes; each may have its part of them.
    ///   - problems: what is known of each volume already.
    init(mostShards: Int, problems: [ProblemList]) {
        self.mostShards = mostShards / max(1, problems.count)
        volumes = problems.map { FoundVolume(problems: $0) }
        var random = SystemRandomNumberGenerator()
        chunks = ChunkTable(
            secret: (random.next(), random.next()), volumeCount: problems.count)
    }

    /// Takes what a segment says.
    ///
    /// - Parameters:
    ///   - segment: the place of `file` among the segments of all volumes.
    ///   - isReadable: false: only drops are taken.
    ///   - read: gives the body of an entry; nil if it is damaged.
    mutating func add(
        _ content: SegmentContent, of segment: UInt32, _ file: SegmentFile, volume: Int,
        isReadable: Bool, read: (DiskEntry) throws(DiskFault) -> [UInt8]?
    ) {
        var badBodies = content.badBodies[...]
        chunks.reserve(min(content.entries.count, mostShards - volumes[volume].takenCount))
        for (index, entry) in content.entries.enumerated() {
            volumes[volume].counts.entries += 1
            if badBodies.first == index {
                badBodies.removeFirst()
                volumes[volume].counts.damagedBodies += 1
                volumes[volume].notes.add(
                    "\(file.name): the body at byte \(entry.bodyOffset) was not written completely "
                        + "or is damaged; it is left out")
                continue
            }
            switch entry.kind {
            case .chunk:
                if isReadable { add(entry, of: segment, volume: volume) }
            case .space:
                if isReadable { addSpace(entry, of: file, volume: volume, read) }
            case .dropKey, .dropRoot, .dropSpace: addDrop(entry, volume: volume)
            case .expireKey: addExpiry(entry, volume: volume)
            }
        }
    }

    private mutating func add(_ entry: DiskEntry, of segment: UInt32, volume: Int) {
        volumes[volume].counts.shards += 1
        guard volumes[volume].takenCount < mostShards else {
            if volumes[volume].counts.beyondLimit == 0 {
                volumes[volume].problems.add(
                    "the directory holds more than \(mostShards) shards; the oldest are left out")
            }
            volumes[volume].counts.beyondLimit += 1
            return
        }
        volumes[volume].takenCount += 1
        let root = roots.place(ofRoot: entry.root, space: entry.space)
        chunks.add(entry, root: root, segment: segment, volume: UInt8(volume))
    }

    // MARK: Drops

    private mutating func addDrop(_ entry: DiskEntry, volume: Int) {
        func raise(_ bound: inout UInt64) { bound = max(bound, entry.bound) }
        switch entry.kind {
        case .dropKey: raise(&volumes[volume].droppedKeys[entry.key, default: 0])
        case .dropRoot:
            let root = RootTable.Root(
                space: roots.place(ofSpace: entry.space), digest: entry.root)
            raise(&volumes[volume].droppedRoots[root, default: 0])
        default:
            let space = roots.place(ofSpace: entry.space)
            raise(&volumes[volume].droppedSpaces[space, default: 0])
        }
    }

    private mutating func addExpiry(_ entry: DiskEntry, volume: Int) {
        let known = volumes[volume].expiries[entry.key]?.bound ?? 0
        if entry.bound <= known { return }
        volumes[volume].expiries[entry.key] = (entry.bound, entry.expiresMs)
    }

    /// Gives chunks the times that were told after they were written. Once all is added.
    mutating func applyExpiries() {
        if volumes.allSatisfy({ $0.expiries.isEmpty }) { return }
        for version in chunks.versions.indices {
            let (key, volume) = (chunks.versions[version].key, chunks.versions[version].volume)
            guard let expiry = volumes[Int(volume)].expiries[key] else { continue }
            chunks.setExpiry(of: version, expiry.expiresMs, ifWrittenBefore: expiry.bound)
        }
    }

    /// The bound that drops of a root and of its space give on a volume.
    func bound(of root: RootTable.Root, on volume: Int) -> UInt64 {
        max(
            volumes[volume].droppedRoots[root] ?? 0,
            volumes[volume].droppedSpaces[root.space] ?? 0)
    }

    /// The bound that drops of a key give on a volume.
    func bound(of key: Digest, on volume: Int) -> UInt64 {
        if volumes[volume].droppedKeys.isEmpty { return 0 }
        return volumes[volume].droppedKeys[key] ?? 0
    }

    // MARK: Spaces

    private mutating func addSpace(
        _ entry: DiskEntry, of file: SegmentFile, volume: Int,
        _ read: (DiskEntry) throws(DiskFault) -> [UInt8]?
    ) {
        let place = Int(roots.place(ofSpace: entry.space))
        while spaces.count <= place { spaces.append(nil) }
        // Every segment describes the spaces of its chunks.
        if spaces[place] != nil || spaceCount >= DiskRecovery.mostSpaces { return }
        do throws(DiskFault) {
            if let json = try read(entry) {
                spaces[place] = space(entry, json, of: file, volume: volume)
            } else {
                volumes[volume].problems.add(
                    "\(file.name): the description of space \(entry.space) is damaged; if no other "
                        + "segment has it, its chunks are left out")
            }
        } catch {
            volumes[volume].problems.add("\(file.name): space \(entry.space): \(error.message)")
        }
        if spaces[place] != nil { spaceCount += 1 }
    }

    private mutating func space(
        _ entry: DiskEntry, _ json: [UInt8], of file: SegmentFile, volume: Int
    ) -> CacheSpace? {
        do throws(IdentityError) {
            let space = try CacheSpace(json: json)
            if space.id == entry.space { return space }
            volumes[volume].problems.add(
                "\(file.name): what is said to describe space \(entry.space) describes "
                    + "\(space.id); its chunks are left out")
        } catch {
            volumes[volume].problems.add(
                "\(file.name): the description of space \(entry.space) is not understood "
                    + "(\(error.message)); its chunks are left out")
        }
        return nil
    }
}

/// What became of what the segments of a volume say. Shards are entries; of a chunk the first
/// reason counts.
package struct RecoveryCounts: Sendable, Hashable {
    /// Entries of all kinds.
    package var entries = 0
    /// Of these, shards of chunks.
    package var shards = 0
    /// Shards and descriptions whose bytes were read and are not what was written.
    package var damagedBodies = 0
    /// Shards that were not taken because there were too many.
    package var beyondLimit = 0
    /// Shards that were written again later.
    package var supersededShards = 0
    /// Chunks that are valid.
    package var chunks = 0
    /// Chunks that were written again later, after another parent, under another root, or on another
    /// volume.
    package var supersededChunks = 0
    /// Chunks that were dropped.
    package var droppedChunks = 0
    /// Chunks that have expired.
    package var expiredChunks = 0
    /// Chunks of which a shard is missing, or has another length than the space says.
    package var incompleteChunks = 0
    /// Chunks whose parent is not valid.
    package var orphanedChunks = 0
    /// Chunks of spaces without a readable description.
    package var unknownSpaceChunks = 0

    /// What became of all that some volumes say.
    package static func + (left: RecoveryCounts, right: RecoveryCounts) -> RecoveryCounts {
        var sum = left
        for field in fields { sum[keyPath: field] += right[keyPath: field] }
        return sum
    }

    private static var fields: [WritableKeyPath<RecoveryCounts, Int>] {
        [
            \.entries, \.shards, \.damagedBodies, \.beyondLimit, \.supersededShards, \.chunks,
            \.supersededChunks, \.droppedChunks, \.expiredChunks, \.incompleteChunks,
            \.orphanedChunks, \.unknownSpaceChunks,
        ]
    }
}
