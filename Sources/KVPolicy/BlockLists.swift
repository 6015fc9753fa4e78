/// Queues of blocks, linked through arrays by block number; a block stands in one of them at most.
struct BlockLists: Sendable {
    private static let nobody = UInt32.max

    private struct Link: Sendable {
        var previous = nobody
        var next = nobody
        var list: UInt8 = 0
    }

    private struct List: Sendable {
        var oldest = nobody
        var newest = nobody
        var count = 0
    }

    private var links: [Link] = []
    private var lists: [List]

    /// - Parameter count: lists are numbered from 1; 0 means none.
    init(count: Int) {
        lists = Array(repeating: List(), count: count + 1)
    }

    /// In which list the block stands, or 0.
    func list(of block: UInt32) -> UInt8 {
        Int(block) < links.count ? links[Int(block)].list : 0
    }

    func count(_ list: UInt8) -> Int { lists[Int(list)].count }

    /// Makes the block the newest of a list, wherever it stood. O(1).
    mutating func append(_ block: UInt32, to list: UInt8) {
        while links.count <= Int(block) { links.append(Link()) }
        remove(block)
        let newest = lists[Int(list)].newest
        links[Int(block)] = Link(previous: newest, next: Self.nobody, list: list)
        if newest == Self.nobody {
            lists[Int(list)].oldest = block
        } else {
            links[Int(newest)].next = block
        }
        lists[Int(list)].newest = block
        lists[Int(list)].count += 1
    }

    /// Takes the block out of its list, if it stands in one. O(1).
    mutating func remove(_ block: UInt32) {
        let link = links[Int(block)]
        if link.list == 0 { return }
        if link.previous == Self.nobody {
            lists[Int(link.list)].oldest = link.next
        } else {
            links[Int(link.previous)].next = link.next
        }
        if link.next == Self.nobody {
            lists[Int(link.list)].newest = link.previous
        } else {
            links[Int(link.next)].previous = link.previous
        }
        lists[Int(link.list)].count -= 1
        links[Int(block)] = Link()
    }

    /// Takes the oldest block of a list out. O(1).
    mutating func popOldest(_ list: UInt8) -> UInt32? {
        let block = lists[Int(list)].oldest
        if block == Self.nobody { return nil }
        remove(block)
        return block
    }
}
