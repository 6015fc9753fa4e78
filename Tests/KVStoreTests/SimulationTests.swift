import Foundation
import KVStore
import TestRandom
import Testing

/// Events for each seed; `KVASIR_SIMULATION_EVENTS` makes it longer, `KVASIR_SEED` repeats a
/// failing run.
private let events =
    ProcessInfo.processInfo.environment["KVASIR_SIMULATION_EVENTS"].flatMap { Int($0) }
    ?? usualEvents
private let usualEvents = 40_000
private let seeds: [UInt64] =
    ProcessInfo.processInfo.environment["KVASIR_SEED"].flatMap { UInt64($0) }.map { [$0] }
    ?? (0..<3).map { _ in UInt64.random(in: 1...UInt64.max / 2) }

@Suite("The core under random events")
struct SimulationTests {
    @Test(
        "With room for everything, it matches exactly what a simple model matches", arguments: seeds
    )
    func agreesWithModel(seed: UInt64) throws {
        try simulate(seed: seed, pages: 1 << 16, hasPressure: false)
    }

    @Test(
        "Under memory pressure, no reader sees a wrong byte, and memory is never lost",
        arguments: seeds)
    func survivesPressure(seed: UInt64) throws {
        try simulate(seed: seed, pages: 160, hasPressure: true)
    }

    private func simulate(seed: UInt64, pages: Int, hasPressure: Bool) throws {
        let simulation = try Simulation(seed: seed, pages: pages, hasPressure: hasPressure)
        do {
            try simulation.run(events: events)
        } catch {
            Issue.record("KVASIR_SEED=\(seed) event \(simulation.eventCount): \(error)")
            return
        }
        let counters = simulation.core.counters
        #expect(counters.chunksDamaged == 0, "seed \(seed): bytes changed under a seal")
        // A short run need not have seen everything.
        if events < usualEvents { return }
        #expect(simulation.bytesRead > 0, "seed \(seed): nobody read anything")
        #expect(simulation.hitCount > 0, "seed \(seed): nothing ever matched")
        if hasPressure {
            #expect(
                counters.chunksEvicted > 0 && counters.chunksRefusedFull > 0,
                "seed \(seed): no pressure")
            #expect(counters.chunksEvictedForOtherLength > 0, "seed \(seed): no region ever moved")
        }
        #expect(
            counters.writeLeasesExpired > 0 && counters.holdsExpired > 0,
            "seed \(seed): no deadline passed")
    }
}
