/// What sizes of memory and disk bring on a trace, all from one pass over it.
///
/// Both tiers are least recently used, and what memory has is on disk, too (every sealed chunk is
/// written): memory finds what lies within its size in the stack of recency, the disk what lies within
/// its own. `kvasir simulate` replays the store's own policy and its log on disk instead.
package struct CapacityPlan: Sendable {
    /// What hardware costs whoever asks; nil where it isn't known.
    package struct Prices: Sendable, Equatable {
        /// Of one GPU for an hour.
        package var gpuHour: Double?
        /// Of a GB (10⁹ bytes) for a month.
        package var memoryGBMonth: Double?
        package var diskGBMonth: Double?

        package init() {}
    }

    /// Bytes a second at which KV comes to the GPU; infinite if loading shall cost nothing.
    package struct Bandwidths: Sendable, Equatable {
        package var memory = Double.infinity
        package var disk = Double.infinity

        package init() {}
    }

    /// A size of both tiers, and what it brings.
    package struct Row: Sendable {
        package var memoryBytes: Double
        package var diskBytes: Double
        /// Share of the prompts' tokens found in memory.
        package var memoryShare: Double
        /// Found at all.
        package var share: Double
        /// GPU-group seconds of the whole trace.
        package var outcome: ServiceModel.Outcome
        /// In a month of such traffic: GPU time saved, less what memory and disk cost.
        package var savedPerMonth: Double?
    }

    /// Hours of a month: 365 days over 12.
    package static let hoursPerMonth = 730.0

    private let trace: Trace
    private let curve: StackDistances
    private let service: ServiceModel
    private let bytesPerChunk: Double
    private let bandwidths: Bandwidths
    private let prices: Prices
    private let gpuCount: Int

    /// Linear in the trace.
    package init(
        _ trace: Trace, model: ModelShape, rate: ComputeRate, elementBytes: Double? = nil,
        bandwidths: Bandwidths = Bandwidths(), prices: Prices = Prices(),
        progress: (Double) -> Void = { _ in }
    ) {
        self.trace = trace
        curve = StackDistances(trace, progress: progress)
        service = rate.serviceModel(model)
        bytesPerChunk =
            model.bytesPerToken(elementBytes: elementBytes) * Double(trace.chunkTokens)
        self.bandwidths = bandwidths
        self.prices = prices
        gpuCount = rate.gpuCount
    }

    /// Bytes of all that the trace ever stores.
    package var storedBytes: Double { Double(trace.storableCount) * bytesPerChunk }

    /// What a cache without bound finds.
    package var unbounded: ReplayResult { curve.result(capacity: .max) }

    /// The working set: the smallest size at which least-recently-used finds this share of the tokens
    /// that a cache without bound finds.
    package func workingSetBytes(share: Double) -> Double {
        let target = unbounded.hitTokens * share
        var low = 0
        var high = curve.saturation
        while low < high {
            let middle = (low + high) / 2
            if curve.result(capacity: middle).hitTokens >= target {
                high = middle
            } else {
                low = middle + 1
            }
        }
        return Double(low) * bytesPerChunk
    }

    /// What this size brings. O(1).
    package func row(memoryBytes: Double, diskBytes: Double) -> Row {
        let memory = curve.result(
            capacity: Int(clamping: memoryBytes / bytesPerChunk))
        let both = curve.result(
            capacity: Int(clamping: max(memoryBytes, diskBytes) / bytesPerChunk))
        var outcome = service.outcome(of: both)
        let bytesPerToken = bytesPerChunk / Double(trace.chunkTokens)
        outcome.loadSeconds =
            memory.hitTokens * bytesPerToken / bandwidths.memory
            + (both.hitTokens - memory.hitTokens) * bytesPerToken / bandwidths.disk
        return Row(
            memoryBytes: memoryBytes, diskBytes: diskBytes, memoryShare: memory.tokenShare,
            share: both.tokenShare, outcome: outcome,
            savedPerMonth: saved(outcome, memoryBytes, diskBytes))
    }

    private func saved(
        _ outcome: ServiceModel.Outcome, _ memoryBytes: Double, _ diskBytes: Double
    ) -> Double? {
        guard let gpuHour = prices.gpuHour, trace.seconds > 0 else { return nil }
        let groups = (outcome.prefillSecondsSaved - outcome.loadSeconds) / trace.seconds
        return groups * Double(gpuCount) * Self.hoursPerMonth * gpuHour
            - memoryBytes / 1e9 * (prices.memoryGBMonth ?? 0)
            - diskBytes / 1e9 * (prices.diskGBMonth ?? 0)
    }
}
