internal import Glibc

extension OpenFile {
    /// Reads or writes consecutive bytes of the file, as many calls as it takes.
    ///
    /// - Parameter isUnbounded: the range may reach past the end, which a write then moves.
    func transfer(
        _ buffers: [DiskBuffer], offset: Int, isWrite: Bool, isUnbounded: Bool = false
    ) throws(DiskFault) {
        let total = buffers.reduce(0) { $0 + $1.count }
        if !isUnbounded { try check(offset: offset, byteCount: total, isWrite: isWrite) }
        var rest = DiskBuffer.merged(buffers)[...]
        var done = 0
        var attempts = 0
        while !rest.isEmpty {
            let batch = Self.batch(rest)
            let wanted = batch.reduce(0) { $0 + $1.count }
            let (count, code) = call(batch, offset: offset + done, isWrite: isWrite)
            // What is done of a block is done again: O_DIRECT can't go on in the middle of one.
            let whole = max(0, count) / DiskBuffer.alignment * DiskBuffer.alignment
            if whole < wanted {
                let progress = TransferProgress(
                    file: self, offset: offset, byteCount: total, isWrite: isWrite)
                if whole > 0 { attempts = 0 } else { attempts += 1 }
                if let fault = progress.fault(count: count, code: code, attempts: attempts) {
                    throw fault
                }
                if whole == 0 { usleep(1000) }
            }
            done += whole
            Self.drop(whole, from: &rest)
        }
    }

    private static func batch(_ pieces: ArraySlice<DiskBuffer>) -> ArraySlice<DiskBuffer> {
        var count = 0
        var end = pieces.startIndex
        while end < pieces.endIndex, end - pieces.startIndex < DiskIOLimits.buffersPerCall,
            count + pieces[end].count <= DiskIOLimits.pieceBytes
        {
            count += pieces[end].count
            end += 1
        }
        return pieces[..<end]
    }

    private static func drop(_ byteCount: Int, from pieces: inout ArraySlice<DiskBuffer>) {
        var left = byteCount
        while left > 0, let first = pieces.first {
            if first.count > left {
                pieces[pieces.startIndex] = first.dropping(left)
                return
            }
            left -= first.count
            pieces.removeFirst()
        }
    }

    private func call(
        _ pieces: ArraySlice<DiskBuffer>, offset: Int, isWrite: Bool
    ) -> (count: Int, code: Int32) {
        withUnsafeTemporaryAllocation(of: iovec.self, capacity: pieces.count) { vectors in
            for (index, piece) in pieces.enumerated() {
                vectors.initializeElement(
                    at: index, to: iovec(iov_base: piece.address, iov_len: piece.count))
            }
            while true {
                let base = vectors.baseAddress!
                let count =
                    isWrite
                    ? pwritev(descriptor, base, Int32(pieces.count), off_t(offset))
                    : preadv(descriptor, base, Int32(pieces.count), off_t(offset))
                if count >= 0 { return (count, 0) }
                if errno != EINTR { return (count, errno) }
            }
        }
    }
}

/// Decides what follows when a call did less than it was asked to.
struct TransferProgress {
    let file: OpenFile
    let offset: Int
    let byteCount: Int
    let isWrite: Bool

    /// The fault that ends the transfer; nil: go on from where it is.
    /// - Parameters:
    ///   - count: what the call gave, negative on an error.
    ///   - code: the error.
    ///   - attempts: calls since the last progress.
    func fault(count: Int, code: Int32, attempts: Int) -> DiskFault? {
        let action = file.transferName(offset: offset, byteCount: byteCount, isWrite: isWrite)
        if count < 0 {
            let isTransient = code == EAGAIN || code == EINTR
            if isTransient && attempts < DiskIOLimits.attempts { return nil }
            return DiskFault(errno: code, action)
        }
        if !isWrite, let end = file.currentByteCount, end < offset + byteCount {
            return DiskFault(.endOfFile, action, because: "the file ends at \(end)")
        }
        if attempts < DiskIOLimits.attempts { return nil }
        return DiskFault(.inputOutput, action, because: "the system makes no progress with it")
    }
}
