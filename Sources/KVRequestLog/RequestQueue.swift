/// Requests that wait to be written, and those that are being written: bounded in number and bytes.
struct RequestQueue {
    private let requestLimit: Int
    private let byteLimit: Int
    private var waiting: [LoggedRequest] = []
    /// Of those that are being written, too.
    private var count = 0
    private var byteCount = 0

    init(
        requestLimit: Int = RequestLogLimits.queuedRequests,
        byteLimit: Int = RequestLogLimits.queuedBytes
    ) {
        self.requestLimit = requestLimit
        self.byteLimit = byteLimit
    }

    /// Whether it should be emptied soon.
    var isHalfFull: Bool { count > requestLimit / 2 || byteCount > byteLimit / 2 }

    /// - Returns: false if there is no room. O(1): the keys are shared, not copied.
    mutating func append(_ request: LoggedRequest) -> Bool {
        if count >= requestLimit || byteCount + request.queuedBytes > byteLimit { return false }
        waiting.append(request)
        count += 1
        byteCount += request.queuedBytes
        return true
    }

    /// All that wait, in the order in which they came. They take room until they are ``done(_:bytes:)``.
    mutating func takeAll() -> [LoggedRequest] {
        defer { waiting = [] }
        return waiting
    }

    /// What was taken is written, or given up.
    ///
    /// - Parameter bytes: what they took here. O(1).
    mutating func done(_ requests: Int, bytes: Int) {
        count -= requests
        byteCount -= bytes
    }
}
