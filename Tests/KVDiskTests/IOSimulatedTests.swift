import Testing

@testable import KVDisk

/// Promises of the simulated disk: what it does is repeatable, it does all that a disk may do, and
/// nothing that a disk may not.
struct IOSimulatedTests {
    /// Lets requests through until one is done.
    private func perform(
        _ operation: DiskRequest.Operation, on disk: SimulatedIO
    ) -> DiskOutcome? {
        let box = OutcomeBox()
        disk.submit(DiskRequest(id: 0, operation: operation)) { box.set($0) }
        while box.value == nil, disk.step() {}
        return box.value
    }

    private func code(_ operation: DiskRequest.Operation, on disk: SimulatedIO) -> DiskFault.Code? {
        if case .failed(let fault)? = perform(operation, on: disk) { return fault.code }
        return nil
    }

    /// A disk with file 1, "a", of 16 KiB.
    private func diskWithFile(
        seed: UInt64, faults: SimulatedFaults = SimulatedFaults()
    ) -> SimulatedIO {
        let disk = SimulatedIO(seed: seed, faults: faults)
        #expect(perform(.create(file: 1, name: "a", byteCount: 16384), on: disk) == .done)
        return disk
    }

    private func reference(
        _ disk: SimulatedIO, seed: UInt64, requests: Int
    ) -> Reference {
        let list = OutcomeList()
        var waiting: [(UInt64, DiskOutcome)] = []
        var reference = Reference(
            disk, seed: seed,
            submit: { operation, id in
                disk.submit(DiskRequest(id: id, operation: operation)) { list.append((id, $0)) }
            },
            wait: {
                while waiting.isEmpty {
                    disk.step()
                    waiting = list.take()
                }
                return waiting.removeFirst()
            })
        reference.run(requests: requests, depth: 48)
        reference.compareAll()
        return reference
    }

    @Test func randomRequestsDoWhatPlainArraysDo() {
        let seed = seedOfThisRun()
        print("simulated: seed \(seed)")
        let disk = SimulatedIO(seed: seed)
        let ended = reference(disk, seed: seed, requests: 3000)
        #expect(ended.completions >= 3000)
        #expect(disk.list().map(\.name) == ended.files.values.map(\.name).sorted())
    }

    @Test func theSameSeedMakesTheSameHistory() {
        func run(seed: UInt64, requests: Int) -> (UInt64, UInt64) {
            var faults = SimulatedFaults()
            faults.shortTransfer = 0.2
            faults.late = 0.01
            let disk = SimulatedIO(seed: seed, faults: faults)
            _ = reference(disk, seed: 1, requests: requests)
            return (disk.historyHash, disk.now)
        }
        #expect(run(seed: 1, requests: 500) == run(seed: 1, requests: 500))
        #expect(run(seed: 1, requests: 500) != run(seed: 2, requests: 500))
    }

    @Test func theSameSeedMakesTheSameCrashes() {
        func run(seed: UInt64) -> (UInt64, SimulatedCounters) {
            var model = CrashModel(seed: seed, faults: Self.allFaults)
            for _ in 0..<3 {
                model.run(requests: 200)
                model.crash()
            }
            return (model.disk.historyHash, model.disk.counters)
        }
        let (first, again, other) = (run(seed: 1), run(seed: 1), run(seed: 2))
        #expect(first == again)
        #expect(first != other)
    }

    /// Faults that say so.
    private static var allFaults: SimulatedFaults {
        var faults = SimulatedFaults()
        faults.writeError = 0.05
        faults.syncError = 0.05
        faults.createError = 0.05
        faults.shortTransfer = 0.1
        faults.late = 0.02
        return faults
    }

    @Test func aCrashLeavesWhatWasSyncedAndOfTheRestAnything() {
        let seed = seedOfThisRun()
        print("crashes: seed \(seed)")
        var total = SimulatedCounters()
        for run in 0..<60 {
            var model = CrashModel(
                seed: seed &+ UInt64(run),
                faults: run % 2 == 0 ? SimulatedFaults() : Self.allFaults)
            for _ in 0..<4 {
                model.run(requests: 150)
                model.crash()
            }
            let counters = model.disk.counters
            #expect(counters.crashes == 4)
            total.writesLost += counters.writesLost
            total.writesKept += counters.writesKept
            total.writesTorn += counters.writesTorn
            total.failures += counters.failures
        }
        print("lost \(total.writesLost), kept \(total.writesKept), torn \(total.writesTorn)")
        #expect(total.writesLost > 50 && total.writesKept > 50 && total.writesTorn > 50)
        #expect(total.failures > 50)
    }

