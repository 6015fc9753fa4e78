internal import KVDiskFormat
internal import KVTier

// A life of a segment: header, groups, footer.
extension DiskLog {
    // MARK: The next head

    /// Sees to it that there is a next head when it will soon be needed: a free segment, a new
    /// file, or one that the owner lets go of.
    mutating func provideSegment(_ now: UInt64) -> Bool {
        guard epoch != nil else { return false }
        if suspendedUntil == nil, needsSpare {
            if provideSpare(now) { return true }
            if askForSegment(now) { return true }
            if isWithoutSegments { return giveUpForNow(now) }
        } else if suspendedUntil == nil, wantsReserve {
            if let number = free.popLast() {
                prepare(number, now)
                return true
            }
            if askForReserve() { return true }
        }
        return shrink(now) || compact(now) || askForDoubtful()
    }

    /// Makes the next head of what is free; false if nothing is.
    mutating func provideSpare(_ now: UInt64) -> Bool {
        if let number = free.popLast() {
            prepare(number, now)
            return true
        }
        if canCreate {
            createSegment()
            return true
        }
        return false
    }

    /// Half of the head is written, or there is none and something waits.
    private var needsSpare: Bool {
        guard spare == nil, preparing == nil else { return false }
        if doubtfulNeedsRoom { return true }
        return head == nil ? hasQueued : isHeadHalfFull
    }

    private var isHeadHalfFull: Bool {
        guard let head else { return false }
        return isHeadFull || segments[head]!.end > segments[head]!.fileBytes / 2
    }

    /// Removes a file that holds nothing and is not needed next; false if there is none.
    mutating func removeIdle() -> Bool {
        let kept = head == nil || isHeadHalfFull || doubtfulNeedsRoom ? 1 : 0
        if let number = free.popLast() {
            remove(number)
        } else if spares.count > kept {
            remove(spares.removeLast())
        } else {
            return false
        }
        return true
    }

    /// Each start takes a new head, and what earlier heads hold can only be moved where a head is.
    /// So up to half of the segments is kept in reserve, as long as that costs nobody
    /// their place: starts that end soon, one after the other, find room then.
    private var wantsReserve: Bool {
        guard isRecovered, head != nil, !isProviding, compaction == nil,
            fileBytes <= configuration.budgetBytes
        else { return false }
        let uncreated = max(0, configuration.budgetBytes - fileBytes) / configuration.segmentBytes
        let wanted = configuration.budgetBytes / configuration.segmentBytes / Self.reserveShare
        return spares.count + uncreated < wanted
    }

    private static let reserveShare = 2

    private var canCreate: Bool {
        fullUntil == nil && fileBytes + configuration.segmentBytes <= configuration.budgetBytes
    }

    /// Whether something is under way that ends with a segment to write to.
    var isProviding: Bool {
        preparing != nil || asked != nil || !draining.isEmpty || removing > 0
    }

    private mutating func createSegment() {
        let number = nextNumber
        nextNumber += 1
        let segment = LogSegment(
            number: number, fileBytes: configuration.segmentBytes, phase: .creating)
        segments[number] = segment
        fileBytes += segment.fileBytes
        preparing = number
        request(
            .create(file: UInt64(number), name: segment.name, byteCount: segment.fileBytes),
            for: .create(number))
    }

    mutating func created(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        if case .failed(let fault) = outcome {
            fileBytes -= segments.removeValue(forKey: number)!.fileBytes
            preparing = nil
            if fault.code != .noSpace, hasNothingToWriteTo { return suspend(fault, .create, now) }
            fullUntil = now + LogTimes.fullRetry
            lastFault = TierFault(fault)
            say(
                fault.code == .noSpace ? .full : .create,
                "\(fault.message); the disk tier makes do with what it has", now)
            return
        }
        segments[number]!.isOpen = true
        counters.creations += 1
        prepare(number, now)
    }

    /// Begins a new life. Until its header is durable, a crash may bring the one before back.
    private mutating func prepare(_ number: UInt32, _ now: UInt64) {
        let header = SegmentHeader(
            disk: configuration.disk, number: UInt64(number), life: random.next(),
            segmentBytes: configuration.segmentBytes, firstSequence: nextSequence,
            createdMs: wallMs(now))
        segments[number]!.phase = .preparing
        segments[number]!.header = header
        preparing = number
        counters.overheadBytes += DiskFormat.segmentHeaderBytes
        request(
            .write(file: UInt64(number), offset: 0, from: [.bytes(header.encoded)]),
            for: .header(number))
    }

