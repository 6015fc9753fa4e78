internal import KVDiskFormat
internal import KVIdentity

/// All that segments say of chunks, in about 140 bytes for a chunk of one shard.
///
/// What was written under one key with another parent, root, space or place is another *version* of
/// the chunk, and so is what was written on another volume. Every version has a chain of the shards
/// that were written, duplicates too.
struct ChunkTable {
    /// No version, or no shard.
    static let none = UInt32.max

    /// What was written under a key.
    struct Version {
        let key: Digest
        /// Zeros at chunk 0.
        let parent: Digest
        /// A place in ``RootTable``.
        let root: UInt32
        let chunkIndex: UInt32
        /// The highest of its shards.
        var sequence: UInt64
        /// Of the shard with that sequence, or told later.
        var expiresMs: UInt64
        /// The shard that was added last.
        var lastShard: UInt32
        /// The one that all of it is on.
        let volume: UInt8
        /// Whether its key has other versions.
        var hasRivals = false
    }

    /// A shard of a version, at one place.
    struct Shard {
        let sequence: UInt64
        let checksum: UInt64
        /// A place among the segments.
        let segment: UInt32
        let page: UInt32
        let number: UInt32
        /// Bytes of the body - 1, since 1 byte to 4 GiB fit.
        let lastByte: UInt32
        /// The one that was added before.
        let previous: UInt32

        var byteCount: Int { Int(lastByte) + 1 }
    }

    private(set) var versions: [Version] = []
    /// By version: when the shard with the highest sequence was written, in milliseconds since
    /// 1970. Kept only where there are several volumes, whose sequences can't be compared.
    private(set) var writtenMs: [UInt64] = []
    private(set) var shards: [Shard] = []
    /// Open addressing: the higher half of a hash, then the version; ``vacant`` where there is none.
    private var buckets: [UInt64]
    private var mask: Int
    private let secret: (UInt64, UInt64)
    private let volumeCount: Int
    private var hasSeveralVolumes: Bool { volumeCount > 1 }

    private static let vacant = UInt64.max

    /// - Parameters:
    ///   - secret: keys are chosen by clients, their order in the table is not.
    ///   - volumeCount: how many volumes there are.
    init(secret: (UInt64, UInt64), volumeCount: Int) {
        self.volumeCount = volumeCount
        self.secret = (secret.0 | 1, secret.1 | 1)
        mask = (1 << 12) - 1
        buckets = [UInt64](repeating: Self.vacant, count: mask + 1)
    }

    /// Makes room for so many shards more.
    mutating func reserve(_ count: Int) {
        // Arrays that are asked for little more each time would be copied each time.
        let needed = shards.count + count
        guard needed > shards.capacity else { return }
        shards.reserveCapacity(max(needed, shards.capacity * 2))
    }

    /// Adds a shard of a chunk.
    ///
    /// - Parameters:
    ///   - root: the place of its root and space.
    ///   - segment: a place among the segments of all volumes.
    mutating func add(_ entry: DiskEntry, root: UInt32, segment: UInt32, volume: UInt8) {
        let version = findOrAdd(entry, root: root, volume: volume)
        let shard = Shard(
            sequence: entry.sequence, checksum: entry.bodyChecksum, segment: segment,
            page: UInt32(entry.bodyOffset / DiskFormat.alignment), number: entry.shard,
            lastByte: UInt32(truncatingIfNeeded: entry.bodyBytes - 1),
            previous: versions[version].lastShard)
        if entry.sequence >= versions[version].sequence {
            versions[version].sequence = entry.sequence
            versions[version].expiresMs = entry.expiresMs
            if hasSeveralVolumes { writtenMs[version] = entry.writtenMs }
        }
        versions[version].lastShard = UInt32(shards.count)
        shards.append(shard)
    }

    /// Changes when a version expires, unless it has a shard with a sequence of `bound` or higher.
    mutating func setExpiry(of version: Int, _ expiresMs: UInt64, ifWrittenBefore bound: UInt64) {
        if versions[version].sequence < bound { versions[version].expiresMs = expiresMs }
    }

    /// The version of a key, of this root and place, that `isTaken` names: at most one.
    @inline(__always)
    func find(
        _ key: Digest, root: UInt32, chunkIndex: UInt32, isTaken: (Int) -> Bool
    ) -> Int? {
        var found: Int?
        forEachVersion(of: key) { version in
            if versions[version].root == root, versions[version].chunkIndex == chunkIndex,
                isTaken(version)
            {
                found = version
            }
        }
        return found
    }

    /// Whether no other version of its key on its volume is newer.
    func isNewest(_ version: Int) -> Bool {
        guard versions[version].hasRivals else { return true }
        var isNewest = true
        forEachVersion(of: versions[version].key) { other in
            if versions[other].volume == versions[version].volume, isNewer(other, version) {
                isNewest = false
            }
        }
        return isNewest
    }

