internal import Glibc

/// Memory that a disk request reads into or writes from.
///
/// Address and length are multiples of ``alignment``, as O_DIRECT wants them. It owns nothing:
/// whoever submits a request keeps the memory alive, and leaves it alone, until the completion.
package struct DiskBuffer: @unchecked Sendable {
    // SAFETY: a pointer and a length, without access of its own. A buffer belongs to one request
    // from submit to completion, and only the thread that carries it out (or the kernel) touches
    // it meanwhile; that is the rule of `DiskIO.submit`.

    /// What addresses, lengths and offsets are multiples of, in bytes.
    package static let alignment = 4096

    /// Where the memory starts.
    package let address: UnsafeMutableRawPointer
    /// Bytes of it.
    package let count: Int

    /// Names memory. Address and length must be aligned, the length not zero.
    package init(address: UnsafeMutableRawPointer, count: Int) {
        precondition(
            count > 0 && count % Self.alignment == 0
                && Int(bitPattern: address) % Self.alignment == 0,
            "a disk buffer's address and length are multiples of 4096")
        self.address = address
        self.count = count
    }

    /// Its bytes.
    package var bytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: address, count: count)
    }

    /// The same bytes in the fewest buffers: neighbours in memory become one of up to
    /// `DiskIOLimits.pieceBytes`, longer ones several.
    static func merged(_ buffers: [DiskBuffer]) -> [DiskBuffer] {
        var merged: [DiskBuffer] = []
        merged.reserveCapacity(buffers.count)
        for buffer in buffers {
            var rest = buffer
            if let last = merged.last, last.address + last.count == rest.address {
                merged.removeLast()
                rest = DiskBuffer(address: last.address, count: last.count + rest.count)
            }
            while rest.count > DiskIOLimits.pieceBytes {
                merged.append(DiskBuffer(address: rest.address, count: DiskIOLimits.pieceBytes))
                rest = rest.dropping(DiskIOLimits.pieceBytes)
            }
            merged.append(rest)
        }
        return merged
    }

    /// What follows the first `byteCount` bytes: fewer than there are, and a multiple of
    /// ``alignment``.
    func dropping(_ byteCount: Int) -> DiskBuffer {
        DiskBuffer(address: address + byteCount, count: count - byteCount)
    }
}

/// Aligned memory of its own, zeroed, freed with the last reference.
package final class DiskMemory: Sendable {
    /// All of it.
    package let buffer: DiskBuffer

    /// Takes `byteCount` bytes, a multiple of `DiskBuffer.alignment`.
    package init(byteCount: Int) {
        let address = UnsafeMutableRawPointer.allocate(
            byteCount: byteCount, alignment: DiskBuffer.alignment)
        memset(address, 0, byteCount)
        buffer = DiskBuffer(address: address, count: byteCount)
    }

    deinit { buffer.address.deallocate() }
}
