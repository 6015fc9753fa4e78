internal import CKernels

/// How keys and values lie in memory: pages of 64 tokens, all layers of a page together.
///
/// A page is `[layer]` of: keys as `[KV head][head size][64 tokens]`, then values as
/// `[KV head][64 tokens][padded head size]`, float32. (Keys lie across, so that 16 scores come out
/// of one vector instruction.) The head size of values is padded to a multiple of 16 with zeros.
public struct KVLayout: Sendable, Hashable {
    /// Tokens of a page.
    public static let pageTokens = Int(KVK_PAGE_TOKENS)
    /// What this order is called where KV is identified.
    public static let order = "pages64/LKhdn,LVhnd16"

    /// Layers of the model.
    public let layers: Int
    /// KV heads of a layer.
    public let kvHeads: Int
    /// Elements of a key or a value.
    public let headSize: Int

    init(_ configuration: ModelConfiguration) {
        layers = configuration.layerCount
        kvHeads = configuration.kvHeadCount
        headSize = configuration.headSize
    }

    /// Floats of a page in one layer.
    var floatsPerLayer: Int { kvk_page_floats(kvHeads, headSize) }

    /// Bytes of a page, all layers together.
    public var pageBytes: Int { layers * floatsPerLayer * 4 }

    /// Pages that `tokens` tokens take.
    public static func pages(forTokens tokens: Int) -> Int {
        tokens / pageTokens + (tokens % pageTokens > 0 ? 1 : 0)
    }
}
