internal import Glibc

/// A value that one thread at a time may touch.
///
/// As `Synchronization.Mutex`, but on a POSIX mutex, whose locking ThreadSanitizer understands: on
/// Linux it reports every use of `Mutex` as a race, which would hide real ones. Locking an
/// uncontended one takes about 20 ns. It owns the value and destroys it.
@safe public struct Locked<Value: ~Copyable>: ~Copyable, @unchecked Sendable {
    // SAFETY: both are allocated in init, freed in deinit and never handed out; the value is only
    // touched under the mutex.
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let value: UnsafeMutablePointer<Value>

    /// Guards a value.
    public init(_ initial: consuming sending Value) {
        unsafe mutex = .allocate(capacity: 1)
        unsafe mutex.initialize(to: pthread_mutex_t())
        let code = unsafe pthread_mutex_init(mutex, nil)
        precondition(code == 0, "no mutex to be had: \(code)")
        unsafe value = .allocate(capacity: 1)
        unsafe value.initialize(to: initial)
    }

    deinit {
        unsafe value.deinitialize(count: 1)
        unsafe value.deallocate()
        unsafe pthread_mutex_destroy(mutex)
        unsafe mutex.deallocate()
    }

    /// Runs `body` while no other thread does. It must not lock the same value again.
    public borrowing func withLock<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return try unsafe body(&value.pointee)
    }
}
