/// A cache policy in the form of its paper: it decides over any block and knows nothing of
/// prefixes.
///
/// Figures in the literature come from caches like these, so simulations need them for comparison;
/// the store can't use them, since they evict chunks that others follow. A request hits its longest
/// run of leading blocks that ``contains(_:)`` knows; then ``access(_:)`` is called for all its
/// full blocks, the last one first. Blocks are small integers.
public protocol BlockCache: Sendable {
    /// Whether the block is cached. O(1).
    func contains(_ block: UInt32) -> Bool
    /// The block is used, and cached if it wasn't. O(1) amortised.
    mutating func access(_ block: UInt32)
}

/// ARC as published: Megiddo and Modha, FAST 2003.
public struct BlockARC: BlockCache {
    private let capacity: Int
    private var lists = BlockLists(count: 4)
    private var share = 0.0

    private static let recent: UInt8 = 1
    private static let frequent: UInt8 = 2
    private static let recentGhosts: UInt8 = 3
    private static let frequentGhosts: UInt8 = 4

    /// An empty cache. - Parameter capacity: in blocks, at least 1.
    public init(capacity: Int) {
        self.capacity = max(1, capacity)
    }

    public func contains(_ block: UInt32) -> Bool {
        let list = lists.list(of: block)
        return list == Self.recent || list == Self.frequent
    }

    public mutating func access(_ block: UInt32) {
        let list = lists.list(of: block)
        let recentGhosts = Double(lists.count(Self.recentGhosts))
        let frequentGhosts = Double(lists.count(Self.frequentGhosts))
        switch list {
        case Self.recent, Self.frequent:
            break
        case Self.recentGhosts:
            share = min(Double(capacity), share + max(1, frequentGhosts / recentGhosts))
            replace(forFrequentGhost: false)
        case Self.frequentGhosts:
            share = max(0, share - max(1, recentGhosts / frequentGhosts))
            replace(forFrequentGhost: true)
        default:
            makeRoom()
        }
        lists.append(block, to: list == 0 ? Self.recent : Self.frequent)
    }

    private mutating func makeRoom() {
        let recent = lists.count(Self.recent)
        let total = (1...4).reduce(0) { $0 + lists.count(UInt8($1)) }
        if recent + lists.count(Self.recentGhosts) == capacity {
            if recent < capacity {
                _ = lists.popOldest(Self.recentGhosts)
                replace(forFrequentGhost: false)
            } else {
                _ = lists.popOldest(Self.recent)
            }
        } else if total >= capacity {
            if total == 2 * capacity { _ = lists.popOldest(Self.frequentGhosts) }
            replace(forFrequentGhost: false)
        }
    }

    private mutating func replace(forFrequentGhost: Bool) {
        let recent = Double(lists.count(Self.recent))
        if recent > 0, recent > share || (forFrequentGhost && recent == share) {
            if let block = lists.popOldest(Self.recent) {
                lists.append(block, to: Self.recentGhosts)
            }
        } else if let block = lists.popOldest(Self.frequent) {
            lists.append(block, to: Self.frequentGhosts)
        }
    }
}

/// S3-FIFO as published: Yang et al., SOSP 2023. The small queue has a tenth of the capacity, the
/// ghosts nine tenths; two uses in the small queue earn a place in the main one.
public struct BlockS3FIFO: BlockCache {
    private let capacity: Int
    private let smallCapacity: Int
    private let ghostCapacity: Int
    private var lists = BlockLists(count: 3)
    private var uses: [UInt8] = []

    private static let small: UInt8 = 1
    private static let main: UInt8 = 2
    private static let ghosts: UInt8 = 3

    /// An empty cache. - Parameter capacity: in blocks, at least 1.
    public init(capacity: Int) {
        self.capacity = max(1, capacity)
        smallCapacity = max(1, self.capacity / 10)
        ghostCapacity = self.capacity * 9 / 10
    }

    public func contains(_ block: UInt32) -> Bool {
        let list = lists.list(of: block)
        return list == Self.small || list == Self.main
    }

    public mutating func access(_ block: UInt32) {
        if contains(block) {
            uses[Int(block)] = min(3, uses[Int(block)] + 1)
            return
        }
        while lists.count(Self.small) + lists.count(Self.main) >= capacity { evict() }
        let isGhost = lists.list(of: block) == Self.ghosts
        lists.append(block, to: isGhost ? Self.main : Self.small)
        while uses.count <= Int(block) { uses.append(0) }
        uses[Int(block)] = 0
    }

    private mutating func evict() {
        if lists.count(Self.small) >= smallCapacity || lists.count(Self.main) == 0 {
            while let block = lists.popOldest(Self.small) {
                if uses[Int(block)] < 2 {
                    lists.append(block, to: Self.ghosts)
                    if lists.count(Self.ghosts) > ghostCapacity {
                        _ = lists.popOldest(Self.ghosts)
                    }
                    return
                }
                uses[Int(block)] = 0
                lists.append(block, to: Self.main)
            }
        }
        while let block = lists.popOldest(Self.main) {
            if uses[Int(block)] == 0 { return }
            uses[Int(block)] -= 1
            lists.append(block, to: Self.main)
        }
    }
}
