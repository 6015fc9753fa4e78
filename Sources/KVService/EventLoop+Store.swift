internal import Glibc
internal import KVArena
internal import KVIdentity
internal import KVPolicy
internal import KVRequestLog
internal import KVStore
internal import RESP

// The commands of docs/protocol.md that reach the store.

extension EventLoop {
    static var storeCommands: [String: Command] {
        [
            "KV.SESSION": Command(count: 2...2) { $0.session },
            "KV.OPEN": Command(count: 2...2) { $0.open },
            "KV.SPACES": Command(count: 1...1) { $0.spaces },
            "KV.ARENA": Command(count: 1...2) { $0.arena },
            "KV.MATCH": Command(count: 4...15) { $0.match },
            "KV.REQUEST": Command(count: 1...9) { $0.request },
            "KV.CHUNKS": Command(count: 2...12) { $0.chunks },
            "KV.ACQUIRE": Command(count: 3...9) { $0.acquire },
            "KV.WAIT": Command(count: 2...4) { $0.wait },
            "KV.RELEASE": Command(count: 2...4) { $0.release },
            "KV.RESERVE": Command(count: 4...17) { $0.reserve },
            "KV.COMMIT": Command(count: 4...4) { $0.commit },
            "KV.LOCATE": Command(count: 4...5, hexAt: 4) { $0.locate },
            "KV.EXPLAIN": Command(count: 4...5, hexAt: 4) { $0.explain },
            "KV.PREFETCH": Command(count: 4...5, hexAt: 4) { $0.prefetch },
            "KV.PIN": Command(count: 5...6, hexAt: 5) { $0.pin },
            "KV.UNPIN": Command(count: 4...5, hexAt: 4) { $0.unpin },
            "KV.EXPIRE": Command(count: 4...7) { $0.expire },
            "KV.DROP": Command(count: 3...6) { $0.drop },
            "KV.SYNC": Command(count: 1...2) { $0.sync },
            "KV.STATS": Command(count: 1...1) { $0.stats },
            "KV.VERSION": Command(count: 1...1) { $0.version },
        ]
    }

    /// Runs one event of the store.
    func apply<Result: Sendable>(
        _ body: (inout StoreCore, UInt64) throws(StoreError) -> Result
    ) throws(CommandError) -> Result {
        do throws(StoreError) {
            return try store.withCore(body)
        } catch {
            throw CommandError(error)
        }
    }

    /// `space root keys`, as most commands take them, and whether they come in hexadecimal digits.
    struct Target {
        var space: UInt32
        var root: Digest
        var keys: [Digest]
        var isHex: Bool
    }

    /// A space handle; a number that no handle can be is one that is not known.
    func space(_ arguments: Arguments, _ index: Int) throws(CommandError) -> UInt32 {
        UInt32(clamping: try arguments.integer(index, "the space handle", 1...Int.max))
    }

    /// Reads `space root keys` from the arguments at `first`; the last argument may be `HEX`.
    private func target(_ arguments: Arguments, at first: Int)
        throws(CommandError) -> Target
    {
        let isHex = arguments.matches(arguments.count - 1, "HEX")
        return Target(
            space: try space(arguments, first),
            root: try arguments.digest(first + 1, "the root", isHex: isHex),
            keys: try arguments.digests(first + 2, isHex: isHex), isHex: isHex)
    }

    private func isHex(_ arguments: Arguments) -> Bool {
        arguments.matches(arguments.count - 1, "HEX")
    }

    /// Options behind the fixed arguments: a word, then its value. `HEX` may stand last.
    func options(_ arguments: Arguments, from first: Int, _ known: [String])
        throws(CommandError)
        -> [String: Int]
    {
        if arguments.count == first { return [:] }
        var result: [String: Int] = [:]
        var index = first
        let end = arguments.count - (isHex(arguments) ? 1 : 0)
        while index < end {
            let word = arguments.word(index)
            guard known.contains(word), index + 1 < end, result[word] == nil else {
                throw CommandError(
                    "ERR",
                    "syntax error near '\(arguments.text(index).prefix(32))'; the options are "
                        + known.sorted().joined(separator: ", ") + ", each with a value, and HEX")
            }
            result[word] = index + 1
            index += 2
        }
        return result
    }

