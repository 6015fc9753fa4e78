internal import CKvasir
internal import Glibc

/// A thread with a name and one job.
public final class NamedThread: Sendable {
    private final class Body: Sendable {
        let name: String
        let work: @Sendable () -> Void

        init(name: String, work: @escaping @Sendable () -> Void) {
            self.name = name
            self.work = work
        }
    }

    private let thread: pthread_t

    /// Starts `work` on a thread of its own. - Parameter name: at most 15 bytes, as the kernel
    /// shows it.
    public init(_ name: String, work: @escaping @Sendable () -> Void) {
        let body = Unmanaged.passRetained(Body(name: name, work: work)).toOpaque()
        var thread = pthread_t()
        let code = pthread_create(
            &thread, nil,
            { raw in
                let body = Unmanaged<Body>.fromOpaque(raw!).takeRetainedValue()
                kv_name_thread(body.name)
                body.work()
                return nil
            }, body)
        precondition(code == 0, "the system gives no more threads (pthread_create: \(code))")
        self.thread = thread
    }

    /// Waits until the work is done; from the thread itself, lets it end unwatched. Call it exactly
    /// once.
    public func join() {
        if pthread_equal(thread, pthread_self()) != 0 {
            pthread_detach(thread)
        } else {
            pthread_join(thread, nil)
        }
    }
}
