import Foundation
import KVDisk
import KVDiskFormat
import KVIdentity
import KVPolicy
import KVStore
import TestRandom
import Testing

/// Stores on real directories; what is decided is tested with simulated ones.
@Suite("A store on a disk")
struct DiskStoreTests: StoreOnDisk {
    /// A directory that goes with the object.
    final class Directory {
        let path = NSTemporaryDirectory() + "kvasir-disk-test-\(UUID().uuidString)"

        deinit { try? FileManager.default.removeItem(atPath: path) }

        var byteCount: Int {
            let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
            return names.reduce(0) { sum, name in
                var status = stat()
                stat("\(path)/\(name)", &status)
                return sum + Int(status.st_blocks) * 512
            }
        }
    }

    let space: CacheSpace
    let directory = Directory()
    static let diskBytes = 64 << 20

    init() throws { space = try makeSpace(shardBytes: [100_000]) }

    @Test("What was synced is there after a restart, and comes back byte for byte")
    func restart() throws {
        let keys = keys(1, 20)
        let store = try open()
        try save(store, keys)
        try store.sync()
        store.stop()

        let again = try open()
        #expect(again.counters.chunksRecovered == 20)
        #expect(again.gauges.disk.chunksOnDiskOnly == 20)
        #expect(try load(again, keys) == 20)
        #expect(again.counters.chunksLoaded == 20)
        again.stop()
    }

