import CKernels
import Foundation
import ReferenceLM

/// (e) The built-in engine: products beside OpenBLAS on the same processors, and a whole prefill.
struct BenchEngine {
    static let name = "engine"
    private static let prefillTokens = 4_096

    let rounds: Int
    let progress: Progress

    func run() throws -> [BenchResult] {
        let processors = ProcessInfo.processInfo.activeProcessorCount
        var results: [BenchResult] = []
        let rival = OpenBLAS()
        if rival == nil {
            Output.tell(
                "engine: there is no libopenblas.so.0 to compare with (apt install libopenblas0)\n")
        }
        for threads in Set([1, processors]).sorted() {
            results += try products(threads, rival)
            results.append(try prefill(threads))
        }
        progress.done()
        return results
    }

    // MARK: Products

    /// The products of a feed-forward and an attention layer, and of a step with one token.
    private static let shapes = [
        (512, 1_408, 512), (512, 512, 1_408), (512, 2_816, 512), (1, 1_408, 512),
    ]

    private func products(_ threads: Int, _ rival: OpenBLAS?) throws -> [BenchResult] {
        try Self.shapes.map { rows, columns, depth in
            let what = "\(rows)×\(columns)×\(depth), \(Format.count(threads, "thread"))"
            progress.tell("engine: \(what)")
            let product = Product(rows: rows, columns: columns, depth: depth)
            guard let pool = kvk_pool_create(Int32(threads)) else {
                throw CommandFailure("the system gives no \(threads) threads")
            }
            defer { kvk_pool_destroy(pool) }
            rival?.use(threads: threads)
            var (ours, theirs) = ([Cost](), [Cost]())
            for _ in 0...rounds {
                ours.append(product.time { product.multiply(pool) })
                if let rival { theirs.append(product.time { product.multiply(rival) }) }
            }
            return result(what, product.operations, ours, theirs, isAimed: rows > 1)
        }
    }

    private func result(
        _ what: String, _ operations: Double, _ ours: [Cost], _ theirs: [Cost], isAimed: Bool
    ) -> BenchResult {
        func speed(_ costs: [Cost]) -> Double {
            costs.isEmpty ? 0 : operations / costs.dropFirst().map(\.wall).median
        }
        func cpu(_ costs: [Cost]) -> Double? {
            costs.isEmpty ? nil : costs.dropFirst().map(\.cpu).median
        }
        let (kvasir, limit) = (speed(ours), speed(theirs))
        let ratio = limit > 0 ? kvasir / limit : 0
        return BenchResult(
            bench: Self.name, what: what + " (limit: OpenBLAS)", unit: "GFLOP/s", limit: limit,
            kvasir: kvasir, limitCPU: cpu(theirs), kvasirCPU: cpu(ours), ratio: ratio,
            aim: isAimed ? "0.5 and more" : "",
            reached: isAimed && limit > 0 ? ratio >= 0.5 : nil)
    }

    // MARK: A prefill

    private func prefill(_ threads: Int) throws -> BenchResult {
        let (model, tokens) = try running { () throws(ModelError) in
            let configuration = try ModelConfiguration(
                parsing: Array(Self.configuration.utf8), file: "the benchmark's configuration")
            let model = try Model(
                configuration, weights: RandomWeights(seed: 1), threads: threads)
            var random = SeededRandom(seed: 2)
            return (model, (0..<Self.prefillTokens).map { _ in UInt32(random.next() % 4_096) })
        }
        var times: [Double] = []
        for round in 0..<3 {
            progress.tell("engine: prefill \(round + 1) of 3, \(Format.count(threads, "thread"))")
            times.append(
                try running { () throws(ModelError) in
                    let pool = try PagePool(for: model, tokens: Self.prefillTokens)
                    let sequence = TokenSequence(model, pool: pool)
                    let started = Measure.now()
                    try sequence.append(tokens)
                    return Double(Measure.now() - started)
                })
        }
        let time = times.median
        let aim = 4e9
        return BenchResult(
            bench: Self.name,
            what:
                "prefill of 4,096 tokens, 8 layers × 512, \(Format.count(threads, "thread")) (limit: aim)",
            unit: "ns", limit: aim, kvasir: time, ratio: time / aim,
            aim: threads == 1 ? "under 4 s" : "", reached: threads == 1 ? time < aim : nil)
    }

    private static let configuration = """
        {"architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "vocab_size": 4096, "max_position_embeddings": 8192, "rope_theta": 500000.0,
        "tie_word_embeddings": true}
        """
}

