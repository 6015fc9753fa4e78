/// The policies by name: one list for `kvasir serve --policy` and `kvasir simulate --policy`.
public enum PolicyName: String, Sendable, CaseIterable, Codable {
    /// ``LeastRecentlyUsed``.
    case lru
    /// ``AdaptiveReplacement``.
    case arc
    /// ``SmallMainFIFO``.
    case s3fifo
    /// ``LeastFrequentlyUsedAging``.
    case lfuda
    /// ``Adaptive``.
    case adaptive

    /// What is used unless something else is asked for.
    public static let `default` = PolicyName.adaptive

    /// The policy of that name, or the default one for `default`; nil for any other word.
    public init?(named word: String) {
        if word == "default" {
            self = .default
        } else {
            self.init(rawValue: word)
        }
    }

    /// An empty policy.
    public func make() -> any EvictionPolicy {
        switch self {
        case .lru: LeastRecentlyUsed()
        case .arc: AdaptiveReplacement()
        case .s3fifo: SmallMainFIFO()
        case .lfuda: LeastFrequentlyUsedAging()
        case .adaptive: Adaptive()
        }
    }
}