    @Test("What memory gives up comes back from disk; the files stay within the limit")
    func moreThanMemory() throws {
        let store = try open()
        // 10 MB through 4 MiB of memory.
        for prompt in 0..<5 as Range<UInt64> {
            try save(store, keys(prompt, 20))
            try store.sync()
        }
        for prompt in 0..<5 as Range<UInt64> { #expect(try load(store, keys(prompt, 20)) == 20) }
        #expect(store.counters.chunksLoaded > 50)
        store.stop()
    }

    @Test("The files stay within the limit, and what was used last stays in them")
    func limitOfTheDisk() throws {
        let limit = DiskConfiguration.smallestBytes
        let store = try open(diskBytes: limit)
        for prompt in 0..<20 as Range<UInt64> {
            try save(store, keys(prompt, 20))
            try store.sync()
            #expect(directory.byteCount <= limit)
        }
        #expect(store.counters.chunksEvictedFromDisk > 0)
        #expect(try load(store, keys(0, 20)) == 0)
        #expect(try load(store, keys(18, 20)) == 20)
        store.stop()
        #expect(directory.byteCount <= limit)
    }

    @Test(
        "What a sync waits for is written soon, though memory and disk are full",
        arguments: PolicyName.allCases)
    func syncOfAFullDisk(policy: PolicyName) throws {
        let limit = DiskConfiguration.smallestBytes
        let store = try open(diskBytes: limit, policy: policy)
        defer { store.stop() }
        for prompt in 0..<40 as Range<UInt64> {
            let prompt = keys(prompt, 20)
            let lost = store.counters.chunksEvictedUnwritten
            try save(store, prompt)
            // A log that waits for memory, which waits for the log, would need longer.
            try store.sync(seconds: 4)
            #expect(directory.byteCount <= limit)
            // Segments that are being emptied may take the memory that loads need.
            var found = 0
            for _ in 0..<1000 where found < prompt.count {
                found = try load(store, prompt)
                if store.counters.chunksEvictedUnwritten > lost { break }
                if found < prompt.count { usleep(20_000) }
            }
            if store.counters.chunksEvictedUnwritten == lost { #expect(found == prompt.count) }
        }
        #expect(store.counters.chunksEvictedFromDisk > 0)
    }

    @Test("What was dropped stays away after a restart")
    func drops() throws {
        let store = try open()
        try save(store, keys(1, 10))
        try save(store, keys(2, 10))
        let session = store.session(name: "test")
        try session.drop(session.open(space), root: root, keys: [keys(1, 10)[4]])
        try store.sync()
        store.stop()

        let again = try open()
        #expect(try load(again, keys(1, 10)) == 4)
        #expect(try load(again, keys(2, 10)) == 10)
        again.stop()
    }

    @Test("When a chunk that is on disk expires was told later, and counts after a restart")
    func expiries() throws {
        let (short, long, never) = (keys(1, 2), keys(2, 2), keys(3, 2))
        let store = try open()
        for keys in [short, long, never] { try save(store, keys) }
        try store.sync()
        let session = store.session(name: "test")
        let opened = try session.open(space)
        for keys in [short, never] {
            let life = TimeToLive(ms: 500)
            #expect(try session.expire(opened, root: root, keys: keys, after: life) == 2)
        }
        let hour = TimeToLive(ms: 3_600_000)
        #expect(try session.expire(opened, root: root, keys: long, after: hour) == 2)
        #expect(try session.expire(opened, root: root, keys: never, after: nil) == 2)
        try store.sync()
        store.stop()
        usleep(600_000)

        let again = try open()
        defer { again.stop() }
        #expect(try load(again, short) == 0)
        #expect(try load(again, long) == 2 && load(again, never) == 2)
    }

    @Test("Prompts are spread over several directories, and found again")
    func severalDirectories() throws {
        let other = Directory()
        let paths = [directory.path, other.path]
        let store = try open(memoryBytes: 32 << 20, paths: paths)
        // More than a turn of 8 MiB.
        try save(store, keys(1, 200))
        try store.sync()
        store.stop()
        #expect(directory.byteCount > 4 << 20 && other.byteCount > 4 << 20)

        let again = try open(memoryBytes: 32 << 20, paths: paths)
        #expect(try load(again, keys(1, 200)) == 200)
        again.stop()
    }

    @Test("One store at a time: the second says so, and disturbs nothing")
    func twoStores() throws {
        let store = try open()
        let error = #expect(throws: StoreError.self) { try open() }
        #expect(error?.code == .diskInUse)
        #expect(error?.message.contains(directory.path) == true)
        try save(store, keys(1, 3))
        try store.sync()
        #expect(try load(store, keys(1, 3)) == 3)
        store.stop()
    }

    @Test("Compacting gives files back and loses nothing")
    func compacting() throws {
        let store = try open()
        for prompt in 0..<5 as Range<UInt64> {
            try save(store, keys(prompt, 20))
            try store.sync()
        }
        let session = store.session(name: "test")
        for prompt in 0..<4 as Range<UInt64> {
            try session.drop(session.open(space), root: root, keys: [keys(prompt, 20)[2]])
        }
        let before = store.gauges.disk.diskBytes
        try store.compactDisks(below: 0.9)
        #expect(store.gauges.disk.diskBytes < before)
        for prompt in 0..<4 as Range<UInt64> { #expect(try load(store, keys(prompt, 20)) == 2) }
        #expect(try load(store, keys(4, 20)) == 20)
        store.stop()

        let again = try open()
        for prompt in 0..<4 as Range<UInt64> { #expect(try load(again, keys(prompt, 20)) == 2) }
        #expect(try load(again, keys(4, 20)) == 20)
        again.stop()
    }

    @Test("Limits of a disk: the smallest, and what no segment can be")
    func limits() throws {
        func code(_ disk: DiskConfiguration) -> StoreError.Code? {
            do {
                let store = try Store(.init(memoryBytes: 4 << 20, disks: [disk]))
                store.stop()
                return nil
            } catch {
                return (error as? StoreError)?.code
            }
        }
        let least = DiskConfiguration.smallestBytes
        #expect(code(.init(directory: directory.path, byteCount: least)) == nil)
        #expect(code(.init(directory: directory.path, byteCount: least - 1)) == .argument)
        #expect(
            code(.init(directory: directory.path, byteCount: least, segmentBytes: 5000))
                == .argument)
        #expect(code(.init(directory: "/dev/null/disk", byteCount: least)) == .disk)
    }

    @Test("As many directories as the limit says, and not one more")
    func mostDirectories() throws {
        var core = StoreCore(.init(arenaBytes: 1 << 20, slabBytes: 1 << 20, secret: (1, 2)))
        let disk = DiskID(words: (1, 2))
        for number in 0..<StoreLimits.disks {
            let log = LogConfiguration(
                disk: disk, segmentBytes: 1 << 20, budgetBytes: 16 << 20, seed: 1, wallOffsetMs: 0)
            #expect(core.add(log) == number)
        }
        let paths = (0...StoreLimits.disks).map { "\(directory.path)/\($0)" }
        let error = #expect(throws: StoreError.self) { _ = try open(paths: paths) }
        #expect(error?.message.contains("at most 256") == true)
        #expect(!FileManager.default.fileExists(atPath: directory.path), "none was made")
    }

    @Test("Without a disk nothing can be made durable")
    func memoryOnly() throws {
        let store = try Store(.init(memoryBytes: 4 << 20))
        let error = #expect(throws: StoreError.self) { try store.sync() }
        #expect(error?.code == .noTier)
        store.stop()
    }
}
