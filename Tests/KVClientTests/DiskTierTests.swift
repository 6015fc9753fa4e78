import Glibc
import KVClient
import KVIdentity
import TestSupport
import Testing

/// Shards of 256 KiB, so that 8 MiB of memory hold 32 chunks at most.
@Suite("The client and the disk tier", .serialized)
struct DiskTierTests {
    private func space() throws -> CacheSpace { try Sample.space(shardBytes: [256 << 10]) }

    /// Saves `prompts` prompts of 16 chunks, each synced before the next.
    private func save(
        _ client: Client, _ space: CacheSpace, prompts: Int
    ) throws -> [(root: Root, keys: [Digest])] {
        try (0..<prompts).map { number in
            let prompt = Sample.keys(16, space, first: UInt32(number * 1_000))
            try Sample.save(client, space, prompt.root, prompt.keys)
            try client.sync()
            return prompt
        }
    }

    @Test("A match tells tiers, an acquire brings what is on disk, and the bytes are those saved")
    func fromDisk() throws {
        let server = try TestServer(diskBytes: 64 << 20)
        let client = try server.client()
        let space = try space()
        let (root, keys) = try save(client, space, prompts: 4)[0]
        let places = try client.locate(space, root: root, keys: keys)
        #expect(places == Array(repeating: .disk, count: 16))
        let match = try client.match(space, root: root, keys: keys, holdMs: 10_000)
        #expect(match.count == 16)
        #expect(match.tiers == Array(repeating: .disk, count: 16))
        #expect(match.inMemoryCount == 0)
        let lease = try client.wait(for: try client.acquire(try #require(match.hold)))
        #expect(lease.readyCount == 16)
        for chunk in 0..<16 {
            try lease.withBytes(of: chunk) { bytes in
                #expect(bytes.indices.allSatisfy { bytes[$0] == Sample.byte(chunk, 0, $0) })
            }
        }
        #expect(try client.release(lease))
        #expect(
            try client.locate(space, root: root, keys: keys)
                == Array(repeating: .memoryAndDisk, count: 16))
        #expect(try client.match(space, root: root, keys: keys).inMemoryCount == 16)
    }

    @Test("A prefetch brings chunks to memory and waits for nothing")
    func prefetch() throws {
        let server = try TestServer(diskBytes: 64 << 20)
        let client = try server.client()
        let space = try space()
        let (root, keys) = try save(client, space, prompts: 4)[0]
        #expect(try client.prefetch(space, root: root, keys: keys) == 16)
        var places: [Location] = []
        repeat {
            places = try client.locate(space, root: root, keys: keys)
            #expect(places.allSatisfy { $0 == .loading || $0 == .memoryAndDisk })
        } while places.contains(.loading)
        #expect(try client.match(space, root: root, keys: keys).inMemoryCount == 16)
    }

    @Test("What was synced is there in the next server's life")
    func restart() throws {
        let server = try TestServer(diskBytes: 64 << 20)
        let client = try server.client()
        let space = try space()
        let prompts = try save(client, space, prompts: 3)
        server.stop()
        try server.start(isEmpty: true)
        while try client.stats().first(where: { $0.name == "disks_recovering" })?.value != 0 {}
        for (root, keys) in prompts {
            #expect(try client.match(space, root: root, keys: keys).count == 16)
            #expect(try client.verify(space, root: root, key: keys[15]) == .good)
        }
    }

    @Test("A listing has each chunk once, and filters choose")
    func listing() throws {
        let server = try TestServer(diskBytes: 64 << 20)
        let client = try server.client()
        let space = try space()
        let prompts = try save(client, space, prompts: 4)
        let all = try client.allChunks()
        #expect(Set(all.map(\.key)) == Set(prompts.flatMap(\.keys)))
        #expect(all.count == 64)
        let handle = try client.open(space).handle
        #expect(try client.allChunks(ChunkFilter(space: handle)).count == 64)
        #expect(try client.allChunks(ChunkFilter(space: handle + 1)).isEmpty)
        let (root, keys) = prompts[3]
        // Both prompts have the same root here, so it is the keys that tell them apart.
        let last = all.filter { keys.contains($0.key) }.sorted { $0.number < $1.number }
        #expect(last.map(\.key) == keys)
        #expect(last.map(\.number) == Array(0..<16))
        #expect(last.map(\.parent) == [nil] + keys.dropLast().map { $0 })
        #expect(last.allSatisfy { $0.root == root && $0.space == handle })
        #expect(last.allSatisfy { $0.byteCount == 256 << 10 && $0.location == .memoryAndDisk })
        let inMemory = try client.allChunks(ChunkFilter(place: .memory))
        #expect(inMemory.count == all.count { $0.location == .memoryAndDisk })
        #expect(try client.allChunks(ChunkFilter(place: .disk)).count == 64)
        #expect(try client.allChunks(ChunkFilter(idleMs: 3_600_000)).isEmpty)
    }

    @Test("Pages of a listing go on where the one before ended")
    func pages() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(10, space)
        try Sample.save(client, space, root, keys)
        var found: [Digest] = []
        var cursor: Int? = 0
        while let place = cursor {
            let page = try client.chunks(cursor: place, count: 3)
            #expect(page.chunks.count <= 3)
            found += page.chunks.map(\.key)
            cursor = page.next
        }
        #expect(found.count == 10)
        #expect(Set(found) == Set(keys))
        let inMemory = try client.allChunks(ChunkFilter(place: .memory))
        #expect(inMemory.count == 10)
        #expect(inMemory.allSatisfy { $0.location == .memory })
    }

