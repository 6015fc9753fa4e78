/// Tokens whose keys and values are in pages, and the logits that follow from them.
///
/// Belongs to one thread at a time, together with its pool. Pages go back to the pool with it.
public final class TokenSequence {
    /// Tokens that are computed together. The bits don't depend on it.
    public static let batchTokens = 512

    /// The model that computes.
    public let model: Model
    /// The tokens that are there.
    public private(set) var tokens: [UInt32] = []

    private let pool: PagePool
    private var pages: [Int] = []
    private var workspace: Workspace?

    /// An empty sequence.
    public init(_ model: Model, pool: PagePool) {
        precondition(pool.layout == model.layout, "the pool is of another model")
        self.model = model
        self.pool = pool
    }

    deinit { pool.giveBack(pages) }

    // MARK: Computing

    /// Appends tokens and returns the logits that follow the last of them: one for each entry of
    /// the vocabulary.
    ///
    /// - Parameters:
    ///   - batchTokens: how many are computed together at most.
    /// - Throws: `input` for an unknown token, a sequence longer than the model's context or the
    ///   pool; nothing is appended then.
    @discardableResult
    public func append(
        _ new: some Collection<UInt32>, batchTokens: Int = TokenSequence.batchTokens
    ) throws(ModelError) -> [Float] {
        var last: [Float] = []
        try run(Array(new), batchTokens) { forward, isLast in
            guard isLast else { return }
            let count = model.configuration.vocabularySize
            last = [Float](unsafeUninitializedCapacity: count) { buffer, filled in
                forward.project(last: 1, into: buffer.baseAddress!)
                filled = count
            }
        }
        return last
    }

    /// Appends tokens and shows the logits that follow each of them.
    ///
    /// - Parameter body: gets the index in `new` and the logits, which it must not keep.
    public func append(
        _ new: some Collection<UInt32>, batchTokens: Int = 128,
        logits body: (Int, UnsafeBufferPointer<Float>) -> Void
    ) throws(ModelError) {
        let count = model.configuration.vocabularySize
        let rows = min(max(1, batchTokens), max(1, new.count))
        let logits = try Floats(rows * count)
        var done = 0
        try run(Array(new), rows) { forward, _ in
            forward.project(last: forward.rows, into: logits.pointer)
            for row in 0..<forward.rows {
                body(
                    done + row,
                    UnsafeBufferPointer(start: logits.pointer + row * count, count: count))
            }
            done += forward.rows
        }
    }

    private func run(
        _ new: [UInt32], _ batchTokens: Int, _ afterBatch: (Forward, _ isLast: Bool) -> Void
    ) throws(ModelError) {
        try check(new)
        try makeRoom(forTokens: tokens.count + new.count)
        let step = max(1, batchTokens)
        let space = try workspace(rows: min(step, new.count))
        var done = 0
        while done < new.count {
            let batch = new[done..<min(new.count, done + step)]
            let forward = Forward(
                model: model, rows: batch.count, first: tokens.count, space: space)
            let needed = KVLayout.pages(forTokens: tokens.count + batch.count)
            forward.run(batch, pages: Array(pages[..<needed]), of: pool)
            tokens.append(contentsOf: batch)
            done += batch.count
            afterBatch(forward, done == new.count)
        }
    }

    private func check(_ new: [UInt32]) throws(ModelError) {
        guard !new.isEmpty else {
            throw ModelError(.input, "there is nothing to compute: give at least one token")
        }
        let vocabulary = model.configuration.vocabularySize
        if let unknown = new.first(where: { Int($0) >= vocabulary }) {
            throw ModelError(
                .input,
                "token \(unknown) is not in the model's vocabulary of \(vocabulary); "
                    + "is this the model's own tokenizer?")
        }
    }

    private func workspace(rows: Int) throws(ModelError) -> Workspace {
        if let workspace, workspace.rows >= rows { return workspace }
        let made = try Workspace(model.configuration, rows: rows)
        workspace = made
        return made
    }

    // MARK: Pages

    /// Takes pages for `count` tokens from the start on; keeps what is there.
    ///
    /// - Throws: `input` when that is more than the model's context or the pool has.
    public func makeRoom(forTokens count: Int) throws(ModelError) {
        let context = model.configuration.contextLength
        if count > context {
            throw ModelError(
                .input,
                "\(count) tokens are more than the model's context of \(context); shorten the "
                    + "prompt or ask for fewer new tokens")
        }
        let missing = KVLayout.pages(forTokens: count) - pages.count
        if missing > pool.freeCount {
            throw ModelError(
                .input,
                "\(count) tokens need \(missing) more pages of \(KVLayout.pageTokens) tokens, of "
                    + "which \(pool.freeCount) are free; give the engine room for more tokens")
        }
        for _ in 0..<max(0, missing) {
            guard let page = pool.take() else { preconditionFailure("a page was counted free") }
            pages.append(page)
        }
    }

    /// Shows the bytes of a page, all layers, for a connector to copy; see ``KVLayout`` for their
    /// order.
    ///
    /// - Parameter index: in the sequence; room for its tokens must have been made.
    public func withPage<Result>(
        _ index: Int, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        let bytes = UnsafeMutableRawBufferPointer(
            start: pool.address(of: pages[index]), count: pool.layout.pageBytes)
        return try body(bytes)
    }

    /// Appends tokens whose keys and values somebody has copied into the pages. They must fill
    /// whole pages, and follow whole pages.
    public func adopt(_ new: some Collection<UInt32>) {
        precondition(tokens.count.isMultiple(of: KVLayout.pageTokens), "a page is half computed")
        precondition(new.count.isMultiple(of: KVLayout.pageTokens), "whole pages only")
        precondition(
            KVLayout.pages(forTokens: tokens.count + new.count) <= pages.count, "no room was made")
        tokens.append(contentsOf: new)
    }

    /// Forgets all tokens from `count` on. Pages that are no longer needed go back to the pool.
    public func truncate(to count: Int) {
        precondition((0...tokens.count).contains(count), "there are not so many tokens")
        tokens.removeLast(tokens.count - count)
        let needed = KVLayout.pages(forTokens: count)
        pool.giveBack(Array(pages[needed...]))
        pages.removeLast(pages.count - needed)
    }
}
