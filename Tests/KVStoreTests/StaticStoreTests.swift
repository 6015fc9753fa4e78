import Foundation
import KVDisk
import KVDiskFormat
import KVIdentity
import KVPolicy
import KVStore
import Testing

/// Static chunks on real directories.
@Suite("Static chunks of a store on a disk")
struct StaticStoreTests: StoreOnDisk {
    let space: CacheSpace
    let directory = DiskStoreTests.Directory()
    static let diskBytes = DiskConfiguration.smallestBytes

    init() throws { space = try makeSpace(shardBytes: [100_000]) }

    private func pin(_ store: Store, _ keys: [Digest]) throws -> Int {
        let session = store.session(name: "test")
        return try session.pin(session.open(space), root: root, keys: keys, for: .forever)
    }

    private func unpin(_ store: Store, _ keys: [Digest]) throws -> Int {
        let session = store.session(name: "test")
        return try session.unpin(session.open(space), root: root, keys: keys)
    }

    /// Waits for something that comes by itself.
    private func awaits(_ what: Comment, _ isSo: () -> Bool) {
        for _ in 0..<2000 where !isSo() { usleep(5_000) }
        #expect(isSo(), what)
    }

    private func isInMemory(_ store: Store, _ count: Int) -> Bool {
        let gauges = store.gauges
        return gauges.pinnedBytes == count * 102_400 && gauges.disk.chunksLoading == 0
            && gauges.disk.chunksOnDisk - gauges.disk.chunksOnDiskOnly >= count
    }

    private func list(_ path: String) -> String { "\(path)/\(DiskFormat.staticListName)" }

    @Test("They are there after a restart, in memory without being asked for, also much later")
    func restart() throws {
        let kept = keys(1, 12)
        let store = try open()
        try save(store, kept)
        #expect(try pin(store, kept) == 12)
        try store.sync()
        // All segments are used again, more than once.
        for prompt in 2..<32 as Range<UInt64> {
            try save(store, keys(prompt, 20))
            try store.sync()
        }
        #expect(store.counters.chunksEvictedFromDisk > 0)
        store.stop()

        for _ in 0..<2 {
            let again = try open()
            #expect(again.gauges.chunksStatic == 12)
            awaits("static chunks come to memory") { isInMemory(again, 12) }
            for prompt in 40..<70 as Range<UInt64> {
                try save(again, keys(prompt, 20))
                try again.sync()
            }
            #expect(try load(again, kept) == 12)
            #expect(isInMemory(again, 12))
            again.stop()
        }

        let last = try open()
        awaits("static chunks come to memory") { isInMemory(last, 12) }
        #expect(try unpin(last, kept) == 12)
        last.stop()
        let ordinary = try open()
        defer { ordinary.stop() }
        #expect(ordinary.gauges.chunksStatic == 0 && ordinary.gauges.pinnedBytes == 0)
    }

    @Test(
        "The list is kept within a second, for the owner only",
        arguments: [DiskAdmission.secondUse, .eviction])
    func listIsKept(admission: DiskAdmission) throws {
        let store = try open(admission: admission)
        defer { store.stop() }
        try save(store, keys(1, 3))
        #expect(!FileManager.default.fileExists(atPath: list(directory.path)))
        #expect(try pin(store, keys(1, 3)) == 3)
        let started = DispatchTime.now()
        awaits("the list is written") {
            FileManager.default.fileExists(atPath: list(directory.path))
        }
        #expect(DispatchTime.now().uptimeNanoseconds - started.uptimeNanoseconds < 5_000_000_000)
        var status = stat()
        #expect(stat(list(directory.path), &status) == 0 && status.st_mode & 0o777 == 0o600)
        // Whatever else is admitted.
        awaits("they are written") { store.gauges.disk.chunksOnDisk == 3 }
    }

