internal import KVDiskFormat
internal import KVIdentity
package import KVTier

extension DiskLog {
    package func takesWrites(now: UInt64) -> Bool {
        guard isWriting(now), queuedBytes + promisedSaves.bytes < queueBytes,
            queue.count + promisedSaves.records < configuration.queueRecords
        else { return false }
        return leavesRoomToMove
    }

    package func takesMove(bytes: Int, records: Int, now: UInt64) -> Bool {
        isWriting(now)
            && roomForMoves(bytes: bytes, records: records) + slack <= roomToMove
    }

    /// How much may be on its way. Of a segment a part only: half of one is left when the next is asked
    /// for, and it must take what is on its way and what a sparse segment has.
    private var queueBytes: Int { min(configuration.queueBytes, configuration.segmentBytes / 4) }

    private func isWriting(_ now: UInt64) -> Bool {
        if isStalled { return false }
        if let until = suspendedUntil, now < until { return false }
        return true
    }

    package mutating func write(
        _ record: TierRecord, from extent: TierExtent, owner: UInt64, isMove: Bool, now: UInt64
    ) {
        precondition(spaces[record.space] != nil, "a record of a space that is not known")
        precondition(record.byteCount > 0, "a record without bytes")
        let padded = DiskFormat.aligned(record.byteCount)
        precondition(extent.length >= UInt64(padded), "an extent shorter than its record")
        let bytes = TierExtent(offset: extent.offset, length: UInt64(padded))
        enqueue(.record(record, from: bytes, owner: owner), isMove: isMove)
        lastDrops.removeAll(keepingCapacity: true)
        pump(now)
    }

    package mutating func drop(_ drop: TierDrop, now: UInt64) {
        // Of several times the last one counts, so it is needed although it was told before.
        if !drop.isLater, !lastDrops.insert(drop).inserted { return }
        let writtenMs = wallMs(now)
        let entry =
            switch drop {
            case .key(let key, let root, let space):
                DiskEntry.dropKey(key, space: space, root: root, writtenMs: writtenMs)
            case .root(let root, let space):
                DiskEntry.dropRoot(root, space: space, writtenMs: writtenMs)
            case .space(let space): DiskEntry.dropSpace(space, writtenMs: writtenMs)
            case .keyLater(let key, let root, let space, let expiresMs):
                DiskEntry.expireKey(
                    key, space: space, root: root, expiresMs: expiresMs, writtenMs: writtenMs)
            }
        enqueue(.drop(entry, source: nil))
        pump(now)
    }

    private mutating func enqueue(_ content: LogItem.Content, isMove: Bool = false) {
        let item = LogItem(number: itemCount, content: content)
        if isMove { moves.append(item) } else { queue.append(item) }
        itemCount += 1
    }

    var queuedBytes: Int { queue.bytes + moves.bytes }

    var hasQueued: Bool { !queue.isEmpty || !moves.isEmpty || !drops.isEmpty }

    // MARK: Groups

    /// Writes a group of what waits, if a head is there and may.
    mutating func startGroup(_ now: UInt64) -> Bool {
        guard epoch != nil, !isSuspended, hasQueued,
            groupsUnderWay < configuration.writesUnderWay
        else { return false }
        if head == nil {
            guard let spare else { return false }
            becomeHead(spare)
        }
        let number = head!
        var draft = GroupDraft(
            of: segments[number]!, most: configuration.groupBytes, spaces: spaces,
            now: wallMs(now))
        fill(&draft)
        if !draft.entries.isEmpty {
            write(draft, to: number)
            return true
        }
        if segments[number]!.end == DiskFormat.segmentHeaderBytes,
            let item = moves.removeFirst() ?? queue.removeFirst()
        {
            failTooLong(item)
            return true
        }
        if wouldFit(in: draft) {
            isHeldBack = true
            return false
        }
        defer { isHeadFull = true }
        return !isHeadFull
    }

    /// Whether what is next fits an empty draft, and only waits for moves.
    private func wouldFit(in draft: GroupDraft) -> Bool {
        guard drops.isEmpty, moves.isEmpty, let item = queue.first else { return false }
        var draft = draft
        return draft.take(item, reserve: roomForDrops)
    }

