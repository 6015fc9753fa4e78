import CKernels
import TestRandom
import Testing

extension SeededGenerator {
    /// Evenly spread over -1 ..< 1.
    mutating func value() -> Float {
        Float(Int32(truncatingIfNeeded: next() >> 32)) * 0x1p-31
    }

    mutating func values(_ count: Int, scale: Float = 1) -> [Float] {
        (0..<count).map { _ in value() * scale }
    }

    /// A value of any size: subnormal, zero of either sign, tiny, usual, or huge.
    mutating func extreme() -> Float {
        switch below(12) {
        case 0: 0
        case 1: -0.0
        case 2: value() * 0x1p-130
        case 3: value() * .leastNonzeroMagnitude * 8
        case 4: value() * 1e-20
        case 5: value() * 1e18
        case 6: value() * 1e30
        default: value()
        }
    }

    mutating func extremes(_ count: Int) -> [Float] {
        (0..<count).map { _ in extreme() }
    }
}

/// Code for one kind of processor that this processor can run.
struct Kind: @unchecked Sendable, CustomTestStringConvertible {
    // SAFETY: points to a constant of the C target.
    let pointer: OpaquePointer

    static let all: [Kind] = (0..<kvk_kernels_count()).compactMap {
        kvk_kernels_at($0).map(Kind.init(pointer:))
    }
    static let fused = all.filter(\.isFused)

    var name: String { String(cString: kvk_kernels_name(pointer)) }
    var isFused: Bool { kvk_kernels_fused(pointer) }
    var testDescription: String { name }
}

/// The threads that compute.
final class Pool: @unchecked Sendable {
    // SAFETY: the C side takes calls from any thread.
    let pointer: OpaquePointer

    init(threads: Int32 = 1) throws {
        pointer = try #require(kvk_pool_create(threads))
    }

    deinit { kvk_pool_destroy(pointer) }
}

/// What no kernel computes: it shows where something was written.
let untouched = Float(bitPattern: 0x7FEB_CDEF)

/// The elements from `offset` on have room to be written, and so many before and behind have not.
struct Guarded {
    static let margin = 40
    private var memory: [Float]
    let count: Int

    init(_ count: Int) {
        self.count = count
        memory = Array(repeating: untouched, count: count + 2 * Self.margin)
    }

    init(_ values: [Float]) {
        self.init(values.count)
        memory.replaceSubrange(Self.margin..<Self.margin + count, with: values)
    }

    mutating func write(_ body: (UnsafeMutablePointer<Float>) -> Void) {
        memory.withUnsafeMutableBufferPointer { body($0.baseAddress! + Self.margin) }
    }

    var values: [Float] { Array(memory[Self.margin..<Self.margin + count]) }

    /// Whether the margins are as they were made.
    var isIntact: Bool {
        let margins = memory[..<Self.margin] + memory[(Self.margin + count)...]
        return margins.allSatisfy { $0.bitPattern == untouched.bitPattern }
    }
}

/// The first place where two results differ in a bit, in words; nil where they are equal.
func difference(_ result: [Float], _ expected: [Float]) -> String? {
    if result.count != expected.count { return "\(result.count) values, not \(expected.count)" }
    for index in result.indices where result[index].bitPattern != expected[index].bitPattern {
        return "[\(index)] is \(result[index]), not \(expected[index])"
    }
    return nil
}
