import Foundation
import KVIdentity
import KVStore
import Logging
import Synchronization
import Testing

/// The store as a library: real memory, real threads.
@Suite("The embedded store")
struct StoreTests {
    private func makeStore(
        verifyOneIn: Int = 64,
        logger: Logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    )
        throws -> Store
    {
        let store = try Store(.init(memoryBytes: 8 << 20, verifyOneIn: verifyOneIn, logger: logger))
        try #require(store.waitUntilReady())
        return store
    }

    @Test("What the README shows works: reserve, write, commit, read")
    func readme() throws {
        let store = try makeStore()
        let session = store.session(name: "example")
        let space = try session.open(makeSpace(shardBytes: [64 << 10]))
        let root = Root(space: space.space.id)
        let keys = ChunkKeys.chain(
            root: root, tokens: [UInt32](0..<64), chunkTokens: space.space.chunkTokens)

        let write = try session.reserve(space, root: root, keys: keys)
        #expect(write.positions == [0, 1, 2, 3] && write.refusal.isEmpty)
        for position in write.positions {
            write.withBytes(of: position) {
                _ = $0.initializeMemory(as: UInt8.self, repeating: UInt8(position + 1))
            }
        }
        #expect(try write.commit() == 4)

        #expect(try session.match(space, root: root, keys: keys) == 4)
        let read = try #require(try session.read(space, root: root, keys: keys))
        for position in 0..<read.count {
            read.withBytes(of: position) { bytes in
                #expect(bytes.allSatisfy { $0 == UInt8(position + 1) })
            }
        }
        #expect(try read.release())
        #expect(store.counters.chunksSealed == 4)
    }

    @Test("Leases end with their last reference, and a session with its own")
    func leasesEnd() throws {
        let store = try makeStore()
        do {
            let session = store.session(name: "short")
            let space = try session.open(makeSpace())
            let root = Root(space: space.space.id)
            let lease = try session.reserve(space, root: root, keys: [key(1)])
            #expect(store.gauges.usedBytes == 4096)
            withExtendedLifetime(lease) {}
        }
        #expect(store.gauges.usedBytes == 0)
        #expect(store.gauges.sessions == 0 && store.gauges.spaces == 0)
    }

    @Test(
        "A byte that changes after the seal is found, logged with the writer's name, and never served"
    )
    func findsDamage() throws {
        let log = LogKeeper()
        let store = try makeStore(verifyOneIn: 1, logger: Logger(label: "test") { _ in log })
        let session = store.session(name: "careless")
        let space = try session.open(makeSpace(shardBytes: [32 << 10]))
        let root = Root(space: space.space.id)
        let keys = [key(1), key(2)]
        let write = try session.reserve(space, root: root, keys: keys)
        try write.commit()
        while store.counters.checksumsMade < 2 { usleep(100) }
        // What a client must not do.
        write.withBytes(of: 1) { $0[12345] ^= 1 }
        let read = try #require(try session.read(space, root: root, keys: keys))
        #expect(read.count == 1, "only the good prefix is leased")
        #expect(try session.match(space, root: root, keys: keys) == 1)
        #expect(store.counters.chunksDamaged == 1)
        #expect(log.text.contains("'careless'"))
    }

    @Test("Memory that the machine doesn't have is refused, with the figures and what to do")
    func refusesTooMuch() {
        do {
            _ = try Store(.init(memoryBytes: 1 << 50))
            Issue.record("a PiB was accepted")
        } catch let error as StoreError {
            #expect(error.code == .argument)
            #expect(error.message.contains("--memory at most"))
        } catch {
            Issue.record("unexpected \(error)")
        }
        #expect(throws: StoreError.self) {
            try Store(.init(memoryBytes: Store.smallestMemoryBytes - 1))
        }
        #expect(throws: Never.self) {
            try Store(.init(memoryBytes: Store.smallestMemoryBytes)).stop()
        }
    }

    @Test("Many threads save and load at once, and every byte is right")
    func threads() throws {
        let store = try makeStore(verifyOneIn: 4)
        let wrong = Atomic<Int>(0)
        let loaded = Atomic<Int>(0)
        DispatchQueue.concurrentPerform(iterations: 8) { thread in
            do {
                let session = store.session(name: "thread-\(thread)")
                let space = try session.open(makeSpace(shardBytes: [40_000]))
                let root = Root(space: space.space.id)
                for round in 0..<60 {
                    // Threads share half of their prompts; there is room for about half of all.
                    let name = UInt64(round % 2 == 0 ? round : round * 100 + thread)
                    let keys = (0..<5).map { key(name, UInt64($0)) }
                    let write = try session.reserve(space, root: root, keys: keys)
                    for position in write.positions {
                        write.withBytes(of: position) {
                            _ = $0.initializeMemory(
                                as: UInt8.self,
                                repeating: UInt8(truncatingIfNeeded: name) ^ UInt8(position))
                        }
                    }
                    try write.commit()
                    guard let read = try session.read(space, root: root, keys: keys) else {
                        continue
                    }
                    for position in 0..<read.count {
                        let expected = UInt8(truncatingIfNeeded: name) ^ UInt8(position)
                        read.withBytes(of: position) { bytes in
                            if !bytes.allSatisfy({ $0 == expected }) {
                                wrong.add(1, ordering: .relaxed)
                            }
                        }
                        loaded.add(1, ordering: .relaxed)
                    }
                    try read.release()
                }
            } catch {
                Issue.record("thread \(thread): \(error)")
            }
        }
        #expect(wrong.load(ordering: .relaxed) == 0)
        #expect(loaded.load(ordering: .relaxed) > 1000)
        #expect(store.counters.chunksDamaged == 0 && store.counters.checksumsCompared > 0)
        #expect(
            store.gauges.holds == 0 && store.gauges.readLeases == 0 && store.gauges.writeLeases == 0
        )
    }
}

/// Keeps what is logged.
private final class LogKeeper: LogHandler, Sendable {
    private let lines = Mutex<[String]>([])

    var text: String { lines.withLock { $0.joined(separator: "\n") } }
    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    var logLevel: Logger.Level {
        get { .trace }
        set {}
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }

    func log(event: LogEvent) { lines.withLock { $0.append("\(event.message)") } }
}
