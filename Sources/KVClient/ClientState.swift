internal import KVIdentity
internal import RESP

/// What a client has while it is connected. Its calls connect where there is no connection; they are made one at a time.
struct ClientState: ~Copyable, Sendable {
    let path: String
    let configuration: Client.Configuration
    let session: String

    private var link: Link?
    /// Raised by one at each connect. Holds, leases and handles belong to one.
    private(set) var incarnation = 0
    private var spaces: [Digest: OpenSpace] = [:]
    private(set) var arena: Arena?
    private(set) var isClosed = false

    init(path: String, configuration: Client.Configuration, session: String) {
        self.path = path
        self.configuration = configuration
        self.session = session
    }

    var isConnected: Bool {
        switch link {
        case .some(let link): !link.hasEnded
        case nil: false
        }
    }

    /// Lets go of the connection and everything that belongs to it.
    mutating func lose() {
        link = nil
        spaces = [:]
        arena = nil
    }

    mutating func close() {
        lose()
        isClosed = true
    }

    /// Connects if there is no connection.
    ///
    /// - Parameter wanted: the incarnation that a hold or lease belongs to; nil if any will do.
    mutating func connect(timeoutMs: Int, wanted: Int? = nil) throws(ClientError) {
        if isClosed { throw ClientError(.closed, "this client was closed; make a new one") }
        if link == nil, wanted == nil {
            incarnation += 1
            link = try Link(path: path)
            try greet(timeoutMs: timeoutMs)
        }
        if link == nil || (wanted ?? incarnation) != incarnation {
            throw ClientError(
                .stale,
                "the connection on which this was given has ended, and it with it; match or reserve again"
            )
        }
    }

    /// Tells the server whose connection this is; a server that doesn't understand it is not ours.
    private mutating func greet(timeoutMs: Int) throws(ClientError) {
        let name = session
        let reply: RESPValue
        do throws(ClientError) {
            reply = try ask("KV.SESSION", timeoutMs: timeoutMs) { $0.bulk(name) }
        } catch {
            lose()
            throw error
        }
        if reply.text != "OK" { throw misunderstood("KV.SESSION") }
    }

    /// Sends a command on the connection there is. Whatever is not an answer of the server ends the connection.
    mutating func ask(
        _ name: String, arguments: Int = 1, timeoutMs: Int, takesDescriptor: Bool = false,
        _ write: (inout ReplyWriter) -> Void
    ) throws(ClientError) -> RESPValue {
        let reply: RESPValue
        do throws(ClientError) {
            reply = try link!.exchange(timeoutMs: timeoutMs, takesDescriptor: takesDescriptor) {
                $0.command(name, arguments: arguments)
                write(&$0)
            }
        } catch {
            lose()
            throw error
        }
        if case .error(let text) = reply { throw ClientError(reply: text) }
        return reply
    }

    /// The space's handle; asks the server the first time.
    mutating func open(_ space: CacheSpace, timeoutMs: Int) throws(ClientError) -> OpenSpace {
        if let known = spaces[space.id] { return known }
        let reply = try ask("KV.OPEN", timeoutMs: timeoutMs) { $0.bulk(space.json) }
        guard let values = reply.elements, values.count == 3, let handle = values[0].integer,
            handle > 0,
            values[1].bytes == space.id.bytes, let sizes = values[2].bytes,
            sizes.count == 8 * space.shardCount
        else { throw misunderstood("KV.OPEN") }
        let opened = OpenSpace(handle: handle, shardBytes: space.shardBytes)
        spaces[space.id] = opened
        return opened
    }

    mutating func forget(_ space: CacheSpace) { spaces[space.id] = nil }

    /// The arena, mapped the first time.
    mutating func mapArena(timeoutMs: Int) throws(ClientError) -> (arena: Arena, readyBytes: Int) {
        let isReadOnly = configuration.isReadOnly
        let reply = try ask(
            "KV.ARENA", arguments: isReadOnly ? 1 : 0, timeoutMs: timeoutMs, takesDescriptor: true
        ) { if isReadOnly { $0.bulk("READONLY") } }
        guard let values = reply.elements, values.count == 3, let byteCount = values[0].integer,
            let id = values[1].bytes, id.count == 16, let ready = values[2].integer,
            let descriptor = link!.takeDescriptor()
        else { throw misunderstood("KV.ARENA") }
        if let arena, arena.id == id { return (arena, ready) }
        let mapped: Arena
        do throws(ClientError) {
            mapped = try Arena(descriptor, byteCount: byteCount, id: id, isReadOnly: isReadOnly)
        } catch {
            if error.code == .badReply { lose() }
            throw error
        }
        arena = mapped
        return (mapped, ready)
    }

    /// The arena, without asking again where it is mapped.
    mutating func requireArena(timeoutMs: Int) throws(ClientError) -> Arena {
        if let arena { return arena }
        return try mapArena(timeoutMs: timeoutMs).arena
    }

    /// A reply that makes no sense ends the connection: nothing it says can be relied on.
    mutating func misunderstood(_ command: String) -> ClientError {
        lose()
        return .badReply(to: command)
    }
}

extension ReplyWriter {
    mutating func bulk(decimal value: Int) { bulk(String(value)) }

    mutating func bulk(_ digest: Digest) { digest.withUnsafeBytes { bulk($0) } }

    /// Packed keys. Digests lie in memory as they do on the wire where integers are little-endian.
    mutating func bulk(_ keys: [Digest]) {
        #if _endian(little)
            // SAFETY: a Digest is four UInt64 without padding.
            keys.withUnsafeBytes { bulk($0) }
        #else
            bulk(ChunkKeys.packed(keys))
        #endif
    }
}
