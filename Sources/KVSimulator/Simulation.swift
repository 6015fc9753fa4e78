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

        /// The policy that a store would run.
        var storePolicy: PolicyName? {
            switch decider {
            case .policy(let policy): policy
            case .published(let published): PolicyName(rawValue: published.rawValue)
            case .optimum, .headFirstLRU: nil
            }
        }
    }

    /// Several servers.
    package struct Cluster: Sendable {
        package var servers = 1
        package var routing = Routing.session
        /// They share one cache of all their capacities.
        package var isShared = false

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
        var points = capacities.enumerated().map { place, capacity in
            Point(
                contender: contender, capacity: capacity,
                diskCapacity: disks.isEmpty ? 0 : disks[place], result: ReplayResult())
        }
        let count = cluster.servers
        let parts: [Trace]
        if count == 1 || cluster.isShared {
            parts = [trace]
        } else {
            parts = trace.split(
                trace.routes(cluster.routing, count: count, seed: seed), count: count)
        }
        let scale = cluster.isShared ? count : 1
        if !disks.isEmpty, contender.storePolicy != nil {
            for point in points {
                try CoreReplay.check(
                    memoryChunks: point.capacity * scale, diskChunks: point.diskCapacity * scale)
            }
        }
        for (number, part) in parts.enumerated() {
            try run(part, scale: scale, &points) {
                progress((Double(number) + $0) / Double(parts.count))
            }
        }
        return points
    }

    private func run(
        _ part: Trace, scale: Int, _ points: inout [Point], _ progress: (Double) -> Void
    ) throws {
        guard let first = points.first else { return }
        let total = Double(points.count)
        if first.diskCapacity > 0, let policy = first.contender.storePolicy {
            for place in points.indices {
                let core = CoreReplay(
                    part, memoryChunks: points[place].capacity * scale,
                    diskChunks: points[place].diskCapacity * scale, storesPartial: storesPartial)
                let result = try core.run(
                    policy: policy.make(), admission: admission,
                    hints: hintAccuracy.map { part.oracleHints(accuracy: $0, seed: seed) }
                ) { progress((Double(place) + $0) / total) }
                points[place].result = points[place].result + result.found
                points[place].tiers = points[place].tiers.map { $0 + result } ?? result
            }
            return
        }
        switch first.contender.decider {
        case .policy(.lru), .headFirstLRU:
            let curve = StackDistances(
                part, storesPartial: storesPartial,
                order: first.contender.decider == .headFirstLRU ? .headFirst : .tailFirst,
                sample: sample, progress: progress)
            for place in points.indices {
                let capacity = (points[place].capacity + points[place].diskCapacity) * scale
                points[place].result = points[place].result + curve.result(capacity: capacity)
                points[place].error = max(
                    points[place].error, curve.chunkShareError(capacity: capacity))
            }
        case .optimum:
            let optimum = Optimum(part, storesPartial: storesPartial)
            for place in points.indices {
                // With a disk it is that of a cache as large as both.
                let capacity = (points[place].capacity + points[place].diskCapacity) * scale
                points[place].result =
                    points[place].result
                    + optimum.result(capacity: capacity) { progress((Double(place) + $0) / total) }
            }
        case .published(let published):
            for place in points.indices {
                var replay = BlockReplay(
                    part, cache: published.make(capacity: points[place].capacity * scale),
                    storesPartial: storesPartial)
                replay.run { progress((Double(place) + $0) / total) }
                points[place].result = points[place].result + replay.result
            }
        case .policy(let policy):
            let hints = hintAccuracy.map { part.oracleHints(accuracy: $0, seed: seed) }
            for place in points.indices {
                var replay = PolicyReplay(
                    part, policy: policy.make(), capacity: points[place].capacity * scale,
                    storesPartial: storesPartial)
                replay.run(hints: hints) { progress((Double(place) + $0) / total) }
                points[place].result = points[place].result + replay.result
            }
        }
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
