import CKernels
import TestRandom
import Testing

@Suite("Matrix products")
struct ProductTests {
    /// Around the sizes of panels (32), of units (128 columns, 240 rows) and of depth blocks (256).
    static let rows = [1, 7, 241]
    static let columns = [1, 31, 32, 33, 127, 129]
    static let depths = [1, 255, 256, 257, 700]

    @Test("are chains of multiply-adds in ascending depth, to the bit", arguments: rows)
    func oddSizes(_ rows: Int) throws {
        let pool = try Pool()
        for columns in Self.columns {
            for depth in Self.depths {
                let seed = UInt64(rows * 1_000_000 + columns * 1000 + depth)
                var random = SeededGenerator(seed: seed)
                let product = Product(rows, columns, depth, &random)
                checkAgainstOracle(product, pool, &random, "seed \(seed), \(product)")
            }
        }
    }

    @Test(
        "of random sizes are chains of multiply-adds, to the bit",
        arguments: 0..<30 as Range<UInt64>)
    func randomSizes(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let product = Product(
            1 + random.below(20), 1 + random.below(200), 1 + random.below(300), &random)
        checkAgainstOracle(product, try Pool(), &random, "seed \(seed), \(product)")
    }

    @Test(
        "of extreme values are chains of multiply-adds, to the bit",
        arguments: 0..<30 as Range<UInt64>)
    func extremeValues(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let product = Product(
            1 + random.below(9), 1 + random.below(140), 1 + random.below(20), &random,
            isExtreme: true)
        checkAgainstOracle(product, try Pool(), &random, "seed \(seed), \(product)")
    }

    @Test("of tiny values keep subnormal numbers and the sign of zero")
    func tinyValues() throws {
        let least = Float.leastNonzeroMagnitude
        for kind in Kind.all {
            let pool = try Pool()
            for (a, b, expected) in [
                (least, 1, least), (-least, 1, -least), (least, 0.25, 0), (0x1p-75, 0x1p-74, least),
                (-0.0, 1, 0), (0, 0, 0),
            ] as [(Float, Float, Float)] {
                let product = Product(a: [a], weights: [b], depth: 1)
                let result = product.run(kind, pool, rows: 0..<1, "")
                #expect(difference(result, [expected]) == nil, "\(kind.name): \(a) × \(b)")
            }
        }
    }

    @Test("of some rows are those of all rows, to the bit", arguments: Kind.all)
    func rowsAreIndependent(_ kind: Kind) throws {
        let pool = try Pool()
        for seed in 100..<115 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            // Some cross the 240 rows that one thread takes, and all the depth blocks.
            let rows = seed.isMultiple(of: 5) ? 239 + random.below(10) : 1 + random.below(40)
            let product = Product(rows, 1 + random.below(170), 200 + random.below(150), &random)
            let note = "seed \(seed), \(kind.name), \(product)"
            let whole = product.run(kind, pool, rows: 0..<rows, note)
            for _ in 0..<8 {
                let first = random.below(rows)
                let some = first..<first + 1 + random.below(min(20, rows - first))
                let result = product.run(kind, pool, rows: some, note)
                let expected = Array(
                    whole[some.lowerBound * product.columns..<some.upperBound * product.columns])
                let found = difference(result, expected)
                #expect(found == nil, "\(note), rows \(some)")
            }
        }
    }

    @Test("are the same on any number of threads, to the bit", arguments: Kind.all)
    func threads(_ kind: Kind) throws {
        for (seed, rows, columns, depth) in [
            (1, 1, 1500, 2701), (2, 300, 129, 130), (3, 19, 1000, 257), (4, 481, 161, 64),
        ] as [(UInt64, Int, Int, Int)] {
            var random = SeededGenerator(seed: seed)
            let product = Product(rows, columns, depth, &random)
            let note = "seed \(seed), \(kind.name), \(product)"
            // Otherwise no thread would be woken.
            #expect(Double(rows * columns * depth) >= worthWaking, "\(note)")
            let expected = product.run(kind, try Pool(), rows: 0..<rows, note)
            for threads in [2, 3, 5] as [Int32] {
                let pool = try Pool(threads: threads)
                #expect(kvk_pool_threads(pool.pointer) == threads)
                let result = product.run(kind, pool, rows: 0..<rows, note)
                let found = difference(result, expected)
                #expect(found == nil, "\(note), \(threads) threads")
            }
        }
    }

    @Test("of a packed matrix use the weights that were packed")
    func packing() {
        for seed in 0..<40 as Range<UInt64> {
            var random = SeededGenerator(seed: seed)
            let (columns, depth) = (1 + random.below(140), 1 + random.below(50))
            let weights = random.extremes(columns * depth)
            let bytes = kvk_packed_bytes(columns, depth)
            let note = "seed \(seed), \(columns) columns of \(depth)"
            #expect(bytes == (columns + 31) / 32 * 32 * depth * 4, "\(note)")
            #expect(bytes.isMultiple(of: 64), "\(note)")
            // In parts, as several tensors that lie under each other.
            var packed = Guarded(Array(repeating: 0, count: bytes / 4))
            var column = 0
            while column < columns {
                let part = 1 + random.below(columns - column)
                packed.write {
                    kvk_pack($0, depth, column, Array(weights[(column * depth)...]), part)
                }
                column += part
            }
            #expect(packed.isIntact, "\(note)")
            var unpacked = Guarded(columns * depth)
            unpacked.write { to in
                for column in 0..<columns {
                    kvk_unpack(packed.values, depth, column, to + column * depth)
                }
            }
            #expect(unpacked.isIntact, "\(note)")
            let found = difference(unpacked.values, weights)
            #expect(found == nil, "\(note)")
            let sum = packed.values.count { $0.bitPattern != 0 }
            #expect(sum == weights.count { $0.bitPattern != 0 }, "other columns are zero; \(note)")
        }
    }

    /// Compares all elements, or, of large products, some hundreds and the corners.
    private func checkAgainstOracle(
        _ product: Product, _ pool: Pool, _ random: inout SeededGenerator, _ note: String
    ) {
        let count = product.rows * product.columns
        var elements = Array(0..<count)
        if count * product.depth > 700_000 {
            elements = (0..<300).map { _ in random.below(count) }
            elements += [0, product.columns - 1, count - product.columns, count - 1]
        }
        var fused: [Float]?
        for kind in Kind.all {
            let result = product.run(kind, pool, rows: 0..<product.rows, "\(kind.name), \(note)")
            if kind.isFused, let fused {
                // The oracle has judged these already.
                let found = difference(result, fused)
                #expect(found == nil, "\(kind.name), \(note)")
                continue
            }
            if kind.isFused { fused = result }
            let found = difference(
                elements.map { result[$0] },
                elements.map { product.oracle(element: $0, isFused: kind.isFused) })
            #expect(found == nil, "\(kind.name), \(note)")
        }
    }
}

