/// What many times come to: the mean, and percentiles by nearest rank.
///
/// The percentile `p` of `n` values is the smallest of them that at least `p·n` are not above: the
/// `⌈p·n⌉`-th in order, so always one of the values. Source: Hyndman and Fan, "Sample quantiles in
/// statistical packages", The American Statistician 1996, definition 1.
package struct TimeSummary: Sendable, Equatable {
    /// In seconds.
    package var mean = 0.0
    package var p50 = 0.0
    package var p90 = 0.0
    package var p99 = 0.0

    /// All zero if there is no time. O(n log n).
    package init(_ seconds: [Double]) {
        if seconds.isEmpty { return }
        let sorted = seconds.sorted()
        mean = seconds.reduce(0, +) / Double(seconds.count)
        p50 = Self.percentile(50, of: sorted)
        p90 = Self.percentile(90, of: sorted)
        p99 = Self.percentile(99, of: sorted)
    }

    /// - Parameter percent: 1 to 100; a whole number, so that no rounding moves the rank.
    package static func percentile(_ percent: Int, of sorted: [Double]) -> Double {
        sorted[(percent * sorted.count + 99) / 100 - 1]
    }
}
