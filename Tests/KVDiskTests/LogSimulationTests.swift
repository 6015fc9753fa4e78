import Glibc
import KVThreads
import Testing

@testable import KVDisk

/// Seeds of each test; `KVASIR_SIMULATION_SEEDS` runs more of them.
private let seeds: Int =
    getenv("KVASIR_SIMULATION_SEEDS").flatMap { Int(String(cString: $0)) } ?? 100

@Suite("A log under random events")
struct LogSimulationTests {
    @Test("On a disk that does what it is told, but for crashes, nothing is lost and nothing back")
    func crashes() {
        run(LogSimulation.Weather(), minimumFound: seeds)
    }

    @Test("On a disk that is late, fails and does things by halves, neither")
    func faults() {
        var weather = LogSimulation.Weather()
        weather.faults.readError = 0.02
        weather.faults.writeError = 0.01
        weather.faults.syncError = 0.02
        weather.faults.createError = 0.05
        weather.faults.shortTransfer = 0.1
        weather.faults.late = 0.01
        run(weather, minimumFound: seeds / 4)
    }

    @Test("On a disk that is full before the limit, neither")
    func full() {
        var weather = LogSimulation.Weather()
        weather.faults.capacityBytes = 300 << 10
        run(weather, minimumFound: seeds / 2)
    }

    private func run(_ weather: LogSimulation.Weather, minimumFound: Int) {
        let first = seedOfThisRun()
        let isOne = getenv("KVASIR_SEED") != nil
        var (found, written, good, tickets) = (0, 0, 0, 0)
        var (crashes, unsafe) = (0, 0)
        for seed in first..<first + UInt64(isOne ? 1 : seeds) {
            let simulation = LogSimulation(seed: seed, weather: weather)
            do {
                try simulation.run(operations: 300)
            } catch {
                Issue.record("KVASIR_SEED=\(seed): \(error)")
                return
            }
            found += simulation.foundCount
            written += simulation.writtenCount
            good += simulation.goodTickets
            tickets += simulation.ticketCount
            crashes += simulation.crashCount
            unsafe += simulation.unsafeCount
        }
        guard !isOne else { return }
        print(
            "\(seeds) seeds: \(written) written, \(found) found, \(good) of \(tickets) tickets, "
                + "\(unsafe) of \(crashes) crashes after an unsafe reuse")
        // Few seeds may be unlucky ones.
        if seeds < 100 { return }
        #expect(unsafe * 20 <= crashes, "seed \(first): \(unsafe) of \(crashes) crashes")
        #expect(found > minimumFound, "seed \(first): nothing was ever found")
    }
}
