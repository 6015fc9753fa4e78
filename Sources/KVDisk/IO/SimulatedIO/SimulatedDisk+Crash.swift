extension SimulatedDisk {
    /// Ends this disk, and gives what is found after a loss of power.
    mutating func crash() -> SimulatedDisk {
        counters.crashes += 1
        // Everything under way is somewhere between not begun and done.
        for request in pending.sorted(by: { $0.order < $1.order }) { interrupt(request) }
        var found = SimulatedDisk(seed: random.next(), faults: faults)
        found.now = now
        found.history = history
        for number in files.keys.sorted() where files[number]!.isLinked {
            for write in files[number]!.unsynced {
                settle(write.bytes, of: number, at: write.offset)
            }
            var file = files[number]!
            file.unsynced = []
            file.current = file.durable
            file.isWritten = true
            _ = found.add(file)
        }
        found.counters = counters
        pending = []
        end = "it has crashed"
        return found
    }

    private mutating func interrupt(_ request: Pending) {
        switch request.submission.request.operation {
        case .write(_, let offset, _):
            let file = request.file!
            let bytes = Self.taken(by: request)
            let isInside = offset + bytes.count <= files[file]!.byteCount
            guard isInside, !faults.isReadOnly else { break }
            // As completed now: with the others, it is then lost, kept or torn.
            let last = files[file]!.unsynced.last?.sequence ?? 0
            files[file]!.unsynced.append(
                UnsyncedWrite(offset: offset, bytes: bytes, sequence: last))
        case .create(_, let name, let byteCount):
            guard Bool.random(using: &random), names[name] == nil, !faults.isReadOnly,
                hasRoom(for: byteCount)
            else { break }
            // The name may be there before the length.
            let blocks = byteCount / DiskBuffer.alignment
            let lengths = [0, Int.random(in: 0...blocks, using: &random), blocks]
            let length = lengths.randomElement(using: &random)! * DiskBuffer.alignment
            _ = add(File(name: name, byteCount: length, isWritten: true))
        case .remove(let name):
            guard Bool.random(using: &random), !faults.isReadOnly else { break }
            if let file = names.removeValue(forKey: name) { files[file]!.isLinked = false }
        case .read, .sync, .open, .close: break
        }
    }

    /// Makes durable what survives of a write.
    mutating func settle(_ bytes: [UInt8], of file: Int, at offset: Int) {
        for (start, part) in survivors(of: bytes, counts: true) {
            part.withUnsafeBytes { files[file]!.durable.write($0, at: offset + start) }
        }
    }

    /// The parts of a write that survive: nothing, all, the sectors up to one, or any of them.
    mutating func survivors(of bytes: [UInt8], counts: Bool) -> [(start: Int, part: [UInt8])] {
        let sectors = bytes.count / Self.sectorBytes
        var isKept: [Bool]
        switch Int.random(in: 0..<4, using: &random) {
        case 0: isKept = Array(repeating: false, count: sectors)
        case 1: isKept = Array(repeating: true, count: sectors)
        case 2:
            let end = Int.random(in: 0...sectors, using: &random)
            isKept = (0..<sectors).map { $0 < end }
        default: isKept = (0..<sectors).map { _ in Bool.random(using: &random) }
        }
        if counts {
            if isKept.allSatisfy({ $0 }) {
                counters.writesKept += 1
            } else if isKept.contains(true) {
                counters.writesTorn += 1
            } else {
                counters.writesLost += 1
            }
        }
        var parts: [(start: Int, part: [UInt8])] = []
        var start = 0
        while start < sectors {
            var end = start
            while end < sectors, isKept[end] { end += 1 }
            if end > start {
                let part = bytes[(start * Self.sectorBytes)..<(end * Self.sectorBytes)]
                parts.append((start * Self.sectorBytes, Array(part)))
            }
            start = end + 1
        }
        return parts
    }
}