    @Test("What does not fit stays on disk, and comes back in a larger arena")
    func smallerArena() throws {
        let kept = keys(1, 30)
        let store = try open(memoryBytes: 8 << 20, diskBytes: 64 << 20)
        try save(store, kept)
        #expect(try pin(store, kept) == 30)
        try store.sync()
        store.stop()
        let smaller = try open(memoryBytes: 4 << 20, diskBytes: 64 << 20)
        awaits("as many as may be come to memory") { isInMemory(smaller, 20) }
        #expect(smaller.gauges.chunksStatic == 30)
        let session = smaller.session(name: "test")
        #expect(try session.match(session.open(space), root: root, keys: kept) == 30)
        // As a server does that is stopped.
        try smaller.sync()
        smaller.stop()
        let larger = try open(memoryBytes: 8 << 20, diskBytes: 64 << 20)
        defer { larger.stop() }
        awaits("all come to memory") { isInMemory(larger, 30) }
        #expect(try load(larger, kept) == 30)
    }

    @Test("The newest list of several directories counts, and all get it")
    func severalDirectories() throws {
        let other = DiskStoreTests.Directory()
        let paths = [directory.path, other.path]
        let store = try open(paths: paths)
        try save(store, keys(1, 10))
        #expect(try pin(store, keys(1, 5)) == 5)
        try store.sync()
        store.stop()
        let old = try paths.map { try Data(contentsOf: URL(filePath: list($0))) }
        let again = try open(paths: paths)
        #expect(try pin(again, keys(1, 10)) == 10)
        again.stop()

        for (damaged, old) in zip(paths, old) {
            for content in [old, Data(old.prefix(4096 + 100)), Data(), nil] {
                let url = URL(filePath: list(damaged))
                if let content {
                    try content.write(to: url)
                } else {
                    try FileManager.default.removeItem(at: url)
                }
                let third = try open(paths: paths)
                #expect(third.gauges.chunksStatic == 10)
                awaits("both have it again after \(content?.count ?? -1) bytes in \(damaged)") {
                    // Foundation leaks what it reads of an empty file.
                    paths.allSatisfy {
                        var status = stat()
                        return stat(list($0), &status) == 0 && status.st_size == 4096 + 4096
                    }
                }
                third.stop()
            }
        }
    }

    @Test("A list that is damaged or not ours is left out; what is not ours is never replaced")
    func damage() throws {
        let store = try open()
        try save(store, keys(1, 4))
        #expect(try pin(store, keys(1, 4)) == 4)
        try store.sync()
        store.stop()
        let url = URL(filePath: list(directory.path))
        let good = try Data(contentsOf: url)
        for place in [0, 8, 20, 50, 4090, 4096 + 5, 4096 + 4 * 128 - 1, good.count - 1] {
            var bytes = good
            bytes[place] ^= 1
            try bytes.write(to: url)
            let again = try open()
            #expect(again.gauges.chunksStatic == 0)
            #expect(try load(again, keys(1, 4)) == 4, "the chunks are ordinary ones")
            #expect(try pin(again, keys(1, 1)) == 1)
            again.stop()
            let isForeign = place == 0
            #expect((try Data(contentsOf: url) == bytes) == isForeign, "byte \(place)")
        }
        try FileManager.default.removeItem(at: url)
        try FileManager.default.createSymbolicLink(
            atPath: url.path, withDestinationPath: "/etc/passwd")
        let again = try open()
        #expect(again.gauges.chunksStatic == 0)
        again.stop()
    }

    @Test("What was dropped or is damaged is not brought back as static")
    func drops() throws {
        let store = try open()
        try save(store, keys(1, 6))
        #expect(try pin(store, keys(1, 6)) == 6)
        try store.sync()
        let session = store.session(name: "test")
        try session.drop(session.open(space), root: root, keys: [keys(1, 6)[3]])
        try store.sync()
        store.stop()
        let again = try open()
        defer { again.stop() }
        #expect(again.gauges.chunksStatic == 3)
        awaits("the others come to memory") { isInMemory(again, 3) }
        #expect(try load(again, keys(1, 6)) == 3)
    }
}