    @Test func aSyncCoversOnlyWhatHadCompletedBeforeIt() {
        var (lost, kept) = (0, 0)
        for seed in UInt64(0)..<200 {
            let disk = diskWithFile(seed: seed)
            let one = DiskMemory(byteCount: 4096, filledWith: 1)
            let two = DiskMemory(byteCount: 4096, filledWith: 2)
            #expect(perform(.write(file: 1, offset: 0, from: [one.buffer]), on: disk) == .done)
            let (sync, write) = (OutcomeBox(), OutcomeBox())
            disk.submit(DiskRequest(id: 1, operation: .sync(file: 1))) { sync.set($0) }
            disk.submit(
                DiskRequest(
                    id: 2, operation: .write(file: 1, offset: 4096, from: [two.buffer]))
            ) { write.set($0) }
            while sync.value == nil { disk.step() }
            let wasWritten = write.value != nil
            let found = disk.crash().contents(of: "a")!
            #expect(found[..<4096].allSatisfy { $0 == 1 }, "seed \(seed)")
            if wasWritten, found[4096..<8192].allSatisfy({ $0 == 0 }) { lost += 1 }
            if wasWritten, found[4096..<8192].allSatisfy({ $0 == 2 }) { kept += 1 }
        }
        #expect(lost > 5 && kept > 5)
    }

    @Test func whatAFailedSyncCoveredNoLaterSyncSaves() {
        var (lost, kept) = (0, 0)
        for seed in UInt64(0)..<100 {
            let disk = diskWithFile(seed: seed)
            let memory = DiskMemory(byteCount: 4096, filledWith: 1)
            #expect(perform(.write(file: 1, offset: 0, from: [memory.buffer]), on: disk) == .done)
            disk.faults.syncError = 1
            #expect(code(.sync(file: 1), on: disk) == .inputOutput)
            disk.faults.syncError = 0
            #expect(perform(.sync(file: 1), on: disk) == .done)
            let found = disk.crash().contents(of: "a")![..<4096]
            if found.allSatisfy({ $0 == 0 }) { lost += 1 }
            if found.allSatisfy({ $0 == 1 }) { kept += 1 }
        }
        #expect(lost > 5 && kept > 5)
    }

    @Test func creationsAndRemovalsUnderWayMayHaveHappened() {
        var lengths: [Int?: Int] = [:]
        var removals: [Bool: Int] = [:]
        for seed in UInt64(0)..<200 {
            let disk = diskWithFile(seed: seed)
            disk.submit(
                DiskRequest(id: 1, operation: .create(file: 2, name: "b", byteCount: 16384))
            ) { _ in Issue.record("a crash answers nobody") }
            disk.submit(DiskRequest(id: 2, operation: .remove(name: "a"))) { _ in
                Issue.record("a crash answers nobody")
            }
            let found = disk.crash().list()
            lengths[found.first { $0.name == "b" }?.byteCount, default: 0] += 1
            removals[!found.contains { $0.name == "a" }, default: 0] += 1
        }
        #expect(lengths[nil]! > 20 && lengths[0]! > 20 && lengths[16384]! > 20)
        #expect(lengths.count > 3, "no length in between")
        #expect(removals[true]! > 20 && removals[false]! > 20)
    }

    @Test func whatIsDoneWithNamesIsDurable() {
        for seed in UInt64(0)..<20 {
            let disk = diskWithFile(seed: seed)
            #expect(perform(.create(file: 2, name: "b", byteCount: 4096), on: disk) == .done)
            #expect(perform(.remove(name: "a"), on: disk) == .done)
            #expect(perform(.remove(name: "a"), on: disk) == .done, "a missing file is fine")
            let found = disk.crash()
            #expect(found.list().map(\.name) == ["b"])
            #expect(found.contents(of: "b") == [UInt8](repeating: 0, count: 4096))
        }
    }

    @Test func aWriteTakesItsBytesWhenItCompletes() {
        let disk = diskWithFile(seed: 1)
        let memory = DiskMemory(byteCount: 4096, filledWith: 1)
        let box = OutcomeBox()
        disk.submit(
            DiskRequest(id: 1, operation: .write(file: 1, offset: 0, from: [memory.buffer]))
        ) { box.set($0) }
        memory.fill(2)
        while disk.step() {}
        #expect(box.value == .done)
        #expect(disk.contents(of: "a")![..<4096].allSatisfy { $0 == 2 })
        memory.fill(3)
        #expect(disk.contents(of: "a")![..<4096].allSatisfy { $0 == 2 })
    }

