import KVDiskFormat
import KVIdentity
import TestDisk
import TestRandom

@testable import KVDisk

/// The rules of a recovery in the simplest words, over everything that was written.
struct RecoveryModel {
    struct Identity: Hashable {
        let parent, space, root: Digest
        let chunkIndex: UInt32
    }

    struct Valid: Hashable {
        let volume: Int
        /// Of the shards, in order.
        let sequences: [UInt64]
    }

    /// A chunk as a volume has it.
    private struct Copy {
        let volume: Int
        /// Its entry with the highest sequence.
        let newest: DiskEntry
    }

    /// By volume.
    let written: [[DiskEntry]]
    let spaces: [Digest: CacheSpace]
    let wallMs: UInt64

    func valid() -> [Digest: Valid] {
        var valid: [Digest: Valid] = [:]
        for key in Set(written.joined().filter { $0.kind == .chunk }.map(\.key)) {
            guard let (copy, shards) = find(key) else { continue }
            valid[key] = Valid(volume: copy.volume, sequences: shards.map(\.sequence))
        }
        return valid
    }

    private func identity(_ entry: DiskEntry) -> Identity {
        Identity(
            parent: entry.parent, space: entry.space, root: entry.root,
            chunkIndex: entry.chunkIndex)
    }

    private func chunks(_ key: Digest, _ volume: Int) -> [DiskEntry] {
        written[volume].filter { $0.kind == .chunk && $0.key == key }
    }

    /// The copies of a chunk, the one to be preferred first. What is said of it by what was written
    /// last, and not dropped itself, holds.
    private func copies(of key: Digest) -> [Copy] {
        var copies: [Copy] = []
        for volume in written.indices {
            if let newest = chunks(key, volume).max(by: { $0.sequence < $1.sequence }) {
                copies.append(Copy(volume: volume, newest: newest))
            }
        }
        copies.removeAll { $0.newest.sequence < bound(of: $0, path: [key]) }
        copies.sort {
            if $0.newest.writtenMs != $1.newest.writtenMs {
                return $0.newest.writtenMs > $1.newest.writtenMs
            }
            return $0.volume < $1.volume
        }
        return copies.filter { identity($0.newest) == identity(copies[0].newest) }
    }

    /// What is below is dropped: of this copy, if these are the keys up to it.
    private func bound(of copy: Copy, path: [Digest]) -> UInt64 {
        var bound: UInt64 = 0
        for drop in written[copy.volume] where drop.kind.isDrop {
            let isMeant =
                switch drop.kind {
                case .dropKey: path.contains(drop.key)
                case .expireKey: false
                case .dropRoot: drop.root == copy.newest.root && drop.space == copy.newest.space
                default: drop.space == copy.newest.space
                }
            if isMeant { bound = max(bound, drop.bound) }
        }
        return bound
    }

    /// The valid copy of a chunk whose place is before `limit`, and its shards; nil if there is none.
    private func find(_ key: Digest, below limit: UInt32 = .max) -> (Copy, [DiskEntry])? {
        for copy in copies(of: key) where copy.newest.chunkIndex < limit {
            if let shards = shards(of: copy) { return (copy, shards) }
            // An older copy knows nothing of that.
            if hasExpired(copy) { return nil }
        }
        return nil
    }

    private func shards(of copy: Copy) -> [DiskEntry]? {
        let newest = copy.newest
        guard let space = spaces[newest.space], let path = path(of: newest) else { return nil }
        let bound = bound(of: copy, path: path)
        let mine = chunks(newest.key, copy.volume).filter { identity($0) == identity(newest) }
        var shards: [DiskEntry] = []
        for shard in 0..<space.shardCount {
            let copies = mine.filter { $0.shard == shard }
            guard let last = copies.max(by: { $0.sequence < $1.sequence }),
                last.sequence >= bound, last.bodyBytes == space.shardBytes[shard]
            else { return nil }
            shards.append(last)
        }
        return hasExpired(copy) ? nil : shards
    }

    private func hasExpired(_ copy: Copy) -> Bool {
        let expiresMs = expiresMs(of: copy)
        return expiresMs != 0 && expiresMs < wallMs
    }

    /// What was told of the key after it was written, or what was written.
    private func expiresMs(of copy: Copy) -> UInt64 {
        let later = written[copy.volume].filter {
            $0.kind == .expireKey && $0.key == copy.newest.key && $0.bound > copy.newest.sequence
        }
        return (later.max { $0.bound < $1.bound } ?? copy.newest).expiresMs
    }

    /// The keys from the first to this one; nil if one of those before it is not valid.
    private func path(of entry: DiskEntry) -> [Digest]? {
        if entry.chunkIndex == 0 { return [entry.key] }
        guard let (parent, _) = find(entry.parent, below: entry.chunkIndex),
            parent.newest.chunkIndex == entry.chunkIndex - 1,
            parent.newest.root == entry.root, parent.newest.space == entry.space,
            let path = path(of: parent.newest)
        else { return nil }
        return path + [entry.key]
    }
}