    /// Takes what fits from the queues.
    private mutating func fill(_ draft: inout GroupDraft) {
        var taken = 0
        while taken < drops.count, draft.take(drops[taken], reserve: 0) { taken += 1 }
        if taken > 0 { drops.removeFirst(taken) }
        // An empty segment must take any record.
        let isEmpty = draft.isFirst
        let reserve = isEmpty ? 0 : roomForDrops
        while let item = moves.first, draft.take(item, reserve: reserve) {
            _ = moves.removeFirst()
        }
        if !moves.isEmpty { return }
        let kept = isEmpty || spare != nil ? 0 : roomForMovesToCome
        while let item = queue.first,
            draft.take(item, reserve: item.isRecord ? reserve + kept : 0)
        {
            _ = queue.removeFirst()
            if case .drop(let entry, _) = item.content, let drop = entry.drop {
                lastDrops.remove(drop)
            }
        }
    }

    private mutating func write(_ draft: GroupDraft, to number: UInt32) {
        let header = segments[number]!.header!
        let offset = segments[number]!.end
        var entries = draft.entries
        let group = GroupHeader(
            placing: &entries, at: offset, in: header, firstSequence: nextSequence)
        sequenceCount += UInt64(entries.count)
        var members: [LogGroup.Member] = []
        members.reserveCapacity(draft.items.count)
        for (index, item) in draft.items {
            var item = item
            if case .drop(_, let source) = item.content {
                item.content = .drop(entries[index], source: source)
            }
            let page = entries[index].bodyOffset / TierExtent.pageBytes
            members.append(LogGroup.Member(item: item, page: UInt32(page)))
        }
        let id = request(
            .write(
                file: UInt64(number), offset: offset,
                from: [.bytes(group.encoded(entries))] + draft.pieces),
            for: .group(number))
        let bodyBytes = members.reduce(0) { $0 + $1.item.byteCount }
        counters.overheadBytes += group.groupBytes - bodyBytes
        isHeldBack = false
        segments[number]!.groups.append(LogGroup(id: id, members: members))
        segments[number]!.end = group.end
        segments[number]!.entries += entries
        segments[number]!.spaces = draft.described
        if segments[number]!.firstSequence == nil {
            segments[number]!.firstSequence = group.firstSequence
        }
        groupsUnderWay += 1
    }

    private mutating func failTooLong(_ item: LogItem) {
        guard case .record(let record, _, let owner) = item.content else {
            preconditionFailure("an empty segment has no room for a drop")
        }
        let fault = TierFault(
            code: "too-long",
            message: "a record of \(record.byteCount) bytes fits no segment of "
                + "\(configuration.segmentBytes) bytes; use longer segments")
        events.append(.writeFailed(owner: owner, fault: fault))
        failTickets(above: item.number, fault)
    }

    // MARK: Outcomes

    mutating func groupEnded(_ id: UInt64, of number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        groupsUnderWay -= 1
        let index = segments[number]!.groups.firstIndex { $0.id == id }!
        segments[number]!.groups[index].outcome = outcome
        settleGroups(of: number, now: now)
    }

    /// Tells what became of groups, in the order of their places: at a start, what stands behind
    /// a group that failed is not found.
    private mutating func settleGroups(of number: UInt32, now: UInt64) {
        while let group = segments[number]!.groups.first, let outcome = group.outcome {
            segments[number]!.groups.removeFirst()
            if segments[number]!.failure == nil, case .failed(let fault) = outcome {
                segments[number]!.failure = fault
                end(number)
                suspend(fault, .write, now)
            }
            if let failure = segments[number]!.failure {
                settleFailed(group, TierFault(failure))
            } else {
                settle(group, of: number, now: now)
            }
        }
    }

    private mutating func settle(_ group: LogGroup, of number: UInt32, now: UInt64) {
        suspension = 0
        counters.groups += 1
        var unsynced = LogUnsynced(
            firstItem: group.firstItem, firstGroup: groupCount, since: now)
        groupCount += 1
        for member in group.members {
            switch member.item.content {
            case .record(let record, _, let owner):
                let place = TierPlace(segment: number, page: member.page)
                segments[number]!.liveBytes += member.item.paddedBytes
                liveBytes += member.item.paddedBytes
                segments[number]!.records.append((owner, place))
                counters.records += 1
                counters.bodyBytes += record.byteCount
                events.append(.written(owner: owner, place: place))
            case .drop(let entry, _):
                segments[number]!.tombstones.append(entry)
                counters.drops += 1
                unsynced.append(member.item)
            }
        }
        if let groups = doubtful[number] {
            doubtful[number] = groups.lowerBound..<groupCount
            drops += unsynced.drops
            failTickets(above: unsynced.firstItem, doubt(number))
        } else if segments[number]!.unsynced == nil {
            segments[number]!.unsynced = unsynced
        } else {
            segments[number]!.unsynced!.merge(unsynced)
        }
    }

