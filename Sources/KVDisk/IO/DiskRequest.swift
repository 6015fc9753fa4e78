/// Something to do on a disk.
///
/// Files are named by numbers that the caller chooses, once they are created or opened. Requests
/// are independent: none waits for another. What depends on a request is submitted after its
/// completion.
package struct DiskRequest: Sendable {
    /// What to do.
    package enum Operation: Sendable {
        /// Reads consecutive bytes of a file, scattered in memory. Past the end it is a fault.
        case read(file: UInt64, offset: Int, into: [DiskBuffer])
        /// Writes consecutive bytes of a file, gathered from memory. Files don't grow: past the
        /// end it is a fault. A write that failed has left anything in its range.
        case write(file: UInt64, offset: Int, from: [DiskBuffer])
        /// Makes durable what was written to the file before this was submitted (fdatasync). After
        /// a sync that failed those writes may be lost, even when a later one succeeds.
        case sync(file: UInt64)
        /// Makes a file of zeros in real blocks that must not exist; it is durable when this is
        /// done, and the number stands for it.
        case create(file: UInt64, name: String, byteCount: Int)
        /// Opens a file that must exist.
        case open(file: UInt64, name: String)
        /// Forgets a number. What is still under way on it ends first.
        case close(file: UInt64)
        /// Removes a file, durably when done; a missing one is fine.
        case remove(name: String)
    }

    /// The caller's own number for it.
    package let id: UInt64
    /// What to do.
    package let operation: Operation

    /// Makes a request.
    package init(id: UInt64, operation: Operation) {
        self.id = id
        self.operation = operation
    }
}

/// How a request ended.
package enum DiskOutcome: Sendable, Hashable {
    /// All of it is done.
    case done
    /// It is not, or not all of it.
    case failed(DiskFault)
}

/// The most of everything in a back end.
package enum DiskIOLimits {
    /// Requests of one kind (transfers, syncs, other) that may wait; more are answered `.busy`.
    package static let waitingRequests = 16_384
    /// Buffers of one request.
    package static let buffersPerRequest = 65_536
    /// Bytes of one request.
    package static let bytesPerRequest = 1 << 40
    /// Bytes of one system call or ring entry.
    package static let pieceBytes = 1 << 30
    /// Buffers of one system call (IOV_MAX of Linux).
    package static let buffersPerCall = 1024
    /// Reads that may pass a waiting write before it has its turn.
    package static let readsPerWaitingWrite = 8
    /// Times that a transfer is tried again after EAGAIN, or without progress.
    package static let attempts = 100
}

extension DiskRequest.Operation {
    /// The range of a transfer, its buffers and whether it writes; nil for the other kinds.
    var transfer: (file: UInt64, offset: Int, buffers: [DiskBuffer], isWrite: Bool)? {
        switch self {
        case .read(let file, let offset, let buffers): (file, offset, buffers, false)
        case .write(let file, let offset, let buffers): (file, offset, buffers, true)
        default: nil
        }
    }

    /// The number of the file; nil for a removal.
    var number: UInt64? {
        switch self {
        case .read(let file, _, _), .write(let file, _, _), .sync(let file),
            .create(let file, _, _), .open(let file, _), .close(let file):
            file
        case .remove: nil
        }
    }

    /// Why no correct program would ask for this; nil for what can be tried.
    var misuse: String? {
        if let transfer {
            let count = transfer.buffers.reduce(0) { $0 + $1.count }
            if transfer.buffers.isEmpty { return "a transfer without buffers" }
            if transfer.buffers.count > DiskIOLimits.buffersPerRequest {
                return "a transfer of \(transfer.buffers.count) buffers"
            }
            if count > DiskIOLimits.bytesPerRequest { return "a transfer of \(count) bytes" }
            if transfer.offset < 0 || transfer.offset % DiskBuffer.alignment != 0 {
                return "a transfer at \(transfer.offset), which is no multiple of 4096"
            }
        }
        switch self {
        case .create(_, let name, let byteCount):
            if byteCount <= 0 || byteCount % DiskBuffer.alignment != 0 {
                return "a file of \(byteCount) bytes, which is no multiple of 4096"
            }
            return Self.misuse(name: name)
        case .open(_, let name), .remove(let name): return Self.misuse(name: name)
        default: return nil
        }
    }

    private static func misuse(name: String) -> String? {
        let isPlain =
            !name.isEmpty && name != "." && name != ".." && name.utf8.count <= 255
            && !name.utf8.contains { $0 == 0 || $0 == UInt8(ascii: "/") }
        return isPlain ? nil : "'\(name)' is not the name of a file in the directory"
    }
}
