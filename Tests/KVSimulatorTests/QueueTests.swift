import ArgumentParser
import Foundation
import KVPolicy
import KVSimulator
import TestRandom
import Testing

@testable import kvasir

/// Times that requests wait: against queueing theory, by hand, and by a plainer program.
@Suite("Queues")
struct QueueTests {
    /// From 0 up to, but not, 1.
    private func unit(_ random: inout SeededGenerator) -> Double {
        Double(random.next() >> 11) * 0x1p-53
    }

    private func exponential(_ random: inout SeededGenerator, mean: Double) -> Double {
        -mean * log(1 - unit(&random))
    }

    /// Poisson arrivals, one a second.
    private func poisson(_ random: inout SeededGenerator, _ count: Int) -> [Double] {
        var time = 0.0
        return (0..<count).map { _ in
            time += exponential(&random, mean: 1)
            return time
        }
    }

    private func isNear(_ value: Double, _ expected: Double, within share: Double) -> Bool {
        abs(value - expected) <= share * expected
    }

    // MARK: Theory

    @Test(
        "Equal prompts at random times wait as M/D/1 says: ρS / 2(1 − ρ), within 3 %",
        arguments: [0.2, 0.5, 0.8])
    func deterministicService(load: Double) {
        var random = SeededGenerator(seed: 21)
        let outcome = QueueReplay(arrivals: poisson(&random, 400_000)).run { _ in load }
        let expected = load * load / (2 * (1 - load))
        #expect(isNear(outcome.wait.mean, expected, within: 0.03), "\(outcome.wait.mean)")
        #expect(isNear(outcome.utilization, load, within: 0.01))
        #expect(outcome.utilization == outcome.busiestUtilization)
        #expect(!outcome.isOverloaded)
    }

    @Test(
        "Prompts of random length take as long as M/M/1 says, percentiles too, within 4 %",
        arguments: [0.3, 0.7])
    func exponentialService(load: Double) {
        var random = SeededGenerator(seed: 22)
        let arrivals = poisson(&random, 400_000)
        let services = arrivals.map { _ in exponential(&random, mean: load) }
        let times = QueueReplay(arrivals: arrivals).run { services[$0] }.firstToken
        // The time in the system is exponential with the rate μ − λ.
        let mean = 1 / (1 / load - 1)
        for (value, expected) in [
            (times.mean, mean), (times.p50, mean * log(2)), (times.p90, mean * log(10)),
            (times.p99, mean * log(100)),
        ] {
            #expect(isNear(value, expected, within: 0.04), "\(value), \(expected)")
        }
    }

    @Test("Several engines wait as M/M/c says (Erlang C), within 4 %", arguments: [2, 5])
    func severalEngines(engines: Int) {
        var random = SeededGenerator(seed: 23)
        let arrivals = poisson(&random, 400_000)
        let offered = 0.75 * Double(engines)
        let services = arrivals.map { _ in exponential(&random, mean: offered) }
        let outcome = QueueReplay(arrivals: arrivals, engines: engines).run { services[$0] }
        var term = 1.0
        var sum = 1.0
        for number in 1..<engines {
            term *= offered / Double(number)
            sum += term
        }
        let last = term * offered / Double(engines) / (1 - 0.75)
        let expected = last / (sum + last) * offered / (Double(engines) - offered)
        #expect(isNear(outcome.wait.mean, expected, within: 0.04), "\(outcome.wait.mean)")
        #expect(isNear(outcome.utilization, 0.75, within: 0.01))
    }

    // MARK: By hand

