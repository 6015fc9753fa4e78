/// Runs policies side by side on a sample of a group's traffic, in shadow caches as much smaller
/// than the memory as the sample is smaller than the traffic, and says which one to follow.
///
/// It looks for a change, as Page's cumulative sums do (*Continuous inspection schemes*, Biometrika
/// 1954): how far each policy has come ahead of the one in use since it last wasn't ahead. So what
/// was long ago doesn't weigh, and few hits are lost before it follows a better one.
///
/// The sample is of whole branches: a chunk belongs to its parent's branch unless its parent has
/// another child already, and a branch is in the sample by the fingerprint it begins with. So a
/// prompt that others share is no part of most samples, and what follows it is in or out as a
/// whole. (Waldspurger et al., *Cache Modeling and Optimization using Miniature Simulations*, ATC
/// 2017, sample single blocks, of which none would find its prefix.)
struct PolicyContest: Sendable {
    /// A shadow cache has this many chunks at most, and more than half of it in a large memory. Which
    /// branches a small sample has is chance, and decides more than the policies do.
    private static let mostChunks = 8192
    /// Found chunks count for less by a factor of e after so many chunks asked for, for each chunk of
    /// a shadow cache, and so many more.
    private static let memoryPerChunk = 12.0
    private static let leastMemory = 2000.0
    /// A policy gets ahead by what it finds beyond so many times the hits of the one in use.
    private static let margin = 1.02
    /// It replaces that one when it is ahead by so many standard deviations of what single requests
    /// added to the lead of late; the first policy needs fewer to come back.
    private static let deviations = 1.0
    private static let deviationsOfFirst = 0.5

    private let make: [@Sendable () -> any EvictionPolicy]
    private var shadows: [ShadowCache]
    private var scores: [Double]
    /// How far a policy is ahead of the one in use.
    private var leads: [Double]
    /// Squares of what requests added to the lead of one policy over another; by pair.
    private var squares: [Double]
    /// One branch in so many is in the sample; a power of two.
    private(set) var stride: UInt64 = 1
    private(set) var winner = 0
    private(set) var changes = 0

    /// - Parameter make: the policies; the first is in use until another proves better.
    init(_ make: [@Sendable () -> any EvictionPolicy]) {
        self.make = make
        scores = Array(repeating: 0, count: make.count)
        leads = scores
        squares = Array(repeating: 0, count: make.count * make.count)
        shadows = make.map { ShadowCache($0(), capacity: Self.mostChunks) }
    }

    /// Hits of late, by policy.
    var hits: [Double] { scores }

    /// Chunks in all shadow caches.
    var count: Int { shadows.reduce(0) { $0 + $1.count } }

    func isSampled(branch: UInt64) -> Bool { branch & (stride - 1) == 0 }

    /// The memory holds so many chunks now, or is full with them.
    mutating func setCapacity(_ chunks: Int, isFull: Bool) {
        var wanted = stride
        while chunks / Int(wanted) > Self.mostChunks { wanted *= 2 }
        if wanted != stride {
            // What is in the shadows now is of another sample.
            stride = wanted
            shadows = make.map { ShadowCache($0(), capacity: Self.mostChunks) }
        }
        if !isFull { return }
        for place in shadows.indices { shadows[place].capacity = max(8, chunks / Int(stride)) }
    }

    /// The first policy knows in its shadow what it knows of all the traffic: a sample is too little
    /// to learn from, and the contest is about what it does in the memory.
    mutating func teach(_ teacher: LeastExpectedHits, group: Int) {
        guard var pupil = shadows[0].policy as? LeastExpectedHits else { return }
        pupil.adopt(teacher, group: group)
        shadows[0].policy = pupil
    }

    /// A request for a run of chunks that are in the sample.
    mutating func run(_ path: [UInt64], known: Int, _ request: PolicyRequest) {
        let chunks = Double(min(Self.mostChunks, shadows[0].capacity))
        let memory = Self.memoryPerChunk * chunks + Self.leastMemory
        let fade = max(0, 1 - Double(path.count - known) / memory)
        let hits = shadows.indices.map { Double(shadows[$0].run(path, known: known, request)) }
        for one in hits.indices {
            scores[one] = scores[one] * fade + hits[one]
            for other in hits.indices {
                let pair = one * hits.count + other
                let lead = hits[one] - hits[other]
                squares[pair] = squares[pair] * fade + lead * lead
            }
        }
        var next: Int?
        for place in hits.indices where place != winner {
            leads[place] = max(0, leads[place] * fade + hits[place] - hits[winner] * Self.margin)
            let deviations = place == 0 ? Self.deviationsOfFirst : Self.deviations
            let chance = deviations * squares[place * hits.count + winner].squareRoot()
            if leads[place] > chance, next.map({ leads[place] > leads[$0] }) ?? true {
                next = place
            }
        }
        guard let next else { return }
        winner = next
        changes += 1
        for place in leads.indices { leads[place] = 0 }
    }
}
