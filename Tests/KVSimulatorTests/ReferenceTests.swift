import Foundation
import KVPolicy
import KVSimulator
import KVStore
import Testing

/// Figures of an independent program, to the last digit that it prints. They need Mooncake's traces, which are not
/// part of the repository: KVASIR_TRACES names the folder of mooncake-conversation.jsonl and
/// mooncake-synthetic.jsonl (github.com/kvcache-ai/Mooncake, FAST25-release/traces).
@Suite(
    "Reference figures",
    .enabled(if: ProcessInfo.processInfo.environment["KVASIR_TRACES"] != nil, "needs KVASIR_TRACES")
)
struct ReferenceTests {
    private static let capacities = [1000, 3000, 5859, 10_000, 30_000, 50_000, 100_000, 1_000_000]

    private func trace(_ name: String) throws -> Trace {
        let folder = try #require(ProcessInfo.processInfo.environment["KVASIR_TRACES"])
        let data = try Data(
            contentsOf: URL(fileURLWithPath: "\(folder)/mooncake-\(name).jsonl"),
            options: .mappedIfSafe)
        var reader = TraceReader(.init(format: .mooncake))
        try data.withUnsafeBytes { try reader.read($0.bindMemory(to: UInt8.self), file: name) }
        return try reader.finish()
    }

    @Test(
        "Chunks and tokens found by each policy at eight sizes",
        arguments: [
            (
                "conversation", "optimum",
                "19.1/19.4 29.4/30.0 35.3/36.0 36.6/37.3 36.6/37.3 36.6/37.3 36.6/37.3 36.6/37.3"
            ),
            (
                "conversation", "lru",
                "4.5/4.6 6.7/6.9 14.1/14.4 21.5/21.9 33.0/33.7 35.6/36.3 36.4/37.1 36.6/37.3"
            ),
            (
                "conversation", "arc",
                "5.3/5.4 8.7/8.8 15.0/15.3 22.6/23.1 31.3/31.9 34.6/35.3 36.3/37.1 36.6/37.3"
            ),
            (
                "conversation", "s3fifo",
                "5.6/5.7 9.3/9.5 15.4/15.8 19.8/20.2 30.9/31.5 35.2/35.9 36.2/37.0 36.6/37.3"
            ),
            (
                "conversation", "lfuda",
                "4.5/4.6 7.4/7.5 15.0/15.3 22.4/22.9 33.1/33.7 35.5/36.2 36.3/37.1 36.6/37.3"
            ),
            (
                "synthetic", "optimum",
                "27.6/28.2 44.6/45.5 54.9/56.0 61.7/62.9 63.8/65.0 63.8/65.0 63.8/65.0 63.8/65.0"
            ),
            (
                "synthetic", "lru",
                "8.5/8.7 19.5/19.9 31.5/32.1 43.4/44.3 62.6/63.9 63.8/65.0 63.8/65.0 63.8/65.0"
            ),
            (
                "synthetic", "arc",
                "9.6/9.8 19.8/20.2 33.0/33.7 43.6/44.5 62.7/64.0 63.8/65.0 63.8/65.0 63.8/65.0"
            ),
            (
                "synthetic", "s3fifo",
                "8.8/9.0 18.8/19.2 31.9/32.5 42.8/43.6 61.5/62.7 63.8/65.0 63.8/65.0 63.8/65.0"
            ),
            (
                "synthetic", "lfuda",
                "8.9/9.1 19.8/20.2 31.9/32.5 43.8/44.6 62.7/64.0 63.8/65.0 63.8/65.0 63.8/65.0"
            ),
        ])
    func tables(name: String, policy: String, expected: String) throws {
        let contender = try #require(Simulation.Contender(named: policy))
        let points = try Simulation(try trace(name)).run(contender, capacities: Self.capacities)
        for (point, cell) in zip(points, expected.split(separator: " ")) {
            let numbers = cell.split(separator: "/").compactMap { Double($0) }
            // Half a digit, and a little for what was rounded the other way.
            #expect(
                abs(point.result.chunkShare * 100 - numbers[0]) < 0.06
                    && abs(point.result.tokenShare * 100 - numbers[1]) < 0.06,
                "\(policy) at \(point.capacity): \(point.result.chunkShare), \(point.result.tokenShare), \(cell)"
            )
        }
    }

    @Test("A shared disk of one server finds what the core finds: within 0.3 % of all chunks")
    func sharedDisk() throws {
        for name in ["conversation", "synthetic"] {
            let trace = try trace(name)
            let core = try CoreReplay(trace, memoryChunks: 3008, diskChunks: 20_000).run(
                policy: PolicyName.lru.make(), admission: .all)
            var replay = SharedDiskReplay(
                trace, routes: trace.requests.map { _ in 0 }, servers: 1, memoryChunks: 3008,
                diskChunks: 20_000, makePolicy: { PolicyName.lru.make() })
            let result = replay.run()
            let chunks = Double(trace.chunkCount)
            #expect(
                abs(core.found.hitChunks - result.found.hitChunks) / chunks < 0.003,
                "\(name): \(core.found.chunkShare), \(result.found.chunkShare)")
            #expect(
                abs(Double(core.memoryHits - result.memoryHits)) / chunks < 0.003,
                "\(name): \(core.memoryHits), \(result.memoryHits)")
        }
    }

    @Test(
        "A public survey's figures for plain LRU, with partial chunks stored",
        arguments: [
            ("conversation", [0.052, 0.195, 0.278, 0.353, 0.363]),
            ("synthetic", [0.034, 0.155, 0.260, 0.443, 0.589]),
        ])
    func survey(name: String, expected: [Double]) throws {
        let trace = try trace(name)
        let curve = StackDistances(trace, storesPartial: true, order: .headFirst)
        for (share, expected) in zip([0.01, 0.05, 0.1, 0.25, 0.5], expected) {
            let capacity = Int(share * Double(trace.distinctCount))
            #expect(abs(curve.result(capacity: capacity).chunkShare - expected) < 0.0006)
        }
    }
}
