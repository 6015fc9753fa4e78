package import KVPolicy

/// Several servers, each with a memory of its own, before one disk that all of them write and read.
///
/// A memory is that of ``PolicyReplay``: leaves go first, by the server's own policy. What is stored
/// anywhere is written to the disk at once, unless it is there; a request finds the longest run of
/// chunks that are in its server's memory or on the disk, and brings those of the disk to memory as far
/// as they fit beside each other. What another server's memory has is of no use to it.
///
/// The disk is ``CoreReplay``'s log with records of equal size: segments that are filled in turn. When
/// there are too many, the sparsest is emptied if less than a quarter of it is alive; else the oldest:
/// of its chunks that some server has used since they were written, half a segment is written again, the
/// most recently used first. The others lose their place. What some memory still has and uses is written
/// once more; what no memory has is gone, with all that follows it.
///
/// Unlike the core's log this one counts chunks, not bytes, and moves chunks without a memory in between;
/// the tests say how far the two are apart.
///
/// O(1) a reference, and the policy; what is given up costs as much as chunks follow it in the trace. 4
/// bytes a different chunk and server, 30 a different chunk.
package struct SharedDiskReplay {
    private static let none = UInt32.max

    /// Different chunks times servers, at most.
    package static let entriesMaximum = 1 << 28

    private let trace: Trace
    private let routes: [UInt16]
    private let storesPartial: Bool
    private var hints: [ReuseHint]?

    private var nodes: [Node]
    private var disk: Disk

    /// By chunk: servers that have it in memory, and that know it.
    private var residentCounts: [UInt16]
    private var knownCounts: [UInt16]
    /// By chunk: used since it was written; and when it was used last.
    private var isHot: [Bool]
    private var lastUses: [UInt64]
    private var clock: UInt64 = 0
    /// By chunk: the trees that the trace's chunks form.
    private var firstChildren: [UInt32]
    private var nextSiblings: [UInt32]
    /// Waits to be written.
    private var queue: [UInt32] = []

    private var result: CoreReplay.Result

    /// Empty memories and an empty disk.
    ///
    /// - Parameters:
    ///   - routes: by request the server that gets it, of `servers`.
    ///   - memoryChunks: of each server.
    ///   - diskChunks: of the disk; the segment being filled comes on top. 0 is no disk.
    ///   - segmentChunks: nil for the core's: a 64th of the disk, at least 64.
    package init(
        _ trace: Trace, routes: [UInt16], servers: Int, memoryChunks: Int, diskChunks: Int,
        segmentChunks: Int? = nil, storesPartial: Bool = false, makePolicy: () -> any EvictionPolicy
    ) {
        precondition(routes.count == trace.requests.count, "one server for each request")
        self.trace = trace
        self.routes = routes
        self.storesPartial = storesPartial
        let count = trace.distinctCount
        nodes = (0..<servers).map { _ in
            Node(policy: makePolicy(), capacity: memoryChunks, chunkCount: count)
        }
        disk = Disk(
            capacity: diskChunks, segmentChunks: segmentChunks ?? max(64, diskChunks / 64),
            chunkCount: count)
        residentCounts = Array(repeating: 0, count: count)
        knownCounts = Array(repeating: 0, count: count)
        isHot = Array(repeating: false, count: count)
        lastUses = Array(repeating: 0, count: count)
        firstChildren = Array(repeating: Self.none, count: count)
        nextSiblings = Array(repeating: Self.none, count: count)
        for chunk in (0..<count).reversed() where trace.parents[chunk] != Trace.none {
            let parent = Int(trace.parents[chunk])
            nextSiblings[chunk] = firstChildren[parent]
            firstChildren[parent] = UInt32(chunk)
        }
        result = CoreReplay.Result(trace)
    }

    /// - Throws: `CoreReplay.SizeError` if so many servers and chunks are too many.
    package static func check(_ trace: Trace, servers: Int) throws {
        if trace.distinctCount * servers > entriesMaximum {
            throw CoreReplay.SizeError(
                description:
                    "\(servers) servers and \(trace.distinctCount) different chunks are too many for "
                    + "a shared disk (their product may be \(entriesMaximum)); take fewer servers, or "
                    + "larger chunks (--chunk-tokens)")
        }
    }

    /// - Throws: `CoreReplay.SizeError` if a server's share of the disk is smaller than its memory: a log
    ///   of so few segments is not modelled.
    package static func check(memoryChunks: Int, diskChunks: Int) throws {
        if diskChunks < memoryChunks {
            throw CoreReplay.SizeError(
                description:
                    "a shared disk of \(diskChunks) chunks a server is smaller than the memory of "
                    + "\(memoryChunks) before it; take one that is at least as large")
        }
    }

    /// Replays the whole trace.
    ///
    /// - Parameters:
    ///   - hints: by request what it says of the time after it; nil for what the trace has.
    ///   - found: is told of each request that could find anything.
    package mutating func run(
        hints: [ReuseHint]? = nil, progress: (Double) -> Void = { _ in },
        found: OnFound = { _, _ in }
    ) -> CoreReplay.Result {
        self.hints = hints
        for (number, request) in trace.requests.enumerated() {
            if number % 1024 == 0 { progress(Double(number) / Double(trace.requests.count)) }
            let path = trace.chunks(of: request, storesPartial: storesPartial)
            if path.isEmpty { continue }
            let hits = replay(number, path, on: Int(routes[number]))
            result.found.count(hits: hits.all, of: request, chunkTokens: trace.chunkTokens)
            result.memoryHits += hits.all - hits.onDisk
            result.diskHits += hits.onDisk
            result.diskHitTokens += hits.tokens(of: request, chunkTokens: trace.chunkTokens).onDisk
            found(number, hits)
        }
        result.onDiskAtEnd = disk.count
        return result
    }

    // MARK: A request

    private mutating func begin(_ number: Int, length: Int, isRefresh: Bool, on node: Int) {
        let request = trace.requests[number]
        nodes[node].policy.begin(
            PolicyRequest(
                now: request.nanoseconds + 1, hint: hints?[number] ?? ReuseHint(request.hint),
                length: length, isRefresh: isRefresh))
    }

    private mutating func replay(_ number: Int, _ path: ArraySlice<UInt32>, on node: Int) -> Hits {
        var inMemory = path.startIndex
        while inMemory < path.endIndex, nodes[node].hasResident(path[inMemory]) { inMemory += 1 }
        var missing = inMemory
        while missing < path.endIndex, disk.has(path[missing]) { missing += 1 }
        let found = path[..<missing]
        begin(number, length: path.count, isRefresh: false, on: node)
        for chunk in path[inMemory..<missing] where !nodes[node].knows(chunk) {
            learn(chunk, isResident: false, on: node)
        }
        nodes[node].touch(found)
        use(found)
        // The path stays while more of it is loaded, and stored.
        var tip = inMemory > path.startIndex ? path[inMemory - 1] : Self.none
        nodes[node].hold(tip)
        var loaded = inMemory
        while loaded < missing, load(path[loaded], on: node) {
            tip = path[loaded]
            loaded += 1
        }
        nodes[node].hold(Self.none)
        drainQueue()
        let hits = Hits(all: found.count, onDisk: missing - inMemory)
        if missing == path.endIndex || loaded < missing { return hits }
        nodes[node].hold(tip)
        begin(number, length: path.count, isRefresh: true, on: node)
        nodes[node].touch(found)
        var stored = missing
        while stored < path.endIndex, store(path[stored], on: node) { stored += 1 }
        for chunk in path[missing..<stored] where !disk.has(chunk) { queue.append(chunk) }
        drainQueue()
        nodes[node].hold(Self.none)
        return hits
    }

    /// Marks chunks as used, and has those written again that lost their place on the disk.
    private mutating func use(_ run: ArraySlice<UInt32>) {
        for chunk in run.reversed() {
            clock += 1
            lastUses[Int(chunk)] = clock
            isHot[Int(chunk)] = true
        }
        for chunk in run where !disk.has(chunk) { queue.append(chunk) }
    }

    // MARK: Memories

    private mutating func learn(_ chunk: UInt32, isResident: Bool, on node: Int) {
        nodes[node].learn(
            chunk, parent: trace.parents[Int(chunk)], isResident: isResident,
            fingerprint: trace.fingerprints[Int(chunk)])
        knownCounts[Int(chunk)] += 1
        if isResident { becameResident(chunk, on: node) }
    }

    private mutating func becameResident(_ chunk: UInt32, on node: Int) {
        residentCounts[Int(chunk)] += 1
        let parent = trace.parents[Int(chunk)]
        if parent != Trace.none { nodes[node].addResidentChild(to: parent) }
        nodes[node].hold(chunk)
    }

    /// Brings a chunk from the disk, and holds it; false, and nothing changed but evictions, if there is
    /// no room.
    private mutating func load(_ chunk: UInt32, on node: Int) -> Bool {
        if !makeRoom(on: node) { return false }
        nodes[node].setResident(chunk, true)
        becameResident(chunk, on: node)
        return true
    }

    /// Stores a chunk that was computed, and holds it; false likewise.
    private mutating func store(_ chunk: UInt32, on node: Int) -> Bool {
        if !makeRoom(on: node) { return false }
        learn(chunk, isResident: true, on: node)
        result.sealedChunks += 1
        return true
    }

    private mutating func makeRoom(on node: Int) -> Bool {
        while nodes[node].count >= nodes[node].capacity {
            guard let victim = nodes[node].victim else { return false }
            evict(victim, on: node)
        }
        return true
    }

    private mutating func evict(_ chunk: UInt32, on node: Int) {
        residentCounts[Int(chunk)] -= 1
        let parent = trace.parents[Int(chunk)]
        if disk.has(chunk) {
            nodes[node].setResident(chunk, false)
            if parent != Trace.none { nodes[node].removeResidentChild(from: parent) }
            return
        }
        // What follows it on the disk can't be found from here any more; nor from anywhere, if this
        // was the last memory that had it.
        let isLast = residentCounts[Int(chunk)] == 0
        for other in stored(below: chunk).reversed() {
            if nodes[node].knows(other) { forget(other, wasEvicted: true, on: node) }
            if isLast { disk.remove(other) }
        }
        nodes[node].count -= 1
        if parent != Trace.none { nodes[node].removeResidentChild(from: parent) }
        forget(chunk, wasEvicted: true, on: node)
    }

    private mutating func forget(_ chunk: UInt32, wasEvicted: Bool, on node: Int) {
        nodes[node].forget(chunk, wasEvicted: wasEvicted)
        knownCounts[Int(chunk)] -= 1
    }

    /// What follows a chunk and is in some memory or on the disk, parents first.
    private func stored(below top: UInt32) -> [UInt32] {
        var order: [UInt32] = []
        var place = -1
        while place < order.count {
            var child = firstChildren[Int(place < 0 ? top : order[place])]
            while child != Self.none {
                if disk.has(child) || residentCounts[Int(child)] > 0 { order.append(child) }
                child = nextSiblings[Int(child)]
            }
            place += 1
        }
        return order
    }

    // MARK: The disk

    private mutating func drainQueue() {
        if disk.capacity == 0 {
            queue.removeAll(keepingCapacity: true)
            return
        }
        // What is written may push out what must be written again; not for ever, though.
        let most = queue.count + disk.capacity
        var next = 0
        while next < min(queue.count, most) {
            let chunk = queue[next]
            next += 1
            // It may be there twice, or be gone meanwhile.
            if disk.has(chunk) || residentCounts[Int(chunk)] == 0 { continue }
            write(chunk)
            while disk.isTooLong { reclaim() }
        }
        queue.removeAll(keepingCapacity: true)
    }

    private mutating func write(_ chunk: UInt32) {
        disk.append(chunk)
        isHot[Int(chunk)] = false
        result.writtenChunks += 1
    }

    /// Gives up a segment; what is written again goes to the one being filled.
    private mutating func reclaim() {
        let (segment, keepsAll) = disk.takeVictim()
        let chunks = segment.chunks.filter { disk.isIn(segment.number, $0) }
        var kept = Set(chunks)
        if !keepsAll {
            let hot = kept.filter { isHot[Int($0)] }.sorted {
                lastUses[Int($0)] > lastUses[Int($1)]
            }
            kept = Set(hot.prefix(disk.segmentChunks / 2))
        }
        for chunk in chunks where disk.isIn(segment.number, chunk) {
            let isInMemory = residentCounts[Int(chunk)] > 0
            if kept.contains(chunk) {
                disk.remove(chunk)
                write(chunk)
                result.movedChunks += 1
            } else if isInMemory {
                losePlace(chunk)
                if isHot[Int(chunk)] { queue.append(chunk) }
            } else {
                losePlace(chunk)
            }
        }
    }

    /// A chunk is on the disk no more. Servers that don't have it in memory lose it, and what follows
    /// it; if none has, what follows it is of no use on the disk, either.
    private mutating func losePlace(_ chunk: UInt32) {
        let isInMemory = residentCounts[Int(chunk)] > 0
        disk.remove(chunk)
        if isInMemory, knownCounts[Int(chunk)] == residentCounts[Int(chunk)] { return }
        let below = stored(below: chunk)
        for other in below.reversed() {
            if !isInMemory { disk.remove(other) }
            forgetWhereLost(other, with: chunk)
        }
        forgetWhereLost(chunk, with: chunk)
    }

    private mutating func forgetWhereLost(_ chunk: UInt32, with top: UInt32) {
        if knownCounts[Int(chunk)] == 0 { return }
        for node in nodes.indices
        where nodes[node].knows(chunk) && !nodes[node].hasResident(top) {
            forget(chunk, wasEvicted: false, on: node)
        }
    }
}

