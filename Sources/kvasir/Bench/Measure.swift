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