    /// Whether only a new file can help.
    private var hasNothingToWriteTo: Bool {
        isRecovered ? isWithoutSegments && spare == nil : head == nil && spare == nil
    }

    mutating func headerWritten(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        if case .failed(let fault) = outcome { return preparationFailed(number, fault, now) }
        request(.sync(file: UInt64(number)), for: .headerSync(number))
    }

    mutating func headerSynced(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        if case .failed(let fault) = outcome { return preparationFailed(number, fault, now) }
        counters.syncs += 1
        segments[number]!.phase = .spare
        segments[number]!.firstSequence = nil
        floorChanges += 1
        preparing = nil
        spares.append(number)
    }

    private mutating func preparationFailed(_ number: UInt32, _ fault: DiskFault, _ now: UInt64) {
        segments[number]!.phase = .free
        preparing = nil
        // Another one first, next time.
        free.insert(number, at: 0)
        suspend(fault, .write, now)
    }

    mutating func becomeHead(_ number: UInt32) {
        segments[number]!.phase = .head
        head = number
        spares.removeAll { $0 == number }
        isHeadFull = false
        hasFailedWithoutRoom = false
        active.append(number)
    }

    /// Ends a head in which what waits does not fit, when there is another one, or when it is the
    /// only one to be had. Until then, drops of a segment that is let go of may still be written.
    mutating func endFullHead() -> Bool {
        guard let head, isHeadFull, hasQueued, suspendedUntil == nil, spare != nil || !isProviding
        else { return false }
        end(head)
        return true
    }

    // MARK: The end

    /// Takes no more groups.
    mutating func end(_ number: UInt32) {
        guard head == number else { return }
        head = nil
        isHeadFull = false
        segments[number]!.phase = .ending
    }

    /// Syncs segments that take no more groups, writes their footers, and closes them.
    mutating func endSegments() -> Bool {
        for number in active where segments[number]!.phase == .ending {
            if endSegment(number) { return true }
        }
        return false
    }

    private mutating func endSegment(_ number: UInt32) -> Bool {
        let segment = segments[number]!
        guard segment.isOpen, segment.groups.isEmpty, segment.syncing == nil,
            !segment.isFooterUnderWay
        else { return false }
        if segment.unsynced != nil {
            startSync(number)
        } else if segment.failure != nil || segment.isDoubtful || segment.entries.isEmpty {
            close(number)
        } else {
            writeFooter(number)
        }
        return true
    }

    private mutating func writeFooter(_ number: UInt32) {
        let segment = segments[number]!
        let header = segment.header!
        let footer = SegmentFooter(segment.entries, groupsEnd: segment.end, in: header)
        let offset = header.groupsLimit(entries: segment.entries.count)
        let trailer = SegmentTrailer(of: footer, at: offset, in: header)
        let bytes = footer.encoded + trailer.encoded
        segments[number]!.isFooterUnderWay = true
        counters.overheadBytes += bytes.count
        request(
            .write(file: UInt64(number), offset: offset, from: [.bytes(bytes)]),
            for: .footer(number))
    }

    mutating func footerWritten(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        if case .failed(let fault) = outcome { return footerFailed(number, fault, now) }
        request(.sync(file: UInt64(number)), for: .footerSync(number))
    }

    mutating func footerSynced(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        if case .failed(let fault) = outcome { return footerFailed(number, fault, now) }
        counters.syncs += 1
        close(number)
    }

    /// The groups are durable, and a start finds them without a footer, too.
    private mutating func footerFailed(_ number: UInt32, _ fault: DiskFault, _ now: UInt64) {
        say(.footer, "\(fault.message); a start will take longer", now)
        close(number)
    }

    private mutating func close(_ number: UInt32) {
        segments[number]!.phase = .closed
        noVictim = nil
        segments[number]!.isFooterUnderWay = false
        segments[number]!.entries = []
        segments[number]!.spaces = []
        active.removeAll { $0 == number }
    }
}