// MARK: -

extension SharedDiskReplay {
    /// One server's memory, and what it knows of the disk: chunks that it has met there. What is known
    /// is closed under "parent of", and so is what is in memory.
    private struct Node {
        var policy: any EvictionPolicy
        let capacity: Int
        /// Chunks in memory.
        var count = 0
        /// By chunk of the trace: its slot, or `none`.
        private var slots: [UInt32]
        /// By slot.
        private var chunks: [UInt32] = []
        private var isResident: [Bool] = []
        private var childCounts: [UInt32] = []
        /// Reused last in, first out, as the core does.
        private var vacantSlots: [UInt32] = []
        /// The chunk in memory that must stay, and so all before it.
        private var held = none

        init(policy: any EvictionPolicy, capacity: Int, chunkCount: Int) {
            self.policy = policy
            self.capacity = capacity
            slots = Array(repeating: none, count: chunkCount)
        }

        func knows(_ chunk: UInt32) -> Bool { slots[Int(chunk)] != none }

        func hasResident(_ chunk: UInt32) -> Bool {
            let slot = slots[Int(chunk)]
            return slot != none && isResident[Int(slot)]
        }

        /// The chunk that should go; nil if none may.
        var victim: UInt32? {
            mutating get { policy.victim(in: 0).map { chunks[Int($0)] } }
        }

