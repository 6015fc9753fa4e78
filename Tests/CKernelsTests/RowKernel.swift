import CKernels
import TestRandom
import Testing

/// A kernel that works on each row alone.
enum RowKernel: CaseIterable, Sendable {
    case normalize, add, addOneRow, swiglu, rotate
}

/// One call of such a kernel: inputs, strides, and what it must not touch.
struct RowCall: CustomStringConvertible {
    static let epsilon: Float = 1e-5

    let kernel: RowKernel
    let rows: Int
    /// Of a head, where there are heads.
    let width: Int
    let heads: Int
    /// Floats from one row of the output to the next.
    let stride: Int
    /// What the output holds before: an operand of `add` and `rotate`.
    let before: [Float]
    /// The other operands, row by row, without padding; of `normalize` the second is one row.
    let first: [Float]
    let second: [Float]

    init(_ kernel: RowKernel, rows: Int, width: Int, _ random: inout SeededGenerator) {
        self.kernel = kernel
        self.rows = rows
        self.width = width
        let firsts: Int
        let seconds: Int
        switch kernel {
        case .normalize: (firsts, seconds, heads) = (rows * width, width, 1)
        case .add: (firsts, seconds, heads) = (rows * width, 0, 1)
        case .addOneRow: (firsts, seconds, heads) = (width, 0, 1)
        case .swiglu: (firsts, seconds, heads) = (rows * width * 2, 0, 1)
        case .rotate: (firsts, seconds, heads) = (rows * width / 2, rows * width / 2, 3)
        }
        first = random.values(firsts, scale: kernel == .swiglu ? 20 : 2)
        second = random.values(seconds, scale: 2)
        let isPadded = kernel == .add || kernel == .addOneRow || kernel == .rotate
        stride = width * heads + (isPadded ? random.below(20) : 0)
        var before = [Float](repeating: untouched, count: rows * stride)
        if isPadded {
            for row in 0..<rows {
                let range = row * stride..<row * stride + width * heads
                before.replaceSubrange(range, with: random.values(range.count, scale: 2))
            }
        }
        self.before = before
    }

    var description: String {
        "\(kernel) of \(rows) rows of \(heads) × \(width), \(stride) apart"
    }

    /// The output for some rows; expects that nothing but they was written.
    func run(_ kind: Kind, _ pool: Pool, rows some: Range<Int>, _ note: String) -> [Float] {
        var out = Guarded(Array(before[some.lowerBound * stride..<some.upperBound * stride]))
        first.withUnsafeBufferPointer { first in
            second.withUnsafeBufferPointer { second in
                out.write {
                    call(
                        pool.pointer, kind.pointer, some.lowerBound, some.count, $0,
                        first.baseAddress!, second.baseAddress!)
                }
            }
        }
        let written = out.values
        var result: [Float] = []
        var isPaddingIntact = true
        for row in 0..<some.count {
            let end = row * stride + width * heads
            result += written[row * stride..<end]
            isPaddingIntact =
                isPaddingIntact
                && written[end..<(row + 1) * stride].allSatisfy {
                    $0.bitPattern == untouched.bitPattern
                }
        }
        #expect(out.isIntact && isPaddingIntact, "\(note)")
        return result
    }

    private func call(
        _ pool: OpaquePointer, _ kernels: OpaquePointer, _ row: Int, _ rows: Int,
        _ out: UnsafeMutablePointer<Float>, _ first: UnsafePointer<Float>,
        _ second: UnsafePointer<Float>
    ) {
        switch kernel {
        case .normalize:
            kvk_rms_norm(
                pool, kernels, first + row * width, second, rows, width, Self.epsilon, out)
        case .add:
            kvk_add(pool, kernels, out, stride, first + row * width, width, rows, width)
        case .addOneRow:
            kvk_add(pool, kernels, out, stride, first, 0, rows, width)
        case .swiglu:
            kvk_swiglu(pool, kernels, first + row * 2 * width, rows, width, out)
        case .rotate:
            let half = row * width / 2
            kvk_rotate(
                pool, kernels, out, stride, rows, heads, width, first + half, second + half)
        }
    }
}

