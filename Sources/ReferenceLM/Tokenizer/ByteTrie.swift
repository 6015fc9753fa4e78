/// A tree of byte strings that finds the longest of them at a place in a text.
struct ByteTrie: Sendable {
    /// The place in the tree that a beginning of strings leads to.
    typealias Node = Int

    static let root: Node = 0

    private var edges: [Int: Node] = [:]
    private var ids: [UInt32?] = [nil]
    private var isFirst = [Bool](repeating: false, count: 256)

    var isEmpty: Bool { edges.isEmpty }

    /// Adds a string unless it is there already; an empty one is left out, for it would be found
    /// everywhere.
    mutating func insert(_ bytes: [UInt8], id: UInt32) {
        guard let first = bytes.first else { return }
        isFirst[Int(first)] = true
        var node = Self.root
        for byte in bytes {
            let edge = Self.edge(node, byte)
            if let next = edges[edge] {
                node = next
            } else {
                ids.append(nil)
                node = ids.count - 1
                edges[edge] = node
            }
        }
        if ids[node] == nil { ids[node] = id }
    }

    /// Where a beginning leads; nil if no string begins so.
    func node(after prefix: [UInt8]) -> Node? {
        var node = Self.root
        for byte in prefix {
            guard let next = edges[Self.edge(node, byte)] else { return nil }
            node = next
        }
        return node
    }

    /// The first place at or after `start` where one of the strings stands, and the longest there.
    ///
    /// Takes time in proportion to the bytes it passes times the longest string, at worst.
    func firstMatch(in bytes: [UInt8], from start: Int) -> (Range<Int>, UInt32)? {
        for place in start..<bytes.count where isFirst[Int(bytes[place])] {
            if let (end, id) = longestMatch(in: bytes[place...], from: Self.root) {
                return (place..<end, id)
            }
        }
        return nil
    }

    /// The longest string that goes on from a node with the beginning of `bytes`, at least one of
    /// them, and where it ends.
    func longestMatch(in bytes: ArraySlice<UInt8>, from node: Node) -> (end: Int, id: UInt32)? {
        var longest: (end: Int, id: UInt32)?
        var node = node
        for (place, byte) in zip(bytes.indices, bytes) {
            guard let next = edges[Self.edge(node, byte)] else { break }
            node = next
            if let id = ids[node] { longest = (place + 1, id) }
        }
        return longest
    }

    private static func edge(_ node: Node, _ byte: UInt8) -> Int { node << 8 | Int(byte) }
}
