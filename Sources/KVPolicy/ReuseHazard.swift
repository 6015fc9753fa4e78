/// Ages in half-octave bins: below a quarter of a second, then boundaries that grow by the square
/// root of two, up to about three days.
enum AgeBins {
    static let count = 41
    private static let firstNs = 250_000_000.0
    private static let rootOfTwo = 1.414_213_562_373_095_1

    /// Where each bin begins, in seconds; one more for the end of the last.
    static let starts: [Double] = (0...count).map { bin in
        if bin == 0 { return 0 }
        let whole = Double(UInt64(1) << UInt64((bin - 1) / 2))
        return firstNs / 1e9 * whole * (bin % 2 == 1 ? 1 : rootOfTwo)
    }

    /// The bin of an age in nanoseconds. O(1).
    static func bin(ofNs age: UInt64) -> Int {
        let ratio = Double(age) / firstNs
        if ratio < 1 { return 0 }
        let half = Int(ratio.exponent) * 2 + (ratio.significand >= rootOfTwo ? 1 : 0)
        return min(count - 1, 1 + half)
    }

    /// The bin of an age and the part of it that has passed, as one number. O(1).
    static func position(ofNs age: UInt64) -> Double {
        let bin = bin(ofNs: age)
        let part = (Double(age) / 1e9 - starts[bin]) / (starts[bin + 1] - starts[bin])
        return Double(bin) + max(0, min(1, part))
    }
}

/// How likely chunks are to be used again, by class and by the time since their last use; learnt
/// from those that were used again and from those that were not, or not yet.
///
/// It is a life table. `used` counts uses by the age at which they came, `exposed` how many chunks
/// went through each age bin without one, in parts of a bin: a chunk that was not used *yet* counts
/// for the age it has reached, so it is not taken for one that never will be (what statistics call
/// censoring).
///
/// From it comes the *worth* of a memory place that holds such a chunk: the greatest rate of hits
/// that any time to wait gives, the probability of a hit divided by the time that the place is
/// taken. That is Gittins' index (*Bandit Processes and Dynamic Allocation Indices*, JRSS B 1979)
/// of keeping the chunk; it needs no horizon. Beckmann et al. rank by the same quotient over the
/// whole of a chunk's life (*LHD*, NSDI 2018).
struct ReuseHazard: Sendable {
    private static let binCount = AgeBins.count
    /// Where nothing is known, a use is as likely in each half-octave of the age: so much. Then the
    /// least recently used goes first.
    private static let priorShare = 0.05
    /// How many chunks' experience the prior of the most general class counts for, and what a
    /// class takes over from the one above it.
    private static let priorWeight = 20.0
    private static let inheritedWeight = 400.0
    /// What is known of the half-octaves beside it counts for one this much: a bin has few uses, and
    /// the best of many uncertain rates is mostly chance.
    private static let neighborWeight = 0.5

    let classCount: Int
    /// For each class the more general one that it learns from while it knows little itself. The
    /// last one is its own parent, and parents have higher numbers.
    private let parents: [Int]
    private var used: [Double]
    private var exposed: [Double]
    private var worths: [Double]
    /// Uses since ``fade(_:)``, about.
    private(set) var learned = 0.0

    init(parents: [Int]) {
        self.parents = parents
        classCount = parents.count
        used = Array(repeating: 0, count: parents.count * Self.binCount)
        exposed = used
        worths = used
        refit()
    }

    /// Takes over what another one worked out.
    mutating func adopt(_ other: ReuseHazard) {
        worths = other.worths
    }

    mutating func recordUse(_ kind: Int, bin: Int, count: Double) {
        used[kind * Self.binCount + bin] += count
        learned += count
    }

    /// `count` chunks went unused from one position of the age to a later one.
    mutating func recordExposure(_ kind: Int, from: Double, to: Double, count: Double) {
        var position = from
        while position < to {
            let bin = min(Int(position), Self.binCount - 1)
            let end = bin == Self.binCount - 1 ? to : min(to, Double(bin + 1))
            exposed[kind * Self.binCount + bin] += count * (end - position)
            position = end
        }
    }

