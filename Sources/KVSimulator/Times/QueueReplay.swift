/// Requests that wait for engines: first come, first served, on each server.
///
/// Each server has some engines, and an engine has one prompt at a time, from when it takes it up to the
/// first token: loading what was found, then computing the rest (``ServiceModel``). A request goes to
/// the engine of its server that is free first, and waits until then. Nobody overtakes, gives up, or is
/// computed together with another.
///
/// With one engine, Poisson arrivals and service independent of them this is M/G/1, whose mean wait is
/// `λ·E[S²] / 2(1 − ρ)` (Pollaczek–Khinchine). Source: Kleinrock, "Queueing Systems" I, 1975, section
/// 5.6; the recursion of the wait is Lindley's, and with several engines Kiefer and Wolfowitz's.
package struct QueueReplay: Sendable {
    /// Engines of a server, at most: each request looks at all of them.
    package static let enginesMaximum = 64

    /// By request, in seconds since the first; never falls.
    private let arrivals: [Double]
    /// By request its server; empty if there is only one.
    private let routes: [UInt16]
    package let servers: Int
    /// Of each server.
    package let engines: Int

    /// - Parameters:
    ///   - arrivals: seconds; none is before the one before it.
    ///   - routes: by request its server; empty if there is only one.
    package init(arrivals: [Double], routes: [UInt16] = [], servers: Int = 1, engines: Int = 1) {
        precondition((1...Self.enginesMaximum).contains(engines), "1 to 64 engines")
        precondition(routes.isEmpty ? servers == 1 : routes.count == arrivals.count)
        self.arrivals = arrivals
        self.routes = routes
        self.servers = servers
        self.engines = engines
    }

    /// From the first request to the last.
    package var seconds: Double { (arrivals.last ?? 0) - (arrivals.first ?? 0) }

    /// Has all requests served. O(engines) a request, and the sorting of two times of each.
    ///
    /// - Parameter service: the seconds that a request keeps its engine busy.
    package func run(_ service: (_ request: Int) -> Double) -> QueueOutcome {
        // When each engine becomes free, server by server.
        var free = [Double](repeating: -.infinity, count: servers * engines)
        var busySeconds = [Double](repeating: 0, count: servers)
        var waits: [Double] = []
        waits.reserveCapacity(arrivals.count)
        var firstTokens: [Double] = []
        firstTokens.reserveCapacity(arrivals.count)
        let end = arrivals.last ?? 0
        for (request, arrival) in arrivals.enumerated() {
            let server = routes.isEmpty ? 0 : Int(routes[request])
            var engine = server * engines
            for other in engine..<engine + engines where free[other] < free[engine] {
                engine = other
            }
            let seconds = service(request)
            let start = max(arrival, free[engine])
            free[engine] = start + seconds
            waits.append(start - arrival)
            firstTokens.append(start - arrival + seconds)
            if arrival < end { busySeconds[server] += seconds }
        }
        let capacity = self.seconds * Double(engines)
        let utilizations = busySeconds.map { capacity > 0 ? $0 / capacity : 0 }
        return QueueOutcome(
            firstToken: TimeSummary(firstTokens), wait: TimeSummary(waits),
            utilization: utilizations.reduce(0, +) / Double(servers),
            busiestUtilization: utilizations.max() ?? 0)
    }
}

/// What requests waited, and how busy that kept the engines.
package struct QueueOutcome: Sendable, Equatable {
    /// From a request's arrival to its first token, in seconds.
    package var firstToken: TimeSummary
    /// Of that, what it waited for an engine.
    package var wait: TimeSummary
    /// The work that came before the last request of the trace did, over what the engines can do until
    /// then. Above 1 more came than could be done.
    package var utilization: Double
    /// The same of the server that has most.
    package var busiestUtilization: Double

    /// Some server gets more work than it can do: its queue grows to the end of the trace, so that times
    /// depend on how long that is.
    package var isOverloaded: Bool { busiestUtilization >= 1 }
}

/// Who computes, how fast, and when requests come.
package struct Timing: Sendable, Equatable {
    package var service: ServiceModel
    /// Engines of each server.
    package var engines = 1
    /// Requests come so many times as fast as in the trace.
    package var speedup = 1.0
    /// Requests with the same time are spread evenly over the time to the next one: logs often have
    /// coarse clocks.
    package var spreadsArrivals = false

    package init(_ service: ServiceModel) {
        self.service = service
    }

    /// When requests come, in seconds since the first.
    func arrivals(of trace: Trace) -> [Double] {
        guard let first = trace.requests.first?.nanoseconds else { return [] }
        let requests = trace.requests
        var seconds = requests.map { Double($0.nanoseconds - first) / 1e9 / speedup }
        if !spreadsArrivals { return seconds }
        var start = 0
        // Of the last ones nobody knows when the next would have come: as long after as before.
        var gap = 0.0
        while start < requests.count {
            var end = start + 1
            while end < requests.count, requests[end].nanoseconds == requests[start].nanoseconds {
                end += 1
            }
            let time = seconds[start]
            if end < requests.count { gap = seconds[end] - time }
            for place in start..<end {
                seconds[place] = time + gap * Double(place - start) / Double(end - start)
            }
            start = end
        }
        return seconds
    }
}

extension Trace {
    /// The share of the requests that have the very time of the one before them.
    package var shareWithEqualTimes: Double {
        let equal = zip(requests, requests.dropFirst()).count {
            $0.nanoseconds == $1.nanoseconds
        }
        return Double(equal) / Double(max(1, requests.count - 1))
    }
}
