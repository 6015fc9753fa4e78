internal import KVDiskFormat

/// What a segment says of itself.
struct SegmentContent {
    /// All entries, in their order.
    var entries: [DiskEntry] = []
    /// Places among the entries of those whose body is not what it should be, in order.
    var badBodies: [Int] = []
    /// Where the last group ends.
    var groupsEnd = DiskFormat.segmentHeaderBytes
    /// Whether footer and trailer are there.
    var hasFooter = false
    /// Whether the device gave everything that it was asked for: if not, there may be more entries.
    var isComplete = true
    /// A newer version wrote a part of it: nothing in it may be touched.
    var isNewer = false
    /// What an operator should know.
    var problems: [String] = []
    /// What a crash leaves, and is nothing to worry about.
    var notes: [String] = []
}

/// Reads the entries of segments: from the footer, else group by group.
///
/// Of what has no footer some may never have reached the disk, so each body's checksum is compared.
struct SegmentReader {
    private let calls: DiskCalls
    private var window: FileWindow
    /// For the end of a segment: footer and trailer.
    private var tail = DiskMemory(byteCount: firstTailBytes)

    private static let firstTailBytes = DiskFormat.smallestSegmentBytes

    init(_ calls: DiskCalls) {
        self.calls = calls
        window = FileWindow(calls)
    }

    /// Reads an open segment.
    ///
    /// - Parameter goesOn: told how far a walk is, in bytes of the segment; false ends it.
    /// - Returns: nil if `goesOn` has ended it.
    mutating func read(
        _ header: SegmentHeader, goesOn: (_ bytesDone: Int) -> Bool
    ) -> SegmentContent? {
        var content = SegmentContent()
        do throws(DiskFault) {
            if let footer = try footer(of: header, &content) {
                content.entries = footer.entries
                content.groupsEnd = footer.groupsEnd
                content.hasFooter = true
            }
        } catch {
            // What it would have said is in the groups, too.
            content.problems.append(error.message)
        }
        if content.hasFooter || content.isNewer { return content }
        do throws(DiskFault) {
            return try walk(header, &content, goesOn) ? content : nil
        } catch {
            content.isComplete = false
            content.problems.append(
                "what follows byte \(content.groupsEnd) is left out: \(error.message)")
            return content
        }
    }

    /// The description of a space that an entry of an open segment tells of; nil if its bytes are
    /// not those that were written.
    func body(of entry: DiskEntry, file: UInt64) throws(DiskFault) -> [UInt8]? {
        let memory = DiskMemory(byteCount: entry.paddedBodyBytes)
        try calls.perform(.read(file: file, offset: entry.bodyOffset, into: [memory.buffer]))
        let bytes = UnsafeRawBufferPointer(
            rebasing: UnsafeRawBufferPointer(memory.buffer.bytes)[..<entry.bodyBytes])
        return DiskFormat.checksum(bytes) == entry.bodyChecksum ? [UInt8](bytes) : nil
    }

    // MARK: Footer

    private mutating func footer(
        of header: SegmentHeader, _ content: inout SegmentContent
    ) throws(DiskFault) -> SegmentFooter? {
        // Mostly one read fetches both.
        let guess = min(tail.buffer.count, header.segmentBytes)
        try readTail(guess, of: header)
        var hasTrailer = false
        do throws(DiskFormatError) {
            let trailer = try SegmentTrailer(
                decoding: tailBytes(header.trailerOffset, of: header, guess), in: header)
            hasTrailer = true
            if header.segmentBytes - trailer.footerOffset <= guess {
                return try SegmentFooter(
                    decoding: tailBytes(trailer.footerOffset, of: header, guess),
                    in: header, trailer: trailer)
            }
            // No more than the footer itself, wherever it stands.
            let footer = DiskMemory(byteCount: trailer.footerBytes)
            let read = Result { () throws(DiskFault) in
                try calls.perform(
                    .read(
                        file: header.number, offset: trailer.footerOffset, into: [footer.buffer]))
            }
            if case .failure(let fault) = read {
                content.problems.append(fault.message)
                return nil
            }
            return try SegmentFooter(
                decoding: UnsafeRawBufferPointer(footer.buffer.bytes), in: header,
                trailer: trailer)
        } catch {
            content.isNewer = error.code == .newerVersion
            // Without a trailer of this life the segment was not full yet, and nothing is wrong.
            if hasTrailer || content.isNewer || error.code == .damaged {
                content.problems.append(error.message)
            }
            return nil
        }
    }

    /// Reads the last bytes of a segment, a multiple of 4096.
    private mutating func readTail(
        _ byteCount: Int, of header: SegmentHeader
    ) throws(DiskFault) {
        if byteCount > tail.buffer.count { tail = DiskMemory(byteCount: byteCount) }
        let buffer = DiskBuffer(address: tail.buffer.address, count: byteCount)
        try calls.perform(
            .read(
                file: header.number, offset: header.segmentBytes - byteCount, into: [buffer]))
    }

    /// From `offset` of the segment to its end, where the last `count` bytes have been read.
    private func tailBytes(
        _ offset: Int, of header: SegmentHeader, _ count: Int
    ) -> UnsafeRawBufferPointer {
        let skipped = offset - (header.segmentBytes - count)
        return UnsafeRawBufferPointer(
            start: tail.buffer.address + skipped, count: count - skipped)
    }

    // MARK: Groups

    /// Goes from group to group; false when the caller doesn't go on.
    private mutating func walk(
        _ header: SegmentHeader, _ content: inout SegmentContent, _ goesOn: (Int) -> Bool
    ) throws(DiskFault) -> Bool {
        window.enter(file: header.number, byteCount: header.segmentBytes)
        var scanner = GroupScanner(header)
        var count = DiskFormat.alignment
        while true {
            let offset = scanner.offset
            var bytes = UnsafeRawBufferPointer(start: nil, count: 0)
            if offset < header.segmentBytes { bytes = try window.bytes(at: offset, count: count) }
            switch scanner.next(bytes) {
            case .needs(let byteCount):
                precondition(byteCount > bytes.count, "a group's header lies in its segment")
                count = byteCount
            case .group(let group, let entries):
                count = DiskFormat.alignment
                verify(entries, &content)
                content.groupsEnd = group.end
                if !goesOn(group.end) { return false }
            case .end(let end):
                if case .damaged(let error) = end {
                    content.notes.append(
                        "the log ends at byte \(offset), where a write was not completed or is "
                            + "damaged (\(error.message))")
                }
                return true
            }
        }
    }

    /// A body that the device does not give is as bad as one with other bytes: the others count.
    private mutating func verify(_ entries: [DiskEntry], _ content: inout SegmentContent) {
        for entry in entries {
            if entry.kind.hasBody, !isWhole(entry, &content) {
                content.badBodies.append(content.entries.count)
            }
            content.entries.append(entry)
        }
    }

    private mutating func isWhole(_ entry: DiskEntry, _ content: inout SegmentContent) -> Bool {
        do throws(DiskFault) {
            return try window.checksum(at: entry.bodyOffset, count: entry.bodyBytes)
                == entry.bodyChecksum
        } catch {
            content.problems.append(error.message)
            return false
        }
    }
}
