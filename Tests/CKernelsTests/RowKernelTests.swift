import CKernels
import Foundation
import Glibc
import TestRandom
import Testing

@Suite("Kernels of rows")
struct RowKernelTests {
    static let widths = Array(1...40) + [64, 100]

    @Test("compute what they promise, within a few roundings", arguments: RowKernel.allCases)
    func exact(_ kernel: RowKernel) throws {
        let pool = try Pool()
        for width in Self.widths where kernel != .rotate || width.isMultiple(of: 2) {
            let seed = UInt64(width)
            var random = SeededGenerator(seed: seed)
            let call = RowCall(kernel, rows: 1 + random.below(20), width: width, &random)
            let exact = call.exact()
            for kind in Kind.all {
                let note = "seed \(seed), \(kind.name), \(call)"
                let result = call.run(kind, pool, rows: 0..<call.rows, note)
                let wrong = result.indices.first {
                    !(abs(Double(result[$0]) - exact[$0].value) <= exact[$0].tolerance)
                }
                let shown = wrong.map { "[\($0)] is \(result[$0]), not \(exact[$0].value)" }
                #expect(shown == nil, "\(note)")
            }
        }
    }

    @Test(
        "compute in the order that is promised, to the bit",
        arguments: [RowKernel.normalize, .add, .addOneRow, .rotate])
    func order(_ kernel: RowKernel) throws {
        let pool = try Pool()
        for width in Self.widths where kernel != .rotate || width.isMultiple(of: 2) {
            let seed = 1000 + UInt64(width)
            var random = SeededGenerator(seed: seed)
            let call = RowCall(kernel, rows: 1 + random.below(20), width: width, &random)
            for kind in Kind.all {
                let note = "seed \(seed), \(kind.name), \(call)"
                let result = call.run(kind, pool, rows: 0..<call.rows, note)
                let found = difference(result, try #require(call.oracle(isFused: kind.isFused)))
                #expect(found == nil, "\(note)")
            }
        }
    }

    @Test("agree to the bit on all processors that fuse", arguments: RowKernel.allCases)
    func kinds(_ kernel: RowKernel) throws {
        let pool = try Pool()
        for width in Self.widths where kernel != .rotate || width.isMultiple(of: 2) {
            let seed = 2000 + UInt64(width)
            var random = SeededGenerator(seed: seed)
            let call = RowCall(kernel, rows: 1 + random.below(20), width: width, &random)
            let results = Kind.fused.map {
                call.run($0, pool, rows: 0..<call.rows, "seed \(seed), \($0.name), \(call)")
            }
            for index in results.indices.dropFirst() {
                let found = difference(results[index], results[0])
                #expect(found == nil, "seed \(seed), \(Kind.fused[index].name), \(call)")
            }
        }
    }

    @Test("give each row the same bits alone and among others", arguments: RowKernel.allCases)
    func rowsAreIndependent(_ kernel: RowKernel) throws {
        let pool = try Pool()
        for seed in 3000..<3010 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let call = RowCall(
                kernel, rows: 1 + random.below(50), width: 2 * (1 + random.below(40)), &random)
            for kind in Kind.all {
                let note = "seed \(seed), \(kind.name), \(call)"
                let whole = call.run(kind, pool, rows: 0..<call.rows, note)
                let width = call.width * call.heads
                for _ in 0..<5 {
                    let start = random.below(call.rows)
                    let some = start..<start + 1 + random.below(call.rows - start)
                    let found = difference(
                        call.run(kind, pool, rows: some, note),
                        Array(whole[some.lowerBound * width..<some.upperBound * width]))
                    #expect(found == nil, "\(note), rows \(some)")
                }
            }
        }
    }

    @Test("give the same bits on any number of threads", arguments: RowKernel.allCases)
    func threads(_ kernel: RowKernel) throws {
        var random = SeededGenerator(seed: 4000)
        // Just above what wakes threads; rows that don't fill the last unit of 16.
        let (rows, width) =
            switch kernel {
            case .normalize: (501, 2002)
            case .add, .addOneRow: (1001, 2002)
            case .swiglu: (203, 1002)
            case .rotate: (1003, 258)
            }
        let call = RowCall(kernel, rows: rows, width: width, &random)
        let kind = try #require(Kind.all.first)
        let expected = call.run(kind, try Pool(), rows: 0..<rows, "\(call)")
        for threads in [2, 3, 5] as [Int32] {
            let result = call.run(kind, try Pool(threads: threads), rows: 0..<rows, "\(call)")
            let found = difference(result, expected)
            #expect(found == nil, "seed 4000, \(call), \(threads) threads")
        }
    }

