/// Bytes on their way out: written at the end, taken from the front.
///
/// One piece of memory that grows as needed and is reused, so that a connection in steady state
/// allocates nothing. Taking from the front moves no bytes. It owns its memory and can't be copied.
@safe public struct ByteQueue: ~Copyable {
    /// Memory kept when the queue runs empty; what is larger is given back.
    public static let retainedBytes = 64 << 10
    private static let leastCapacity = 256

    private var storage: UnsafeMutableRawPointer?
    private var capacity = 0
    private var head = 0
    private var tail = 0

    /// An empty queue without memory.
    public init() {
        unsafe storage = nil
    }

    deinit {
        // SAFETY: nobody else has the pointer: the queue is not copyable and hands out only
        // pointers that end with a call.
        unsafe storage?.deallocate()
    }

    /// Bytes written and not taken yet.
    public var count: Int { tail - head }

    /// Whether nothing waits to be taken.
    public var isEmpty: Bool { head == tail }

    /// Shows the waiting bytes to `body`; they are valid during the call only. O(1).
    public borrowing func withUnsafeBytes<Result, Failure: Error>(
        _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        // SAFETY: head...tail lies inside the storage, and the borrow keeps it from being changed.
        let start = unsafe storage.map { unsafe UnsafeRawPointer($0 + head) }
        return try unsafe body(UnsafeRawBufferPointer(start: start, count: count))
    }

    /// The waiting bytes as an array. O(count).
    public borrowing func copyBytes() -> [UInt8] {
        unsafe withUnsafeBytes { unsafe [UInt8]($0) }
    }

    /// Takes the first `bytes` bytes away, because they were sent. O(1).
    ///
    /// - Precondition: `bytes` is between 0 and ``count``.
    public mutating func consume(_ bytes: Int) {
        precondition(bytes >= 0 && bytes <= count, "a queue can't give more than it has")
        head += bytes
        if head == tail { removeAll() }
    }

    /// Takes everything away, and gives memory beyond ``retainedBytes`` back. O(1).
    public mutating func removeAll() {
        head = 0
        tail = 0
        if capacity > Self.retainedBytes {
            // SAFETY: sole owner, see deinit; the pointer is forgotten in the same breath.
            unsafe storage?.deallocate()
            unsafe storage = nil
            capacity = 0
        }
    }

    /// Takes the bytes behind the first `bytes` away: unwrites what was written last. O(1).
    ///
    /// - Precondition: `bytes` is between 0 and ``count``.
    public mutating func truncate(to bytes: Int) {
        precondition(bytes >= 0 && bytes <= count, "a queue can't be cut to more than it has")
        tail = head + bytes
    }

    /// Makes room for `bytes` more bytes, so that writing them does not allocate.
    ///
    /// O(1), or O(count) when the bytes have to move.
    public mutating func reserve(_ bytes: Int) {
        precondition(bytes >= 0, "room for a negative number of bytes")
        if bytes > capacity - tail { makeRoom(bytes) }
    }

    /// Writes one byte. Amortised O(1).
    public mutating func append(_ byte: UInt8) {
        reserve(1)
        // SAFETY: reserve left at least one byte behind tail.
        unsafe storage.unsafelyUnwrapped.storeBytes(of: byte, toByteOffset: tail, as: UInt8.self)
        tail += 1
    }

    /// Writes `bytes`. Amortised O(count); must not be bytes of this queue.
    public mutating func append(_ bytes: UnsafeRawBufferPointer) {
        guard let source = bytes.baseAddress, bytes.count > 0 else { return }
        reserve(bytes.count)
        // SAFETY: reserve left at least that many bytes behind tail.
        unsafe (storage.unsafelyUnwrapped + tail).copyMemory(from: source, byteCount: bytes.count)
        tail += bytes.count
    }

    /// Writes `bytes`. Amortised O(count).
    public mutating func append(_ bytes: RawSpan) {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.withUnsafeBytes { unsafe append($0) }
    }