    @Test("Three requests and two servers, by hand")
    func byHand() {
        // Server 0 gets 0, 1, 3, 4, server 1 gets 2. Seconds:  arrives  takes  starts  ends
        let arrivals = [0.0, 1, 1, 2, 10]  //                0:     0      3       0      3
        let services = [3.0, 2, 5, 1, 4]  //                 1:     1      2       3      5
        //                                                   2:     1      5       1      6
        //                                                   3:     2      1       5      6
        //                                                   4:    10      4      10     14
        let outcome = QueueReplay(arrivals: arrivals, routes: [0, 0, 1, 0, 0], servers: 2)
            .run { services[$0] }
        #expect(outcome.wait == TimeSummary([0, 2, 0, 3, 0]))
        #expect(outcome.firstToken == TimeSummary([3, 4, 5, 4, 4]))
        #expect(outcome.firstToken.mean == 4)
        #expect(outcome.firstToken.p50 == 4)
        #expect(outcome.firstToken.p90 == 5)
        // What came before the last: 6 s of work for server 0, 5 s for server 1, in 10 s.
        #expect(outcome.busiestUtilization == 0.6)
        #expect(outcome.utilization == 0.55)
        // Both engines of one server: 2 waits for 1 s, the next for one more.
        let two = QueueReplay(arrivals: arrivals, engines: 2).run { services[$0] }
        #expect(two.wait == TimeSummary([0, 0, 2, 1, 0]))
        #expect(two.utilization == 0.55)
    }

    /// All engines, request by request, from what has happened so far: nothing clever.
    private func plainly(
        _ arrivals: [Double], _ routes: [UInt16], _ engines: Int, _ services: [Double]
    ) -> (waits: [Double], busy: [Double]) {
        var jobs: [(server: UInt16, start: Double, end: Double)] = []
        for (number, arrival) in arrivals.enumerated() {
            let mine = jobs.filter { $0.server == routes[number] }
            // Nobody starts before those that came earlier; then at the first end that leaves an
            // engine free.
            let earliest = max(arrival, mine.map(\.start).max() ?? 0)
            let candidates = ([earliest] + mine.map(\.end).filter { $0 > earliest }).sorted()
            let start = candidates.first { time in
                mine.count { $0.start <= time && time < $0.end } < engines
            }!
            jobs.append((routes[number], start, start + services[number]))
        }
        return (zip(jobs, arrivals).map { $0.start - $1 }, jobs.map { $0.end - $0.start })
    }

