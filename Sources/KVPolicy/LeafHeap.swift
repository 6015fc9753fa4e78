/// The leaves of one queue as a binary heap: the lowest rank first.
///
/// Where each chunk stands is kept by the owner, in an array of places by chunk that all its heaps
/// share, so that a chunk is found in O(1) and stands in one heap at a time.
struct LeafHeap: Sendable {
    struct Node: Sendable {
        var rank: UInt64
        var chunk: UInt32
    }

    /// The place of a chunk that stands in no heap.
    static let none = UInt32.max

    private(set) var nodes: [Node] = []

    var first: Node? { nodes.first }

    /// Adds a chunk. - Complexity: O(log n).
    mutating func insert(_ chunk: UInt32, rank: UInt64, _ places: inout BlockArray<UInt32>) {
        nodes.append(Node(rank: rank, chunk: chunk))
        siftUp(nodes.count - 1, &places)
    }

    /// Takes a chunk out that stands here. - Complexity: O(log n).
    mutating func remove(_ chunk: UInt32, _ places: inout BlockArray<UInt32>) {
        let place = Int(places[Int(chunk)])
        places[Int(chunk)] = Self.none
        let last = nodes.removeLast()
        if place == nodes.count { return }
        nodes[place] = last
        places[Int(last.chunk)] = UInt32(place)
        siftDown(place, &places)
        siftUp(Int(places[Int(last.chunk)]), &places)
    }

    /// Changes the rank of a chunk that stands here. - Complexity: O(log n).
    mutating func update(_ chunk: UInt32, rank: UInt64, _ places: inout BlockArray<UInt32>) {
        let place = Int(places[Int(chunk)])
        nodes[place].rank = rank
        siftDown(place, &places)
        siftUp(Int(places[Int(chunk)]), &places)
    }

    private mutating func siftUp(_ start: Int, _ places: inout BlockArray<UInt32>) {
        var place = start
        let node = nodes[place]
        while place > 0 {
            let parent = (place - 1) / 2
            if nodes[parent].rank <= node.rank { break }
            nodes[place] = nodes[parent]
            places[Int(nodes[place].chunk)] = UInt32(place)
            place = parent
        }
        nodes[place] = node
        places[Int(node.chunk)] = UInt32(place)
    }

    private mutating func siftDown(_ start: Int, _ places: inout BlockArray<UInt32>) {
        var place = start
        let node = nodes[place]
        while true {
            var child = 2 * place + 1
            if child >= nodes.count { break }
            if child + 1 < nodes.count, nodes[child + 1].rank < nodes[child].rank { child += 1 }
            if node.rank <= nodes[child].rank { break }
            nodes[place] = nodes[child]
            places[Int(nodes[place].chunk)] = UInt32(place)
            place = child
        }
        nodes[place] = node
        places[Int(node.chunk)] = UInt32(place)
    }
}

/// The leaves of a group whose chunks stand in one of two queues.
struct LeafHeapPair: Sendable {
    private(set) var first = LeafHeap()
    private(set) var second = LeafHeap()

    /// The lowest rank in either.
    var leastRank: UInt64? { [first.first?.rank, second.first?.rank].compactMap { $0 }.min() }

    /// Adds a chunk to a queue's leaves, or takes it out of them; it isn't there, or is.
    mutating func set(
        _ chunk: UInt32, rank: UInt64, isSecond: Bool, _ isLeaf: Bool,
        _ places: inout BlockArray<UInt32>
    ) {
        switch (isSecond, isLeaf) {
        case (false, true): first.insert(chunk, rank: rank, &places)
        case (true, true): second.insert(chunk, rank: rank, &places)
        case (false, false): first.remove(chunk, &places)
        case (true, false): second.remove(chunk, &places)
        }
    }
}

/// Ranks chunks by the request that last moved them, and within it by depth, deepest first: what
/// "tail first" means, whatever the order of the calls.
struct RequestOrder: Sendable {
    private static let depthBits: UInt64 = 16
    private var sequence: UInt64 = 1

    /// What comes from now on ranks behind all that came.
    mutating func advance() { sequence += 1 }

    /// The rank of a chunk that is moved now.
    func rank(depth: UInt32) -> UInt64 {
        let mask = (UInt64(1) << Self.depthBits) - 1
        return sequence << Self.depthBits | (mask - min(mask, UInt64(depth)))
    }

    /// The rank that everything so far is at or below.
    var latest: UInt64 { (sequence + 1) << Self.depthBits - 1 }
}
