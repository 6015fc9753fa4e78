package import KVTier

extension DiskLog {
    package mutating func read(
        _ place: TierPlace, into extent: TierExtent, owner: UInt64, now: UInt64
    ) {
        guard let segment = segments[place.segment], segment.isReadable else {
            return readFailed(
                owner,
                TierFault(
                    code: "gone",
                    message: "segment \(place.segment) of the disk can't be read; what it held is "
                        + "computed again"))
        }
        if isStalled { return readFailed(owner, stallFault) }
        segments[place.segment]!.reads += 1
        let read = LogRead(place: place, extent: extent, owner: owner)
        if segment.isOpen {
            readQueue.append(read)
        } else {
            closedReads[place.segment, default: []].append(read)
        }
        pump(now)
    }

    /// Fails what waits for its turn, or for its file.
    mutating func failReadsThatWait(_ fault: TierFault) {
        let waiting =
            readQueue.all + closedReads.keys.sorted().flatMap { closedReads[$0]! }
        readQueue = LogQueue()
        closedReads = closedReads.mapValues { _ in [] }
        for read in waiting {
            segments[read.place.segment]!.reads -= 1
            readFailed(read.owner, fault)
        }
    }

    private mutating func readFailed(_ owner: UInt64, _ fault: TierFault) {
        events.append(.read(owner: owner, fault: fault))
    }

    /// Starts one request of neighbours that wait one behind the other.
    mutating func startReads() -> Bool {
        guard readRequests < configuration.readsUnderWay, let first = readQueue.removeFirst()
        else { return false }
        var run = [first]
        var byteCount = Int(first.extent.length)
        while !first.isAlone, let next = readQueue.first, !next.isAlone,
            next.place.segment == first.place.segment,
            UInt64(next.place.page) == run.last!.endPage,
            byteCount + Int(next.extent.length) <= configuration.readBytes
        {
            _ = readQueue.removeFirst()
            run.append(next)
            byteCount += Int(next.extent.length)
        }
        let number = first.place.segment
        readRequests += 1
        request(
            .read(
                file: UInt64(number), offset: Int(first.place.page) * TierExtent.pageBytes,
                into: run.map(\.extent)),
            for: .reads(number, run))
        return true
    }

    mutating func readsEnded(
        _ reads: [LogRead], of number: UInt32, _ outcome: DiskOutcome, now: UInt64
    ) {
        readRequests -= 1
        switch outcome {
        case .done:
            segments[number]!.reads -= reads.count
            for read in reads {
                counters.reads += 1
                counters.readBytes += Int(read.extent.length)
                events.append(.read(owner: read.owner, fault: nil))
            }
        case .failed(let fault):
            say(.read, "\(fault.message); what can't be read is computed again", now)
            retryAlone(reads, of: number, TierFault(fault))
        }
    }

    /// One bad sector is no reason to give its neighbours up.
    private mutating func retryAlone(_ reads: [LogRead], of number: UInt32, _ fault: TierFault) {
        if reads.count == 1 {
            segments[number]!.reads -= 1
            return readFailed(reads[0].owner, fault)
        }
        for read in reads {
            var read = read
            read.isAlone = true
            readQueue.append(read)
        }
    }

    /// Lets reads go on, or fails them, once their file is open or can't be opened.
    mutating func releaseReads(of number: UInt32, _ fault: TierFault?) {
        for read in closedReads.removeValue(forKey: number) ?? [] {
            if let fault {
                segments[number]!.reads -= 1
                readFailed(read.owner, fault)
            } else {
                readQueue.append(read)
            }
        }
    }
}
