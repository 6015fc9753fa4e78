/// What has to happen when, earliest first. Entries are never removed before their time: who acts
/// on one checks whether it still means something.
struct DeadlineQueue {
    /// What comes due.
    enum Item: Equatable {
        case hold(UInt64)
        case writeLease(UInt64)
        case timeToLive(chunk: UInt32)
        case pin(chunk: UInt32)
    }

    private var heap: [(due: UInt64, item: Item)] = []

    /// When the earliest item is due.
    var earliest: UInt64? { heap.first?.due }

    /// How many entries wait, those that mean nothing any more included.
    var count: Int { heap.count }

    mutating func add(_ item: Item, due: UInt64) {
        heap.append((due, item))
        var place = heap.count - 1
        while place > 0, heap[place].due < heap[(place - 1) / 2].due {
            heap.swapAt(place, (place - 1) / 2)
            place = (place - 1) / 2
        }
    }

    /// Takes out the earliest item if it is due at `now`.
    mutating func next(dueAt now: UInt64) -> (due: UInt64, item: Item)? {
        guard let first = heap.first, first.due <= now else { return nil }
        heap.swapAt(0, heap.count - 1)
        heap.removeLast()
        var place = 0
        while true {
            var least = place
            for child in (2 * place + 1)...(2 * place + 2) where child < heap.count {
                if heap[child].due < heap[least].due { least = child }
            }
            if least == place { break }
            heap.swapAt(place, least)
            place = least
        }
        return first
    }

    /// Forgets entries that mean nothing any more.
    mutating func compact(keeping isLive: (UInt64, Item) -> Bool) {
        let live = heap.filter { isLive($0.due, $0.item) }
        heap.removeAll(keepingCapacity: true)
        for entry in live { add(entry.item, due: entry.due) }
    }
}
