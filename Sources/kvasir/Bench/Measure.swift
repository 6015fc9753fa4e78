import Foundation

/// Wall and CPU time of a stretch of work, in nanoseconds.
struct Cost {
    var wall: Double
    var cpu: Double

    static func / (cost: Cost, count: Int) -> Cost {
        Cost(wall: cost.wall / Double(count), cpu: cost.cpu / Double(count))
    }
}

enum Measure {
    static func now() -> UInt64 { clock(CLOCK_MONOTONIC) }

    private static func clock(_ id: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(id, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// CPU time of this process, and of another one if its id is given.
    static func processorTime(with other: Int32? = nil) -> UInt64 {
        clock(CLOCK_PROCESS_CPUTIME_ID) + (other.map(processorTime(of:)) ?? 0)
    }

    /// CPU time of a process, its ended threads included.
    static func processorTime(of process: Int32) -> UInt64 {
        var id = clockid_t()
        return clock_getcpuclockid(process, &id) == 0 ? clock(id) : 0
    }

    /// What `body` costs, in this process and `other`.
    static func cost(with other: Int32? = nil, _ body: () throws -> Void) rethrows -> Cost {
        let processor = processorTime(with: other)
        let started = now()
        try body()
        let wall = now() - started
        return Cost(wall: Double(wall), cpu: Double(processorTime(with: other)) - Double(processor))
    }

    /// Resident memory of this process in bytes.
    static func residentBytes() -> Int {
        let text = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8)) ?? ""
        let words = text.split(separator: " ")
        return words.count > 1 ? (Int(words[1]) ?? 0) * Int(sysconf(Int32(_SC_PAGESIZE))) : 0
    }
}

extension Array where Element == Double {
    var median: Double { percentile(0.5) }

    func percentile(_ share: Double) -> Double {
        if isEmpty { return .nan }
        let sorted = sorted()
        return sorted[Swift.min(count - 1, Int(Double(count) * share))]
    }
}

/// Repeatable pseudo-random numbers (splitmix64).
struct SplitMix: RandomNumberGenerator {
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
}
