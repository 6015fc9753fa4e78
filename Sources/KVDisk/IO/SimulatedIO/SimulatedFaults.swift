/// What may go wrong on a simulated disk. Rates are from 0 to 1, per request.
package struct SimulatedFaults: Sendable {
    /// Reads that fail; their buffers hold anything.
    package var readError = 0.0
    /// Writes that fail; any part of them is on the disk.
    package var writeError = 0.0
    /// Syncs that fail; what they cover is lost, kept or torn, and no later sync mends that.
    package var syncError = 0.0
    /// Creations that find no space, whatever ``capacityBytes`` says.
    package var createError = 0.0
    /// Transfers of which the device does a part first and the rest later.
    package var shortTransfer = 0.0
    /// Reads that succeed with one bit wrong.
    package var flipOnRead = 0.0
    /// Writes that succeed and leave one bit wrong.
    package var flipOnWrite = 0.0
    /// Requests that take ``lateNanoseconds``.
    package var late = 0.0
    /// How long a request takes.
    package var delayNanoseconds: ClosedRange<UInt64> = 20_000...2_000_000
    /// How long a late one takes.
    package var lateNanoseconds: ClosedRange<UInt64> = 1_000_000_000...60_000_000_000
    /// Bytes of all files together; nil: no limit. As much as is there, or less: the device is
    /// full.
    package var capacityBytes: Int?
    /// Whether writes, creations and removals are refused.
    package var isReadOnly = false

    /// Nothing goes wrong.
    package init() {}
}

/// What has happened on a simulated disk, over all its crashes.
package struct SimulatedCounters: Sendable, Hashable {
    /// Requests that were done, or failed.
    package var completions = 0
    /// Of these, those that failed.
    package var failures = 0
    /// Bits that were turned without a word.
    package var flips = 0
    /// Crashes.
    package var crashes = 0
    /// Writes, not yet synced or under way, of which nothing survived a crash or a failed sync.
    package var writesLost = 0
    /// …of which all did.
    package var writesKept = 0
    /// …of which a part did.
    package var writesTorn = 0
}

/// Repeatable pseudo-random numbers (splitmix64).
struct SimulatedRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    /// True with a probability.
    mutating func happens(_ rate: Double) -> Bool {
        rate > 0 && Double.random(in: 0..<1, using: &self) < rate
    }
}