/// Directories in which everything happens that the rules are about.
struct RandomLog {
    var disks: [SampleDisk]
    private(set) var spaces: [CacheSpace]
    /// Spaces that no segment describes, last.
    private let describedCount: Int
    private var keys: [Digest] = []
    private var roots: [Digest] = []
    /// What the clock shows: mostly it goes on.
    private var wallMs: UInt64 = 100

    /// The first one, and where all randomness comes from.
    var disk: SampleDisk {
        get { disks[0] }
        set { disks[0] = newValue }
    }

    init(seed: UInt64, volumes: Int = 1) {
        disks = (0..<volumes).map { SampleDisk(seed: seed &+ UInt64($0) << 32) }
        for volume in disks.indices { disks[volume].nextSequence += UInt64(volume * 7) }
        var disk = disks[0]
        defer { disks[0] = disk }
        spaces = [
            disk.space([16]), disk.space([16, 24]), disk.space([16, 16, 16]), disk.space([8]),
        ]
        describedCount = 3
        for _ in 0..<12 { keys.append(disk.digest()) }
        for _ in 0..<5 { roots.append(disk.digest()) }
    }

    var described: [Digest: CacheSpace] {
        Dictionary(uniqueKeysWithValues: spaces[..<describedCount].map { ($0.id, $0) })
    }

    private mutating func below(_ bound: Int) -> Int { disks[0].random.below(bound) }

    mutating func write(segments: Int) {
        for number in 1...segments {
            var groups = disks.map { _ in [[Written]]() }
            for volume in disks.indices {
                groups[volume] = [
                    spaces[..<describedCount].map { disks[volume].description(of: $0) }
                ]
            }
            for _ in 0..<(1 + below(6)) {
                var group = disks.map { _ in [Written]() }
                for _ in 0..<((1 + below(3)) * disks.count) { event(&group) }
                for volume in disks.indices where !group[volume].isEmpty {
                    groups[volume].append(group[volume])
                }
            }
            for volume in disks.indices {
                let isClosed = number < segments || below(2) == 0
                disks[volume].addSegment(
                    UInt64(number), groups[volume], isClosed: isClosed,
                    byteCount: disks.count * 256 << 10)
            }
        }
    }

    /// A key has mostly the same place: index and root follow from it, its parent is the one before.
    ///
    /// A chunk goes to one of the volumes, a drop to all of them.
    private mutating func event(_ group: inout [[Written]]) {
        let place = below(keys.count)
        let index = place % 4
        let isOdd = below(20) == 0
        let root = roots[isOdd ? below(roots.count) : place / 4]
        let space = spaces[isOdd ? below(spaces.count) : place / 4 % spaces.count]
        switch below(20) {
        case 0:
            return drop(.dropKey(keys[place], space: space.id, root: root, writtenMs: 1), &group)
        case 1 where below(3) == 0:
            return drop(.dropRoot(root, space: space.id, writtenMs: 1), &group)
        case 2 where below(6) == 0: return drop(.dropSpace(space.id, writtenMs: 1), &group)
        case 3:
            let expiry = DiskEntry.expireKey(
                keys[place], space: space.id, root: root,
                expiresMs: [0, 500, 1500][below(3)], writtenMs: 1)
            return drop(expiry, &group)
        default: break
        }
        let parent = index == 0 ? nil : keys[below(25) == 0 ? below(keys.count) : place - 1]
        let expiresMs: UInt64 = [0, 0, 0, 0, 0, 0, 500, 1500][below(8)]
        let volume = below(disks.count)
        wallMs += UInt64(below(3))
        let writtenMs = below(10) == 0 ? wallMs - UInt64(below(20)) : wallMs
        for shard in 0..<space.shardCount where below(12) > 0 {
            var written = disks[volume].chunk(
                keys[place], parent: parent, root: root, space: space.id, index: index,
                shard: shard, byteCount: space.shardBytes[shard] + (below(40) == 0 ? 1 : 0),
                expiresMs: expiresMs)
            written.entry.writtenMs = writtenMs
            group[volume].append(written)
        }
    }

    /// Sometimes one that is written again, with the bound that it had at first.
    private mutating func drop(_ entry: DiskEntry, _ group: inout [[Written]]) {
        let isAgain = below(3) == 0
        for volume in disks.indices {
            var entry = entry
            let all = disks[volume].written.map(\.entry.sequence)
            if isAgain, let first = all.first {
                entry.bound = first + UInt64(below(all.count + 1))
            }
            group[volume].append(Written(entry: entry, body: []))
        }
    }
}