    private static let milliseconds = 1...Int(StoreLimits.leaseMs)

    /// What a request says of the time after it: `HINT closed|pending|pending:SECONDS|none` and
    /// `PRIORITY n`.
    func hint(_ arguments: Arguments, _ options: [String: Int]) throws(CommandError)
        -> ReuseHint
    {
        var hint = ReuseHint.none
        if let index = options["HINT"] {
            guard let said = ReuseHint(arguments.text(index)) else {
                throw CommandError(
                    "KVARG",
                    "HINT is '\(arguments.text(index).prefix(32))'; give closed, pending, "
                        + "pending:SECONDS (0 to \(Int(ReuseHint.mostSeconds))) or none")
            }
            hint = said
        }
        if let index = options["PRIORITY"] {
            hint.priority = try arguments.integer(
                index, "PRIORITY", ReuseHint.leastPriority...ReuseHint.mostPriority)
        }
        return hint
    }

    /// For how long a request wants its chunks kept: `PIN ms` or `PIN FOREVER`.
    private func pin(_ arguments: Arguments, _ options: [String: Int]) throws(CommandError)
        -> PinDuration?
    {
        try options["PIN"].map { index throws(CommandError) in
            try pinDuration(arguments, index, "PIN")
        }
    }

    private func pinDuration(_ arguments: Arguments, _ index: Int, _ what: String)
        throws(CommandError) -> PinDuration
    {
        if arguments.matches(index, "FOREVER") { return .forever }
        let most = Int(StoreLimits.lifetimeMs)
        guard let ms = Argument.integer(arguments[index]), (1...most).contains(ms) else {
            throw CommandError(
                "KVARG",
                "\(what) is '\(arguments.text(index).prefix(32))'; give a number from 1 to \(most), or FOREVER"
            )
        }
        return .milliseconds(ms)
    }

    private static let hints = ["HINT", "PIN", "PRIORITY"]

    // MARK: Sessions, spaces, the arena

    private func session(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let name = arguments[1]
        if name.isEmpty || name.count > ServerLimits.sessionNameBytes
            || name.contains(where: { $0 <= 32 || $0 > 126 })
        {
            throw CommandError(
                "KVARG",
                "a session id is 1 to \(ServerLimits.sessionNameBytes) printable ASCII characters without spaces"
            )
        }
        let isIdle = store.withCore { core, _ in core.isIdle(connection.session.id) }
        if connection.hasNamedSession || !isIdle {
            throw CommandError(
                "KVARG",
                "this connection belongs to a session already; say KV.SESSION once, before anything else"
            )
        }
        join(connection, name: arguments.text(1))
        connection.writer.ok()
    }

    private func open(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let space: CacheSpace
        do throws(IdentityError) {
            space = try CacheSpace(json: Array(arguments[1]))
        } catch {
            throw CommandError("KVARG", error.message)
        }
        let session = connection.session.id
        let opened = try apply { core, _ throws(StoreError) in
            try core.open(space, session: session)
        }
        connection.writer.array(3)
        connection.writer.integer(Int(opened.handle))
        opened.id.withUnsafeBytes { connection.writer.bulk($0) }
        var packed: [UInt8] = []
        for bytes in space.shardBytes {
            withUnsafeBytes(of: UInt64(bytes).littleEndian) { packed += $0 }
        }
        connection.writer.bulk(packed)
    }

