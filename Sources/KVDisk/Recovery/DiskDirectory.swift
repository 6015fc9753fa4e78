package import KVDiskFormat
package import KVTier

/// A segment file as its name and header tell of it.
package struct SegmentFile: Sendable, Hashable {
    /// What can be done with it.
    package enum State: Sendable, Hashable {
        /// Its header is whole; what follows may be of this life.
        case readable(SegmentHeader)
        /// Ours, of a length that segments have, and without anything to read: making it or using
        /// it again was interrupted, or its header is damaged. It can be used again.
        case empty
        /// Ours, of a length that no segment has, and never written: what an interrupted start has
        /// left. ``DiskDirectory/open(_:nowMs:random:)`` removes it.
        case leftover
        /// Not to be written to and not to be removed: somebody else's, of a newer version, cut, or
        /// the device didn't give its header.
        case untouchable
    }

    /// The number in the name; also the number under which it is opened.
    package let number: UInt64
    /// The file's length.
    package let byteCount: Int
    /// What can be done with it.
    package let state: State

    /// The file's name.
    package var name: String { DiskFormat.segmentName(number) }

    /// The header, if it is whole and right.
    package var header: SegmentHeader? {
        if case .readable(let header) = state { return header }
        return nil
    }
}

/// A disk directory as it is found at a start: which disk it is, and the headers of its segments.
///
/// Opening it blocks. The files that it opens (numbers 0 to the highest of a segment) are closed
/// again.
package struct DiskDirectory: Sendable {
    /// The content of `kvasir-disk`.
    package let header: DiskHeader
    /// Whether ``open(_:nowMs:random:)`` has made `kvasir-disk`.
    package let isNew: Bool
    /// The files that are named as segments are, by number. Others are ignored.
    package let segments: [SegmentFile]
    /// What is wrong with headers: a line each that names the file and says what to do, and a last
    /// one that counts what there was no room for.
    package var problems: [String] { problemList.lines }
    /// The highest epoch that a sequence in a header has; 0 without segments.
    package let highestEpoch: UInt64

    let calls: DiskCalls
    let problemList: ProblemList

    /// Bits of a sequence below its epoch.
    package static let epochShift: UInt64 = 40
    /// The last epoch.
    package static let largestEpoch = UInt64.max >> epochShift

    /// Which disk it is.
    package var disk: DiskID { header.disk }

    /// The epoch of the next log: nothing on the disk has a sequence of it or above.
    ///
    /// Where a header can't be read a start may have been missed, so some epochs are skipped.
    package var nextEpoch: UInt64 {
        let isCertain = segments.allSatisfy { $0.header != nil || $0.state == .leftover }
        return highestEpoch + (isCertain ? 1 : Self.epochsSkipped)
    }

    private static let epochsSkipped: UInt64 = 64

    /// Opens a directory for a server, and makes `kvasir-disk` where nothing is so far.
    ///
    /// A `kvasir-disk` that was not written completely is made anew when there are no segments, and
    /// files that never became segments are removed. What is not ours is never written to.
    ///
    /// - Parameters:
    ///   - nowMs: milliseconds since 1970.
    ///   - random: where the identity of a new disk comes from.
    /// - Throws: why the directory can't be used, and what to do.
    package static func open(
        _ io: any DiskIO, nowMs: UInt64, random: inout some RandomNumberGenerator
    ) throws(TierFault) -> DiskDirectory {
        let new = DiskHeader(disk: .random(using: &random), createdMs: nowMs)
        let directory = try open(io, new: new)
        // Far beyond what starts can use up; a log that counts on would repeat sequences.
        if directory.nextEpoch > largestEpoch {
            throw TierFault(
                code: "full",
                message: "the sequences of disk \(directory.disk) are used up; "
                    + "give Kvasir an empty directory")
        }
        return directory
    }

    /// Opens a directory to look at it: nothing is made or changed.
    ///
    /// - Throws: that it is no disk directory, or why it can't be read.
    package static func look(_ io: any DiskIO) throws(TierFault) -> DiskDirectory {
        try open(io, new: nil)
    }

    private static func open(
        _ io: any DiskIO, new: DiskHeader?
    ) throws(TierFault) -> DiskDirectory {
        let (calls, files) = try blaming { () throws(DiskFault) in
            (try DiskCalls(io), try io.list())
        }
        var numbers: [(number: UInt64, byteCount: Int)] = []
        for file in files {
            guard let number = DiskFormat.segmentNumber(ofName: file.name) else { continue }
            numbers.append((number, file.byteCount))
        }
        numbers.sort { $0.number < $1.number }
        let headerFile = DiskHeaderFile(
            calls: calls,
            byteCount: files.first { $0.name == DiskFormat.diskHeaderName }?.byteCount,
            segmentCount: numbers.count)
        let (header, isNew) = try headerFile.read(orMake: new)
        var problems = ProblemList()
        let headers = SegmentHeaders(calls: calls, disk: header.disk)
        var segments: [SegmentFile] = []
        for (number, byteCount) in numbers {
            var (state, problem) = try headers.state(number, byteCount: byteCount)
            if state == .leftover, new != nil {
                problem = headers.remove(number)
                if problem == nil { continue }
                state = .untouchable
            }
            if let problem { problems.add("\(DiskFormat.segmentName(number)): \(problem)") }
            segments.append(SegmentFile(number: number, byteCount: byteCount, state: state))
        }
        let sequences = segments.compactMap { $0.header?.firstSequence }
        return DiskDirectory(
            header: header, isNew: isNew, segments: segments,
            highestEpoch: (sequences.max() ?? 0) >> epochShift, calls: calls,
            problemList: problems)
    }
}

/// Messages, of which only the first ones are kept.
struct ProblemList: Sendable {
    /// Messages that are kept.
    static let most = 100

    private var kept: [String] = []
    private(set) var count = 0

    mutating func add(_ problem: String) {
        count += 1
        if kept.count < Self.most { kept.append(problem) }
    }

    /// What is kept, and how many more there were.
    var lines: [String] {
        let rest = count - kept.count
        return rest == 0 ? kept : kept + ["\(rest) more like these"]
    }
}

/// What `body` gives; its fault as one of a tier.
func blaming<Value>(
    _ body: () throws(DiskFault) -> Value
) throws(TierFault) -> Value {
    do throws(DiskFault) {
        return try body()
    } catch {
        throw TierFault(error)
    }
}
