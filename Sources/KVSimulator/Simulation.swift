import Foundation
package import KVPolicy
package import KVStore

/// What a simulation runs: a trace, and how it is looked at.
package struct Simulation {
    /// Who decides what stays.
    package enum Decider: Sendable, Equatable {
        /// A policy as the store runs it: leaves go first.
        case policy(PolicyName)
        /// A policy as its paper has it: any chunk may go.
        case published(Published)
        /// Belady's.
        case optimum
        /// Least recently used with the tail of a prompt the most recent.
        case headFirstLRU
    }

    /// Policies of which the published form differs from the store's.
    package enum Published: String, Sendable {
        case arc, s3fifo

        func make(capacity: Int) -> any BlockCache {
            switch self {
            case .arc: BlockARC(capacity: capacity)
            case .s3fifo: BlockS3FIFO(capacity: capacity)
            }
        }
    }

    /// What is put behind the name of a policy for the form that the store runs.
    package static let leafSuffix = "-leaf"

    /// A decider under the name that it was asked for by.
    package struct Contender: Sendable, Equatable {
        package let name: String
        package let decider: Decider

        /// The contender of a name; nil if there is none.
        package init?(named word: String) {
            name = word
            switch word {
            case "optimum": decider = .optimum
            case "lru-head-first": decider = .headFirstLRU
            default:
                if let published = Published(rawValue: word) {
                    decider = .published(published)
                    return
                }
                let base =
                    word.hasSuffix(Simulation.leafSuffix)
                    ? String(word.dropLast(Simulation.leafSuffix.count)) : word
                guard let policy = PolicyName(named: base),
                    base == word || Published(rawValue: base) != nil
                else { return nil }
                decider = .policy(policy)
            }
        }

        /// All names that there are.
        package static var names: [String] {
            PolicyName.allCases.map(\.rawValue)
                + PolicyName.allCases.map(\.rawValue).filter { Published(rawValue: $0) != nil }
                .map { $0 + Simulation.leafSuffix } + ["default", "optimum", "lru-head-first"]
        }

        /// What it is, for people.
        package var runs: String {
            switch decider {
            case .policy(let policy):
                Published(rawValue: policy.rawValue) == nil
                    ? policy.rawValue : policy.rawValue + Simulation.leafSuffix
            case .published(let published): published.rawValue
            case .optimum, .headFirstLRU: name
            }
        }

        /// Whether one pass gives all sizes, and so a sample does.
        var isStack: Bool { decider == .policy(.lru) || decider == .headFirstLRU }

        /// The policy that a store would run.
        var storePolicy: PolicyName? {
            switch decider {
            case .policy(let policy): policy
            case .published(let published): PolicyName(rawValue: published.rawValue)
            case .optimum, .headFirstLRU: nil
            }
        }
    }

    /// What several servers have in common.
    package enum Sharing: String, CaseIterable, Sendable {
        /// Nothing: each has memory and disk of its own.
        case none
        /// One disk of all their capacities.
        case disk
        /// One cache of all their memories and disks.
        case all
    }

    /// Several servers.
    package struct Cluster: Sendable {
        package var servers = 1
        package var routing = Routing.session
        package var sharing = Sharing.none

        package init() {}
    }

    /// One point of a curve.
    package struct Point: Sendable {
        package var contender: Contender
        /// Chunks in memory; of one server.
        package var capacity: Int
        package var diskCapacity = 0
        package var result: ReplayResult
        /// Of the chunk share, for sampled curves.
        package var error = 0.0
        /// With a disk: what was found where, and what was written.
        package var tiers: CoreReplay.Result?
        /// With queues; nil if nothing was said of times, and for samples.
        package var times: QueueOutcome?
    }

    package let trace: Trace
    package var storesPartial = false
    package var cluster = Cluster()
    /// Right with this probability; nil for the hints of the trace.
    package var hintAccuracy: Double?
    package var seed: UInt64 = 1
    /// Of LRU's curve.
    package var sample = 1.0
    package var admission = DiskAdmission.all
    /// For times with queues.
    package var timing: Timing?

    package init(_ trace: Trace) {
        self.trace = trace
    }

    /// Replays.
    ///
    /// - Parameters:
    ///   - capacities: chunks of one server's memory.
    ///   - disks: chunks of its disk, by capacity; empty for none.
    ///   - progress: what is being done, and the share of it that is.
    package func run(
        _ contender: Contender, capacities: [Int], disks: [Int] = [],
        progress: (Double) -> Void = { _ in }
    ) throws -> [Point] {
        let points = capacities.enumerated().map { place, capacity in
            Point(
                contender: contender, capacity: capacity,
                diskCapacity: disks.isEmpty ? 0 : disks[place], result: ReplayResult())
        }
        if disks.contains(where: { $0 > 0 }) { try check(contender, points) }
        // What each request found is kept for some sizes at a time only.
        let groupCount = hasQueues ? Self.timedAtOnce : max(1, points.count)
        let jobs = self.jobs()
        var done: [Point] = []
        while done.count < points.count {
            var group = Array(points[done.count...].prefix(groupCount))
            let before = Double(done.count)
            let share = Double(group.count)
            try run(jobs, &group) { progress((before + share * $0) / Double(points.count)) }
            done += group
        }
        return done
    }

    /// Whether queues can be replayed: times are asked for, and the trace has some.
    package var hasQueues: Bool { timing != nil && trace.seconds > 0 }

    /// When there is no cache at all; nil if nothing can be said of queues.
    package func timesWithout() -> QueueOutcome? {
        guard let timing else { return nil }
        return queue()?.run { number in
            timing.service.prefillSeconds(tokens: Double(trace.requests[number].tokens))
        }
    }

    /// Sizes of which it is kept at a time what each request found: 8 bytes a request and size.
    private static let timedAtOnce = 16

    private func check(_ contender: Contender, _ points: [Point]) throws {
        guard contender.storePolicy != nil else {
            if cluster.servers > 1, cluster.sharing == .disk, contender.decider == .headFirstLRU {
                throw CoreReplay.SizeError(
                    description:
                        "\(contender.name) knows no disk, so that servers can't share one; leave it "
                        + "away")
            }
            return
        }
        let isOneCore = cluster.sharing == .all
        for point in points {
            let scale = isOneCore ? cluster.servers : 1
            try CoreReplay.check(
                memoryChunks: point.capacity * scale, diskChunks: point.diskCapacity * scale)
        }
        if cluster.servers > 1, cluster.sharing == .disk {
            try SharedDiskReplay.check(trace, servers: cluster.servers)
            for point in points where point.diskCapacity > 0 {
                try SharedDiskReplay.check(
                    memoryChunks: point.capacity, diskChunks: point.diskCapacity)
            }
        }
    }

    // MARK: Jobs

    /// Requests that one cache sees.
    private struct Job {
        var trace: Trace
        /// By request, its number in the whole trace; nil if this is the whole trace.
        var numbers: [Int]?
        /// Servers whose sizes add up in it.
        var scale: Int
    }

    private var routes: [Int] {
        trace.routes(cluster.routing, count: cluster.servers, seed: seed)
    }

    private func jobs() -> [Job] {
        let count = cluster.servers
        if count == 1 { return [Job(trace: trace, scale: 1)] }
        if cluster.sharing != .none { return [Job(trace: trace, scale: count)] }
        let routes = self.routes
        var numbers = [[Int]](repeating: [], count: count)
        for (number, server) in routes.enumerated() { numbers[server].append(number) }
        return zip(trace.split(routes, count: count), numbers).map {
            Job(trace: $0, numbers: $1, scale: 1)
        }
    }

    private func queue() -> QueueReplay? {
        guard let timing, hasQueues else { return nil }
        return QueueReplay(
            arrivals: timing.arrivals(of: trace),
            routes: cluster.servers == 1 ? [] : routes.map { UInt16($0) },
            servers: cluster.servers, engines: timing.engines)
    }

    private func run(
        _ jobs: [Job], _ points: inout [Point], _ progress: (Double) -> Void
    ) throws {
        guard let first = points.first else { return }
        // A sample doesn't tell what one request finds.
        let isSampled = sample < 1 && first.diskCapacity == 0 && first.contender.isStack
        var log = FoundLog(
            requests: trace.requests.count,
            sizes: hasQueues && !isSampled ? points.count : 0)
        for (number, job) in jobs.enumerated() {
            try run(job, &points, &log) {
                progress((Double(number) + $0) / Double(jobs.count))
            }
        }
        guard let timing, !isSampled, let queue = queue() else { return }
        for place in points.indices {
            points[place].times = queue.run { number in
                let request = trace.requests[number]
                let found = log.hits(place, number).tokens(
                    of: request, chunkTokens: trace.chunkTokens)
                return timing.service.firstTokenSeconds(
                    tokens: Double(request.tokens), found: found.all, onDisk: found.onDisk)
            }
        }
    }

    private func run(
        _ job: Job, _ points: inout [Point], _ log: inout FoundLog,
        _ progress: (Double) -> Void
    ) throws {
        let first = points[0]
        if first.diskCapacity > 0, let policy = first.contender.storePolicy {
            return try run(policy, job, &points, &log, progress)
        }
        let part = job.trace
        let total = Double(points.count)
        switch first.contender.decider {
        case .policy(.lru), .headFirstLRU:
            let capacities = points.map { ($0.capacity + $0.diskCapacity) * job.scale }
            let curve = StackDistances(
                part, storesPartial: storesPartial,
                order: first.contender.decider == .headFirstLRU ? .headFirst : .tailFirst,
                sample: sample, progress: progress, capacities: log.isEmpty ? [] : capacities
            ) { place, request, hits in log.note(place, job.numbers?[request] ?? request, hits) }
            for (place, capacity) in capacities.enumerated() {
                points[place].result = points[place].result + curve.result(capacity: capacity)
                points[place].error = max(
                    points[place].error, curve.chunkShareError(capacity: capacity))
            }
        case .optimum:
            let optimum = Optimum(part, storesPartial: storesPartial)
            for place in points.indices {
                // With a disk it is that of a cache as large as both.
                let capacity = (points[place].capacity + points[place].diskCapacity) * job.scale
                let result = optimum.result(capacity: capacity) {
                    progress((Double(place) + $0) / total)
                } found: {
                    log.note(place, job.numbers?[$0] ?? $0, $1)
                }
                points[place].result = points[place].result + result
            }
        case .published(let published):
            for place in points.indices {
                var replay = BlockReplay(
                    part, cache: published.make(capacity: points[place].capacity * job.scale),
                    storesPartial: storesPartial)
                replay.run {
                    progress((Double(place) + $0) / total)
                } found: {
                    log.note(place, job.numbers?[$0] ?? $0, $1)
                }
                points[place].result = points[place].result + replay.result
            }
        case .policy(let policy):
            let hints = self.hints(of: part)
            for place in points.indices {
                var replay = PolicyReplay(
                    part, policy: policy.make(), capacity: points[place].capacity * job.scale,
                    storesPartial: storesPartial)
                replay.run(hints: hints) {
                    progress((Double(place) + $0) / total)
                } found: {
                    log.note(place, job.numbers?[$0] ?? $0, $1)
                }
                points[place].result = points[place].result + replay.result
            }
        }
    }

    /// With a disk.
    private func run(
        _ policy: PolicyName, _ job: Job, _ points: inout [Point], _ log: inout FoundLog,
        _ progress: (Double) -> Void
    ) throws {
        let total = Double(points.count)
        let hints = self.hints(of: job.trace)
        for place in points.indices {
            let point = points[place]
            let result: CoreReplay.Result
            if cluster.servers > 1, cluster.sharing == .disk {
                var replay = SharedDiskReplay(
                    job.trace, routes: routes.map { UInt16($0) }, servers: cluster.servers,
                    memoryChunks: point.capacity, diskChunks: point.diskCapacity * job.scale,
                    storesPartial: storesPartial, makePolicy: { policy.make() })
                result = replay.run(hints: hints) {
                    progress((Double(place) + $0) / total)
                } found: {
                    log.note(place, $0, $1)
                }
            } else {
                let core = CoreReplay(
                    job.trace, memoryChunks: point.capacity * job.scale,
                    diskChunks: point.diskCapacity * job.scale, storesPartial: storesPartial)
                result = try core.run(policy: policy.make(), admission: admission, hints: hints) {
                    progress((Double(place) + $0) / total)
                } found: {
                    log.note(place, job.numbers?[$0] ?? $0, $1)
                }
            }
            points[place].result = points[place].result + result.found
            points[place].tiers = points[place].tiers.map { $0 + result } ?? result
        }
    }

    private func hints(of part: Trace) -> [ReuseHint]? {
        hintAccuracy.map { part.oracleHints(accuracy: $0, seed: seed) }
    }

    /// Capacities for a curve: so many, evenly spaced on a logarithmic scale, from a thousandth of
    /// what a cache without bound holds up to all of it.
    package func ladder(_ count: Int) -> [Int] {
        let largest = max(2, trace.storableCount)
        let smallest = max(1, largest / 1000)
        let ratio = Double(largest) / Double(smallest)
        var capacities: [Int] = []
        for step in 0..<count {
            let value = Double(smallest) * pow(ratio, Double(step) / Double(max(1, count - 1)))
            let rounded = step == count - 1 ? largest : Int(value.rounded())
            if rounded > capacities.last ?? 0 { capacities.append(rounded) }
        }
        return capacities
    }
}

/// What each request found at some sizes, for the queues that come after.
private struct FoundLog {
    /// By size, then by request.
    private var all: [[UInt32]]
    private var onDisk: [[UInt32]]

    init(requests: Int, sizes: Int) {
        all = Array(repeating: Array(repeating: 0, count: requests), count: sizes)
        onDisk = all
    }

    var isEmpty: Bool { all.isEmpty }

    mutating func note(_ size: Int, _ request: Int, _ hits: Hits) {
        if all.isEmpty { return }
        all[size][request] = UInt32(hits.all)
        onDisk[size][request] = UInt32(hits.onDisk)
    }

    func hits(_ size: Int, _ request: Int) -> Hits {
        Hits(all: Int(all[size][request]), onDisk: Int(onDisk[size][request]))
    }
}