    private func spaces(_ arguments: Arguments, _ connection: Connection) {
        let list = store.withCore { core, _ in core.spaceList }
        connection.writer.array(list.count)
        for entry in list {
            connection.writer.map(9)
            connection.writer.bulk("handle")
            connection.writer.integer(Int(entry.handle))
            connection.writer.bulk("id")
            connection.writer.bulk(entry.space.id.hex)
            connection.writer.bulk("model_name")
            connection.writer.bulk(entry.space.modelName ?? "")
            connection.writer.bulk("chunk_tokens")
            connection.writer.integer(entry.space.chunkTokens)
            connection.writer.bulk("shards")
            connection.writer.integer(entry.space.shardCount)
            connection.writer.bulk("chunks")
            connection.writer.integer(entry.chunks)
            connection.writer.bulk("bytes")
            connection.writer.integer(entry.bytes)
            connection.writer.bulk("sessions")
            connection.writer.integer(entry.sessions)
            connection.writer.bulk("json")
            connection.writer.bulk(entry.space.json)
        }
    }

    /// Lists chunks for people and their tools, so it is no faster than it needs to be.
    private func chunks(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let cursor = try arguments.integer(1, "the cursor", 0...Int(UInt32.max))
        let options = try options(
            arguments, from: 2, ["COUNT", "SPACE", "ROOT", "TIER", "IDLE"])
        var count = ServerLimits.defaultListedChunks
        if let index = options["COUNT"] {
            count = try arguments.integer(index, "COUNT", 1...ServerLimits.listedChunks)
        }
        var filter = StoreCore.ChunkFilter()
        if let index = options["SPACE"] { filter.space = try space(arguments, index) }
        if let index = options["ROOT"] {
            filter.root = try arguments.digest(index, "ROOT", isHex: true)
        }
        if let index = options["IDLE"] {
            filter.idleMs = UInt64(
                try arguments.integer(index, "IDLE", 0...Int(StoreLimits.lifetimeMs)))
        }
        if let index = options["TIER"] {
            switch arguments.word(index) {
            case "MEMORY": filter.tier = .memory
            case "DISK": filter.tier = .disk
            case "WRITING": filter.isBeingWritten = true
            default:
                throw CommandError(
                    "KVARG",
                    "TIER is MEMORY, DISK or WRITING, not '\(arguments.text(index).prefix(32))'")
            }
        }
        let (from, number, wanted) = (UInt32(cursor), count, filter)
        let listed = store.withCore { core, now in
            core.list(cursor: from, count: number, filter: wanted, now: now)
        }
        connection.writer.array(2)
        connection.writer.integer(Int(listed.cursor))
        connection.writer.array(listed.chunks.count)
        for chunk in listed.chunks { write(chunk, connection) }
    }

    private func write(_ chunk: StoreCore.ChunkDescription, _ connection: Connection) {
        connection.writer.map(10)
        connection.writer.bulk("key")
        connection.writer.bulk(chunk.key.hex)
        connection.writer.bulk("parent")
        connection.writer.bulk(chunk.parent?.hex ?? "")
        connection.writer.bulk("root")
        connection.writer.bulk(chunk.root.hex)
        connection.writer.bulk("space")
        connection.writer.integer(Int(chunk.space))
        connection.writer.bulk("number")
        connection.writer.integer(Int(chunk.number))
        connection.writer.bulk("location")
        connection.writer.integer(Int(chunk.location.rawValue))
        connection.writer.bulk("bytes")
        connection.writer.integer(chunk.bytes)
        connection.writer.bulk("idle_ms")
        connection.writer.integer(Int(chunk.idleMs))
        connection.writer.bulk("pinned")
        connection.writer.integer(chunk.isPinned ? 1 : 0)
        connection.writer.bulk("static")
        connection.writer.integer(chunk.isStatic ? 1 : 0)
    }

