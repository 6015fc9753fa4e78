import KVIdentity
import KVPolicy
import KVStore
import TestRandom

/// Drives a core with random events, beside a simple model of what may be matched, and with a
/// simulated arena in which slow writers really write and readers really read. Everything follows
/// from the seed.
final class Simulation {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// A chunk as the model sees it.
    final class Node {
        let key: Digest
        let parent: Node?
        var children: [Digest: Node] = [:]
        /// Shards not committed yet; the chunk is sealed at 0.
        var shardsMissing: Int
        var lease: UInt64
        var expiresAt: UInt64?
        var isGone = false

        init(key: Digest, parent: Node?, shards: Int, lease: UInt64) {
            self.key = key
            self.parent = parent
            shardsMissing = shards
            self.lease = lease
        }

        var isVisible: Bool { !isGone && shardsMissing == 0 && (parent?.isVisible ?? true) }
    }

    struct Writer {
        var session: UInt64
        var deadline: UInt64
        var shards: Int
        var nodes: [Int: Node]
        var extents: [Int: [Extent]]
        var uncommitted: [(position: Int, shard: Int)]
    }

    struct Reader {
        var session: UInt64
        var shard: Int
        var extents: [Extent]
        var tags: [UInt64]
    }

    struct Held {
        var session: UInt64
        var space: Int
        var keys: [Digest]
    }

    struct Client {
        var id: UInt64
        var handles: [UInt32]
    }

    var random: SeededGenerator
    var core: StoreCore
    var now: UInt64 = 1
    /// What each page of the arena holds: the tag of the last writer.
    var memory: [UInt64]
    let spaces: [CacheSpace]
    let hasPressure: Bool
    var clients: [Client] = []
    var nodes: [Digest: Node] = [:]
    var writers: [UInt64: Writer] = [:]
    var readers: [UInt64: Reader] = [:]
    var holds: [UInt64: Held] = [:]
    /// Sessions that ended with a process still alive.
    var zombies: [UInt64] = []
    var eventCount = 0
    var bytesRead = 0
    var hitCount = 0

    init(seed: UInt64, pages: Int, hasPressure: Bool) throws {
        random = SeededGenerator(seed: seed)
        let policies = PolicyName.allCases
        core = makeCore(
            pages: pages, checkOneIn: 5, policy: policies[Int(seed % UInt64(policies.count))])
        memory = Array(repeating: 0, count: pages)
        self.hasPressure = hasPressure
        spaces = [
            try makeSpace("one", shardBytes: [4096]),
            try makeSpace("three", shardBytes: [3 * 4096 - 5]),
            try makeSpace("pair", shardBytes: [4096, 2 * 4096], stages: 2),
            try makeSpace("seven", shardBytes: [7 * 4096]),
        ]
        for _ in 0..<3 { try connect() }
    }

    deinit {
        // Parents and children hold each other.
        for node in nodes.values { node.children = [:] }
    }

    func connect() throws {
        let id = core.openSession(name: "client\(eventCount)")
        clients.append(
            Client(id: id, handles: try spaces.map { try core.open($0, session: id).handle }))
    }

