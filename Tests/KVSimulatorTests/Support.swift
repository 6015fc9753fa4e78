import Foundation
import KVPolicy
import KVSimulator
import TestRandom

/// Reads a text as a file called `log`.
func read(
    _ text: String, format: TraceFormat? = nil,
    _ change: (inout TraceReader.Options) -> Void = { _ in }
) throws -> Trace {
    var options = TraceReader.Options(format: format)
    change(&options)
    var reader = TraceReader(options)
    try Array(text.utf8).withUnsafeBufferPointer { try reader.read($0, file: "log") }
    return try reader.finish()
}

/// What reading a text fails with; nil if it doesn't.
func failure(
    _ text: String, format: TraceFormat? = nil,
    _ change: (inout TraceReader.Options) -> Void = { _ in }
) -> String? {
    do {
        _ = try read(text, format: format, change)
        return nil
    } catch {
        return "\(error)"
    }
}

/// A trace of prompts on a random tree, in Mooncake's format, so that readers are tested, too.
///
/// - Parameter longest: chunks of a prompt, at most; the last may be partial.
func randomTrace(
    _ random: inout SeededGenerator, requests: Int, branches: Int, longest: Int,
    partialShare: Int = 4
) throws -> Trace {
    var ids: [[Int]: Int] = [:]
    var lines: [String] = []
    for number in 0..<requests {
        var path: [Int] = []
        let length = 1 + random.below(longest)
        for depth in 0..<length { path.append(random.below(depth == 0 ? 2 : branches)) }
        let isPartial = random.below(partialShare) == 0
        var hashes: [Int] = []
        for depth in 1...length {
            var key = Array(path[..<depth])
            if isPartial, depth == length { key.append(-1) }
            let id = ids[key] ?? ids.count
            ids[key] = id
            hashes.append(id)
        }
        let tokens = isPartial ? 512 * length - 1 - random.below(511) : 512 * length
        lines.append(
            "{\"timestamp\": \(number * 10), \"input_length\": \(tokens), \"output_length\": 1, "
                + "\"hash_ids\": \(hashes)}")
    }
    return try read(lines.joined(separator: "\n"))
}

/// A log of what was evicted, by fingerprint.
final class EvictionLog: @unchecked Sendable {
    var evicted: [UInt64] = []
}

/// Any policy, with a log of what it let go.
struct Recording: EvictionPolicy {
    var policy: any EvictionPolicy
    let log: EvictionLog
    var fingerprints: [UInt32: UInt64] = [:]

    init(_ policy: any EvictionPolicy, _ log: EvictionLog) {
        self.policy = policy
        self.log = log
    }

    mutating func begin(_ request: PolicyRequest) { policy.begin(request) }
    mutating func insert(_ chunk: UInt32, _ facts: NewChunk) {
        fingerprints[chunk] = facts.fingerprint
        policy.insert(chunk, facts)
    }
    @discardableResult
    mutating func touch(_ chunk: UInt32) -> UInt64 { policy.touch(chunk) }
    mutating func setEvictable(_ chunk: UInt32, _ evictable: Bool) {
        policy.setEvictable(chunk, evictable)
    }
    mutating func setResident(_ chunk: UInt32, _ resident: Bool) {
        policy.setResident(chunk, resident)
    }
    mutating func remove(_ chunk: UInt32, wasEvicted: Bool) {
        if wasEvicted { log.evicted.append(fingerprints[chunk]!) }
        policy.remove(chunk, wasEvicted: wasEvicted)
    }
    mutating func victim(in group: UInt32) -> UInt32? { policy.victim(in: group) }
    mutating func leastWorth(in group: UInt32) -> UInt64? { policy.leastWorth(in: group) }
    func worth(of chunk: UInt32) -> UInt64 { policy.worth(of: chunk) }
    var worthNow: UInt64 { policy.worthNow }
}