    /// Writes `bytes`. Amortised O(count).
    public mutating func append(_ bytes: [UInt8]) {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.withUnsafeBytes { unsafe append($0) }
    }

    /// Writes the UTF-8 bytes of `text`. Amortised O(count).
    public mutating func append(_ text: String) {
        var text = text
        // SAFETY: the pointer does not leave the closure.
        text.withUTF8 { unsafe append(UnsafeRawBufferPointer($0)) }
    }

    /// Writes `text`. Amortised O(count).
    public mutating func append(_ text: StaticString) {
        precondition(text.hasPointerRepresentation, "a literal of more than one character")
        // SAFETY: a StaticString lives for ever.
        unsafe append(UnsafeRawBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
    }

    /// Writes `count` bytes by letting `body` fill them in place.
    ///
    /// `body` must write every byte: what it leaves out is whatever was in memory. O(1) beside
    /// `body`.
    public mutating func append<Failure: Error>(
        count: Int, _ body: (UnsafeMutableRawBufferPointer) throws(Failure) -> Void
    ) throws(Failure) {
        reserve(max(count, 1))
        // SAFETY: reserve left at least `count` bytes behind tail; the pointer ends with the call.
        try unsafe body(
            UnsafeMutableRawBufferPointer(
                start: storage.unsafelyUnwrapped + tail, count: count))
        tail += count
    }

    /// Writes `value` in decimal, without an intermediate string. Amortised O(1).
    public mutating func append(decimal value: Int) {
        reserve(20)
        var magnitude = value.magnitude
        let digits = Self.decimalDigits(magnitude)
        // SAFETY: 20 bytes are enough for a sign and 19 digits, and reserve left them behind tail.
        let base = unsafe storage.unsafelyUnwrapped + tail
        var end = digits
        if value < 0 {
            unsafe base.storeBytes(of: Byte.minus, as: UInt8.self)
            end += 1
        }
        tail += end
        for _ in 0..<digits {
            let (quotient, remainder) = magnitude.quotientAndRemainder(dividingBy: 10)
            end -= 1
            unsafe base.storeBytes(
                of: Byte.zero &+ UInt8(truncatingIfNeeded: remainder), toByteOffset: end,
                as: UInt8.self)
            magnitude = quotient
        }
    }

    private static func decimalDigits(_ value: UInt) -> Int {
        var digits = 1
        var bound: UInt = 10
        while value >= bound {
            digits += 1
            let (next, overflow) = bound.multipliedReportingOverflow(by: 10)
            if overflow { break }
            bound = next
        }
        return digits
    }

    /// Moves the waiting bytes to the front of the storage, or to a larger one.
    private mutating func makeRoom(_ bytes: Int) {
        let waiting = count
        let (needed, overflow) = waiting.addingReportingOverflow(bytes)
        precondition(!overflow, "a queue can't hold that many bytes")
        if needed <= capacity, head >= capacity / 2, let storage = unsafe storage {
            // Half of the storage is free in front: moving is paid for by what was taken.
            // SAFETY: both ranges lie inside the storage; copyMemory allows them to overlap.
            unsafe storage.copyMemory(from: storage + head, byteCount: waiting)
        } else {
            capacity = max(needed, capacity * 2, Self.leastCapacity)
            // SAFETY: the new storage has room for `waiting` bytes, the old one has them from head
            // on; the old one is given back after its bytes were copied, and nobody else has it.
            let larger = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
            if let storage = unsafe storage {
                unsafe larger.copyMemory(from: storage + head, byteCount: waiting)
                unsafe storage.deallocate()
            }
            unsafe storage = larger
        }
        head = 0
        tail = waiting
    }
}

// SAFETY: the queue is the only owner of its memory and can't be copied, so moving it to another
// thread moves the memory with it.
extension ByteQueue: @unchecked Sendable {}
