/// Which of several servers gets a request.
package enum Routing: String, CaseIterable, Sendable {
    /// One after the other.
    case roundRobin = "round-robin"
    /// Those of one session to one server.
    case session
    /// Any, by a seed.
    case random
}

extension Trace {
    /// By request, the server of `count` that gets it.
    ///
    /// A session is known by its first chunk that fewer than a tenth of all requests share: what
    /// comes before that is a system prompt.
    package func routes(_ routing: Routing, count: Int, seed: UInt64 = 1) -> [Int] {
        let servers = UInt64(count)
        switch routing {
        case .roundRobin: return requests.indices.map { $0 % count }
        case .random:
            return requests.indices.map {
                Int(ChunkName.mix(seed &* 0x9E37_79B9_7F4A_7C15 &+ UInt64($0)) % servers)
            }
        case .session:
            var uses = [UInt32](repeating: 0, count: distinctCount)
            for chunk in references { uses[Int(chunk)] += 1 }
            return requests.enumerated().map { number, request in
                let path = chunks(of: request, storesPartial: true)
                guard
                    let chunk = path.first(where: { uses[Int($0)] * 10 < requests.count })
                        ?? path.last
                else { return number % count }
                return Int(ChunkName.mix(fingerprints[Int(chunk)]) % servers)
            }
        }
    }

    /// The requests of each server.
    package func split(_ routes: [Int], count: Int) -> [Trace] {
        (0..<count).map { server in keeping { number, _ in routes[number] == server } }
    }
}
