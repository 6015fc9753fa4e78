/// What a log calls a chunk: 128 bits.
struct ChunkName: Hashable {
    var low: UInt64
    var high: UInt64 = 0

    /// 64 bits that depend on all of the name.
    var mixed: UInt64 { Self.mix(low ^ Self.mix(high ^ 0x9E37_79B9_7F4A_7C15)) }

    /// The name of what follows `parent` with this content. Two chains of a million chunks share a
    /// name by chance once in 10²⁶.
    static func chained(_ parent: ChunkName, _ content: UInt64) -> ChunkName {
        ChunkName(
            low: mix(parent.low &* 0x9E37_79B9_7F4A_7C15 ^ mix(content)),
            high: mix(parent.high &+ 0xD1B5_4A32_D192_ED03 ^ mix(content ^ 0xA076_1D64_78BD_642F)))
    }

    /// A mixer of 64 bits, one to one (SplitMix64). Source: Vigna, <https://prng.di.unimi.it/>.
    static func mix(_ value: UInt64) -> UInt64 {
        var value = value
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }
}

/// Small numbers for names, in the order of their first appearance.
///
/// An open-addressing table that is at most half full. 24 to 40 bytes a name.
struct NameTable {
    private var buckets: [UInt32]
    private(set) var names: [ChunkName] = []

    init() {
        buckets = Array(repeating: .max, count: 1 << 12)
    }

    /// The number of a name, a new one if it has none. O(1).
    mutating func number(of name: ChunkName) -> (number: UInt32, isNew: Bool) {
        var place = Int(truncatingIfNeeded: name.mixed) & (buckets.count - 1)
        while buckets[place] != .max {
            let number = buckets[place]
            if names[Int(number)] == name { return (number, false) }
            place = (place + 1) & (buckets.count - 1)
        }
        let number = UInt32(names.count)
        names.append(name)
        buckets[place] = number
        if 2 * names.count > buckets.count { grow() }
        return (number, true)
    }

    /// The number of a name that has one.
    func find(_ name: ChunkName) -> UInt32? {
        var place = Int(truncatingIfNeeded: name.mixed) & (buckets.count - 1)
        while buckets[place] != .max {
            if names[Int(buckets[place])] == name { return buckets[place] }
            place = (place + 1) & (buckets.count - 1)
        }
        return nil
    }

    private mutating func grow() {
        var larger = [UInt32](repeating: .max, count: 2 * buckets.count)
        for (number, name) in names.enumerated() {
            var place = Int(truncatingIfNeeded: name.mixed) & (larger.count - 1)
            while larger[place] != .max { place = (place + 1) & (larger.count - 1) }
            larger[place] = UInt32(number)
        }
        buckets = larger
    }
}