    @Test func aReadHoldsJunkUntilItCompletes() {
        let disk = diskWithFile(seed: 1)
        let memory = DiskMemory(byteCount: 4096, filledWith: 1)
        #expect(perform(.write(file: 1, offset: 0, from: [memory.buffer]), on: disk) == .done)
        disk.submit(
            DiskRequest(id: 1, operation: .read(file: 1, offset: 0, into: [memory.buffer]))
        ) { _ in }
        #expect(!memory.contents.contains(1))
        while disk.step() {}
        #expect(memory.contents.allSatisfy { $0 == 1 })
    }

    @Test func requestsCompleteInAnyOrderAndTimeOnlyGrows() {
        let disk = diskWithFile(seed: 3)
        let list = OutcomeList()
        let memory = DiskMemory(byteCount: 16384)
        for index in 0..<4 {
            disk.submit(
                DiskRequest(
                    id: UInt64(index),
                    operation: .write(
                        file: 1, offset: index * 4096, from: [memory.blocks(index..<index + 1)]))
            ) { list.append((UInt64(index), $0)) }
        }
        #expect(list.take().isEmpty, "a completion inside submit")
        var last = disk.now
        while let due = disk.nextDue {
            #expect(due >= last)
            disk.advance(to: due)
            disk.step()
            #expect(disk.now == due)
            last = due
        }
        let order = list.take().map(\.0)
        #expect(order.sorted() == [0, 1, 2, 3] && order != order.sorted())
    }