    @Test("What a plainer program says, and no work is lost or made", arguments: 0..<40)
    func plainProgram(seed: Int) {
        var random = SeededGenerator(seed: UInt64(500 + seed))
        let servers = 1 + random.below(3)
        let engines = 1 + random.below(3)
        var time = 0.0
        var arrivals: [Double] = []
        var services: [Double] = []
        var routes: [UInt16] = []
        for _ in 0..<120 {
            // Sixteenths are exact.
            time += Double(random.below(40)) / 16
            arrivals.append(time)
            services.append(Double(1 + random.below(60)) / 16)
            routes.append(UInt16(random.below(servers)))
        }
        let replay = QueueReplay(
            arrivals: arrivals, routes: routes, servers: servers, engines: engines)
        let outcome = replay.run { services[$0] }
        let expected = plainly(arrivals, routes, engines, services)
        #expect(outcome.wait == TimeSummary(expected.waits), "seed \(500 + seed)")
        #expect(
            outcome.firstToken == TimeSummary(zip(expected.waits, services).map { $0 + $1 }),
            "seed \(500 + seed)")
        let work = zip(arrivals, services).filter { $0.0 < time }.reduce(0) { $0 + $1.1 }
        let capacity = replay.seconds * Double(servers * engines)
        #expect(abs(outcome.utilization - work / capacity) < 1e-12)
        #expect(outcome.busiestUtilization >= outcome.utilization)
        #expect(outcome.busiestUtilization <= outcome.utilization * Double(servers) + 1e-12)
    }

    @Test("Percentiles are by nearest rank")
    func percentiles() {
        var random = SeededGenerator(seed: 24)
        for count in [1, 2, 9, 10, 11, 99, 100, 101, 1000] {
            let values = (0..<count).map { _ in Double(random.below(500)) }
            let summary = TimeSummary(values)
            for (percent, value) in [(50, summary.p50), (90, summary.p90), (99, summary.p99)] {
                // The smallest that at least so many percent are not above.
                let expected = values.filter { candidate in
                    values.count { $0 <= candidate } * 100 >= percent * count
                }.min()
                #expect(value == expected, "\(percent) of \(count)")
            }
        }
        #expect(TimeSummary((1...100).map { Double($0) }).p99 == 99)
        #expect(TimeSummary([]) == TimeSummary([0]))
    }

    @Test("More work than can be done is said to be so")
    func overload() {
        let arrivals = (0..<1000).map { Double($0) }
        let above = QueueReplay(arrivals: arrivals).run { _ in 1.01 }
        #expect(above.isOverloaded)
        #expect(isNear(above.utilization, 1.01, within: 1e-9))
        #expect(isNear(above.wait.p99, 989 * 0.01, within: 1e-6))
        #expect(!QueueReplay(arrivals: arrivals).run { _ in 0.99 }.isOverloaded)
        // One server of two is enough.
        let uneven = QueueReplay(
            arrivals: arrivals, routes: arrivals.map { $0 < 999 ? 0 : 1 }, servers: 2
        ).run { _ in 1.01 }
        #expect(uneven.isOverloaded && uneven.utilization < 0.6)
    }

    // MARK: With caches

    private func timing() -> Timing {
        var service = ServiceModel(secondsPerToken: 2e-6)
        service.secondsPerTokenSquared = 3e-10
        service.loadSecondsPerToken = 1e-7
        service.diskLoadSecondsPerToken = 7e-7
        service.loadSecondsPerRequest = 1e-5
        return Timing(service)
    }

    @Test(
        "Where nobody waits the mean is that of the sums, for all policies, disks and servers",
        arguments: Simulation.Contender.names)
    func sums(name: String) throws {
        var random = SeededGenerator(seed: 25)
        let trace = try randomTrace(&random, requests: 250, branches: 4, longest: 6)
        let contender = try #require(Simulation.Contender(named: name))
        var simulation = Simulation(trace)
        simulation.timing = timing()
        // A request comes every 10 s, and takes milliseconds.
        simulation.timing!.speedup = 0.001
        var plain = simulation
        plain.timing = nil
        // More sizes than are kept at a time.
        let capacities = (1...20).map { 8 * $0 }
        for (servers, sharing) in [
            (1, Simulation.Sharing.none), (3, .none), (3, .disk), (3, .all),
        ] {
            for hasDisk in [false, true] where hasDisk || sharing != .disk {
                if name == "lru-head-first", sharing == .disk { continue }
                simulation.cluster.servers = servers
                simulation.cluster.sharing = sharing
                plain.cluster = simulation.cluster
                let sizes = hasDisk || servers > 1 ? [16, 48] : capacities
                let disks = hasDisk ? [256, 512] : []
                let points = try simulation.run(contender, capacities: sizes, disks: disks)
                let untimed = try plain.run(contender, capacities: sizes, disks: disks)
                for (point, other) in zip(points, untimed) {
                    #expect(point.result == other.result && other.times == nil)
                    let times = try #require(point.times)
                    let expected = simulation.timing!.service.outcome(
                        of: point.result, diskHitTokens: point.tiers?.diskHitTokens ?? 0)
                    #expect(times.wait == TimeSummary([0]))
                    #expect(
                        isNear(
                            times.firstToken.mean, expected.meanFirstTokenSeconds, within: 1e-9),
                        "\(name), \(servers), \(sharing), disk \(hasDisk), \(point.capacity)")
                }
            }
        }
        let without = try #require(simulation.timesWithout())
        let all = timing().service.outcome(of: ReplayResult(trace))
        #expect(isNear(without.firstToken.mean, all.meanFirstTokenSecondsWithout, within: 1e-9))
    }

    @Test("Twice the traffic is twice the load; what is found stays")
    func speedup() throws {
        var random = SeededGenerator(seed: 26)
        let trace = try randomTrace(&random, requests: 3000, branches: 4, longest: 6)
        let lru = try #require(Simulation.Contender(named: "lru"))
        var simulation = Simulation(trace)
        simulation.timing = timing()
        let once = try simulation.run(lru, capacities: [200])[0]
        simulation.timing!.speedup = 2
        let twice = try simulation.run(lru, capacities: [200])[0]
        let (slow, fast) = (try #require(once.times), try #require(twice.times))
        #expect(once.result == twice.result)
        #expect(isNear(fast.utilization, 2 * slow.utilization, within: 1e-9))
        #expect(fast.wait.mean > slow.wait.mean)
        simulation.timing!.engines = 2
        let shared = try #require(try simulation.run(lru, capacities: [200])[0].times)
        #expect(isNear(shared.utilization, slow.utilization, within: 1e-9))
        #expect(shared.wait.mean < fast.wait.mean)
    }

    private func trace(at times: [Int]) throws -> Trace {
        try read(
            times.enumerated().map {
                "{\"timestamp\": \($1), \"input_length\": 1024, \"hash_ids\": [\(2 * $0), \(2 * $0 + 1)]}"
            }.joined(separator: "\n"))
    }

    @Test("Requests with the same time are spread to the next one if asked for")
    func spreading() throws {
        let trace = try trace(at: [1000, 1000, 1000, 4000, 5000, 5000])
        #expect(trace.shareWithEqualTimes == 0.6)
        let lru = try #require(Simulation.Contender(named: "lru"))
        var simulation = Simulation(trace)
        simulation.timing = Timing(ServiceModel(secondsPerToken: 0.9 / 1024))
        let bunched = try #require(try simulation.run(lru, capacities: [9])[0].times)
        #expect(isNear(bunched.wait.mean, (0.9 + 1.8 + 0.9) / 6, within: 1e-9))
        simulation.timing!.spreadsArrivals = true
        let spread = try #require(try simulation.run(lru, capacities: [9])[0].times)
        // 0, 1, 2, 3, 4, and 4.5: of the last ones nobody knows more than the second before them.
        #expect(isNear(spread.wait.mean, 0.4 / 6, within: 1e-9))
    }

    @Test("Where no time passes nothing is said of queues, and means stay")
    func noTimes() throws {
        let lru = try #require(Simulation.Contender(named: "lru"))
        for times in [[7], [7, 7, 7]] {
            var simulation = Simulation(try trace(at: times))
            simulation.timing = timing()
            let points = try simulation.run(lru, capacities: [9])
            #expect(points[0].times == nil && simulation.timesWithout() == nil)
            let report = SimulationReport(
                simulation: simulation, files: ["log"], points: points, tokenBytes: nil)
            #expect(report.text.contains("no queues"))
            #expect(try !report.json().contains("\"queue\""))
            #expect(report.csv.contains("unloaded_first_token_ms"))
            #expect(!report.csv.contains("utilization"))
        }
    }

    // MARK: Reports

    private func report(
        policies: [String], sizes: [Int], servers: Int = 1, _ timing: Timing
    ) throws -> SimulationReport {
        var random = SeededGenerator(seed: 27)
        let trace = try randomTrace(&random, requests: 500, branches: 4, longest: 6)
        var simulation = Simulation(trace)
        simulation.cluster.servers = servers
        simulation.timing = timing
        let points = try policies.flatMap { name in
            try simulation.run(try #require(.init(named: name)), capacities: sizes)
        }
        return SimulationReport(
            simulation: simulation, files: ["log"], points: points, tokenBytes: nil)
    }

    @Test("Tables, JSON and CSV tell the times, and mark those that depend on the trace's length")
    func reports() throws {
        var timing = timing()
        let calm = try report(policies: ["lru", "optimum"], sizes: [40, 400], timing)
        #expect(calm.text.contains("no cache"))
        #expect(!calm.text.contains("*"))
        let json = try calm.json()
        for name in [
            "\"queue\"", "\"first_token_ms\"", "\"p99\"", "\"queue_wait_ms\"", "\"utilization\"",
            "\"overloaded\" : false", "\"unloaded_first_token_ms\"", "\"engines\" : 1",
        ] {
            #expect(json.contains(name), "\(name)")
        }
        let lines = calm.csv.split(separator: "\n").map { $0.split(separator: ",") }
        #expect(lines.count == 5 && lines.allSatisfy { $0.count == lines[0].count })
        let p99 = try #require(lines[0].firstIndex(of: "first_token_ms_p99"))
        #expect(Double(lines[1][p99]) == calm.points[0].times!.firstToken.p99 * 1000)

        timing.speedup = 50
        let busy = try report(policies: ["lru"], sizes: [40, 400], servers: 2, timing)
        #expect(busy.text.contains("More work comes than the busiest server can do"))
        #expect(busy.text.contains("50.000 times as fast"))
        #expect(busy.text.contains("Each of 2 servers has 1 engine"))
        #expect(busy.text.contains("busiest"))
        #expect(try busy.json().contains("\"overloaded\" : true"))
        // Many sizes: a table for each figure, marked too.
        let many = try report(
            policies: ["lru", "arc"], sizes: (1...15).map { 20 * $0 }, servers: 2, timing)
        #expect(many.text.contains("99th percentile"))
        #expect(many.text.contains("*"))
    }

    @Test("Options that make no sense are refused with a sentence")
    func options() throws {
        let rate = ["log", "--prefill-rate", "30k"]
        for (arguments, words) in [
            (["log", "--engines", "2"], "--engines is for times"),
            (["log", "--speedup", "2"], "--speedup is for times"),
            (["log", "--spread-arrivals"], "--spread-arrivals is for times"),
            (["log", "--load-bandwidth", "25GB"], "--load-bandwidth is for times"),
            (rate + ["--engines", "0"], "--engines takes 1 to 64"),
            (rate + ["--engines", "65"], "--engines takes 1 to 64"),
            (rate + ["--speedup", "0"], "speedup"),
            (rate + ["--speedup", "1001"], "speedup"),
            (rate + ["--load-bandwidth", "25GB"], "needs the size of a token"),
            (
                rate + ["--disk-bandwidth", "6GB", "--bytes-per-token", "131072"],
                "--disk-bandwidth needs a disk"
            ),
            (rate + ["--gpu", "H100", "--model", "config.json"], "take either --prefill-rate"),
            (["log", "--gpu", "H100"], "need the model"),
            (["log", "--share", "all"], "--share needs several servers"),
            (["log", "--share", "disk", "--nodes", "2"], "--share disk needs a disk"),
            (["log", "--share", "some", "--nodes", "2"], "some"),
            (
                [
                    "log", "--share", "disk", "--nodes", "2", "--capacity-chunks", "300",
                    "--disk-chunks", "3000", "--disk-admission", "eviction",
                ], "leave --disk-admission away"
            ),
            (["log", "--nodes", "1001"], "--nodes takes 1 to 1000"),
        ] {
            do {
                _ = try Simulate.parse(arguments)
                Issue.record("\(arguments) were taken")
            } catch {
                let said = Simulate.message(for: error)
                #expect(said.contains(words), "\(arguments): \(said)")
            }
        }
        _ = try Simulate.parse(
            rate + [
                "--bytes-per-token", "131072", "--load-bandwidth", "25GB", "--disk-bandwidth",
                "6GB", "--capacity-chunks", "300", "--disk-chunks", "3000", "--nodes", "4",
                "--share", "disk", "--engines", "64", "--speedup", "1.5", "--spread-arrivals",
                "--disk-admission", "all",
            ])
    }
}
