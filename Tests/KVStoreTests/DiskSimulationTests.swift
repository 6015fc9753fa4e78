import Foundation
import KVStore
import Testing

@Suite("A store with disks, simulated")
struct DiskSimulationTests {
    /// Seeds of each kind; `KVASIR_SIMULATION_SEEDS` for more.
    static let seeds =
        ProcessInfo.processInfo.environment["KVASIR_SIMULATION_SEEDS"].flatMap { Int($0) }
        ?? usualSeeds
    static let usualSeeds = 12

    /// The first seed; `KVASIR_SIMULATION_FIRST` names one.
    static let first =
        ProcessInfo.processInfo.environment["KVASIR_SIMULATION_FIRST"].flatMap { UInt64($0) }
        ?? UInt64.random(in: 0..<1 << 32)

    @Test(
        "Random events, faults and crashes: no wrong byte, nothing durable lost, nothing dropped back",
        arguments: DiskSimulation.Kind.all)
    func randomEvents(kind: DiskSimulation.Kind) throws {
        // One kind alone, to look into a seed.
        let only = ProcessInfo.processInfo.environment["KVASIR_SIMULATION_KIND"]
        if let only, only != kind.name { return }
        print("disk simulation '\(kind.name)': \(Self.seeds) seeds from \(Self.first) on")
        var counts: [String: Int] = [:]
        for seed in Self.first..<(Self.first + UInt64(Self.seeds)) {
            do {
                let simulation = try DiskSimulation(seed: seed, kind: kind)
                try simulation.run(events: 1500)
                counts.merge(simulation.counts, uniquingKeysWith: +)
            } catch {
                Issue.record("seed \(seed): \(error)")
                return
            }
        }
        print("disk simulation '\(kind.name)': \(counts.sorted { $0.key < $1.key })")
        // A few seeds need not have seen everything.
        if Self.seeds < Self.usualSeeds { return }
        for what in ["saves", "hits", "disk hits", "reads", "syncs", "drops", "crashes"] {
            #expect(counts[what, default: 0] > 0, "\(what)")
        }
    }
}