/// Multiply-adds from which on threads are woken; see CKernels.c.
let worthWaking = 4_000_000.0

/// A product to compute, with strides of its own.
private struct Product: CustomStringConvertible {
    let rows: Int
    let columns: Int
    let depth: Int
    private let aStride: Int
    private let outStride: Int
    private let a: [Float]
    private let weights: [Float]
    private let packed: [Float]

    init(
        _ rows: Int, _ columns: Int, _ depth: Int, _ random: inout SeededGenerator,
        isExtreme: Bool = false
    ) {
        let aStride = depth + random.below(9)
        // What is between the rows must not be read.
        var a = Array(repeating: untouched, count: rows * aStride)
        for row in 0..<rows {
            let values = isExtreme ? random.extremes(depth) : random.values(depth)
            a.replaceSubrange(row * aStride..<row * aStride + depth, with: values)
        }
        let count = columns * depth
        self.init(
            a: a, weights: isExtreme ? random.extremes(count) : random.values(count),
            depth: depth, aStride: aStride, outPadding: random.below(9))
    }

    init(
        a: [Float], weights: [Float], depth: Int, aStride: Int? = nil, outPadding: Int = 0
    ) {
        self.aStride = aStride ?? depth
        self.a = a
        self.weights = weights
        self.depth = depth
        rows = a.count / self.aStride
        columns = weights.count / depth
        outStride = columns + outPadding
        var packed = [Float](repeating: 0, count: kvk_packed_bytes(columns, depth) / 4)
        kvk_pack(&packed, depth, 0, weights, columns)
        self.packed = packed
    }

    var description: String {
        "\(rows) rows (\(aStride) apart) × \(columns) columns (\(outStride) apart), depth \(depth)"
    }

    /// The elements of some rows; expects that nothing else was written.
    func run(_ kind: Kind, _ pool: Pool, rows some: Range<Int>, _ note: String) -> [Float] {
        var out = Guarded(some.count * outStride)
        a.withUnsafeBufferPointer { a in
            out.write {
                kvk_matmul(
                    pool.pointer, kind.pointer, a.baseAddress! + some.lowerBound * aStride, aStride,
                    some.count, packed, columns, depth, $0, outStride)
            }
        }
        let written = out.values
        var result: [Float] = []
        var isPaddingIntact = true
        for row in 0..<some.count {
            result += written[row * outStride..<row * outStride + columns]
            isPaddingIntact =
                isPaddingIntact
                && written[row * outStride + columns..<(row + 1) * outStride].allSatisfy {
                    $0.bitPattern == untouched.bitPattern
                }
        }
        #expect(out.isIntact && isPaddingIntact, "\(note)")
        return result
    }

    func oracle(element: Int, isFused: Bool) -> Float {
        let (row, column) = element.quotientAndRemainder(dividingBy: columns)
        return a.withUnsafeBufferPointer { a in
            weights.withUnsafeBufferPointer { weights in
                var sum: Float = 0
                var k = 0
                while k < depth {
                    let (x, y) = (a[row &* aStride &+ k], weights[column &* depth &+ k])
                    sum = isFused ? sum.addingProduct(x, y) : x * y + sum
                    k &+= 1
                }
                return sum
            }
        }
    }
}
