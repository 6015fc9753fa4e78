internal import KVDiskFormat

// Room that the dead take is given back to the file system when somebody asks for it; else it is
// used again when new records need it.
extension DiskLog {
    /// Has segments emptied of which less than `share` is alive, those with the least first, and
    /// files removed that hold nothing. Nothing that lives is given up.
    package mutating func compact(below share: Double, now: UInt64) {
        precondition((0...1).contains(share), "a share is between 0 and 1")
        compaction = LogCompaction(
            share: share, candidates: isRecovered ? compactionCandidates : nil)
        pump(now)
    }

    /// Segments that take no more groups now.
    var compactionCandidates: Set<UInt32> {
        var found: Set<UInt32> = []
        for segment in segments.values where segment.phase == .closed || segment.phase == .ending {
            found.insert(segment.number)
        }
        return found
    }

    /// Whether ``compact(below:now:)`` is not done yet.
    package var isCompacting: Bool { compaction != nil }

    /// One step of it.
    mutating func compact(_ now: UInt64) -> Bool {
        guard let compaction, let candidates = compaction.candidates, suspendedUntil == nil,
            unremovableUntil == nil, asked == nil, draining.isEmpty, removing == 0,
            preparing == nil,
            !candidates.contains(where: isClosing)
        else { return false }
        guard let (number, byteCount) = sparsest(of: candidates, below: compaction.share) else {
            return giveFreeFilesBack()
        }
        if byteCount > roomToMove, byteCount > 0 {
            return makeRoomToMove(now)
        }
        if segments[number]!.liveBytes == 0 {
            drain(number)
        } else {
            ask(for: number, keepAll: true)
        }
        return true
    }

    /// Whether it will soon be closed, or open.
    private func isClosing(_ number: UInt32) -> Bool {
        guard let segment = segments[number] else { return false }
        return segment.phase == .ending || (segment.phase == .closed && !segment.isOpen)
    }

    /// The segment of which the least is needed, and what moving that takes.
    private func sparsest(
        of candidates: Set<UInt32>, below share: Double
    ) -> (number: UInt32, byteCount: Int)? {
        let floors = lowestSequences()
        var least: (needed: Int, number: UInt32, byteCount: Int)?
        for number in candidates {
            guard let segment = segments[number], segment.phase == .closed else { continue }
            let drops = bytesOfDrops(neededDrops(of: number, floors).count)
            let needed = segment.liveBytes + drops
            guard Double(needed) < share * Double(segment.fileBytes) else { continue }
            if let least, (least.needed, least.number) < (needed, number) { continue }
            least = (needed, number, needed + segment.records.count * DiskFormat.alignment)
        }
        return least.map { ($0.number, $0.byteCount) }
    }

    /// - Returns: whether there will be more room; if there can't be, that was all.
    private mutating func makeRoomToMove(_ now: UInt64) -> Bool {
        if spare == nil, provideSpare(now) { return true }
        compaction = nil
        return true
    }

    private mutating func giveFreeFilesBack() -> Bool {
        if !removeIdle() { compaction = nil }
        return true
    }
}