    private func arena(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let isReadOnly = arguments.count == 2
        if isReadOnly, !arguments.matches(1, "READONLY") {
            throw CommandError(
                "ERR", "syntax error near '\(arguments.text(1).prefix(32))'; KV.ARENA [READONLY]")
        }
        let ready = store.gauges.arenaReadyBytes
        connection.pass(isReadOnly ? store.arena.readOnlyDescriptor : store.arena.descriptor)
        connection.writer.array(3)
        connection.writer.integer(store.arena.byteCount)
        connection.writer.bulk(store.arena.id)
        connection.writer.integer(ready)
    }

    // MARK: Load

    private func match(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let target = try target(arguments, at: 1)
        let options = try options(arguments, from: 4, ["HOLD", "READERS"] + Self.hints)
        var holdMs: UInt64?
        var readers = 1
        if let index = options["HOLD"] {
            holdMs = UInt64(try arguments.integer(index, "HOLD", Self.milliseconds))
        }
        if let index = options["READERS"] {
            readers = try arguments.integer(index, "READERS", 1...65_536)
        }
        let (session, count) = (connection.session.id, readers)
        let (hint, duration) = (try hint(arguments, options), try pin(arguments, options))
        let match = try apply { core, now throws(StoreError) in
            try core.match(
                space: target.space, root: target.root, keys: target.keys, holdMs: holdMs,
                readers: count, hint: hint, pin: duration, session: session, now: now)
        }
        logMatch(target, match, hint, connection)
        let tiers = match.tiers.map(\.rawValue)
        connection.writer.array(3)
        connection.writer.integer(match.count)
        connection.writer.write(bytes: tiers, isHex: target.isHex)
        connection.writer.integer(Int(match.hold))
    }

    private func acquire(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let hold = UInt64(try arguments.integer(1, "the hold", 0...Int.max))
        let shard = try arguments.integer(2, "the shard", 0...CacheSpace.Limits.shards)
        // The only word without a value, so it stands first.
        let verifies = arguments.count > 3 && arguments.matches(3, "VERIFY")
        let options = try options(arguments, from: verifies ? 4 : 3, ["FROM", "COUNT"])
        var first = 0
        var count: Int?
        if let index = options["FROM"] {
            first = try arguments.integer(index, "FROM", 0...StoreLimits.keys)
        }
        if let index = options["COUNT"] {
            count = try arguments.integer(index, "COUNT", 1...StoreLimits.keys)
        }
        let (session, from, length) = (connection.session.id, first, count)
        let answer = try apply { core, now throws(StoreError) in
            try core.acquire(
                hold: hold, shard: shard, first: from, count: length, verifies: verifies,
                session: session, now: now)
        }
        connection.writer.array(2)
        connection.writer.integer(Int(answer.lease))
        connection.writer.write(answer.extents, isHex: isHex(arguments))
    }

    private func wait(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let lease = UInt64(try arguments.integer(1, "the lease", 0...Int.max))
        let isHex = isHex(arguments)
        var ms = ServerLimits.defaultWaitMs
        if arguments.count > (isHex ? 3 : 2) {
            ms = try arguments.integer(2, "the time", 0...ServerLimits.waitMs)
        }
        let session = connection.session.id
        let extents = try apply { core, now throws(StoreError) in
            try core.extents(lease: lease, session: session, now: now)
        }
        if extents.contains(.pending) {
            connection.waiting = .init(
                id: lease, kind: .lease(isHex: isHex),
                deadline: Store.now() + UInt64(ms) * 1_000_000)
        } else {
            connection.writer.write(extents, isHex: isHex)
        }
    }

