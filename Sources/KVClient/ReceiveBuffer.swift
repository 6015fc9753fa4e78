/// Bytes received and not understood yet. Grows as replies need, and gives back what was unusual.
struct ReceiveBuffer: ~Copyable, @unchecked Sendable {
    private static let usualBytes = 64 << 10

    // SAFETY: the buffer is the only owner and can't be copied, so moving it to another thread moves the memory with it.
    private var storage: UnsafeMutableRawBufferPointer
    private(set) var count = 0

    init() {
        storage = .allocate(byteCount: Self.usualBytes, alignment: 16)
    }

    deinit { storage.deallocate() }

    /// What was received; valid until the next change.
    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: storage[0..<count]) }

    /// Room behind what was received; valid until the next change.
    var room: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: storage[count...])
    }

    mutating func added(_ byteCount: Int) {
        precondition(byteCount <= storage.count - count, "more than there was room for")
        count += byteCount
    }

    /// Makes room for a reply of so many bytes in all, if that is not absurd: it doubles at most, so a length that was only
    /// announced takes no memory.
    mutating func grow(toward byteCount: Int) {
        if byteCount <= storage.count, count < storage.count { return }
        let capacity = min(max(byteCount, storage.count + 1), storage.count * 2)
        let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: capacity, alignment: 16)
        larger.copyMemory(from: bytes)
        storage.deallocate()
        storage = larger
    }

    /// Takes the first bytes away, because they were understood.
    mutating func consume(_ byteCount: Int) {
        precondition(byteCount <= count, "more than there is")
        count -= byteCount
        if count == 0 { return }
        // Rare: a server that answers unasked. memmove, since the ranges overlap.
        storage.copyMemory(
            from: UnsafeRawBufferPointer(rebasing: storage[byteCount..<(byteCount + count)]))
    }

    /// Forgets everything.
    mutating func removeAll() {
        count = 0
        if storage.count <= 4 * Self.usualBytes { return }
        storage.deallocate()
        storage = .allocate(byteCount: Self.usualBytes, alignment: 16)
    }
}
