internal import CKvasir
internal import Glibc

/// Wakes threads that wait (an eventfd).
final class EventCounter: Sendable {
    let descriptor: Int32

    /// - Parameter isSemaphore: each signal wakes one waiting thread once; otherwise all signals up
    ///   to a wait are one.
    init(isSemaphore: Bool) throws(DiskFault) {
        let flags = Int32(EFD_CLOEXEC) | (isSemaphore ? Int32(EFD_SEMAPHORE) : 0)
        descriptor = eventfd(0, flags)
        if descriptor < 0 { throw DiskFault(errno: errno, "make an eventfd") }
    }

    deinit { close(descriptor) }

    func signal() {
        var one: UInt64 = 1
        while write(descriptor, &one, 8) < 0, errno == EINTR {}
    }

    /// Waits for a signal.
    func wait() {
        var count: UInt64 = 0
        while read(descriptor, &count, 8) < 0, errno == EINTR {}
    }
}