    @Test("What is being written has a listing of its own")
    func writing() throws {
        let server = try TestServer()
        let client = try server.client()
        let space = try Sample.space()
        let (root, keys) = Sample.keys(3, space)
        let lease = try client.reserve(space, root: root, keys: keys)
        #expect(try client.allChunks().isEmpty)
        let written = try client.allChunks(ChunkFilter(place: .writing))
        #expect(Set(written.map(\.key)) == Set(keys))
        #expect(written.allSatisfy { $0.location == .writing && $0.idleMs == 0 })
        try client.release(lease)
        #expect(try client.allChunks(ChunkFilter(place: .writing)).isEmpty)
    }

    @Test("Verifying finds a chunk whose bytes changed on disk, and says what became of it")
    func verify() throws {
        let server = try TestServer(diskBytes: 64 << 20)
        let client = try server.client()
        let space = try space()
        let (root, keys) = try save(client, space, prompts: 4)[0]
        #expect(try client.verify(space, root: root, key: keys[0]) == .good)
        try damage(server.disk, chunk: 3)
        #expect(try client.verify(space, root: root, key: keys[2]) == .good)
        guard case .bad(let why) = try client.verify(space, root: root, key: keys[3]) else {
            Issue.record("the damage was not found")
            return
        }
        #expect(why.contains("could not be read"))
        guard case .absent = try client.verify(space, root: root, key: keys[4]) else {
            Issue.record("what followed it is still there")
            return
        }
        #expect(try client.match(space, root: root, keys: keys).count == 3)
    }

    /// Changes a byte wherever a file has this chunk's bytes: all prompts have the same there.
    private func damage(_ directory: String, chunk: Int) throws {
        let wanted = (0..<4096).map { Sample.byte(chunk, 0, $0) }
        for number in 1...16 {
            let digits = String(number)
            let zeros = String(repeating: "0", count: 10 - digits.count)
            let descriptor = open("\(directory)/segment-\(zeros)\(digits).kvseg", O_RDWR)
            if descriptor < 0 { continue }
            defer { close(descriptor) }
            var page = [UInt8](repeating: 0, count: 4096)
            var offset = 0
            while pread(descriptor, &page, 4096, offset) == 4096 {
                if page == wanted {
                    var byte = page[9] ^ 1
                    #expect(pwrite(descriptor, &byte, 1, offset + 9) == 1)
                }
                offset += 4096
            }
            fsync(descriptor)
        }
    }

    @Test("Without a disk, and with a time that is too short, a sync says so")
    func syncErrors() throws {
        let memory = try TestServer()
        let without = try #require(throws: ClientError.self) { try memory.client().sync() }
        #expect(without.code == .noTier)
        let server = try TestServer(diskBytes: 64 << 20)
        let client = try server.client()
        let space = try space()
        let (root, keys) = Sample.keys(16, space)
        try Sample.save(client, space, root, keys)
        let late = try #require(throws: ClientError.self) { try client.sync(timeoutMs: 0) }
        #expect(late.code == .waitTimeout)
        try client.sync()
        #expect(try client.ping() > 0)
    }
}
