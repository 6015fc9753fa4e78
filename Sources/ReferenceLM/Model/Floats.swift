internal import Glibc

/// Floats that start at a multiple of 64 bytes. Zero at first. Owns them.
final class Floats: @unchecked Sendable {
    // SAFETY: allocated here, freed in deinit; who writes while others read is the owner's affair.
    let pointer: UnsafeMutablePointer<Float>
    let count: Int

    init(_ count: Int) throws(ModelError) {
        let bytes = (max(1, count) * 4 + 63) & ~63
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 64, bytes) == 0, let memory else {
            throw ModelError(
                .input, "there are no \(bytes >> 20) MiB of memory for the model; free some")
        }
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
        pointer = memory.bindMemory(to: Float.self, capacity: bytes / 4)
        self.count = count
    }

    deinit { free(pointer) }

    var buffer: UnsafeMutableBufferPointer<Float> {
        UnsafeMutableBufferPointer(start: pointer, count: count)
    }
}