    @Test("normalize rows of zeros, of tiny and of huge values", arguments: Kind.all)
    func normalizeExtremes(_ kind: Kind) throws {
        let pool = try Pool()
        for (value, expected) in [
            (0, 0), (-0.0, -0.0), (1e-30, 1e-30 / Float(1e-6).squareRoot()), (1e15, 1), (-1e15, -1),
        ] as [(Float, Float)] {
            for width in [1, 15, 17, 33] {
                var out = Guarded(width)
                out.write {
                    kvk_rms_norm(
                        pool.pointer, kind.pointer, [Float](repeating: value, count: width),
                        [Float](repeating: 1, count: width), 1, width, 1e-6, $0)
                }
                #expect(out.isIntact)
                for result in out.values {
                    #expect(abs(result - expected) <= 3e-7 * abs(expected), "\(value), \(width)")
                    #expect(result.sign == value.sign)
                }
            }
        }
    }
}

// MARK: SwiGLU

extension RowCall {
    /// silu(gate) · up, to within 4 roundings. Below -88, silu may be taken for zero, which is off
    /// by 6e-37 at most.
    static func exactSwiGLU(gate: Float, up: Float) -> (value: Double, tolerance: Double) {
        let value = Double(gate) / (1 + exp(-Double(gate))) * Double(up)
        let least = Double(Float.leastNormalMagnitude)
        return (value, abs(value) * 2.4e-7 + 6e-37 * abs(Double(up)) + least)
    }
}

extension RowKernelTests {
    @Test("SwiGLU is right for gates of any size", arguments: Kind.all)
    func gates(_ kind: Kind) throws {
        let pool = try Pool()
        var gates: [Float] = [0, -0.0, .leastNonzeroMagnitude, -.leastNormalMagnitude]
        for size in [
            1e-30, 1e-6, 87.3, 87.34, 87.5, 88, 88.1, 88.4, 88.8, 90, 100, 1e3, 1e30, 3e38,
        ] {
            gates += [Float(size), -Float(size)]
        }
        gates += (-1000...1000).map { Float($0) * 0.1 + 0.003 }
        for up in [1, -3, 0, 1e-20, 1e5] as [Float] {
            var out = Guarded(gates.count)
            let input = gates + Array(repeating: up, count: gates.count)
            out.write { kvk_swiglu(pool.pointer, kind.pointer, input, 1, gates.count, $0) }
            #expect(out.isIntact)
            let result = out.values
            let wrong = gates.indices.filter {
                let (value, tolerance) = RowCall.exactSwiGLU(gate: gates[$0], up: up)
                if Float(value).isInfinite { return result[$0] != Float(value) }
                return !(abs(Double(result[$0]) - value) <= tolerance)
            }
            let shown = wrong.prefix(5).map { "\(gates[$0]), \(up) gives \(result[$0])" }
            #expect(shown == [], "\(kind.name)")
        }
    }

    @Test("SwiGLU of a gate that is not a number is not one", arguments: Kind.all)
    func gatesOfNothing(_ kind: Kind) throws {
        var out = Guarded(2)
        let pool = try Pool()
        out.write { kvk_swiglu(pool.pointer, kind.pointer, [.nan, .infinity, 1, 1], 1, 2, $0) }
        #expect(out.values[0].isNaN)
        #expect(out.values[1] == .infinity)
    }
}

@Suite("Angles")
struct AngleTests {
    @Test("are the cosine and sine of a float32 product, to the last place")
    func accuracy() {
        var random = SeededGenerator(seed: 41)
        var inverse: [Float] = [1, 0.5, 0x1p-20, 1e-9, 0]
        inverse += (0..<40).map { _ in Float.random(in: 0...1, using: &random) }
        for first in [0, 1, 63, 4_095, 131_071, 999_900] {
            let rows = 70
            var cosine = [Float](repeating: 0, count: rows * inverse.count)
            var sine = cosine
            kvk_angles(first, rows, inverse, inverse.count, 1.25, &cosine, &sine)
            for row in 0..<rows {
                for (place, value) in inverse.enumerated() {
                    let angle = Double(Float(first + row) * value)
                    let index = row * inverse.count + place
                    let wanted = (Float(cos(angle)) * 1.25, Float(sin(angle)) * 1.25)
                    #expect(abs(cosine[index] - wanted.0) <= wanted.0.ulp, "\(angle)")
                    #expect(abs(sine[index] - wanted.1) <= wanted.1.ulp, "\(angle)")
                }
            }
        }
    }
}