    @Test func everyFaultHappensAndIsTold() {
        let memory = DiskMemory(byteCount: 4096, filledWith: 1)
        let disk = diskWithFile(seed: 1)
        let write = DiskRequest.Operation.write(file: 1, offset: 0, from: [memory.buffer])
        let read = DiskRequest.Operation.read(file: 1, offset: 0, into: [memory.buffer])
        #expect(perform(write, on: disk) == .done)
        disk.faults.readError = 1
        #expect(code(read, on: disk) == .inputOutput)
        disk.faults.readError = 0
        disk.faults.writeError = 1
        #expect(code(write, on: disk) == .inputOutput)
        disk.faults.writeError = 0
        disk.faults.createError = 1
        #expect(code(.create(file: 2, name: "b", byteCount: 4096), on: disk) == .noSpace)
        disk.faults.createError = 0
        disk.faults.isReadOnly = true
        #expect(code(write, on: disk) == .readOnly)
        #expect(code(.create(file: 2, name: "b", byteCount: 4096), on: disk) == .readOnly)
        #expect(code(.remove(name: "a"), on: disk) == .readOnly)
        disk.faults.isReadOnly = false
        disk.faults.capacityBytes = 16384 + 4096
        #expect(code(.create(file: 2, name: "b", byteCount: 8192), on: disk) == .noSpace)
        #expect(perform(.create(file: 2, name: "b", byteCount: 4096), on: disk) == .done)
        #expect(code(.create(file: 3, name: "c", byteCount: 4096), on: disk) == .noSpace)
        #expect(code(.create(file: 3, name: "b", byteCount: 4096), on: disk) == .exists)
        #expect(code(.open(file: 3, name: "c"), on: disk) == .notFound)
        #expect(
            code(.write(file: 1, offset: 16384, from: [memory.buffer]), on: disk) == .endOfFile)
        disk.faults.late = 1
        let before = disk.now
        #expect(perform(write, on: disk) == .done)
        #expect(disk.now - before >= 1_000_000_000)
    }

    @Test func aNumberKeepsARemovedFileAndItsSpaceUntilItIsClosed() {
        let disk = diskWithFile(seed: 1)
        disk.faults.capacityBytes = 16384
        let memory = DiskMemory(byteCount: 4096, filledWith: 1)
        #expect(perform(.remove(name: "a"), on: disk) == .done)
        #expect(perform(.write(file: 1, offset: 0, from: [memory.buffer]), on: disk) == .done)
        #expect(code(.create(file: 2, name: "a", byteCount: 4096), on: disk) == .noSpace)
        #expect(perform(.close(file: 1), on: disk) == .done)
        #expect(perform(.create(file: 2, name: "a", byteCount: 4096), on: disk) == .done)
        #expect(disk.contents(of: "a") == [UInt8](repeating: 0, count: 4096))
    }

    @Test func bitsTurnWithoutAWord() {
        let memory = DiskMemory(byteCount: 4096, filledWith: 0)
        let disk = diskWithFile(seed: 1)
        let write = DiskRequest.Operation.write(file: 1, offset: 0, from: [memory.buffer])
        let read = DiskRequest.Operation.read(file: 1, offset: 0, into: [memory.buffer])
        func bits(_ bytes: [UInt8]) -> Int { bytes.reduce(0) { $0 + $1.nonzeroBitCount } }
        #expect(perform(write, on: disk) == .done)
        disk.faults.flipOnRead = 1
        #expect(perform(read, on: disk) == .done)
        #expect(bits(memory.contents) == 1 && bits(disk.contents(of: "a")!) == 0)
        disk.faults.flipOnRead = 0
        memory.fill(0)
        disk.faults.flipOnWrite = 1
        #expect(perform(write, on: disk) == .done)
        #expect(bits(memory.contents) == 0 && bits(disk.contents(of: "a")!) == 1)
        disk.flipBit(of: "a", at: 16000, bit: 7)
        #expect(disk.contents(of: "a")![16000] == 128)
        #expect(disk.counters.flips == 3)
        #expect(perform(.sync(file: 1), on: disk) == .done)
        #expect(bits(disk.crash().contents(of: "a")!) == 2)
    }

    @Test func whoBreaksARuleIsCaught() async {
        await #expect(processExitsWith: .failure) {
            let disk = SimulatedIO(seed: 1)
            disk.submit(DiskRequest(id: 1, operation: .sync(file: 1))) { _ in }
        }
        await #expect(processExitsWith: .failure) {
            let disk = SimulatedIO(seed: 1)
            _ = disk.crash()
            disk.submit(DiskRequest(id: 1, operation: .remove(name: "a"))) { _ in }
        }
    }

    @Test func theRulesAreTheseOfADisk() {
        var disk = SimulatedDisk(seed: 1, faults: SimulatedFaults())
        let memory = DiskMemory(byteCount: 16384)
        func submit(_ operation: DiskRequest.Operation) -> String? {
            let request = DiskRequest(id: 7, operation: operation)
            return disk.submit(Submission(request: request) { _ in })
        }
        func settle() {
            while let ended = disk.step() { ended.completion(ended.outcome) }
        }
        let (low, high) = (memory.blocks(0..<2), memory.blocks(2..<4))
        #expect(submit(.create(file: 1, name: "a", byteCount: 16384)) == nil)
        #expect(submit(.create(file: 1, name: "b", byteCount: 16384))?.contains("in use") == true)
        #expect(submit(.write(file: 1, offset: 0, from: [low]))?.contains("not open") == true)
        settle()
        #expect(submit(.read(file: 1, offset: 0, into: [low]))?.contains("read before") == true)
        #expect(submit(.write(file: 1, offset: 100, from: [low]))?.contains("multiple") == true)
        #expect(submit(.write(file: 1, offset: 0, from: []))?.contains("without") == true)
        #expect(submit(.write(file: 1, offset: 0, from: [low])) == nil)
        #expect(submit(.write(file: 1, offset: 4096, from: [high]))?.contains("request 7") == true)
        #expect(submit(.close(file: 1))?.contains("under way") == true)
        #expect(submit(.write(file: 1, offset: 8192, from: [low])) == nil, "writes share memory")
        settle()
        #expect(submit(.read(file: 1, offset: 0, into: [low])) == nil)
        #expect(submit(.read(file: 1, offset: 0, into: [high])) == nil, "reads share ranges")
        let other = DiskMemory(byteCount: 4096).buffer
        #expect(submit(.write(file: 1, offset: 4096, from: [other]))?.contains("shares") == true)
        #expect(submit(.write(file: 1, offset: 8192, from: [low]))?.contains("memory") == true)
        settle()
        #expect(submit(.close(file: 1)) == nil)
        #expect(submit(.sync(file: 1))?.contains("not open") == true)
        #expect(submit(.remove(name: "../a"))?.contains("name") == true)
    }

    @Test func stopLetsEverythingComplete() {
        let disk = diskWithFile(seed: 1)
        let list = OutcomeList()
        for id in UInt64(0)..<20 {
            disk.submit(DiskRequest(id: id, operation: .sync(file: 1))) { list.append((id, $0)) }
        }
        disk.stop()
        #expect(list.take().count == 20)
    }
}
