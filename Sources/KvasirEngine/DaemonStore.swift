public import KVClient
public import KVIdentity
public import KVPolicy

/// Chunks in a Kvasir daemon on this host: `kvasir serve`.
///
/// Bytes are copied between the daemon's shared memory and the engine's pages; only descriptions cross the socket.
public struct DaemonStore: ChunkStore {
    /// How it is reached.
    public let client: Client
    /// How long a hold and a lease last at most.
    private let leaseMs = 30_000
    /// How long a load waits for chunks that are being checked or fetched.
    private let waitMs = 2_000

    /// Uses a client, which may be shared.
    public init(_ client: Client) {
        self.client = client
    }

    public func load(
        _ space: CacheSpace, root: Root, keys: [Digest], from first: Int, hint: ReuseHint,
        room: (Int) throws -> Void, copy: (Int, UnsafeRawBufferPointer) -> Void
    ) throws -> Int {
        let match = try client.match(space, root: root, keys: keys, holdMs: leaseMs, hint: hint)
        guard let hold = match.hold else { return 0 }
        guard match.count > first else {
            try client.release(hold)
            return match.count
        }
        let acquired: KVClient.ReadLease
        do {
            try room(match.count)
            acquired = try client.acquire(hold, from: first)
        } catch {
            _ = try? client.release(hold)
            throw error
        }
        do {
            let lease = try settled(acquired)
            let ready = lease.readyCount
            for index in 0..<ready {
                try lease.withBytes(of: index) { copy(first + index, $0) }
            }
            return try client.release(lease) ? first + ready : first
        } catch {
            _ = try? client.release(acquired)
            throw error
        }
    }

    /// The lease once nothing is pending, or, when that takes too long, with what is there by then.
    private func settled(_ lease: KVClient.ReadLease) throws(ClientError) -> KVClient.ReadLease {
        do throws(ClientError) {
            return try client.wait(for: lease, timeoutMs: waitMs)
        } catch {
            if error.code == .waitTimeout { return lease }
            throw error
        }
    }

    public func save(
        _ space: CacheSpace, root: Root, keys: [Digest], parent: Digest?, hint: ReuseHint,
        fill: (Int, UnsafeMutableRawBufferPointer) -> Void
    ) throws -> SaveResult {
        let lease = try client.reserve(
            space, root: root, keys: keys, parent: parent, timeToLiveMs: leaseMs, hint: hint)
        let covered = lease.states.prefix { $0 != .refused }.count
        if lease.granted.isEmpty {
            return SaveResult(sealed: 0, covered: covered, refusal: lease.reason)
        }
        do {
            for position in lease.granted {
                try lease.withMutableBytes(of: position) { fill(position, $0) }
            }
            let sealed = try client.commit(lease)
            return SaveResult(sealed: sealed, covered: covered, refusal: lease.reason)
        } catch {
            _ = try? client.release(lease)
            throw error
        }
    }

    public func isGap(_ error: any Error) -> Bool { (error as? ClientError)?.code == .gap }
}
