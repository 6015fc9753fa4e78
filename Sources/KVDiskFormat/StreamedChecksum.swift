internal import CXXHash

/// The checksum of bytes that come in pieces: equal to ``DiskFormat/checksum(_:)`` of all of them.
///
/// For bodies that are longer than the memory at hand; about half as fast.
@safe package struct StreamedChecksum: ~Copyable {
    // SAFETY: made in init, freed in deinit, never handed out; the type can't be copied.
    private let stream: OpaquePointer

    /// Of no bytes so far.
    package init() {
        guard let stream = unsafe kv_xxh3_stream_new() else {
            preconditionFailure("there is no memory for a checksum")
        }
        unsafe self.stream = stream
    }

    deinit { unsafe kv_xxh3_stream_free(stream) }

    /// Adds the next bytes.
    package mutating func add(_ bytes: UnsafeRawBufferPointer) {
        // SAFETY: the pointer is used during the call only, and for no more bytes than it has.
        unsafe kv_xxh3_stream_add(stream, bytes.baseAddress, bytes.count)
    }

    /// Of all bytes so far.
    package var value: UInt64 { unsafe kv_xxh3_stream_value(stream) }
}
