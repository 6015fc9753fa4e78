/// Walks the groups of a segment that has no footer yet, or whose footer can't be read.
///
/// It does no I/O: give ``next(_:)`` the bytes from ``offset`` on, and it answers with a group, with
/// how many bytes it needs, or with why the log ends here. Only headers are looked at, so what is
/// given may end anywhere behind them. Each group is inside the segment, behind the one before,
/// and its sequences go on from there.
package struct GroupScanner: Sendable {
    /// What stands at ``offset``.
    package enum Step: Sendable {
        /// A group; ``offset`` is behind it now.
        case group(GroupHeader, [DiskEntry])
        /// Call again with at least this many bytes from ``offset`` on.
        case needs(byteCount: Int)
        /// The log ends at ``offset``; every later call says so again.
        case end(End)
    }

    /// Why the log ends.
    package enum End: Sendable, Hashable {
        /// No group fits behind the last one.
        case full
        /// The footer of this life stands here.
        case footer
        /// Zeros: nothing was ever written here.
        case zeros
        /// What an earlier life of the file left: a group, a footer, or the inside of a body. It
        /// looks the same when the first block of a group never reached the disk.
        case staleLife
        /// A group, its entries or a footer that can't be read: torn by a crash, or damaged.
        case damaged(DiskFormatError)
    }

    /// Where the next group starts, or the log ends.
    package private(set) var offset: Int
    /// The sequence that the next group starts with; nil before the first, which starts with any
    /// from the segment's first on.
    package private(set) var nextSequence: UInt64?
    /// Entries of the groups so far.
    package private(set) var entryCount: Int

    private let segment: SegmentHeader
    private var end: End?

    /// Starts behind the header of `segment`.
    package init(_ segment: SegmentHeader) {
        self.segment = segment
        offset = DiskFormat.segmentHeaderBytes
        nextSequence = nil
        entryCount = 0
    }

    /// Goes one group on.
    ///
    /// - Parameter bytes: of the segment, from ``offset`` on; as many as there are at hand.
    /// - Complexity: linear in the entries of the group.
    package mutating func next(_ bytes: UnsafeRawBufferPointer) -> Step {
        if let end { return .end(end) }
        // A footer may stand where no group fits, but not in the trailer's place.
        guard offset < segment.trailerOffset else { return finish(.full) }
        guard bytes.count >= DiskFormat.alignment else {
            return .needs(byteCount: DiskFormat.alignment)
        }
        do {
            let header = try unsafe GroupHeader(decoding: bytes, in: segment, at: offset)
            guard bytes.count >= header.headerBytes else {
                return .needs(byteCount: header.headerBytes)
            }
            try check(header)
            let entries = try unsafe header.entries(decoding: bytes)
            offset = header.end
            nextSequence = header.nextSequence
            entryCount += header.count
            return .group(header, entries)
        } catch {
            let end = error.code == .foreign ? unsafe endWithoutGroup(bytes) : Self.end(for: error)
            let isFull = offset >= segment.groupsLimit(entries: entryCount + 1)
            return finish(isFull && (end == .zeros || end == .staleLife) ? .full : end)
        }
    }

    /// Goes one group on in bytes that start at `start` of the segment, for instance all of it.
    ///
    /// If they end too early, `needs` counts from ``offset`` on, not from `start`.
    ///
    /// - Precondition: `start` is not behind ``offset``.
    package mutating func next(
        in bytes: UnsafeRawBufferPointer, startingAt start: Int
    ) -> Step {
        precondition(start >= 0 && start <= offset, "the bytes start behind the next group")
        // SAFETY: at most all of the bytes are dropped.
        return unsafe next(UnsafeRawBufferPointer(rebasing: bytes.dropFirst(offset - start)))
    }

    /// What a group must be after those before it.
    private func check(_ header: GroupHeader) throws(DiskFormatError) {
        if let nextSequence, header.firstSequence != nextSequence {
            throw DiskFormatError(
                .damaged, "group", at: offset,
                "first sequence is \(header.firstSequence), not \(nextSequence)")
        }
        let count = entryCount + header.count
        guard count <= DiskFormat.mostEntriesInSegment else {
            throw DiskFormatError(
                .damaged, "group", at: offset,
                "entry \(count) of the segment, which has at most "
                    + "\(DiskFormat.mostEntriesInSegment)")
        }
        let limit = segment.groupsLimit(entries: count)
        guard header.end <= limit else {
            throw DiskFormatError(
                .damaged, "group", at: offset,
                "ends at \(header.end), behind \(limit), where the footer must have room")
        }
    }

    /// What stands in a place that does not start as a group does.
    private func endWithoutGroup(_ bytes: UnsafeRawBufferPointer) -> End {
        do {
            let reader = try unsafe FieldReader(
                bytes, "group", at: offset, byteCount: DiskFormat.alignment)
            if reader.isZero(0..<DiskFormat.alignment) { return .zeros }
            try unsafe SegmentFooter.requireFooter(in: bytes, of: segment, at: offset)
            return .footer
        } catch {
            return Self.end(for: error)
        }
    }

    private static func end(for error: DiskFormatError) -> End {
        switch error.code {
        case .foreign, .staleLife: .staleLife
        default: .damaged(error)
        }
    }

    private mutating func finish(_ end: End) -> Step {
        self.end = end
        return .end(end)
    }
}