    /// Of the versions of a key the newest one of each volume that has any, by volume.
    func newest(of key: Digest) -> [Int] {
        var newest = [Int?](repeating: nil, count: volumeCount)
        forEachVersion(of: key) { version in
            let volume = Int(versions[version].volume)
            if newest[volume].map({ isNewer(version, $0) }) ?? true { newest[volume] = version }
        }
        return newest.compactMap(\.self)
    }

    /// Whether two versions are copies of one chunk.
    func areCopies(_ some: Int, _ other: Int) -> Bool {
        let (left, right) = (versions[some], versions[other])
        return left.key == right.key && left.parent == right.parent && left.root == right.root
            && left.chunkIndex == right.chunkIndex
    }

    /// For versions of one volume.
    private func isNewer(_ some: Int, _ other: Int) -> Bool {
        (versions[some].sequence, some) > (versions[other].sequence, other)
    }

    // MARK: Buckets

    private func hash(_ key: Digest) -> UInt64 {
        let (first, second, third, fourth) = key.words
        let low = (first ^ secret.0) &* 0x9E37_79B9_7F4A_7C15 ^ second
        let high = (third ^ secret.1) &* 0xC2B2_AE3D_27D4_EB4F ^ fourth
        let product = (low ^ secret.1).multipliedFullWidth(by: high ^ secret.0)
        let mixed = product.high ^ product.low
        return (mixed ^ mixed >> 29) &* 0xBF58_476D_1CE4_E5B9
    }

    @inline(__always)
    private func forEachVersion(of key: Digest, _ body: (Int) -> Void) {
        let hash = hash(key)
        var place = Int(truncatingIfNeeded: hash >> 32) & mask
        while buckets[place] != Self.vacant {
            let bucket = buckets[place]
            if bucket >> 32 == hash >> 32 {
                let version = Int(bucket & 0xFFFF_FFFF)
                if versions[version].key == key { body(version) }
            }
            place = (place + 1) & mask
        }
    }

    private mutating func findOrAdd(
        _ entry: DiskEntry, root: UInt32, volume: UInt8
    ) -> Int {
        let hash = hash(entry.key)
        var place = Int(truncatingIfNeeded: hash >> 32) & mask
        var hasRivals = false
        while buckets[place] != Self.vacant {
            let bucket = buckets[place]
            let version = Int(bucket & 0xFFFF_FFFF)
            if bucket >> 32 == hash >> 32, versions[version].key == entry.key {
                let known = versions[version]
                if known.root == root, known.chunkIndex == entry.chunkIndex,
                    known.parent == entry.parent, known.volume == volume
                {
                    return version
                }
                versions[version].hasRivals = true
                hasRivals = true
            }
            place = (place + 1) & mask
        }
        buckets[place] = (hash >> 32) << 32 | UInt64(versions.count)
        versions.append(
            Version(
                key: entry.key, parent: entry.parent, root: root, chunkIndex: entry.chunkIndex,
                sequence: 0, expiresMs: 0, lastShard: Self.none, volume: volume,
                hasRivals: hasRivals))
        if hasSeveralVolumes { writtenMs.append(0) }
        if versions.count * 4 > (mask + 1) * 3 { grow() }
        return versions.count - 1
    }

    private mutating func grow() {
        let old = buckets
        mask = mask * 2 + 1
        buckets = [UInt64](repeating: Self.vacant, count: mask + 1)
        for bucket in old where bucket != Self.vacant {
            var place = Int(bucket >> 32) & mask
            while buckets[place] != Self.vacant { place = (place + 1) & mask }
            buckets[place] = bucket
        }
    }
}

/// Roots and spaces by short numbers, so that a chunk need not repeat 64 bytes.
struct RootTable {
    struct Root: Hashable {
        /// A place among the spaces.
        let space: UInt32
        let digest: Digest
    }

    /// In the order in which they were met.
    private(set) var spaces: [Digest] = []
    private(set) var roots: [Root] = []
    private var spacePlaces: [Digest: UInt32] = [:]
    private var rootPlaces: [Root: UInt32] = [:]
    /// The one asked for last: in a log, neighbours are of one root.
    private var last: (space: Digest, root: Digest, place: UInt32)?

    /// The place of a space.
    mutating func place(ofSpace space: Digest) -> UInt32 {
        if let place = spacePlaces[space] { return place }
        spaces.append(space)
        spacePlaces[space] = UInt32(spaces.count - 1)
        return UInt32(spaces.count - 1)
    }

    /// The place of a root.
    mutating func place(ofRoot root: Digest, space: Digest) -> UInt32 {
        if let last, last.root == root, last.space == space { return last.place }
        let full = Root(space: place(ofSpace: space), digest: root)
        let place: UInt32
        if let known = rootPlaces[full] {
            place = known
        } else {
            place = UInt32(roots.count)
            roots.append(full)
            rootPlaces[full] = place
        }
        last = (space, root, place)
        return place
    }
}
