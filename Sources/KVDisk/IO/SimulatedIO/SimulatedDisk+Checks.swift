extension SimulatedDisk {
    /// The rule that a request breaks, if it does.
    func misuse(_ operation: DiskRequest.Operation) -> String? {
        if let end { return "the disk takes nothing any more: \(end)" }
        if let misuse = operation.misuse { return misuse }
        switch operation {
        case .read(let number, let offset, let buffers):
            return misuse(open: number) ?? misuse(readOf: number)
                ?? misuse(number, offset: offset, buffers, isWrite: false)
        case .write(let number, let offset, let buffers):
            return misuse(open: number) ?? misuse(number, offset: offset, buffers, isWrite: true)
        case .sync(let number): return misuse(open: number)
        case .close(let number): return misuse(open: number) ?? misuse(closing: number)
        case .create(let number, _, _), .open(let number, _):
            let isTaken = numbers[number] != nil || numbersToCome.contains(number)
            return isTaken ? "file number \(number) is in use" : nil
        case .remove: return nil
        }
    }

    private func misuse(open number: UInt64) -> String? {
        numbers[number] == nil ? "file \(number) is not open" : nil
    }

    private func misuse(readOf number: UInt64) -> String? {
        files[numbers[number]!]!.isWritten
            ? nil : "file \(number) is read before anything was written to it"
    }

    private func misuse(closing number: UInt64) -> String? {
        let isBusy = pending.contains { $0.submission.request.operation.number == number }
        return isBusy ? "file \(number) is closed while requests on it are under way" : nil
    }

    private func misuse(
        _ number: UInt64, offset: Int, _ buffers: [DiskBuffer], isWrite: Bool
    ) -> String? {
        let range = offset..<offset + buffers.reduce(0) { $0 + $1.count }
        let memory = Self.memory(of: buffers)
        for other in pending {
            guard let transfer = other.submission.request.operation.transfer else { continue }
            let id = other.submission.request.id
            // Two writes may take the same bytes.
            if !(isWrite && transfer.isWrite), Self.overlap(memory, other.memory) {
                return "its memory belongs to request \(id)"
            }
            guard other.file == numbers[number], isWrite || transfer.isWrite else { continue }
            let end = transfer.offset + transfer.buffers.reduce(0) { $0 + $1.count }
            if range.overlaps(transfer.offset..<end) {
                return "it shares bytes \(range) of file \(number) with request \(id), and one of "
                    + "them writes"
            }
        }
        return nil
    }

    /// Where the buffers are, in order.
    static func memory(of buffers: [DiskBuffer]) -> [Range<UInt>] {
        buffers.map { UInt(bitPattern: $0.address)..<UInt(bitPattern: $0.address + $0.count) }
            .sorted { $0.lowerBound < $1.lowerBound }
    }

    /// Whether two lists of ranges, each in order, have a byte in common.
    private static func overlap(_ some: [Range<UInt>], _ others: [Range<UInt>]) -> Bool {
        var (i, j) = (0, 0)
        while i < some.count, j < others.count {
            if some[i].overlaps(others[j]) { return true }
            if some[i].upperBound < others[j].upperBound { i += 1 } else { j += 1 }
        }
        return false
    }
}