    private func release(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        // A client that lost its connections and came back may release what its ended session left
        // in quarantine.
        let ended = (endedSessions[connection.session.name] ?? []).map(\.id)
        let own = connection.session.id
        defer { if !ended.isEmpty { forgetReleased(connection.session.name) } }
        if arguments.matches(1, "TAG"), arguments.count == 3 {
            let tag = UInt64(try arguments.integer(2, "the tag", 0...Int.max))
            let isInTime = try apply { core, now throws(StoreError) in
                for session in [own] + ended {
                    guard let id = core.writeLease(tag: tag, session: session) else { continue }
                    return try core.release(id, session: session, now: now)
                }
                return false
            }
            connection.writer.simpleString(isInTime ? "OK" : "EXPIRED")
            return
        }
        let id = UInt64(try arguments.integer(1, "the id", 0...Int.max))
        var shard: Int?
        if let index = try options(arguments, from: 2, ["SHARD"])["SHARD"] {
            shard = try arguments.integer(index, "SHARD", 0...CacheSpace.Limits.shards)
        }
        let part = shard
        let isInTime = try apply { core, now throws(StoreError) in
            let owner = ended.first { core.hasLease(id, session: $0) } ?? own
            return try core.release(id, shard: part, session: owner, now: now)
        }
        connection.writer.simpleString(isInTime ? "OK" : "EXPIRED")
    }

    // MARK: Save

    private func reserve(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let target = try target(arguments, at: 1)
        let options = try options(arguments, from: 4, ["PARENT", "TTL", "TAG"] + Self.hints)
        var parent: Digest?
        var ms = 60_000
        if let index = options["PARENT"] {
            parent = try arguments.digest(index, "PARENT", isHex: target.isHex)
        }
        if let index = options["TTL"] {
            ms = try arguments.integer(index, "TTL", Self.milliseconds)
        }
        var tag: UInt64?
        if let index = options["TAG"] {
            tag = UInt64(try arguments.integer(index, "TAG", 0...Int.max))
        }
        let (session, before, time, name) = (connection.session.id, parent, UInt64(ms), tag)
        let (hint, duration) = (try hint(arguments, options), try pin(arguments, options))
        let reservation = try apply { core, now throws(StoreError) in
            try core.reserve(
                space: target.space, root: target.root, keys: target.keys, parent: before,
                timeToLiveMs: time, tag: name, hint: hint, pin: duration, session: session, now: now
            )
        }
        connection.writer.array(4)
        connection.writer.integer(Int(reservation.lease))
        connection.writer.write(bytes: reservation.states.map(\.rawValue), isHex: target.isHex)
        connection.writer.write(reservation.extents, isHex: target.isHex)
        connection.writer.bulk(reservation.reason)
    }

