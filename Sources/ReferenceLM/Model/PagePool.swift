internal import Glibc

/// The memory that an engine has for keys and values, in pages.
///
/// Belongs to one thread at a time, as do the sequences that take pages from it. Memory is taken
/// from the system as pages are first used, and given back with the pool.
public final class PagePool {
    /// The layout of its pages.
    public let layout: KVLayout
    /// Pages that there are.
    public let capacity: Int

    private let base: UnsafeMutableRawPointer
    private let byteCount: Int
    private var freed: [Int] = []
    private var used = 0

    /// A pool with room for `tokens` tokens of a model.
    ///
    /// - Throws: `input` when the system has no address space for it.
    public init(for model: Model, tokens: Int) throws(ModelError) {
        layout = model.layout
        capacity = max(1, KVLayout.pages(forTokens: tokens))
        let (bytes, overflows) = capacity.multipliedReportingOverflow(by: layout.pageBytes)
        byteCount = overflows ? Int.max : bytes
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let memory = mmap(nil, byteCount, PROT_READ | PROT_WRITE, flags, -1, 0),
            memory != MAP_FAILED
        else {
            throw ModelError(
                .input,
                "there is no room for the keys and values of \(tokens) tokens "
                    + "(\(byteCount >> 20) MiB); give the engine fewer tokens")
        }
        base = memory
    }

    deinit { munmap(base, byteCount) }

    /// Pages that no sequence has.
    public var freeCount: Int { capacity - used + freed.count }

    /// Takes a page, filled with zeros; nil if there is none.
    func take() -> Int? {
        if let page = freed.popLast() {
            memset(address(of: page), 0, layout.pageBytes)
            return page
        }
        guard used < capacity else { return nil }
        used += 1
        return used - 1
    }

    func giveBack(_ pages: [Int]) { freed.append(contentsOf: pages) }

    func address(of page: Int) -> UnsafeMutableRawPointer { base + page * layout.pageBytes }

    func address(of page: Int, layer: Int) -> UnsafeMutablePointer<Float> {
        (address(of: page) + layer * layout.floatsPerLayer * 4).assumingMemoryBound(to: Float.self)
    }
}