/// One product of random matrices, as activations × weights transposed.
private final class Product {
    private let rows: Int
    private let columns: Int
    private let depth: Int
    private let input: UnsafeMutablePointer<Float>
    private let weights: UnsafeMutablePointer<Float>
    private let packed: UnsafeMutablePointer<Float>
    private let output: UnsafeMutablePointer<Float>

    init(rows: Int, columns: Int, depth: Int) {
        (self.rows, self.columns, self.depth) = (rows, columns, depth)
        var random = SeededRandom(seed: 1)
        func floats(_ count: Int, isRandom: Bool) -> UnsafeMutablePointer<Float> {
            let memory = UnsafeMutableRawPointer.allocate(byteCount: count * 4, alignment: 64)
                .bindMemory(to: Float.self, capacity: count)
            for index in 0..<count {
                memory[index] =
                    isRandom ? Float(Int32(truncatingIfNeeded: random.next())) * 0x1p-31 : 0
            }
            return memory
        }
        input = floats(rows * depth, isRandom: true)
        weights = floats(columns * depth, isRandom: true)
        packed = floats(kvk_packed_bytes(columns, depth) / 4, isRandom: false)
        output = floats(rows * columns, isRandom: false)
        kvk_pack(packed, depth, 0, weights, columns)
    }

    deinit { for memory in [input, weights, packed, output] { memory.deallocate() } }

    var operations: Double { 2 * Double(rows) * Double(columns) * Double(depth) }

    /// The cost of one product, of as many as take a few milliseconds.
    func time(_ body: () -> Void) -> Cost {
        let repeats = max(1, Int(2e8 / operations))
        return Measure.cost { for _ in 0..<repeats { body() } } / repeats
    }

    func multiply(_ pool: OpaquePointer) {
        kvk_matmul(
            pool, kvk_kernels_best(), input, depth, rows, packed, columns, depth, output, columns)
    }

    func multiply(_ rival: OpenBLAS) {
        rival.multiply(input, weights, output, rows: rows, columns: columns, depth: depth)
    }
}

/// OpenBLAS, where it is installed.
private struct OpenBLAS {
    private typealias Multiply =
        @convention(c) (
            Int32, Int32, Int32, Int32, Int32, Int32, Float, UnsafePointer<Float>, Int32,
            UnsafePointer<Float>, Int32, Float, UnsafeMutablePointer<Float>, Int32
        ) -> Void
    private typealias MultiplyVector =
        @convention(c) (
            Int32, Int32, Int32, Int32, Float, UnsafePointer<Float>, Int32, UnsafePointer<Float>,
            Int32, Float, UnsafeMutablePointer<Float>, Int32
        ) -> Void
    private typealias SetThreads = @convention(c) (Int32) -> Void

    private let multiply: Multiply
    private let multiplyVector: MultiplyVector
    private let setThreads: SetThreads

    init?() {
        // Versions that don't know this processor, or are told another one, take slower kernels than they have.
        if Kernels.best.description == "avx512" { setenv("OPENBLAS_CORETYPE", "SkylakeX", 1) }
        guard let library = dlopen("libopenblas.so.0", RTLD_NOW),
            let product = dlsym(library, "cblas_sgemm"),
            let vectorProduct = dlsym(library, "cblas_sgemv"),
            let threads = dlsym(library, "openblas_set_num_threads")
        else { return nil }
        multiply = unsafeBitCast(product, to: Multiply.self)
        multiplyVector = unsafeBitCast(vectorProduct, to: MultiplyVector.self)
        setThreads = unsafeBitCast(threads, to: SetThreads.self)
    }

    func use(threads: Int) { setThreads(Int32(threads)) }

    /// output = input × weightsᵀ, all row by row.
    func multiply(
        _ input: UnsafePointer<Float>, _ weights: UnsafePointer<Float>,
        _ output: UnsafeMutablePointer<Float>, rows: Int, columns: Int, depth: Int
    ) {
        let (rowMajor, plain, transposed) = (Int32(101), Int32(111), Int32(112))
        if rows == 1 {
            return multiplyVector(
                rowMajor, plain, Int32(columns), Int32(depth), 1, weights, Int32(depth), input, 1,
                0,
                output, 1)
        }
        multiply(
            rowMajor, plain, transposed, Int32(rows), Int32(columns), Int32(depth), 1, input,
            Int32(depth), weights, Int32(depth), 0, output, Int32(columns))
    }
}
