internal import KVDiskFormat
package import KVIdentity
internal import KVTier

/// Reads every valid shard of some directories and compares it with its checksum.
///
/// It blocks and writes nothing. A server may be using them meanwhile: shards of segments
/// that were used again since the recovery are not counted as bad.
package struct DiskVerification: Sendable {
    /// A shard that is not what was written, or that the device doesn't give.
    package struct BadShard: Sendable, Hashable {
        /// Which directory it is in.
        package let volume: Int
        /// The file's name.
        package let file: String
        /// Where in the file it starts.
        package let offset: Int
        /// Its bytes, without padding.
        package let byteCount: Int
        /// The chunk's key.
        package let key: Digest
        /// Which shard of the chunk.
        package let shard: Int
        /// What is wrong.
        package let reason: String
    }

    /// Bad shards that are told one by one.
    package static let mostBadShards = 100

    /// Shards that were compared.
    package private(set) var shardCount = 0
    /// Bytes of them, without padding.
    package private(set) var byteCount = 0
    /// Bad shards.
    package private(set) var badCount = 0
    /// The first ``mostBadShards`` of them.
    package private(set) var bad: [BadShard] = []
    /// Shards whose segment was used again, or removed, since the recovery.
    package private(set) var goneCount = 0

    private struct Target {
        let volume: Int
        let segment: UInt32
        let page: UInt32
        let shard: UInt32
        let chunk: UInt32
        let checksum: UInt64
        let byteCount: Int
    }

    /// Compares all shards of `disks`, which were recovered from `directories`.
    ///
    /// - Parameter progress: told bytes done and bytes of all; false ends it.
    /// - Returns: nil if `progress` has ended it.
    package init?(
        _ directories: [DiskDirectory], _ disks: RecoveredDisks,
        progress: (_ bytesDone: Int, _ bytesTotal: Int) -> Bool = { _, _ in true }
    ) {
        let targets = Self.targets(disks)
        let total = targets.reduce(0) { $0 + $1.byteCount }
        var windows = directories.map { FileWindow($0.calls) }
        var next = 0
        while next < targets.count {
            let first = targets[next]
            let end =
                targets[next...].firstIndex {
                    $0.volume != first.volume || $0.segment != first.segment
                } ?? targets.count
            let directory = directories[first.volume]
            let file = directory.segments.first { $0.number == UInt64(first.segment) }!
            let goesOn = verify(
                targets[next..<end], in: file, directory, disks, &windows[first.volume]
            ) { [byteCount] done in progress(byteCount + done, total) }
            if !goesOn { return nil }
            next = end
        }
    }

    /// All shards, in the order in which they lie on the disk.
    private static func targets(_ disks: RecoveredDisks) -> [Target] {
        var targets: [Target] = []
        disks.forEachBatch { batch in
            for (index, chunk) in batch.chunks.enumerated() {
                let lengths = disks.spaces[chunk.space].shardBytes
                for (shard, place) in batch.shards(of: index).enumerated() {
                    targets.append(
                        Target(
                            volume: chunk.volume, segment: place.place.segment,
                            page: place.place.page, shard: UInt32(shard),
                            chunk: UInt32(batch.firstNumber + index), checksum: place.checksum,
                            byteCount: lengths[shard]))
                }
            }
            return true
        }
        targets.sort {
            ($0.volume, $0.segment, $0.page) < ($1.volume, $1.segment, $1.page)
        }
        return targets
    }

    /// Compares the shards of one file; false if that was ended.
    private mutating func verify(
        _ targets: ArraySlice<Target>, in file: SegmentFile, _ directory: DiskDirectory,
        _ disks: RecoveredDisks, _ window: inout FileWindow, goesOn: (Int) -> Bool
    ) -> Bool {
        let calls = directory.calls
        do throws(DiskFault) {
            try calls.perform(.open(file: file.number, name: file.name))
        } catch {
            if error.code == .notFound {
                goneCount += targets.count
                return true
            }
            for target in targets { add(target, file, disks, error.message) }
            return true
        }
        defer { try? calls.perform(.close(file: file.number)) }
        window.enter(file: file.number, byteCount: file.byteCount)
        var done = 0
        var problems: [(Target, String)] = []
        for target in targets {
            if let problem = Self.problem(target, &window) { problems.append((target, problem)) }
            done += target.byteCount
            if !goesOn(done) { return false }
        }
        shardCount += targets.count
        byteCount += done
        // Only now: whoever uses the file again writes its header first.
        if !problems.isEmpty, Self.isUsedAgain(file, directory) {
            goneCount += problems.count
        } else {
            for (target, problem) in problems { add(target, file, disks, problem) }
        }
        return true
    }

    private static func problem(_ target: Target, _ window: inout FileWindow) -> String? {
        do throws(DiskFault) {
            let offset = Int(target.page) * DiskFormat.alignment
            let found = try window.checksum(at: offset, count: target.byteCount)
            return found == target.checksum ? nil : "its checksum is wrong"
        } catch {
            return error.message
        }
    }

    private static func isUsedAgain(_ file: SegmentFile, _ directory: DiskDirectory) -> Bool {
        let headers = SegmentHeaders(calls: directory.calls, disk: directory.disk)
        switch headers.reload(file.number, file.byteCount) {
        case .readable(let header): return header.life != file.header?.life
        // It is being written just now.
        case .empty: return true
        case .leftover, .untouchable: return false
        }
    }

    private mutating func add(
        _ target: Target, _ file: SegmentFile, _ disks: RecoveredDisks, _ reason: String
    ) {
        badCount += 1
        if bad.count == Self.mostBadShards { return }
        bad.append(
            BadShard(
                volume: target.volume, file: file.name,
                offset: Int(target.page) * DiskFormat.alignment, byteCount: target.byteCount,
                key: disks.key(of: Int(target.chunk)), shard: Int(target.shard), reason: reason))
    }
}