    func pick(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &random) }

    func tag(_ key: Digest, shard: Int) -> UInt64 { key.words.0 &+ UInt64(shard) &* 77 | 1 }

    /// A random prompt: space, root, and the keys of its chunks.
    func prompt() -> (space: Int, root: Digest, keys: [Digest]) {
        let space = pick(spaces.count)
        let root = UInt64(space * 10 + pick(2))
        var path: [UInt64] = [root]
        var keys: [Digest] = []
        for _ in 0..<(1 + pick(9)) {
            path.append(UInt64(pick(10) < 8 ? 0 : 1 + pick(2)))
            keys.append(key(path))
        }
        return (space, key(root, 999), keys)
    }

    func run(events: Int) throws {
        for _ in 0..<events {
            eventCount += 1
            try step()
            drainChecks(all: false)
            if eventCount % 256 == 0, let broken = core.brokenInvariant() {
                throw Failure(description: broken)
            }
            if core.gauges.usedBytes > core.gauges.arenaReadyBytes {
                throw Failure(description: "over budget")
            }
        }
        if let broken = core.brokenInvariant() { throw Failure(description: broken) }
    }

    func step() throws {
        switch pick(100) {
        case 0..<22: try reserve()
        case 22..<42: try commit()
        case 42..<60: try match()
        case 60..<72: try acquire()
        case 72..<84: try finishReading()
        case 84..<88: try releaseWriter()
        case 88..<90: writeLate()
        case 90..<92: try releaseHold()
        case 92..<94: pass(nanoseconds: UInt64(pick(3)) * second / 2)
        case 94: try drop()
        case 95: try expireOrPin()
        case 96: pass(nanoseconds: second * UInt64(pick(20)))
        case 97: try endSession()
        case 98: try look()
        default: pass(nanoseconds: 1000)
        }
    }

    // MARK: The model's side

    func remove(_ node: Node) {
        if node.isGone { return }
        for child in node.children.values { remove(child) }
        node.isGone = true
        node.parent?.children[node.key] = nil
    }

    func forgetGone() {
        nodes = nodes.filter { !$0.value.isGone }
    }

    /// What is due by the model's own clock.
    func pass(nanoseconds: UInt64) {
        now += nanoseconds
        core.advance(to: now)
        settle()
    }

    func settle() {
        for node in nodes.values { if let due = node.expiresAt, due <= now { remove(node) } }
        for writer in writers.values where writer.deadline <= now { giveUp(writer) }
        forgetGone()
    }

    func giveUp(_ writer: Writer) {
        for node in writer.nodes.values where node.shardsMissing > 0 { remove(node) }
    }

    // MARK: Events

    func reserve() throws {
        let client = clients[pick(clients.count)]
        let (space, root, keys) = prompt()
        let seconds = UInt64(1 + pick(20))
        let skip = pick(4) == 0 ? pick(keys.count) : 0
        let result: StoreCore.Reservation
        do {
            result = try core.reserve(
                space: client.handles[space], root: root, keys: Array(keys[skip...]),
                parent: skip > 0 ? keys[skip - 1] : nil, timeToLiveMs: seconds * 1000,
                pin: hintedPin(), session: client.id, now: now)
        } catch {
            if error.code == .gap, skip > 0, hasPressure || nodes[keys[skip - 1]] == nil { return }
            throw error
        }
        let shards = spaces[space].shardCount
        var writer = Writer(
            session: client.id, deadline: now + seconds * second, shards: shards, nodes: [:],
            extents: [:],
            uncommitted: [])
        var extents = result.extents[...]
        for (position, state) in result.states.enumerated() {
            let key = keys[skip + position]
            let known = nodes[key]
            switch state {
            case .granted:
                if let known {
                    if !hasPressure { throw Failure(description: "granted a chunk that is there") }
                    remove(known)
                }
                let parent = skip + position > 0 ? nodes[keys[skip + position - 1]] : nil
                let node = Node(key: key, parent: parent, shards: shards, lease: result.lease)
                parent?.children[key] = node
                nodes[key] = node
                writer.nodes[position] = node
                writer.extents[position] = Array(extents.prefix(shards))
                extents = extents.dropFirst(shards)
                for shard in 0..<shards { writer.uncommitted.append((position, shard)) }
            case .present:
                guard let known, known.shardsMissing == 0 else {
                    throw Failure(description: "present, but never sealed")
                }
            case .busy:
                guard let known, known.shardsMissing > 0 else {
                    throw Failure(description: "busy, but nobody writes")
                }
            case .refused:
                if !hasPressure {
                    throw Failure(description: "refused with room: \(result.reason)")
                }
                if result.reason.isEmpty { throw Failure(description: "refused without a reason") }
            }
        }
        if result.lease != 0 { writers[result.lease] = writer }
    }

    func commit() throws {
        guard let id = writers.keys.sorted().randomElement(using: &random),
            var writer = writers[id],
            !writer.uncommitted.isEmpty
        else { return }
        let shard = writer.uncommitted[pick(writer.uncommitted.count)].shard
        let positions = writer.uncommitted.filter { $0.shard == shard }.map(\.position).filter {
            _ in pick(3) > 0
        }
        if positions.isEmpty { return }
        for position in positions {
            write(writer.nodes[position]!.key, shard, writer.extents[position]![shard])
        }
        do {
            let sealed = try core.commit(
                lease: id, shard: shard, positions: positions, session: writer.session, now: now)
            var expected = 0
            for position in positions {
                let node = writer.nodes[position]!
                node.shardsMissing -= 1
                if node.shardsMissing == 0, !node.isGone { expected += 1 }
            }
            if sealed != expected {
                throw Failure(description: "sealed \(sealed), expected \(expected)")
            }
            writer.uncommitted.removeAll { $0.shard == shard && positions.contains($0.position) }
            writers[id] = writer.uncommitted.isEmpty ? nil : writer
        } catch let error as StoreError {
            let mayFail = writer.deadline <= now || zombies.contains(writer.session)
            if error.code == .expired || error.code == .argument || error.code == .unknownLease,
                mayFail
            {
                return
            }
            throw error
        }
    }

    func write(_ key: Digest, _ shard: Int, _ extent: Extent) {
        let first = Int(extent.offset) / 4096
        for page in first..<(first + (Int(extent.length) + 4095) / 4096) {
            memory[page] = tag(key, shard: shard)
        }
    }

    /// A writer scribbles over what it has not committed, in time or not: nobody else may notice.
    func writeLate() {
        guard let writer = writers.keys.sorted().randomElement(using: &random).map({ writers[$0]! })
        else { return }
        for (position, shard) in writer.uncommitted {
            let extent = writer.extents[position]![shard]
            let first = Int(extent.offset) / 4096
            for page in first..<(first + (Int(extent.length) + 4095) / 4096) {
                memory[page] = 0xBAD
            }
        }
    }

    func releaseWriter() throws {
        guard let id = writers.keys.sorted().randomElement(using: &random), let writer = writers[id]
        else { return }
        if zombies.contains(writer.session) { return }
        let isInTime = try core.release(id, session: writer.session, now: now)
        if isInTime != (writer.deadline > now) {
            throw Failure(description: "a writer's release lies about time")
        }
        giveUp(writer)
        forgetGone()
        writers[id] = nil
    }

    /// Mostly none.
    func hintedPin() -> PinDuration? {
        pick(8) == 0 ? .milliseconds((1 + pick(5)) * 1000) : nil
    }

    func match() throws {
        let client = clients[pick(clients.count)]
        let (space, root, keys) = prompt()
        let hold = pick(2) == 0
        let found = try core.match(
            space: client.handles[space], root: root, keys: keys,
            holdMs: hold ? UInt64(1 + pick(15)) * 1000 : nil,
            readers: 1 + pick(2), pin: hintedPin(), session: client.id, now: now)
        let expected = keys.prefix { nodes[$0]?.isVisible ?? false }.count
        if found.count > expected || (!hasPressure && found.count < expected) {
            throw Failure(description: "matched \(found.count), expected \(expected)")
        }
        hitCount += found.count
        if found.hold != 0 {
            holds[found.hold] = Held(
                session: client.id, space: space, keys: Array(keys.prefix(found.count)))
        }
    }

    func acquire() throws {
        guard let id = holds.keys.sorted().randomElement(using: &random), let held = holds[id]
        else { return }
        let shard = pick(spaces[held.space].shardCount)
        do {
            let (lease, extents) = try core.acquire(
                hold: id, shard: shard, session: held.session, now: now)
            readers[lease] = Reader(
                session: held.session, shard: shard, extents: extents,
                tags: held.keys.map { tag($0, shard: shard) })
        } catch {
            if error.code == .expired || error.code == .limit {
                holds[id] = nil
            } else {
                throw error
            }
        }
    }

    func finishReading() throws {
        guard let id = readers.keys.sorted().randomElement(using: &random), let reader = readers[id]
        else { return }
        readers[id] = nil
        drainChecks(all: true)
        var extents = reader.extents
        if extents.contains(.pending) {
            do {
                extents = try core.extents(lease: id, session: reader.session, now: now)
            } catch {
                if error.code == .expired { return }
                throw error
            }
        }
        var isWrong = false
        for (extent, tag) in zip(extents, reader.tags) {
            if extent == .gone { continue }
            if extent == .pending { throw Failure(description: "still pending after its check") }
            let first = Int(extent.offset) / 4096
            for page in first..<(first + (Int(extent.length) + 4095) / 4096) {
                bytesRead += 4096
                if memory[page] != tag { isWrong = true }
            }
        }
        if try core.release(id, session: reader.session, now: now), isWrong {
            throw Failure(description: "a reader in time read wrong bytes")
        }
    }

    func releaseHold() throws {
        guard let id = holds.keys.sorted().randomElement(using: &random), let held = holds[id]
        else { return }
        _ = try core.release(id, session: held.session, now: now)
        holds[id] = nil
    }

    func drop() throws {
        let client = clients[pick(clients.count)]
        let (space, root, keys) = prompt()
        if pick(5) == 0 {
            _ = try core.drop(
                space: client.handles[space], root: root, session: client.id, now: now)
            for node in nodes.values
            where node.parent == nil && isUnder(node.key, space: space, root: root) {
                remove(node)
            }
        } else {
            let chosen = keys[keys.count - 1]
            _ = try core.drop(
                space: client.handles[space], root: root, keys: [chosen], session: client.id,
                now: now)
            if let node = nodes[chosen] { remove(node) }
        }
        forgetGone()
    }

    /// Whether a first chunk belongs to a root; there are three for each.
    func isUnder(_ candidate: Digest, space: Int, root: Digest) -> Bool {
        for number in 0..<2 where key(UInt64(space * 10 + number), 999) == root {
            for step in 0..<3 where key(UInt64(space * 10 + number), UInt64(step)) == candidate {
                return true
            }
        }
        return false
    }

    func expireOrPin() throws {
        let client = clients[pick(clients.count)]
        let (space, root, keys) = prompt()
        let ms = UInt64(pick(5)) * 1000
        let handle = client.handles[space]
        switch pick(3) {
        case 0:
            let count = try core.expire(
                space: handle, root: root, keys: keys,
                after: ms > 0 ? TimeToLive(ms: ms) : nil, session: client.id, now: now)
            for key in keys.prefix(count) {
                nodes[key]?.expiresAt = ms > 0 ? now + ms * 1_000_000 : nil
            }
        case 1:
            do {
                let isForGood = pick(3) == 0
                let count = try core.pin(
                    space: handle, root: root, keys: keys,
                    for: isForGood ? .forever : .milliseconds(Int(ms) + 1), session: client.id,
                    now: now)
                // It takes the time to live away.
                if isForGood { for key in keys.prefix(count) { nodes[key]?.expiresAt = nil } }
            } catch {
                if error.code != .limit { throw error }
            }
        default:
            _ = try core.unpin(space: handle, root: root, keys: keys, session: client.id, now: now)
        }
    }

    /// A client goes; a new one comes. Half of them go without their process dying at once.
    func endSession() throws {
        if !zombies.isEmpty, pick(2) == 0 {
            let id = zombies.removeFirst()
            core.processesGone(id)
            for (lease, writer) in writers where writer.session == id {
                giveUp(writer)
                writers[lease] = nil
            }
            forgetGone()
            return
        }
        let client = clients.remove(at: pick(clients.count))
        let isAlive = pick(2) == 0
        core.endSession(client.id, processesAlive: isAlive)
        for (id, writer) in writers where writer.session == client.id {
            giveUp(writer)
            if !isAlive { writers[id] = nil }
        }
        if isAlive { zombies.append(client.id) }
        forgetGone()
        holds = holds.filter { $0.value.session != client.id }
        readers = readers.filter { $0.value.session != client.id }
        try connect()
    }

    func look() throws {
        let client = clients[pick(clients.count)]
        let (space, root, keys) = prompt()
        let places = try core.locate(
            space: client.handles[space], root: root, keys: keys, session: client.id, now: now)
        for (key, place) in zip(keys, places) where !hasPressure {
            let node = nodes[key]
            let expected: StoreCore.Location =
                node == nil ? .absent : node!.isVisible ? .memory : .beingWritten
            if place != expected {
                throw Failure(description: "located \(place), expected \(expected)")
            }
        }
        _ = try core.explain(
            space: client.handles[space], root: root, keys: keys, session: client.id, now: now)
    }

    /// Hashes what the core wants hashed, sooner or later.
    func drainChecks(all: Bool) {
        if !all, pick(3) > 0 { return }
        let effects = core.effects
        core.effects = []
        for effect in effects {
            guard case .check(let job, let offset, let length) = effect else { continue }
            let first = Int(offset) / 4096
            let last = first + (Int(length) + 4095) / 4096
            let checksum = memory[first..<last].reduce(UInt64(17)) { $0 &* 31 &+ $1 }
            core.checkCompleted(job: job, checksum: checksum, now: now)
        }
    }
}