// MARK: What they compute

extension RowCall {
    /// The output, computed plainly in the order of operations that `CKernels.h` promises.
    ///
    /// - Returns: nil for `swiglu`, whose exponential is its own affair.
    func oracle(isFused: Bool) -> [Float]? {
        var result: [Float] = []
        for row in 0..<rows {
            switch kernel {
            case .normalize:
                let x = Array(first[row * width..<(row + 1) * width])
                let mean = Self.sumOfSquares(x, isFused: isFused) / Float(width)
                let factor = 1 / (mean + Self.epsilon).squareRoot()
                result += x.indices.map { second[$0] * (x[$0] * factor) }
            case .add:
                result += (0..<width).map { before[row * stride + $0] + first[row * width + $0] }
            case .addOneRow:
                result += (0..<width).map { before[row * stride + $0] + first[$0] }
            case .swiglu:
                return nil
            case .rotate:
                result += rotated(row: row) {
                    $0 * $1 - $2 * $3
                } _: {
                    $0 * $1 + $2 * $3
                }
            }
        }
        return result
    }

    /// Sixteen lanes, added in a tree.
    private static func sumOfSquares(_ x: [Float], isFused: Bool) -> Float {
        var lanes = [Float](repeating: 0, count: 16)
        for index in x.indices {
            let lane = index % 16
            lanes[lane] =
                isFused
                ? lanes[lane].addingProduct(x[index], x[index])
                : x[index] * x[index] + lanes[lane]
        }
        while lanes.count > 1 {
            let half = lanes.count / 2
            lanes = (0..<half).map { lanes[$0] + lanes[$0 + half] }
        }
        return lanes[0]
    }

    private func rotated<Number>(
        row: Int, _ difference: (Float, Float, Float, Float) -> Number,
        _ sum: (Float, Float, Float, Float) -> Number
    ) -> [Number] {
        let half = width / 2
        return (0..<heads * width).map { element in
            let (head, place) = element.quotientAndRemainder(dividingBy: width)
            let pair = place % half
            let low = before[row * stride + head * width + pair]
            let high = before[row * stride + head * width + pair + half]
            let (cosine, sine) = (first[row * half + pair], second[row * half + pair])
            return place < half
                ? difference(low, cosine, high, sine) : sum(high, cosine, low, sine)
        }
    }

    /// The output in double precision, and how far off each element may be.
    func exact() -> [(value: Double, tolerance: Double)] {
        var result: [(value: Double, tolerance: Double)] = []
        for row in 0..<rows {
            switch kernel {
            case .normalize:
                let x = first[row * width..<(row + 1) * width].map(Double.init)
                let mean = x.reduce(0) { $0 + $1 * $1 } / Double(width)
                let root = (mean + Double(Self.epsilon)).squareRoot()
                result += x.indices.map {
                    let value = x[$0] / root * Double(second[$0])
                    // A handful of roundings, and half of what the sum is off.
                    return (value, abs(value) * 5e-7)
                }
            case .add, .addOneRow:
                result += (0..<width).map {
                    let index = kernel == .add ? row * width + $0 : $0
                    let value = Double(before[row * stride + $0]) + Double(first[index])
                    return (value, abs(value) * 6e-8)
                }
            case .swiglu:
                result += (0..<width).map {
                    let gate = first[row * 2 * width + $0]
                    let up = first[row * 2 * width + width + $0]
                    return Self.exactSwiGLU(gate: gate, up: up)
                }
            case .rotate:
                result += rotated(row: row) {
                    Self.exactPair(Double($0) * Double($1), -Double($2) * Double($3))
                } _: {
                    Self.exactPair(Double($0) * Double($1), Double($2) * Double($3))
                }
            }
        }
        return result
    }

    /// Two products that are rounded each, and their sum.
    private static func exactPair(
        _ first: Double, _ second: Double
    ) -> (value: Double, tolerance: Double) {
        (first + second, (abs(first) + abs(second)) * 1.3e-7)
    }
}
