internal import KVDiskFormat
package import KVTier

// What recovery finds.
extension DiskLog {
    /// All headers were read: from now on the log writes.
    ///
    /// - Parameters:
    ///   - epoch: 1 more than the highest epoch (sequence >> 40) of any header.
    ///   - files: numbers and lengths of all files with the name of a segment; each is adopted.
    package mutating func begin(
        epoch: UInt64, files: [(number: UInt64, byteCount: Int)], now: UInt64
    ) {
        precondition(self.epoch == nil, "the log has begun")
        precondition(epoch > 0 && epoch < 1 << 24, "epoch \(epoch)")
        self.epoch = epoch
        for (number, byteCount) in files {
            unadopted[number] = byteCount
            fileBytes += DiskFormat.aligned(byteCount)
            if let small = UInt32(exactly: number), small < UInt32.max {
                nextNumber = max(nextNumber, small + 1)
            }
        }
        pump(now)
    }

    /// Takes a file over. Recovery has closed it.
    package mutating func adopt(segment found: RecoveredSegment) {
        let byteCount = unadopted.removeValue(forKey: found.number)
        precondition(byteCount != nil, "file \(found.number) was not named to begin with")
        guard let number = UInt32(exactly: found.number) else { return }
        var segment = LogSegment(
            number: number, fileBytes: DiskFormat.aligned(byteCount!), phase: .untouchable)
        segment.header = found.header
        switch found.state {
        case .untouchable: break
        case .free: segment.phase = .free
        case .closed: segment.phase = .closed
        case .unfinished(let entries, let groupsEnd):
            segment.phase = entries.isEmpty ? .free : .ending
            segment.entries = entries
            segment.end = groupsEnd
        case .walked: segment.phase = .ending
        }
        if segment.phase == .ending {
            // What was found there may not be durable yet.
            segment.unsynced = LogUnsynced(firstItem: 0, firstGroup: 0, since: 0)
        }
        if segment.isReadable {
            segment.firstSequence = found.firstSequence
            segment.tombstones = found.tombstones
        } else if segment.phase == .free {
            // Its header may not be durable: a crash can bring the life before back.
            segment.firstSequence = 0
        } else {
            // The next start may be able to read it.
            segment.firstSequence = found.header?.firstSequence ?? 0
        }
        segments[number] = segment
        adopt(segment)
    }

    private mutating func adopt(_ segment: LogSegment) {
        let number = segment.number
        switch segment.phase {
        case .ending:
            active.append(number)
            open(segment)
        case .free:
            segments[number]!.empty()
            if segment.fileBytes == configuration.segmentBytes {
                freeOpening += 1
                open(segment)
            } else {
                remove(number)
            }
        case .closed: open(segment)
        default: break
        }
    }

    mutating func open(_ segment: LogSegment) {
        request(
            .open(file: UInt64(segment.number), name: segment.name), for: .open(segment.number))
    }

    mutating func opened(_ number: UInt32, _ outcome: DiskOutcome, now: UInt64) {
        if segments[number]!.phase == .free { freeOpening -= 1 }
        noVictim = nil
        if case .failed(let fault) = outcome {
            if segments[number]!.isUnremoved { unremoved.append(number) }
            active.removeAll { $0 == number }
            segments[number]!.unsynced = nil
            segments[number]!.phase = .untouchable
            releaseReads(of: number, TierFault(fault))
            say(.open, fault.message, now)
            return
        }
        segments[number]!.isOpen = true
        segments[number]!.isUnremoved = false
        if segments[number]!.phase == .free { free.append(number) }
        releaseReads(of: number, nil)
    }

    /// Whether what is at this place can be read, as far as is known now.
    package func canRead(_ place: TierPlace) -> Bool {
        segments[place.segment]?.isReadable == true
    }

    /// Takes over a record that can be read, of a segment that was adopted. `length` is that of
    /// its extent, in bytes.
    package mutating func adopt(_ place: TierPlace, length: Int, owner: UInt64) {
        guard canRead(place) else { return }
        segments[place.segment]!.liveBytes += length
        liveBytes += length
        segments[place.segment]!.records.append((owner, place))
    }

    /// All records were handed over.
    package mutating func recovered(now: UInt64) {
        precondition(epoch != nil && !isRecovered, "there is one recovery, after begin")
        isRecovered = true
        noVictim = nil
        if compaction != nil { compaction!.candidates = compactionCandidates }
        pump(now)
    }
}
