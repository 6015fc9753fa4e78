internal import KVThreads

/// A disk in memory, on virtual time, whose every move follows from a seed.
///
/// Nothing happens by itself: ``step()`` lets the next request complete, and its completion runs
/// inside that call. Requests take times that the seed chooses, so they complete in any order. A
/// write takes its bytes from memory when it completes, and a read fills its buffers with junk when
/// it is submitted and with the bytes when it completes: whoever touches a buffer too early, or
/// changes it too late, will see wrong bytes.
///
/// ``crash()`` gives the disk as it is found afterwards. What a completed sync covers is there: all
/// writes of that file that had completed before the sync was submitted. Of every other write,
/// completed or under way, all, nothing or any of its 512-byte sectors are there. Creations and
/// removals that had not completed may or may not have happened.
///
/// It traps where the user of a disk breaks its rules: a number that is not open, a range that
/// another request under way writes, a file that is read before anything was written to it.
package final class SimulatedIO: DiskIO {
    private let disk: Locked<SimulatedDisk>

    /// Makes an empty disk.
    package convenience init(seed: UInt64, faults: SimulatedFaults = SimulatedFaults()) {
        self.init(SimulatedDisk(seed: seed, faults: faults))
    }

    private init(_ disk: sending SimulatedDisk) {
        self.disk = Locked(disk)
    }

    // MARK: DiskIO

    package var isDirect: Bool { true }

    package func submit(
        _ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void
    ) {
        let submission = Submission(request: request, completion: completion)
        let misuse = disk.withLock { $0.submit(submission) }
        // Printed in optimised builds, too.
        if let misuse { fatalError("request \(request.id) to the simulated disk: \(misuse)") }
    }

    package func list() -> [(name: String, byteCount: Int)] {
        disk.withLock { $0.list() }
    }

    package func stop() {
        while step() {}
        disk.withLock { $0.end = "it was stopped" }
    }

    // MARK: Time

    /// The virtual time, in nanoseconds.
    package var now: UInt64 { disk.withLock { $0.now } }

    /// When the next request completes; nil when none is under way.
    package var nextDue: UInt64? { disk.withLock { $0.nextDue } }

    /// Lets time pass; what comes due until then must have been stepped over.
    package func advance(to time: UInt64) {
        disk.withLock { disk in
            precondition(disk.nextDue.map { $0 >= time } ?? true, "a request completes before")
            disk.now = max(disk.now, time)
        }
    }

    /// Lets the next request complete, or a part of it; false when none is under way.
    @discardableResult
    package func step() -> Bool {
        let (isAny, ended) = disk.withLock { disk in
            let isAny = disk.nextDue != nil
            return (isAny, disk.step())
        }
        if let (completion, outcome) = ended { completion(outcome) }
        return isAny
    }

    // MARK: Trouble

    /// What may go wrong from now on.
    package var faults: SimulatedFaults {
        get { disk.withLock { $0.faults } }
        set { disk.withLock { $0.faults = newValue } }
    }

    /// Turns a bit of a file, wherever its bytes are.
    package func flipBit(of name: String, at offset: Int, bit: Int) {
        disk.withLock { $0.flipBit(of: name, at: offset, bit: bit) }
    }

    /// Ends this disk, and gives what is found after a loss of power.
    ///
    /// Nobody is told of what was under way, and the buffers are free.
    package func crash() -> SimulatedIO {
        SimulatedIO(disk.withLock { $0.crash() })
    }

    // MARK: Looking on

    /// What has happened.
    package var counters: SimulatedCounters { disk.withLock { $0.counters } }

    /// A digest of all completions so far, with their times and outcomes, and of what reads got:
    /// equal for equal histories.
    package var historyHash: UInt64 { disk.withLock { $0.history } }

    /// The bytes that a read of the whole file would get; nil when there is no such file.
    package func contents(of name: String) -> [UInt8]? {
        disk.withLock { $0.contents(of: name) }
    }
}