    /// What was learnt counts for less from now on.
    mutating func fade(_ factor: Double) {
        for place in used.indices {
            used[place] *= factor
            exposed[place] *= factor
        }
        learned *= factor
    }

    /// The share of chunks of a class that are used before they reach an age bin, as far as is
    /// known. For figures and tests.
    func shareUsed(_ kind: Int, before bin: Int) -> Double {
        var alive = 1.0
        for earlier in 0..<bin {
            let place = kind * Self.binCount + earlier
            alive *= 1 - Self.share(used[place], exposed[place])
        }
        return 1 - alive
    }

    /// How many of those that enter a bin are used in it.
    private static func share(_ used: Double, _ exposed: Double) -> Double {
        let rate = exposed > 0 ? used / exposed : 0
        // 1 - exp(-rate), by its Padé approximant.
        return min(0.995, rate / (1 + rate / 2 + rate * rate / 12))
    }

    /// Works out the worths anew. - Complexity: O(classes × bins), and O(bins²) for each class that
    /// anything is known of.
    mutating func refit() {
        let bins = Self.binCount
        var sumUsed = used
        var sumExposed = exposed
        for kind in 0..<classCount where parents[kind] != kind {
            // Parents come later, so that sums climb.
            for bin in 0..<bins {
                sumUsed[parents[kind] * bins + bin] += sumUsed[kind * bins + bin]
                sumExposed[parents[kind] * bins + bin] += sumExposed[kind * bins + bin]
            }
        }
        smooth(&sumUsed)
        smooth(&sumExposed)
        var rates = Array(repeating: 0.0, count: classCount * bins)
        var shares = rates
        for kind in (0..<classCount).reversed() {
            let isTop = parents[kind] == kind
            let row = kind * bins..<(kind + 1) * bins
            if !isTop, sumExposed[row].allSatisfy({ $0 == 0 }), sumUsed[row].allSatisfy({ $0 == 0 })
            {
                for bin in 0..<bins {
                    rates[kind * bins + bin] = rates[parents[kind] * bins + bin]
                    worths[kind * bins + bin] = worths[parents[kind] * bins + bin]
                }
                continue
            }
            let weight = isTop ? Self.priorWeight : Self.inheritedWeight
            for bin in 0..<bins {
                let place = kind * bins + bin
                let prior = isTop ? Self.priorShare : rates[parents[kind] * bins + bin]
                rates[place] = (sumUsed[place] + prior * weight) / (sumExposed[place] + weight)
                shares[place] = Self.share(rates[place], 1)
            }
            setWorths(of: kind, shares)
        }
    }

    /// Adds to each bin a part of the bins beside it.
    private func smooth(_ sums: inout [Double]) {
        let bins = Self.binCount
        for kind in 0..<classCount {
            var before = 0.0
            for place in kind * bins..<(kind + 1) * bins {
                let here = sums[place]
                let after = place + 1 < (kind + 1) * bins ? sums[place + 1] : 0
                sums[place] = here + Self.neighborWeight * (before + after)
                before = here
            }
        }
    }

    private mutating func setWorths(of kind: Int, _ shares: [Double]) {
        let bins = Self.binCount
        for bin in 0..<bins {
            var alive = 1.0
            var time = 0.0
            var best = 0.0
            for later in bin..<bins {
                let used = alive * shares[kind * bins + later]
                let width = AgeBins.starts[later + 1] - AgeBins.starts[later]
                time += (alive - used / 2) * width
                alive -= used
                best = max(best, (1 - alive) / time)
            }
            worths[kind * bins + bin] = best
        }
    }

    /// Hits a second that a place can expect from a chunk of this class and age; between bins on a
    /// straight line. O(1).
    func worth(_ kind: Int, ageNs: UInt64) -> Double {
        let position = AgeBins.position(ofNs: ageNs)
        let bin = min(Int(position), Self.binCount - 1)
        let here = worths[kind * Self.binCount + bin]
        if bin + 1 == Self.binCount { return here }
        return here + (worths[kind * Self.binCount + bin + 1] - here) * (position - Double(bin))
    }
}
