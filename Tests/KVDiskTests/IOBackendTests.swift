import Glibc
import KVThreads
import Testing

@testable import KVDisk

/// Promises that every real disk keeps.
@Suite(.serialized)
struct IOBackendTests {
    @Test(arguments: Backend.allCases)
    func randomRequestsDoWhatPlainArraysDo(backend: Backend) throws {
        let seed = seedOfThisRun()
        print("\(backend): seed \(seed)")
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let inbox = try Inbox()
        var reference = Reference(
            io, seed: seed, submit: { inbox.submit($0, id: $1, to: io) }, wait: inbox.next)
        reference.run(requests: 4000, depth: 48)
        reference.compareAll()
        let names = reference.files.values.map(\.name).sorted()
        #expect(try io.list().map(\.name) == names)
        io.stop()
        #expect(inbox.all().isEmpty, "a completion too many")
        #expect(reference.completions >= 4000)
        #expect(reference.readBytes > 16 << 20)
        #expect(directory.names() == names)
    }

    @Test(arguments: Backend.allCases)
    func filesOutliveTheirBackend(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        let written = DiskMemory(byteCount: 8192, filledWith: 7)
        guard let io = try backend.open(directory) else { return }
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 16384)) == .done)
        #expect(
            await io.perform(.write(file: 1, offset: 4096, from: [written.buffer])) == .done)
        #expect(await io.perform(.sync(file: 1)) == .done)
        io.stop()
        let again = try #require(try backend.open(directory))
        #expect(try again.list().map(\.name) == ["a"])
        #expect(try again.list().map(\.byteCount) == [16384])
        let read = DiskMemory(byteCount: 16384, filledWith: 9)
        #expect(await again.perform(.open(file: 5, name: "a")) == .done)
        #expect(await again.perform(.read(file: 5, offset: 0, into: [read.buffer])) == .done)
        let zeros = [UInt8](repeating: 0, count: 4096)
        #expect(read.contents == zeros + written.contents + zeros)
        #expect(await again.perform(.close(file: 5)) == .done)
        #expect(await again.perform(.remove(name: "a")) == .done)
        #expect(try again.list().isEmpty)
        again.stop()
    }

    @Test(arguments: Backend.allCases)
    func aFileHasRealBlocksWhereTheFileSystemHasNoFallocate(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory, allocates: false) else { return }
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 3 << 20)) == .done)
        var status = stat()
        #expect(stat("\(directory.path)/a", &status) == 0)
        #expect(status.st_size == 3 << 20 && status.st_blocks * 512 >= 3 << 20)
        #expect(status.st_mode & 0o777 == 0o600)
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func moreBuffersThanOneCallTakesAreOneRequest(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let count = 1500
        let memory = DiskMemory(byteCount: count * 2 * 4096)
        // Every other page, so that nothing merges.
        let buffers = (0..<count).map { memory.blocks($0 * 2..<$0 * 2 + 1) }
        for (index, buffer) in buffers.enumerated() {
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: UInt8(index % 251))
        }
        let before = memory.contents
        #expect(
            await io.perform(.create(file: 1, name: "a", byteCount: count * 4096)) == .done)
        #expect(await io.perform(.write(file: 1, offset: 0, from: buffers)) == .done)
        memory.fill(0)
        #expect(
            await io.perform(.read(file: 1, offset: 0, into: buffers.reversed())) == .done)
        #expect(buffers.last!.bytes[0] == 0 && buffers.first!.bytes[0] == UInt8((count - 1) % 251))
        memory.fill(0)
        #expect(await io.perform(.read(file: 1, offset: 0, into: buffers)) == .done)
        #expect(memory.buffer.equals(before))
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func stopWaitsForWhatIsUnderWay(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let inbox = try Inbox()
        let memory = DiskMemory(byteCount: 200 * 4096, filledWith: 3)
        #expect(await io.perform(.create(file: 1, name: "a", byteCount: 200 * 4096)) == .done)
        for index in 0..<200 {
            inbox.submit(
                .write(file: 1, offset: index * 4096, from: [memory.blocks(index..<index + 1)]),
                id: UInt64(index), to: io)
            if index % 50 == 0 { inbox.submit(.sync(file: 1), id: UInt64(1000 + index), to: io) }
        }
        io.stop()
        let ended = inbox.all()
        #expect(ended.count == 204 && Set(ended.map(\.id)).count == 204)
        #expect(ended.allSatisfy { $0.outcome == .done })
        io.stop()
    }

    @Test(arguments: Backend.allCases)
    func manyThreadsMaySubmitAndCompletionsToo(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let (threadCount, roundCount) = (4, 100)
        let memory = DiskMemory(byteCount: threadCount * 2 * 4096)
        #expect(
            await io.perform(.create(file: 1, name: "a", byteCount: threadCount * 4096)) == .done)
        let inbox = try Inbox()
        let threads = (0..<threadCount).map { thread in
            NamedThread("test-submit") {
                let source = memory.blocks(thread * 2..<thread * 2 + 1)
                let target = memory.blocks(thread * 2 + 1..<thread * 2 + 2)
                let ended = OutcomeList()
                let wake = EventBox()
                for round in 0..<roundCount {
                    let byte = UInt8(truncatingIfNeeded: round * threadCount + thread)
                    source.bytes.initializeMemory(as: UInt8.self, repeating: byte)
                    // The read is submitted by the completion of the write.
                    io.submit(
                        DiskRequest(
                            id: 0,
                            operation: .write(file: 1, offset: thread * 4096, from: [source]))
                    ) { outcome in
                        ended.append((0, outcome))
                        io.submit(
                            DiskRequest(
                                id: 1,
                                operation: .read(file: 1, offset: thread * 4096, into: [target]))
                        ) { outcome in
                            ended.append((1, outcome))
                            wake.signal()
                        }
                    }
                    wake.wait()
                    let outcomes = ended.take()
                    let isRight =
                        outcomes.map(\.0) == [0, 1] && outcomes.allSatisfy { $0.1 == .done }
                        && target.equals(source.copy)
                    if !isRight { Issue.record("round \(round) of thread \(thread)") }
                }
                inbox.submit(.sync(file: 1), id: UInt64(thread), to: io)
            }
        }
        for thread in threads { thread.join() }
        for _ in threads { #expect(inbox.next().outcome == .done) }
        io.stop()
    }

    @Test(arguments: [Backend.threadsOne, .ringNarrow])
    func readsOvertakeWaitingWrites(backend: Backend) async throws {
        let directory = try TemporaryDirectory()
        guard let io = try backend.open(directory) else { return }
        let (writeCount, readCount) = (64, 16)
        let memory = DiskMemory(byteCount: (writeCount + readCount) * 4096)
        #expect(
            await io.perform(.create(file: 1, name: "a", byteCount: memory.buffer.count)) == .done)
        // A completion holds up the only thread until all is queued.
        let gate = try EventCounter(isSemaphore: false)
        let inbox = try Inbox()
        io.submit(
            DiskRequest(id: 0, operation: .read(file: 1, offset: 0, into: [memory.blocks(0..<1)]))
        ) { _ in gate.wait() }
        for index in 0..<writeCount {
            inbox.submit(
                .write(file: 1, offset: index * 4096, from: [memory.blocks(index..<index + 1)]),
                id: UInt64(index), to: io)
        }
        for index in writeCount..<writeCount + readCount {
            inbox.submit(
                .read(file: 1, offset: index * 4096, into: [memory.blocks(index..<index + 1)]),
                id: UInt64(index), to: io)
        }
        gate.signal()
        io.stop()
        let order = inbox.all().map(\.id)
        let lastRead = try #require(order.lastIndex { $0 >= writeCount })
        let passed = order[..<lastRead].count { $0 < writeCount }
        #expect(passed <= 8, "\(passed) of \(writeCount) writes ended before the last read")
        // A ring's entries may overtake each other; a single thread keeps the order of turns.
        if !backend.isRing { #expect(passed >= 1, "no write had its turn") }
    }

    @Test func theBestKindWorksAndSaysWhy() async throws {
        let directory = try TemporaryDirectory()
        let choice = try DiskIOKind.best(directory: directory.path)
        print("best: \(choice.kind), direct \(choice.io.isDirect), because \(choice.reason)")
        #expect(await choice.io.perform(.create(file: 1, name: "a", byteCount: 4096)) == .done)
        choice.io.stop()
    }

    @Test func threadsStepInWhereTheKernelRefusesARing() async throws {
        let directory = try TemporaryDirectory()
        let choice = try DiskIOKind.best(directory: directory.path) { (_) throws(DiskFault) in
            throw DiskFault(.unsupported, "use io_uring", because: "a sandbox forbids it")
        }
        #expect(choice.kind == .threads && choice.reason.contains("a sandbox forbids it"))
        #expect(await choice.io.perform(.create(file: 1, name: "a", byteCount: 4096)) == .done)
        choice.io.stop()
    }

    @Test(arguments: DiskIOKind.allCases)
    func aMeasurementLeavesNothingBehind(kind: DiskIOKind) throws {
        let directory = try TemporaryDirectory()
        let io: any DiskIO
        do throws(DiskFault) {
            io = try kind.open(directory: directory.path)
        } catch {
            if error.code != .unsupported { throw error }
            print("skipped: \(error)")
            return
        }
        let measurement = try DiskMeasurement(
            io, requestBytes: 64 << 10, depth: 4, fileBytes: 4 << 20)
        let write = try measurement.write("write")
        let read = try measurement.read("read")
        print(write, read, separator: "\n")
        #expect(write.byteCount == 4 << 20 && read.gigabytesPerSecond > 0)
        try measurement.end()
        io.stop()
        #expect(directory.names().isEmpty)
    }
}
