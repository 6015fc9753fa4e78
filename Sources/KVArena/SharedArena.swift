internal import CKvasir
internal import Glibc

/// The shared memory in which KV lives: a sealed memfd, mapped here and by every client that was
/// handed its descriptor.
///
/// The kernel frees it when the last process that maps it is gone, however it went. Its size is
/// fixed for life. Touching a page that is not faulted in can kill the process when memory is
/// short, so nothing is handed out before ``populate(_:)`` has succeeded for it.
///
/// This class owns the mapping; the pointers it gives are valid as long as it lives. It guards
/// nothing: who may touch which bytes when is the store's business (holds and leases).
public final class SharedArena: Sendable {
    /// Bytes of the arena.
    public let byteCount: Int
    /// The descriptor that clients get.
    public let descriptor: Int32
    /// The same for clients that may only read.
    public let readOnlyDescriptor: Int32
    /// 16 random bytes that tell this arena from any other.
    public let id: [UInt8]

    // SAFETY: set once in init, unmapped in deinit; concurrent use of the bytes is governed by
    // leases.
    private nonisolated(unsafe) let base: UnsafeMutableRawPointer

    /// Makes an arena of `byteCount` bytes, none of which takes memory yet.
    public init(byteCount: Int, hugePages: Bool) throws(ArenaError) {
        precondition(byteCount > 0 && byteCount % ExtentAllocator.pageBytes == 0, "whole pages")
        let fd = kv_memfd("kvasir-arena", UInt64(byteCount))
        if fd < 0 { throw ArenaError(errno, "make a memfd of \(byteCount) bytes") }
        let readOnly = kv_memfd_reopen_read_only(fd)
        if readOnly < 0 {
            let error = ArenaError(errno, "open the arena's memfd read-only through /proc")
            close(fd)
            throw error
        }
        let mapped = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        guard let mapped, mapped != MAP_FAILED else {
            let error = ArenaError(errno, "map the arena's \(byteCount) bytes")
            close(fd)
            close(readOnly)
            throw error
        }
        // Failure costs memory in forked children only; there are none here.
        _ = kv_dont_fork(mapped, byteCount)
        if hugePages { _ = kv_advise_huge_pages(mapped, byteCount) }
        self.byteCount = byteCount
        descriptor = fd
        readOnlyDescriptor = readOnly
        base = mapped
        id = (0..<16).map { _ in UInt8.random(in: .min ... .max) }
    }

    deinit {
        munmap(base, byteCount)
        close(descriptor)
        close(readOnlyDescriptor)
    }

    /// Faults the bytes in. Unlike a touch, this fails with an error, not with a signal, when
    /// memory is short.
    public func populate(_ bytes: Range<Int>) throws(ArenaError) {
        precondition(bytes.lowerBound >= 0 && bytes.upperBound <= byteCount, "inside the arena")
        let code = kv_populate_write(base + bytes.lowerBound, bytes.count)
        if code != 0 { throw ArenaError(code, "fault in \(bytes.count) bytes of the arena") }
    }

    /// All bytes; which of them may be touched is a matter of claims.
    public var all: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: base, count: byteCount)
    }

    /// Makes zeros of what follows an extent's bytes up to a whole page. Like ``bytes(offset:length:)``
    /// it needs a claim on the extent.
    public func clearPadding(offset: UInt64, length: UInt64) {
        let page = UInt64(ExtentAllocator.pageBytes)
        let padding = (page - length % page) % page
        if padding == 0 { return }
        let bytes = bytes(offset: offset + length, length: padding)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    /// The bytes of an extent. The caller must have a lease on it, and keep this arena alive.
    public func bytes(offset: UInt64, length: UInt64) -> UnsafeMutableRawBufferPointer {
        precondition(
            offset <= UInt64(byteCount) && length <= UInt64(byteCount) - offset, "inside the arena")
        return UnsafeMutableRawBufferPointer(start: base + Int(offset), count: Int(length))
    }
}

/// A system call on the arena that failed.
public struct ArenaError: Error, CustomStringConvertible {
    /// The kernel's error number.
    public let code: Int32
    /// What could not be done.
    public let action: String

    init(_ code: Int32, _ action: String) {
        self.code = code
        self.action = action
    }

    public var description: String { "can't \(action): \(String(cString: strerror(code)))" }
}
