internal import KVIdentity

/// From chunk key to chunk: open addressing with linear probing, four bytes a bucket.
///
/// Keys are digests, so a part of them is the hash; it is mixed with a secret of this process,
/// since clients choose the keys. The table doubles when it is three quarters full, a few buckets
/// at each insertion, so that no call pays for all.
struct KeyIndex: ~Copyable {
    /// Where the chunks, and so their keys, are.
    typealias Chunks = SegmentedStorage<Chunk>

    private static let bucketsMovedPerInsertion = 32

    private let mixer: Mixer
    private var table = Table(bucketCount: 1024)
    /// What is moved into `table` bit by bit; without chunks when nothing is.
    private var old = Table(bucketCount: 1)
    private var moved = 0
    private var isMoving = false

    /// How many keys there are.
    var count: Int { table.count + old.count }

    init(secret: (UInt64, UInt64)) {
        mixer = Mixer(secret: secret)
    }

    /// The chunk with this key, or nil. - Complexity: O(1).
    func find(_ key: Digest, _ chunks: borrowing Chunks) -> UInt32? {
        let hash = mixer.hash(key)
        if let place = table.place(of: key, hash, chunks) { return table.buckets[place] }
        if !isMoving { return nil }
        return old.place(of: key, hash, chunks).map { old.buckets[$0] }
    }

    /// Adds a chunk whose key is not there yet.
    mutating func insert(_ chunk: UInt32, key: Digest, _ chunks: borrowing Chunks) {
        if isMoving { move(Self.bucketsMovedPerInsertion, chunks) }
        if (count + 1) * 4 > (table.mask + 1) * 3, !isMoving {
            var larger = Table(bucketCount: (table.mask + 1) * 2)
            swap(&table, &larger)
            old = larger
            moved = 0
            isMoving = true
        }
        table.put(chunk, mixer.hash(key))
    }

    /// Takes a chunk out.
    mutating func remove(_ chunk: UInt32, key: Digest, _ chunks: borrowing Chunks) {
        let hash = mixer.hash(key)
        if let place = table.place(of: key, hash, chunks) {
            precondition(table.buckets[place] == chunk, "another chunk under this key")
            table.clear(place, mixer, chunks)
        } else if isMoving, let place = old.place(of: key, hash, chunks) {
            precondition(old.buckets[place] == chunk, "another chunk under this key")
            old.clear(place, mixer, chunks)
        } else {
            preconditionFailure("removed a key that is not there")
        }
    }

    private mutating func move(_ buckets: Int, _ chunks: borrowing Chunks) {
        for _ in 0..<buckets {
            while old.buckets[moved] != Table.empty {
                let chunk = old.buckets[moved]
                old.clear(moved, mixer, chunks)
                table.put(chunk, mixer.hash(chunks[chunk].key))
            }
            moved += 1
            if moved <= old.mask { continue }
            old = Table(bucketCount: 1)
            isMoving = false
            return
        }
    }

    /// Turns a key into a hash that who doesn't know the secret can't choose.
    private struct Mixer {
        let secret: (UInt64, UInt64)

        init(secret: (UInt64, UInt64)) {
            self.secret = (secret.0, secret.1 | 1)
        }

        @inline(__always)
        func hash(_ key: Digest) -> Int {
            // All words count: keys that agree in some of them must not meet.
            let first = (key.words.0 ^ secret.0).multipliedFullWidth(by: key.words.1 ^ secret.1)
            let second = (key.words.2 ^ secret.1).multipliedFullWidth(by: key.words.3 ^ secret.0)
            return Int(truncatingIfNeeded: first.high ^ first.low ^ second.high ^ second.low)
        }
    }

    private struct Table: ~Copyable {
        static let empty = UInt32.max

        let buckets: UnsafeMutablePointer<UInt32>
        let mask: Int
        var count = 0

        init(bucketCount: Int) {
            buckets = .allocate(capacity: bucketCount)
            buckets.initialize(repeating: Self.empty, count: bucketCount)
            mask = bucketCount - 1
        }

        deinit { buckets.deallocate() }

        func place(of key: Digest, _ hash: Int, _ chunks: borrowing Chunks) -> Int? {
            var place = hash & mask
            while true {
                let chunk = buckets[place]
                if chunk == Self.empty { return nil }
                if chunks[chunk].key == key { return place }
                place = (place + 1) & mask
            }
        }

        mutating func put(_ chunk: UInt32, _ hash: Int) {
            var place = hash & mask
            while buckets[place] != Self.empty { place = (place + 1) & mask }
            buckets[place] = chunk
            count += 1
        }

        /// Empties a bucket and closes the gap, so that no tombstones slow later searches.
        mutating func clear(_ start: Int, _ mixer: Mixer, _ chunks: borrowing Chunks) {
            var gap = start
            var place = start
            while true {
                place = (place + 1) & mask
                let chunk = buckets[place]
                if chunk == Self.empty { break }
                let home = mixer.hash(chunks[chunk].key) & mask
                if (place - home) & mask >= (place - gap) & mask {
                    buckets[gap] = chunk
                    gap = place
                }
            }
            buckets[gap] = Self.empty
            count -= 1
        }
    }
}