        /// Tail first.
        mutating func touch(_ run: ArraySlice<UInt32>) {
            for chunk in run.reversed() { policy.touch(slots[Int(chunk)]) }
        }

        /// - Parameter chunk: in memory, or `none`.
        mutating func hold(_ chunk: UInt32) {
            let before = held
            held = chunk
            if before != none { updateEvictable(slots[Int(before)]) }
            if chunk != none { updateEvictable(slots[Int(chunk)]) }
        }

        private mutating func updateEvictable(_ slot: UInt32) {
            policy.setEvictable(
                slot,
                isResident[Int(slot)] && childCounts[Int(slot)] == 0 && chunks[Int(slot)] != held)
        }

        mutating func learn(
            _ chunk: UInt32, parent: UInt32, isResident: Bool, fingerprint: UInt64
        ) {
            let slot: UInt32
            if let vacant = vacantSlots.popLast() {
                slot = vacant
            } else {
                slot = UInt32(chunks.count)
                chunks.append(none)
                self.isResident.append(false)
                childCounts.append(0)
            }
            slots[Int(chunk)] = slot
            chunks[Int(slot)] = chunk
            self.isResident[Int(slot)] = isResident
            childCounts[Int(slot)] = 0
            if isResident { count += 1 }
            policy.insert(
                slot,
                NewChunk(
                    group: 0, parent: parent == Trace.none ? nil : slots[Int(parent)],
                    fingerprint: fingerprint, isResident: isResident))
        }

        mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
            let slot = slots[Int(chunk)]
            isResident[Int(slot)] = resident
            count += resident ? 1 : -1
            policy.setResident(slot, resident)
        }

        mutating func addResidentChild(to chunk: UInt32) {
            let slot = slots[Int(chunk)]
            childCounts[Int(slot)] += 1
            updateEvictable(slot)
        }

        mutating func removeResidentChild(from chunk: UInt32) {
            let slot = slots[Int(chunk)]
            childCounts[Int(slot)] -= 1
            updateEvictable(slot)
        }

        /// Its children are forgotten already.
        mutating func forget(_ chunk: UInt32, wasEvicted: Bool) {
            let slot = slots[Int(chunk)]
            policy.remove(slot, wasEvicted: wasEvicted)
            slots[Int(chunk)] = none
            chunks[Int(slot)] = none
            isResident[Int(slot)] = false
            vacantSlots.append(slot)
        }
    }

    /// The log: which chunks are in which segment.
    private struct Disk {
        struct Segment {
            var number: UInt32
            var chunks: [UInt32] = []
            /// Those of them that are here still.
            var live = 0
        }

        let capacity: Int
        let segmentChunks: Int
        /// Chunks on the disk.
        private(set) var count = 0
        /// By chunk: the number of its segment, or `none`.
        private var places: [UInt32]
        private var head = Segment(number: 0)
        /// Full ones, the oldest first.
        private var closed: [Segment] = []

        init(capacity: Int, segmentChunks: Int, chunkCount: Int) {
            self.capacity = capacity
            self.segmentChunks = segmentChunks
            places = Array(repeating: none, count: chunkCount)
        }

        func has(_ chunk: UInt32) -> Bool { places[Int(chunk)] != none }

        func isIn(_ segment: UInt32, _ chunk: UInt32) -> Bool { places[Int(chunk)] == segment }

        /// A segment must be given up.
        var isTooLong: Bool { closed.count * segmentChunks > capacity }

        mutating func append(_ chunk: UInt32) {
            places[Int(chunk)] = head.number
            head.chunks.append(chunk)
            head.live += 1
            count += 1
            if head.chunks.count < segmentChunks { return }
            closed.append(head)
            head = Segment(number: head.number + 1)
        }

        mutating func remove(_ chunk: UInt32) {
            let number = places[Int(chunk)]
            if number == none { return }
            places[Int(chunk)] = none
            count -= 1
            if number == head.number {
                head.live -= 1
            } else if let place = closed.firstIndex(where: { $0.number == number }) {
                closed[place].live -= 1
            }
        }

        /// Takes out the segment that should go, and says whether nothing of it may get lost.
        mutating func takeVictim() -> (segment: Segment, keepsAll: Bool) {
            let room = segmentChunks - head.chunks.count
            let sparsest = closed.indices.min { closed[$0].live < closed[$1].live }!
            let live = closed[sparsest].live
            if live * 4 < segmentChunks, live <= room {
                return (closed.remove(at: sparsest), true)
            }
            return (closed.removeFirst(), false)
        }
    }
}
