import KVIdentity
import KVPolicy
import KVStore
import Logging
import Testing

/// Tests of stores on real directories: chunks of 100,000 bytes, each of one byte that its key gives.
protocol StoreOnDisk {
    var space: CacheSpace { get }
    var directory: DiskStoreTests.Directory { get }
    /// What a directory may take where nothing else is said.
    static var diskBytes: Int { get }
}

extension StoreOnDisk {
    var root: Root { Root(key([1, 2])) }

    func open(
        memoryBytes: Int = 4 << 20, diskBytes: Int = Self.diskBytes, paths: [String]? = nil,
        admission: DiskAdmission = .all, policy: PolicyName = .default
    ) throws -> Store {
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        let store = try Store(
            .init(
                memoryBytes: memoryBytes, verifyOneIn: 0,
                disks: (paths ?? [directory.path]).map {
                    DiskConfiguration(directory: $0, byteCount: diskBytes)
                }, diskAdmission: admission, policy: policy, logger: logger))
        #expect(store.waitUntilReady() && store.waitUntilRecovered())
        return store
    }

    func keys(_ prompt: UInt64, _ count: Int) -> [Digest] {
        (0..<UInt64(count)).map { key([prompt, $0]) }
    }

    func save(_ store: Store, _ keys: [Digest]) throws {
        let session = store.session(name: "test")
        let opened = try session.open(space)
        let lease = try session.reserve(opened, root: root, keys: keys)
        for position in lease.positions {
            lease.withBytes(of: position) { bytes in
                _ = bytes.initializeMemory(
                    as: UInt8.self, repeating: UInt8(truncatingIfNeeded: keys[position].words.0))
            }
        }
        try lease.commit()
    }

    /// How many leading keys are there, with the right bytes.
    func load(_ store: Store, _ keys: [Digest]) throws -> Int {
        let session = store.session(name: "test")
        let opened = try session.open(space)
        guard let lease = try session.read(opened, root: root, keys: keys) else { return 0 }
        for place in 0..<lease.count {
            let wanted = UInt8(truncatingIfNeeded: keys[place].words.0)
            lease.withBytes(of: place) { bytes in
                #expect(bytes.count == 100_000 && bytes.allSatisfy { $0 == wanted })
            }
        }
        return lease.count
    }
}
