internal import KVDiskFormat
internal import KVTier

/// Carries out what a ``DiskLog`` asks for: it knows where the arena is in memory, and keeps the
/// memory of what the log writes itself until that is written.
package struct LogDriver: @unchecked Sendable {
    // SAFETY: a pointer and a length, without access of its own. What a request names belongs to
    // it until its completion, by the rule of `KVTier`; extents are checked against the length.
    private let io: any DiskIO
    private let arena: UnsafeMutableRawPointer
    private let arenaBytes: Int

    /// Drives a disk with an arena that starts at `arena`, which is aligned to 4,096 bytes, and
    /// outlives every request.
    package init(_ io: any DiskIO, arena: UnsafeMutableRawPointer, byteCount: Int) {
        self.io = io
        self.arena = arena
        arenaBytes = byteCount
    }

    /// Submits requests, in order. `completion` is called once for each, on any thread, as that of
    /// ``DiskIO/submit(_:completion:)``; it belongs in ``DiskLog/completed(_:_:now:)``.
    package func carryOut(
        _ requests: [LogRequest],
        completion: @escaping @Sendable (_ id: UInt64, _ outcome: DiskOutcome) -> Void
    ) {
        for request in requests {
            var memory: [DiskMemory] = []
            let operation = operation(request.operation, &memory)
            let (id, kept) = (request.id, memory)
            io.submit(DiskRequest(id: id, operation: operation)) { outcome in
                withExtendedLifetime(kept) { completion(id, outcome) }
            }
        }
    }

    private func operation(
        _ operation: LogRequest.Operation, _ memory: inout [DiskMemory]
    ) -> DiskRequest.Operation {
        switch operation {
        case .read(let file, let offset, let extents):
            return .read(file: file, offset: offset, into: extents.map(buffer))
        case .write(let file, let offset, let pieces):
            var buffers: [DiskBuffer] = []
            buffers.reserveCapacity(pieces.count)
            for piece in pieces {
                switch piece {
                case .arena(let extent): buffers.append(buffer(extent))
                case .bytes(let bytes):
                    let copy = DiskMemory(copying: bytes)
                    memory.append(copy)
                    buffers.append(copy.buffer)
                }
            }
            return .write(file: file, offset: offset, from: buffers)
        case .sync(let file): return .sync(file: file)
        case .create(let file, let name, let byteCount):
            return .create(file: file, name: name, byteCount: byteCount)
        case .open(let file, let name): return .open(file: file, name: name)
        case .close(let file): return .close(file: file)
        case .remove(let name): return .remove(name: name)
        }
    }

    private func buffer(_ extent: TierExtent) -> DiskBuffer {
        let end = extent.offset.addingReportingOverflow(extent.length)
        precondition(
            !end.overflow && end.partialValue <= UInt64(arenaBytes), "an extent ends in the arena")
        return DiskBuffer(address: arena + Int(extent.offset), count: Int(extent.length))
    }
}

extension DiskMemory {
    /// Takes memory for bytes, whose count is a multiple of `DiskBuffer.alignment`.
    fileprivate convenience init(copying bytes: [UInt8]) {
        self.init(byteCount: bytes.count)
        buffer.bytes.copyBytes(from: bytes)
    }
}
