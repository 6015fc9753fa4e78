/// A piece while its pairs are being joined: a linked list of tokens and a heap of the pairs that
/// may be joined next, so that a piece of a million characters takes no more than n log n.
struct BytePairWord {
    private struct Symbol {
        var id: UInt32
        var previous: Int32
        var next: Int32
        var isAlive = true
    }

    /// A pair that may be joined: by rank, then from left to right.
    private struct Candidate {
        let order: UInt64
        let id: UInt32

        init(rank: UInt32, position: Int32, id: UInt32) {
            order = UInt64(rank) << 32 | UInt64(position)
            self.id = id
        }

        var position: Int { Int(truncatingIfNeeded: order & 0xFFFF_FFFF) }
    }

    private var symbols: [Symbol]
    private var heap: [Candidate] = []

    init(_ ids: [UInt32]) {
        symbols = ids.enumerated().map { index, id in
            Symbol(
                id: id, previous: Int32(index) - 1,
                next: index + 1 < ids.count ? Int32(index) + 1 : -1)
        }
    }

    /// Joins pairs until no merge applies.
    mutating func mergeAll(_ merges: [UInt64: BytePairModel.Merge]) {
        guard symbols.count > 1 else { return }
        for left in 0..<symbols.count - 1 { push(left, merges) }
        while let candidate = pop() {
            let left = candidate.position
            let right = Int(symbols[left].next)
            guard symbols[left].isAlive, right >= 0,
                let merge = merges[BytePairModel.key(symbols[left].id, symbols[right].id)],
                merge.id == candidate.id
            else { continue }
            join(left, right, id: merge.id)
            if symbols[left].previous >= 0 { push(Int(symbols[left].previous), merges) }
            push(left, merges)
        }
    }

    /// Appends the tokens that are left.
    func append(to ids: inout [UInt32]) {
        for symbol in symbols where symbol.isAlive { ids.append(symbol.id) }
    }

    private mutating func join(_ left: Int, _ right: Int, id: UInt32) {
        let next = symbols[right].next
        symbols[left].id = id
        symbols[left].next = next
        symbols[right].isAlive = false
        if next >= 0 { symbols[Int(next)].previous = Int32(left) }
    }

    // MARK: - The heap

    /// Puts the pair that begins at `left` into the heap if there is a merge for it.
    private mutating func push(_ left: Int, _ merges: [UInt64: BytePairModel.Merge]) {
        let right = Int(symbols[left].next)
        guard right >= 0,
            let merge = merges[BytePairModel.key(symbols[left].id, symbols[right].id)]
        else { return }
        heap.append(Candidate(rank: merge.rank, position: Int32(left), id: merge.id))
        var child = heap.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard heap[child].order < heap[parent].order else { return }
            heap.swapAt(child, parent)
            child = parent
        }
    }

    private mutating func pop() -> Candidate? {
        guard let last = heap.popLast() else { return nil }
        guard let first = heap.first else { return last }
        heap[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2]
            where child < heap.count && heap[child].order < heap[least].order {
                least = child
            }
            guard least != parent else { return first }
            heap.swapAt(least, parent)
            parent = least
        }
    }
}
