import Glibc
import Testing

@testable import KVDisk

/// What goes wrong is told, with where and what to do.
@Suite(.serialized)
struct IOFaultTests {
    @Test(arguments: Backend.allCases)
    func aTransferPastTheEndIsAFault(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let memory = DiskMemory(byteCount: 8192)
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 8192)) == .done)
        for offset in [4096, 8192, 1 << 40] {
            let read = await io.fault(.read(file: 1, offset: offset, into: [memory.buffer]))
            #expect(read?.code == .endOfFile)
            #expect(read?.message.contains("read 8192 bytes at \(offset) of") == true)
            #expect(read?.message.contains("/a") == true)
            let write = await io.fault(.write(file: 1, offset: offset, from: [memory.buffer]))
            #expect(write?.code == .endOfFile)
        }
        #expect(try io.list().map(\.byteCount) == [8192], "a write moved the end")
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func aFileThatWasCutIsAFault(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let memory = DiskMemory(byteCount: 16384, filledWith: 1)
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 16384)) == .done)
        for length in [8192, 8192 + 512, 100, 0] {
            #expect(truncate("\(directory.path)/a", length) == 0)
            let fault = await io.fault(.read(file: 1, offset: 0, into: [memory.buffer]))
            #expect(fault?.code == .endOfFile, "cut to \(length)")
            #expect(fault?.message.contains("ends at \(length)") == true)
        }
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func aClosedOrMissingFileIsAFault(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let memory = DiskMemory(byteCount: 4096)
        #expect(await io.fault(.open(file: 1, name: "a"))?.code == .notFound)
        #expect(await io.fault(.sync(file: 1))?.code == .notFound)
        #expect(await io.fault(.close(file: 1))?.code == .notFound)
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 4096)) == .done)
        #expect(await io.perform(.close(file: 1)) == .done)
        let read = await io.fault(.read(file: 1, offset: 0, into: [memory.buffer]))
        #expect(read?.code == .notFound)
        let write = await io.fault(.write(file: 1, offset: 0, from: [memory.buffer]))
        #expect(write?.code == .notFound)
        #expect(await io.perform(.remove(name: "a")) == .done)
        #expect(await io.perform(.remove(name: "a")) == .done, "a missing file is fine")
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func aNameOrNumberInUseIsAFault(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 4096)) == .done)
        #expect(await io.fault(.create(file: 2, name: "a", byteCount: 4096))?.code == .exists)
        #expect(await io.fault(.create(file: 1, name: "b", byteCount: 4096))?.code == .exists)
        #expect(await io.fault(.open(file: 1, name: "a"))?.code == .exists)
        #expect(directory.names() == ["a"])
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func aLinkIsNotFollowed(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        #expect(symlink("/etc/passwd", "\(directory.path)/a") == 0)
        #expect(await io.fault(.open(file: 1, name: "a"))?.code == .other(ELOOP))
        #expect(await io.fault(.create(file: 1, name: "a", byteCount: 4096))?.code == .exists)
        #expect(try io.list().isEmpty)
        io.stop()
    }

    @Test func aDirectoryBelongsToOneUser() throws {
        let directory = try TemporaryDirectory()
        let io = try ThreadIO(directory: directory.path)
        #expect { try ThreadIO(directory: directory.path) } throws: { error in
            (error as? DiskFault)?.code == .busy
        }
        io.stop()
    }

    /// As a request keeps it that outlives its process.
    @Test(arguments: [true, false])
    func aFileThatSomebodyStillWritesToIsWaitedFor(ends: Bool) async throws {
        let directory = try TemporaryDirectory()
        let files = try DiskFiles(
            path: directory.path, wantsDirect: false, allocates: true,
            patienceMs: ends ? 60_000 : 30)
        let io = try ThreadIO(files: files, threadCount: 1)
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 4096)) == .done)
        #expect(await io.perform(.close(file: 1)) == .done)
        let other = open("\(directory.path)/a", O_RDONLY | O_CLOEXEC)
        #expect(flock(other, LOCK_EX | LOCK_NB) == 0)
        let begin = ContinuousClock.now
        if ends {
            let opening = Task { await io.perform(.open(file: 1, name: "a")) }
            // Time to find it locked.
            try await Task.sleep(for: .milliseconds(50))
            close(other)
            #expect(await opening.value == .done)
            #expect(ContinuousClock.now - begin >= .milliseconds(50))
        } else {
            let fault = await io.fault(.open(file: 1, name: "a"))
            #expect(fault?.code == .busy && fault?.message.contains("under way") == true)
            #expect(ContinuousClock.now - begin >= .milliseconds(30))
            close(other)
            #expect(await io.perform(.open(file: 1, name: "a")) == .done)
        }
        // And it is locked for others as long as it is open here.
        let third = open("\(directory.path)/a", O_RDONLY | O_CLOEXEC)
        #expect(flock(third, LOCK_SH | LOCK_NB) != 0)
        io.stop()
        #expect(flock(third, LOCK_SH | LOCK_NB) == 0)
        close(third)
    }

    @Test func aMissingDirectoryIsAFault() throws {
        for kind in DiskIOKind.allCases {
            #expect { try kind.open(directory: "/nowhere/at/all") } throws: { error in
                (error as? DiskFault)?.code == .notFound
            }
        }
        #expect(throws: DiskFault.self) { try DiskIOKind.best(directory: "/nowhere/at/all") }
    }

    @Test(arguments: Backend.allCases)
    func noSpaceIsNoticedAndNothingIsLeft(backend: Backend) async throws {
        // A tmpfs with a limit refuses what is longer than all of it, at once.
        var status = statvfs()
        guard mounts().contains(" /dev/shm tmpfs "), statvfs("/dev/shm", &status) == 0,
            status.f_blocks > 0, UInt(status.f_blocks) * status.f_frsize < 1 << 40,
            let directory = try? TemporaryDirectory(in: "/dev/shm")
        else {
            print("skipped: /dev/shm is no tmpfs with a limit, or not ours to write")
            return
        }
        guard let io = try backend.open(directory) else { return }
        let fault = await io.fault(.create(file: 1, name: "a", byteCount: 1 << 40))
        #expect(fault?.code == .noSpace)
        #expect(fault?.message.contains("/a") == true && fault?.message.contains("free") == true)
        #expect(directory.names().isEmpty)
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 4096)) == .done)
        io.stop()
    }

    private func mounts() -> String {
        let descriptor = open("/proc/self/mounts", O_RDONLY)
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        let count = read(descriptor, &bytes, bytes.count)
        return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
    }

    /// `RLIMIT_FSIZE` is the process's, so this runs in another one.
    @Test func aLimitMetHalfwayLeavesNothing() async {
        await #expect(processExitsWith: .success) {
            signal(SIGXFSZ, SIG_IGN)
            var limit = rlimit(rlim_cur: 3 << 20 + 4096, rlim_max: 3 << 20 + 4096)
            setrlimit(__rlimit_resource_t(1), &limit)
            for backend in [Backend.threads, .ring] {
                for allocates in [true, false] {
                    let directory = try TemporaryDirectory()
                    guard let io = try backend.open(directory, allocates: allocates) else {
                        continue
                    }
                    let fault = await io.fault(.create(file: 1, name: "a", byteCount: 8 << 20))
                    try #require(fault?.code == .tooLarge)
                    try #require(directory.names().isEmpty)
                    io.stop()
                }
            }
        }
    }

    /// The system does what the limit allows, and the rest is tried, and refused, where it belongs.
    @Test func aShortTransferGoesOnWhereItEnded() async {
        await #expect(processExitsWith: .success) {
            signal(SIGXFSZ, SIG_IGN)
            var unlimited = rlimit()
            getrlimit(__rlimit_resource_t(1), &unlimited)
            for backend in Backend.allCases {
                let directory = try TemporaryDirectory()
                guard let io = try backend.open(directory) else { continue }
                let blocks = 64
                let memory = DiskMemory(byteCount: blocks * 4096)
                for block in 0..<blocks {
                    memory.blocks(block..<block + 1).bytes
                        .initializeMemory(as: UInt8.self, repeating: UInt8(1 + block))
                }
                let created = await io.perform(
                    .create(file: 1, name: "a", byteCount: memory.buffer.count))
                try #require(created == .done)
                var limit = unlimited
                limit.rlim_cur = 40 * 4096
                setrlimit(__rlimit_resource_t(1), &limit)
                let fault = await io.fault(.write(file: 1, offset: 0, from: [memory.buffer]))
                setrlimit(__rlimit_resource_t(1), &unlimited)
                try #require(fault?.code == .tooLarge)
                let found = DiskMemory(byteCount: memory.buffer.count)
                let read = await io.perform(.read(file: 1, offset: 0, into: [found.buffer]))
                try #require(read == .done)
                try #require(found.blocks(0..<40).equals(memory.contents))
                try #require(found.contents[(40 * 4096)...].allSatisfy { $0 == 0 })
                io.stop()
            }
        }
    }

    @Test func whatNoCorrectProgramAsksForTraps() async throws {
        await #expect(processExitsWith: .failure) {
            let memory = DiskMemory(byteCount: 8192)
            _ = DiskBuffer(address: memory.buffer.address + 512, count: 4096)
        }
        let directory = try TemporaryDirectory()
        await #expect(processExitsWith: .failure) { [path = directory.path as String] in
            let io = try ThreadIO(directory: path)
            let memory = DiskMemory(byteCount: 4096)
            _ = await io.perform(.read(file: 1, offset: 512, into: [memory.buffer]))
        }
        await #expect(processExitsWith: .failure) { [path = directory.path as String] in
            let io = try ThreadIO(directory: path)
            io.stop()
            _ = await io.perform(.sync(file: 1))
        }
    }

    @Test func namesStayInsideTheDirectory() {
        for name in ["", ".", "..", "a/b", "/a", "a\0b", String(repeating: "n", count: 256)] {
            #expect(DiskRequest.Operation.remove(name: name).misuse != nil)
            #expect(DiskRequest.Operation.open(file: 1, name: name).misuse != nil)
        }
        #expect(DiskRequest.Operation.remove(name: "segment-0000000001.kvseg").misuse == nil)
    }
}
