public import KVIdentity
public import KVPolicy
public import KVStore

/// Chunks in a store of this process, without a daemon.
public struct EmbeddedStore: ChunkStore {
    private let session: StoreSession

    /// A session on a store, which may be shared with others.
    public init(_ store: Store, name: String = "engine") {
        session = store.session(name: name)
    }

    public func load(
        _ space: CacheSpace, root: Root, keys: [Digest], from first: Int, hint: ReuseHint,
        room: (Int) throws -> Void, copy: (Int, UnsafeRawBufferPointer) -> Void
    ) throws -> Int {
        let opened = try session.open(space)
        guard let lease = try session.read(opened, root: root, keys: keys, hint: hint) else {
            return 0
        }
        guard lease.count > first else {
            try lease.release()
            return lease.count
        }
        try room(lease.count)
        for position in first..<lease.count {
            lease.withBytes(of: position) { copy(position, $0) }
        }
        return try lease.release() ? lease.count : first
    }

    public func save(
        _ space: CacheSpace, root: Root, keys: [Digest], parent: Digest?, hint: ReuseHint,
        fill: (Int, UnsafeMutableRawBufferPointer) -> Void
    ) throws -> SaveResult {
        let opened = try session.open(space)
        let lease = try session.reserve(
            opened, root: root, keys: keys, parent: parent, hint: hint)
        for position in lease.positions {
            lease.withBytes(of: position) { fill(position, $0) }
        }
        let sealed = try lease.commit()
        return SaveResult(sealed: sealed, covered: lease.coveredCount, refusal: lease.refusal)
    }

    public func isGap(_ error: any Error) -> Bool { (error as? StoreError)?.code == .gap }
}
