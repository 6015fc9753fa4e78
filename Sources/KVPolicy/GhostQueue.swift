/// Fingerprints of chunks that are gone, oldest first out, with something remembered of each.
///
/// Bounded by whoever owns it with ``trim(to:)``. It grows in small steps: no call moves all that is
/// there, because a store waits for each. The nodes of one list stand in blocks that never move;
/// they are found through many small tables, chosen by the fingerprint.
struct GhostQueue<Memory: Sendable>: Sendable {
    private struct Node: Sendable {
        var fingerprint: UInt64
        /// Of older and younger ghosts, or ``nobody``; of free nodes, `younger` is the next one.
        var older: UInt32
        var younger: UInt32
        /// nil of a free node.
        var memory: Memory?
    }

    private static var nobody: UInt32 { .max }
    private static var blockShift: UInt32 { 10 }
    private static var tableCount: UInt64 { 1024 }

    private var blocks: [[Node]] = []
    private var tables: [[UInt64: UInt32]] = []
    private var oldest = nobody
    private var youngest = nobody
    private var free = nobody
    private(set) var count = 0

    /// Nodes in memory, free ones included: as many as there were ghosts at a time.
    private(set) var nodeCount = 0

    /// Ghosts in the table that has the most.
    var largestTable: Int { tables.map(\.count).max() ?? 0 }

    /// Adds a ghost as the youngest; one that is there already becomes the youngest.
    /// - Complexity: O(1) expected.
    mutating func append(_ fingerprint: UInt64, _ memory: Memory) {
        _ = take(fingerprint)
        if tables.isEmpty { tables = Array(repeating: [:], count: Int(Self.tableCount)) }
        let node = newNode(
            Node(
                fingerprint: fingerprint, older: youngest, younger: Self.nobody, memory: memory))
        if youngest == Self.nobody { oldest = node } else { change(youngest) { $0.younger = node } }
        youngest = node
        tables[table(fingerprint)][fingerprint] = node
        count += 1
    }

    /// Takes a ghost out. - Complexity: O(1) expected.
    mutating func take(_ fingerprint: UInt64) -> Memory? {
        if count == 0 { return nil }
        guard let index = tables[table(fingerprint)].removeValue(forKey: fingerprint) else {
            return nil
        }
        let node = node(index)
        if node.older == Self.nobody {
            oldest = node.younger
        } else {
            change(node.older) { $0.younger = node.younger }
        }
        if node.younger == Self.nobody {
            youngest = node.older
        } else {
            change(node.younger) { $0.older = node.older }
        }
        let next = free
        change(index) {
            $0.memory = nil
            $0.younger = next
        }
        free = index
        count -= 1
        return node.memory
    }

    /// What is remembered of a ghost, which stays. - Complexity: O(1) expected.
    func find(_ fingerprint: UInt64) -> Memory? {
        if count == 0 { return nil }
        return tables[table(fingerprint)][fingerprint].flatMap { node($0).memory }
    }

    /// Forgets the oldest until `limit` are left. - Complexity: O(1) expected for each.
    mutating func trim(to limit: Int) {
        while count > max(0, limit) { _ = popOldest() }
    }

    /// Takes the oldest ghost out. - Complexity: O(1) expected.
    mutating func popOldest() -> Memory? {
        oldest == Self.nobody ? nil : take(node(oldest).fingerprint)
    }

    // MARK: Nodes

    private func table(_ fingerprint: UInt64) -> Int {
        // A client may choose all of its keys' first bits.
        Int((fingerprint &* 0x9E37_79B9_7F4A_7C15) >> 54)
    }

    private func node(_ index: UInt32) -> Node {
        blocks[Int(index >> Self.blockShift)][Int(index & (1 << Self.blockShift - 1))]
    }

    private mutating func change(_ index: UInt32, _ body: (inout Node) -> Void) {
        body(&blocks[Int(index >> Self.blockShift)][Int(index & (1 << Self.blockShift - 1))])
    }

    private mutating func newNode(_ node: Node) -> UInt32 {
        if free != Self.nobody {
            let index = free
            free = self.node(index).younger
            change(index) { $0 = node }
            return index
        }
        if nodeCount & (1 << Int(Self.blockShift) - 1) == 0 {
            var block: [Node] = []
            block.reserveCapacity(1 << Int(Self.blockShift))
            blocks.append(block)
        }
        blocks[blocks.count - 1].append(node)
        nodeCount += 1
        return UInt32(nodeCount - 1)
    }
}