    /// What was dropped is never given up: it is written again, elsewhere.
    private mutating func settleFailed(_ group: LogGroup, _ fault: TierFault) {
        for member in group.members {
            switch member.item.content {
            case .record(_, _, let owner):
                events.append(.writeFailed(owner: owner, fault: fault))
            case .drop: drops.append(member.item)
            }
        }
        failTickets(above: group.firstItem, fault)
    }
}

/// A group that is being put together. It takes no copy of what can be long.
struct GroupDraft {
    private let header: SegmentHeader
    private let offset: Int
    private let entriesBefore: Int
    private let most: Int
    private let spaces: [Digest: [UInt8]]
    private let now: UInt64
    private(set) var entries: [DiskEntry] = []
    /// With the places of their entries.
    private(set) var items: [(entry: Int, item: LogItem)] = []
    /// The bodies.
    private(set) var pieces: [LogRequest.Piece] = []
    private(set) var described: Set<Digest>
    private var bodyBytes = 0

    /// Whether nothing stands in the segment before it.
    var isFirst: Bool { offset == DiskFormat.segmentHeaderBytes }

    init(of segment: LogSegment, most: Int, spaces: [Digest: [UInt8]], now: UInt64) {
        header = segment.header!
        offset = segment.end
        entriesBefore = segment.entries.count
        self.most = most
        self.spaces = spaces
        self.now = now
        described = segment.spaces
    }

    /// Takes an item if it fits and leaves `reserve` bytes; false if not.
    mutating func take(_ item: LogItem, reserve: Int) -> Bool {
        switch item.content {
        case .drop(let entry, _):
            guard fits(entries: 1, bodies: 0, reserve) else { return false }
            items.append((entries.count, item))
            entries.append(entry)
        case .record(let record, let extent, _):
            let description = described.contains(record.space) ? nil : spaces[record.space] ?? []
            let bytes = item.paddedBytes + DiskFormat.aligned(description?.count ?? 0)
            let count = description == nil ? 1 : 2
            guard fits(entries: count, bodies: bytes, reserve) else { return false }
            if let description { describe(record.space, description) }
            items.append((entries.count, item))
            entries.append(record.entry(writtenMs: now))
            pieces.append(.arena(extent))
            bodyBytes += item.paddedBytes
        }
        return true
    }

    private func fits(entries more: Int, bodies: Int, _ reserve: Int) -> Bool {
        let count = entries.count + more
        guard count <= DiskFormat.mostEntriesInGroup,
            entriesBefore + count <= DiskFormat.mostEntriesInSegment
        else { return false }
        let bytes = DiskFormat.groupHeaderBytes(entries: count) + bodyBytes + bodies
        if !entries.isEmpty, bytes > most { return false }
        return offset + bytes + reserve <= header.groupsLimit(entries: entriesBefore + count)
    }

    /// Puts the description of a space before its first record in the segment.
    private mutating func describe(_ space: Digest, _ json: [UInt8]) {
        precondition(!json.isEmpty, "a record of a space that was forgotten")
        let checksum = json.withUnsafeBytes { DiskFormat.checksum($0) }
        entries.append(
            .space(space, bodyBytes: json.count, checksum: checksum, writtenMs: now))
        let padded = DiskFormat.aligned(json.count)
        pieces.append(.bytes(json + [UInt8](repeating: 0, count: padded - json.count)))
        bodyBytes += padded
        described.insert(space)
    }
}

extension LogItem {
    /// Bytes of its body, without padding.
    var byteCount: Int {
        if case .record(let record, _, _) = content { record.byteCount } else { 0 }
    }
}

extension TierDrop {
    fileprivate var isLater: Bool {
        if case .keyLater = self { true } else { false }
    }
}

extension DiskEntry {
    /// What it says was dropped at once.
    fileprivate var drop: TierDrop? {
        switch kind {
        case .dropKey: .key(key, root: root, space: space)
        case .dropRoot: .root(root, space: space)
        case .dropSpace: .space(space)
        default: nil
        }
    }
}

extension TierRecord {
    fileprivate func entry(writtenMs: UInt64) -> DiskEntry {
        .chunk(
            key: key, parent: parent, space: space, root: root, shard: shard,
            chunkIndex: chunkIndex, bodyBytes: byteCount, checksum: checksum,
            writtenMs: writtenMs, expiresMs: expiresMs)
    }
}
