/// Chunks by class and by when they were used last: *spans* of time, each no longer than an eighth
/// of its age, with how many chunks of each class were used last in it, and with the leaves among
/// them as linked lists.
///
/// As spans grow old they are joined, so that there are about nine for each doubling of the age.
/// Time must not go back. Metadata: 8 bytes a chunk; spans are a few hundred at most.
struct UseHistory: Sendable {
    static let nobody = UInt32.max
    /// Spans are at least this long, in nanoseconds.
    static let shortestNs: UInt64 = 125_000_000
    private static let spansPerAge: UInt64 = 8

    struct Span: Sendable {
        /// When it begins; it ends where the next begins.
        var start: UInt64
        /// Up to where in the age bins its chunks were counted as exposed.
        var position = 0.0
    }

    private struct List: Sendable {
        var first = nobody
        var last = nobody
    }

    private struct Link: Sendable {
        var previous = nobody
        var next = nobody
    }

    let classCount: Int
    let listCount: Int
    private let wordCount: Int
    /// Oldest first.
    private(set) var spans: [Span] = []
    /// Chunks that were used last in a span, leaves or not, ghosts too; by span and class.
    private(set) var counts: [Int32] = []
    private var lists: [List] = []
    /// A set bit is a list that isn't empty; by span.
    private var occupied: [UInt64] = []
    private var links = BlockArray<Link>()
    private var joinAt = 64
    private var lastFound = 0

    /// - Parameters:
    ///   - classCount: classes that chunks are counted by.
    ///   - listCount: lists of leaves in each span.
    init(classCount: Int, listCount: Int) {
        self.classCount = classCount
        self.listCount = listCount
        wordCount = (listCount + 63) / 64
    }

    /// The number of the span that a time is in. O(log spans), O(1) for the one found last.
    mutating func span(of time: UInt64) -> Int {
        if lastFound < spans.count, spans[lastFound].start <= time,
            lastFound + 1 == spans.count || time < spans[lastFound + 1].start
        {
            return lastFound
        }
        var low = 0
        var high = spans.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if spans[middle].start <= time { low = middle } else { high = middle }
        }
        lastFound = low
        return low
    }

    mutating func count(_ kind: Int, inSpan span: Int, _ change: Int32) {
        counts[span * classCount + kind] += change
    }

    /// Time has come to `now`: begins a span if the last is long enough, and joins old ones. Places
    /// of lists are others afterwards.
    mutating func advance(to now: UInt64) {
        if let last = spans.last, now < last.start + Self.shortestNs { return }
        if spans.count >= joinAt { join(now) }
        spans.append(Span(start: now))
        counts.append(contentsOf: repeatElement(0, count: classCount))
        lists.append(contentsOf: repeatElement(List(), count: listCount))
        occupied.append(contentsOf: repeatElement(0, count: wordCount))
    }

    mutating func setPosition(_ position: Double, ofSpan span: Int) {
        spans[span].position = position
    }

    // MARK: Leaves

    /// The first leaf of a list, by the list's place.
    func first(_ place: Int) -> UInt32? {
        let first = lists[place].first
        return first == Self.nobody ? nil : first
    }

    /// Calls `body` with span and list of each list that has leaves, oldest span first.
    func forEachList(_ body: (_ span: Int, _ list: Int) -> Void) {
        for span in spans.indices {
            for word in 0..<wordCount {
                var bits = occupied[span * wordCount + word]
                while bits != 0 {
                    body(span, word * 64 + bits.trailingZeroBitCount)
                    bits &= bits - 1
                }
            }
        }
    }

    /// Adds a leaf to a list, before or behind those that are there. O(log spans).
    /// - Returns: the list's place.
    mutating func link(_ chunk: UInt32, _ list: Int, at time: UInt64, inFront: Bool) -> Int {
        links.extend(to: Int(chunk), with: Link())
        let span = span(of: time)
        let place = span * listCount + list
        let old = lists[place]
        if old.first == Self.nobody {
            links[Int(chunk)] = Link()
            lists[place] = List(first: chunk, last: chunk)
            occupied[span * wordCount + list / 64] |= 1 << UInt64(list % 64)
        } else if inFront {
            links[Int(chunk)] = Link(next: old.first)
            links[Int(old.first)].previous = chunk
            lists[place].first = chunk
        } else {
            links[Int(chunk)] = Link(previous: old.last)
            links[Int(old.last)].next = chunk
            lists[place].last = chunk
        }
        return place
    }

    /// Takes a leaf out of its list. O(log spans).
    mutating func unlink(_ chunk: UInt32, _ list: Int, at time: UInt64) {
        let span = span(of: time)
        let place = span * listCount + list
        let link = links[Int(chunk)]
        if link.previous == Self.nobody {
            lists[place].first = link.next
        } else {
            links[Int(link.previous)].next = link.next
        }
        if link.next == Self.nobody {
            lists[place].last = link.previous
        } else {
            links[Int(link.next)].previous = link.previous
        }
        if lists[place].first == Self.nobody {
            occupied[span * wordCount + list / 64] &= ~(1 << UInt64(list % 64))
        }
    }

    // MARK: Joining

    private mutating func join(_ now: UInt64) {
        var kept = UseHistory(classCount: classCount, listCount: listCount)
        for span in spans.indices {
            let end = span + 1 < spans.count ? spans[span + 1].start : now
            let isJoined =
                kept.spans.last.map { end - $0.start <= (now - end) / Self.spansPerAge } ?? false
            if !isJoined {
                kept.spans.append(spans[span])
                kept.counts.append(contentsOf: counts[row(span, classCount)])
                kept.lists.append(contentsOf: lists[row(span, listCount)])
                kept.occupied.append(contentsOf: occupied[row(span, wordCount)])
                continue
            }
            let last = kept.spans.count - 1
            for kind in 0..<classCount {
                kept.counts[last * classCount + kind] += counts[span * classCount + kind]
            }
            for word in 0..<wordCount {
                kept.occupied[last * wordCount + word] |= occupied[span * wordCount + word]
            }
            for list in 0..<listCount {
                append(lists[span * listCount + list], to: &kept.lists[last * listCount + list])
            }
        }
        spans = kept.spans
        counts = kept.counts
        lists = kept.lists
        occupied = kept.occupied
        joinAt = max(64, spans.count * 5 / 4 + 8)
        lastFound = 0
    }

    private func row(_ span: Int, _ width: Int) -> Range<Int> { span * width..<(span + 1) * width }

    private mutating func append(_ younger: List, to older: inout List) {
        if younger.first == Self.nobody { return }
        if older.first == Self.nobody {
            older = younger
            return
        }
        links[Int(older.last)].next = younger.first
        links[Int(younger.first)].previous = older.last
        older.last = younger.last
    }
}
