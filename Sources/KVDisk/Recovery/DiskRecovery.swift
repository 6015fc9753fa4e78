internal import KVDiskFormat
internal import KVIdentity
internal import KVTier

/// How far a recovery is.
package struct DiskRecoveryProgress: Sendable, Hashable {
    /// Segment files that are done.
    package var segmentsDone = 0
    /// Segment files.
    package var segmentCount = 0
    /// Bytes of segments that were read, or need not be.
    package var bytesDone = 0
    /// Bytes of all segments.
    package var bytesTotal = 0
}

/// Reads all segments of the directories of a store, its *volumes*, and finds out what of them is
/// valid.
///
/// A chunk's shards are all on one volume, its parent may be on another. A drop is on all of them.
/// A volume that can't be read is left out, the others are read all the same.
///
/// It blocks, so give it a thread of its own; it writes nothing. Of a segment with a footer it reads
/// that; of one without, everything, and compares the checksums of all bodies. A chunk takes about
/// 140 bytes of memory until the result is let go, at the peak twice that.
///
/// What is left out:
/// - entries of a shard of which there is one with a higher sequence;
/// - of the versions of a key (another parent, root, space or place) on one volume all but the one
///   with the highest sequence;
/// - entries with a sequence below the bound that their own volume has of a drop of their key, of
///   the key of an ancestor (wherever that is), of their root or of their space;
/// - of the versions of a key on several volumes all that have another parent, root, space or place
///   than the one that was written last, and of the others all but one valid one: that which was
///   written last, at the same time that of the lower volume;
/// - chunks of which not every shard that the space has is there, with the length that it has
///   there;
/// - chunks that have expired, by the shard with the highest sequence;
/// - chunks of a space without a readable description;
/// - chunks whose parent is left out.
package struct DiskRecovery {
    /// Entries of shards that are taken at most, the newest segments first: 16 Mi. Each volume may
    /// have its part of them.
    package static let mostShards = 16 << 20
    /// Descriptions of spaces that are read at most.
    package static let mostSpaces = 4_096

    private let directories: [DiskDirectory]
    private let wallMs: UInt64
    private let progress: (DiskRecoveryProgress) -> Bool
    private var done = DiskRecoveryProgress()
    /// Of all volumes, one after the other.
    private var segments: [SegmentSummary] = []
    /// By volume: its own among ``segments``.
    private var ranges: [Range<Int>] = []
    private var found: FoundEntries

    /// - Parameters:
    ///   - directories: at most 256; volumes are numbered as they stand there.
    ///   - wallMs: milliseconds since 1970, for what has expired.
    ///   - mostShards: entries of shards that are taken at most.
    ///   - progress: told now and then, from the thread that runs; false ends the recovery.
    package init(
        _ directories: [DiskDirectory], wallMs: UInt64, mostShards: Int = mostShards,
        progress: @escaping (DiskRecoveryProgress) -> Bool = { _ in true }
    ) {
        precondition(
            mostShards >= 0 && mostShards < Int(UInt32.max), "a shard's number has 32 bits")
        precondition(directories.count <= 256, "a volume's number has 8 bits")
        self.directories = directories
        self.wallMs = wallMs
        self.progress = progress
        for directory in directories {
            let first = segments.count
            segments += directory.segments.map { SegmentSummary(file: $0) }
            ranges.append(first..<segments.count)
        }
        found = FoundEntries(
            mostShards: mostShards, problems: directories.map(\.problemList))
    }

    /// Reads and resolves.
    ///
    /// - Returns: what is valid; nil if `progress` has ended it. Faults of the device and damage are
    ///   told in the ``RecoveredVolume/problems``.
    package consuming func run() -> RecoveredDisks? {
        done.segmentCount = segments.count
        done.bytesTotal = segments.reduce(0) { $0 + $1.file.byteCount }
        for volume in directories.indices {
            guard read(volume) else { return nil }
        }
        return RecoveredDisks(found, segments, ranges, wallMs: wallMs)
    }

    /// Reads a volume; false if that was ended.
    private mutating func read(_ volume: Int) -> Bool {
        var reader = SegmentReader(directories[volume].calls)
        // The newest ones first: if not all can be taken, the oldest are left out.
        let order = ranges[volume].sorted {
            let (left, right) = (segments[$0].file, segments[$1].file)
            return (left.header?.firstSequence ?? 0, left.number)
                > (right.header?.firstSequence ?? 0, right.number)
        }
        for place in order {
            if let header = segments[place].file.header {
                guard read(place, header, volume, with: &reader) else { return false }
            }
            done.segmentsDone += 1
            done.bytesDone += segments[place].file.byteCount
            if !progress(done) { return false }
        }
        return true
    }

    /// Reads a segment; false if that was ended.
    private mutating func read(
        _ place: Int, _ header: SegmentHeader, _ volume: Int, with reader: inout SegmentReader
    ) -> Bool {
        let (calls, file) = (directories[volume].calls, segments[place].file)
        do throws(DiskFault) {
            try calls.perform(.open(file: file.number, name: file.name))
        } catch {
            found.volumes[volume].problems.add("\(file.name) is left out: \(error.message)")
            segments[place].isUntouchable = true
            return true
        }
        defer { try? calls.perform(.close(file: file.number)) }
        let (progress, before) = (progress, done)
        let content = reader.read(header) { bytesDone in
            var now = before
            now.bytesDone += bytesDone
            return progress(now)
        }
        guard let content else { return false }
        for problem in content.problems {
            found.volumes[volume].problems.add("\(file.name): \(problem)")
        }
        for note in content.notes { found.volumes[volume].notes.add("\(file.name): \(note)") }
        segments[place].take(content)
        found.add(
            content, of: UInt32(place), file, volume: volume,
            isReadable: !segments[place].isUntouchable
        ) { (entry) throws(DiskFault) in try reader.body(of: entry, file: file.number) }
        return true
    }
}
