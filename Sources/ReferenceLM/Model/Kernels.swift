internal import CKernels

/// Code for one kind of processor.
///
/// All kinds with ``areFused`` give the same bits; those without give others among themselves.
public struct Kernels: @unchecked Sendable, CustomStringConvertible {
    // SAFETY: points to a constant of the C target.
    let pointer: OpaquePointer

    /// The fastest that this processor can run.
    public static let best = Kernels(pointer: kvk_kernels_best())

    /// All that this processor can run, the fastest first.
    public static let available: [Kernels] = (0..<kvk_kernels_count()).compactMap {
        kvk_kernels_at($0).map(Kernels.init(pointer:))
    }

    /// `avx512`, `avx2` or `portable`.
    public var description: String { String(cString: kvk_kernels_name(pointer)) }

    /// Whether a multiply-add rounds once.
    public var areFused: Bool { kvk_kernels_fused(pointer) }
}

/// The threads that a model computes with.
final class ComputePool: @unchecked Sendable {
    // SAFETY: the C side takes calls from any thread, one after the other.
    let pointer: OpaquePointer

    init(threads: Int) throws(ModelError) {
        if threads > Model.threadsMax {
            throw ModelError(
                .input, "a model computes with at most \(Model.threadsMax) threads, not \(threads)")
        }
        guard let pool = kvk_pool_create(Int32(clamping: max(1, threads))) else {
            throw ModelError(
                .input, "the system gives no \(threads) threads; ask for fewer with --threads")
        }
        pointer = pool
    }

    deinit { kvk_pool_destroy(pointer) }

    var threads: Int { Int(kvk_pool_threads(pointer)) }
}
