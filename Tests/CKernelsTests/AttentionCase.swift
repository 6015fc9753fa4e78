import CKernels
import Glibc
import TestRandom
import Testing

/// Queries, keys and values of a sequence of tokens in one layer.
struct AttentionCase: CustomStringConvertible {
    let kvHeads: Int
    /// Query heads for each KV head.
    let group: Int
    let headSize: Int
    let tokens: Int
    /// `[token][head][head size]`, of every token.
    let queries: [Float]
    /// `[token][KV head][head size]`.
    var keys: [Float]
    var values: [Float]

    var heads: Int { kvHeads * group }
    /// Floats of a token in queries and output.
    var width: Int { heads * headSize }
    /// Floats of a token in keys and values.
    var kvWidth: Int { kvHeads * headSize }

    var description: String {
        "\(tokens) tokens, \(kvHeads) KV heads × \(group) × \(headSize)"
    }

    init(
        kvHeads: Int, group: Int, headSize: Int, tokens: Int, scale: Float = 1,
        _ random: inout SeededGenerator
    ) {
        (self.kvHeads, self.group, self.headSize, self.tokens) = (kvHeads, group, headSize, tokens)
        queries = random.values(tokens * kvHeads * group * headSize, scale: scale)
        keys = random.values(tokens * kvHeads * headSize, scale: scale)
        values = random.values(tokens * kvHeads * headSize, scale: 3)
    }

    /// A case with few or many heads of any size, that ends near the end of a page or not.
    init(random: inout SeededGenerator) {
        let ends = [1, 2, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 150, 191, 192, 193]
        self.init(
            kvHeads: 1 + random.below(3), group: 1 + random.below(4),
            headSize: [2, 6, 16, 24, 32, 64, 80][random.below(7)],
            tokens: ends[random.below(ends.count)], scale: [0.1, 1, 4][random.below(3)], &random)
    }

    /// Attention of some queries over the keys and values in `pages`; expects no other write.
    func attend(
        _ kind: Kind, _ pool: Pool, _ some: Range<Int>, over pages: Pages, padding: Int = 3,
        _ note: String
    ) -> [Float] {
        let stride = width + padding
        var q = [Float](repeating: untouched, count: some.count * stride)
        for (row, token) in some.enumerated() {
            q.replaceSubrange(
                row * stride..<row * stride + width,
                with: queries[token * width..<(token + 1) * width])
        }
        var out = Guarded(some.count * stride)
        pages.withKV { kv in
            out.write {
                kvk_attention(
                    pool.pointer, kind.pointer, kv, heads, q, stride, some.lowerBound, some.count,
                    $0, stride)
            }
        }
        let written = out.values
        var result: [Float] = []
        var isPaddingIntact = true
        for row in 0..<some.count {
            let end = row * stride + width
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

    /// Attention of one query in double precision.
    func oracle(_ token: Int) -> [Double] {
        var result: [Double] = []
        for head in 0..<heads {
            let kvStart = head / group * headSize
            let query = queries[token * width + head * headSize..<token * width + width]
            let scores = (0...token).map { other in
                let key = keys[other * kvWidth + kvStart..<other * kvWidth + kvStart + headSize]
                return zip(query, key).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
                    / Double(headSize).squareRoot()
            }
            let top = scores.max() ?? 0
            let weights = scores.map { exp($0 - top) }
            let whole = weights.reduce(0, +)
            for element in 0..<headSize {
                let sum = (0...token).reduce(0.0) {
                    $0 + weights[$1] * Double(values[$1 * kvWidth + kvStart + element])
                }
                result.append(sum / whole)
            }
        }
        return result
    }
}

/// The pages of one layer of a sequence.
final class Pages {
    let kvHeads: Int
    let headSize: Int
    let floats: Int
    private(set) var pages: [UnsafeMutablePointer<Float>?] = []

    /// Pages of zeros, or of what a generator gives.
    init(for some: AttentionCase, tokens: Int, filling: () -> Float = { 0 }) {
        (kvHeads, headSize) = (some.kvHeads, some.headSize)
        floats = kvk_page_floats(kvHeads, headSize)
        for _ in 0..<(tokens + Int(KVK_PAGE_TOKENS) - 1) / Int(KVK_PAGE_TOKENS) {
            let page = UnsafeMutablePointer<Float>.allocate(capacity: floats)
            for index in 0..<floats { (page + index).initialize(to: filling()) }
            pages.append(page)
        }
    }

    /// Pages with the keys and values of all tokens of a case.
    convenience init(of some: AttentionCase) {
        self.init(for: some, tokens: some.tokens)
        store(some, 0..<some.tokens)
    }

    deinit { for page in pages { page?.deallocate() } }

    /// Puts keys and values of some tokens in, as the engine does.
    func store(_ some: AttentionCase, _ tokens: Range<Int>) {
        let first = tokens.lowerBound * some.kvWidth
        withKV {
            kvk_store_kv(
                $0, tokens.lowerBound, Array(some.keys[first...]), Array(some.values[first...]),
                some.kvWidth, tokens.count)
        }
    }

    func withKV(_ body: (UnsafePointer<kvk_kv>) -> Void) {
        pages.withUnsafeBufferPointer { pages in
            var kv = kvk_kv(kv_heads: kvHeads, head_size: headSize, pages: pages.baseAddress)
            body(&kv)
        }
    }

    var contents: [Float] {
        pages.flatMap { Array(UnsafeBufferPointer(start: $0, count: floats)) }
    }
}