    private func commit(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let lease = UInt64(try arguments.integer(1, "the lease", 0...Int.max))
        let shard = try arguments.integer(2, "the shard", 0...CacheSpace.Limits.shards)
        var positions: [Int]?
        if !arguments.matches(3, "ALL") {
            let packed = arguments[3]
            if packed.isEmpty || packed.count % 4 != 0 || packed.count / 4 > StoreLimits.keys {
                throw CommandError("KVARG", "positions are u32 each, one behind the other, or ALL")
            }
            positions = (0..<(packed.count / 4)).map {
                Int(
                    UInt32(
                        littleEndian: packed.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self))
                )
            }
        }
        let (session, chosen) = (connection.session.id, positions)
        let sealed = try apply { core, now throws(StoreError) in
            try core.commit(
                lease: lease, shard: shard, positions: chosen, session: session, now: now)
        }
        connection.writer.integer(sealed)
    }

    // MARK: Housekeeping

    /// Runs one event of the store on the `space root keys` that stand at `first`.
    private func applyToKeys<Result: Sendable>(
        _ arguments: Arguments, at first: Int = 1, _ connection: Connection,
        _ body: (inout StoreCore, Target, StoreCore.SessionID, UInt64) throws(StoreError) -> Result
    ) throws(CommandError) -> Result {
        let target = try target(arguments, at: first)
        let session = connection.session.id
        return try apply { core, now throws(StoreError) in try body(&core, target, session, now) }
    }

    private func locate(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let places = try applyToKeys(arguments, connection) {
            core, target, session, now throws(StoreError) in
            try core.locate(
                space: target.space, root: target.root, keys: target.keys, session: session,
                now: now)
        }
        connection.writer.write(bytes: places.map(\.rawValue), isHex: isHex(arguments))
    }

    private func explanation(_ arguments: Arguments, _ connection: Connection)
        throws(CommandError) -> (matched: Int, code: String, sentence: String)
    {
        try applyToKeys(arguments, connection) { core, target, session, now throws(StoreError) in
            try core.explain(
                space: target.space, root: target.root, keys: target.keys, session: session,
                now: now)
        }
    }

    private func explain(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let answer = try explanation(arguments, connection)
        connection.writer.array(3)
        connection.writer.integer(answer.matched)
        connection.writer.bulk(answer.code)
        connection.writer.bulk(answer.sentence)
    }

    /// It counts as no match.
    private func prefetch(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let count = try applyToKeys(arguments, connection) {
            core, target, session, now throws(StoreError) in
            try core.prefetch(
                space: target.space, root: target.root, keys: target.keys, session: session,
                now: now)
        }
        connection.writer.integer(count)
    }

    private func pin(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let duration = try pinDuration(arguments, 4, "the time")
        let count = try applyToKeys(arguments, connection) {
            core, target, session, now throws(StoreError) in
            try core.pin(
                space: target.space, root: target.root, keys: target.keys, for: duration,
                session: session, now: now)
        }
        connection.writer.integer(count)
    }

    private func unpin(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let count = try applyToKeys(arguments, connection) {
            core, target, session, now throws(StoreError) in
            try core.unpin(
                space: target.space, root: target.root, keys: target.keys, session: session,
                now: now)
        }
        connection.writer.integer(count)
    }

    private func expire(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        // `space SPACE ms` or `space root keys ms`; then perhaps SLIDING, and HEX behind it.
        let isSpace = arguments.matches(2, "SPACE")
        let fixed = isSpace ? 4 : 5
        let end = arguments.count - (!isSpace && isHex(arguments) ? 1 : 0)
        let isSliding = end == fixed + 1 && arguments.matches(fixed, "SLIDING")
        guard end == fixed + (isSliding ? 1 : 0) else {
            throw CommandError(
                "ERR",
                "syntax error; KV.EXPIRE space root keys ms [SLIDING] [HEX], or KV.EXPIRE space SPACE ms [SLIDING]"
            )
        }
        let ms = UInt64(
            try arguments.integer(fixed - 1, "the time", 0...Int(StoreLimits.lifetimeMs)))
        let life = ms == 0 ? nil : TimeToLive(ms: ms, isSliding: isSliding)
        if isSpace {
            let (space, session) = (try space(arguments, 1), connection.session.id)
            try apply { core, now throws(StoreError) in
                try core.setLife(ofSpace: space, life, session: session, now: now)
            }
            return connection.writer.simpleString("OK")
        }
        let count = try applyToKeys(arguments, connection) {
            core, target, session, now throws(StoreError) in
            try core.expire(
                space: target.space, root: target.root, keys: target.keys, after: life,
                session: session, now: now)
        }
        connection.writer.integer(count)
    }

    private func drop(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        let session = connection.session.id
        let space = try space(arguments, 2)
        let count: Int
        // In front of HEX, which may stand last.
        let fixed = arguments.count - (isHex(arguments) ? 1 : 0)
        switch (arguments.word(1), fixed) {
        case ("SPACE", 3):
            count = try apply { core, now throws(StoreError) in
                try core.drop(space: space, now: now)
            }
        case ("ROOT", 4):
            let root = try arguments.digest(3, "the root", isHex: isHex(arguments))
            count = try apply { core, now throws(StoreError) in
                try core.drop(space: space, root: root, session: session, now: now)
            }
        case ("KEYS", 5):
            count = try applyToKeys(arguments, at: 2, connection) {
                core, target, session, now throws(StoreError) in
                try core.drop(
                    space: target.space, root: target.root, keys: target.keys, session: session,
                    now: now)
            }
        default:
            throw CommandError(
                "ERR",
                "syntax error; KV.DROP KEYS space root keys, KV.DROP ROOT space root, or KV.DROP SPACE space"
            )
        }
        connection.writer.integer(count)
    }

    private func sync(_ arguments: Arguments, _ connection: Connection) throws(CommandError) {
        var ms = ServerLimits.defaultSyncMs
        if arguments.count > 1 {
            ms = try arguments.integer(1, "the time", 0...ServerLimits.waitMs)
        }
        let ticket = try apply { core, now throws(StoreError) in try core.sync(now: now) }
        connection.waiting = .init(
            id: ticket, kind: .sync, deadline: Store.now() + UInt64(ms) * 1_000_000)
    }

    // MARK: Telling

    /// Every gauge and counter, by name.
    var statistics: [(name: String, value: Int)] {
        let (gauges, counters) = store.withCore { core, _ in (core.gauges, core.counters) }
        let logged = configuration.requestLog?.counters ?? .init()
        return Self.fields(of: gauges) + Self.fields(of: counters) + [
            ("connections", connections.count), ("connections_accepted", acceptedCount),
            ("connections_refused", refusedCount), ("commands", commandCount),
            ("protocol_errors", protocolErrorCount),
            ("request_log_written", logged.written), ("request_log_dropped", logged.dropped),
            ("request_log_bytes", logged.bytes),
            ("uptime_ms", Int((Store.now() - startedAt) / 1_000_000)),
            // Names of figures say what runs: all values are integers.
            ("policy_\(store.policy.rawValue)", 1),
        ]
    }

    /// The fields of a struct of integers, and of such structs in it, in snake case.
    private static func fields(of value: Any) -> [(name: String, value: Int)] {
        Mirror(reflecting: value).children.flatMap { child -> [(name: String, value: Int)] in
            guard let label = child.label else { return [] }
            guard let number = child.value as? Int else { return fields(of: child.value) }
            let name = label.reduce(into: "") { text, character in
                if character.isUppercase { text += "_" }
                text += character.lowercased()
            }
            return [(name, number)]
        }
    }

    private func stats(_ arguments: Arguments, _ connection: Connection) {
        let all = statistics
        connection.writer.map(all.count)
        for (name, value) in all {
            connection.writer.bulk(name)
            connection.writer.integer(value)
        }
    }

    private func version(_ arguments: Arguments, _ connection: Connection) {
        connection.writer.map(4)
        connection.writer.bulk("server")
        connection.writer.bulk(KvasirVersion.current)
        connection.writer.bulk("protocol")
        connection.writer.integer(KvasirVersion.protocolVersion)
        connection.writer.bulk("pid")
        connection.writer.integer(Int(getpid()))
        connection.writer.bulk("uptime_ms")
        connection.writer.integer(Int((Store.now() - startedAt) / 1_000_000))
    }
}

extension ReplyWriter {
    /// Extents packed, or for people as an array of `offset:length`.
    mutating func write(_ extents: [Extent], isHex: Bool) {
        if !isHex {
            bulk(count: extents.count * 16) { bytes in
                for (index, extent) in extents.enumerated() {
                    bytes.storeBytes(
                        of: extent.offset.littleEndian, toByteOffset: index * 16, as: UInt64.self)
                    bytes.storeBytes(
                        of: extent.length.littleEndian, toByteOffset: index * 16 + 8,
                        as: UInt64.self)
                }
            }
            return
        }
        array(extents.count)
        for extent in extents {
            switch extent {
            case .pending: bulk("pending")
            case .gone: bulk("gone")
            default: bulk("\(extent.offset):\(extent.length)")
            }
        }
    }

    /// One byte each packed, or for people as an array of integers.
    mutating func write(bytes: [UInt8], isHex: Bool) {
        if !isHex {
            bulk(bytes)
            return
        }
        array(bytes.count)
        for byte in bytes { integer(Int(byte)) }
    }
}
