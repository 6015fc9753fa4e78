internal import KVDiskFormat
internal import KVTier

/// Reads `kvasir-disk`, or makes it.
struct DiskHeaderFile {
    let calls: DiskCalls
    /// The file's length; nil if there is none.
    let byteCount: Int?
    /// Segments beside it.
    let segmentCount: Int

    /// The number of the file while it is open; segments have 1 and up.
    private static let file: UInt64 = 0
    private static let name = DiskFormat.diskHeaderName

    /// The header, and whether it was made.
    ///
    /// - Parameter new: what to write where there is nothing yet; nil: nothing is written.
    func read(orMake new: DiskHeader?) throws(TierFault) -> (DiskHeader, isNew: Bool) {
        guard let byteCount else {
            guard let new else {
                throw TierFault(
                    code: "not-found",
                    message: "there is no file \(Self.name), so nobody keeps anything there; "
                        + "name the directory of a server's disk tier")
            }
            if segmentCount > 0 {
                throw TierFault(
                    code: "not-found",
                    message: "there are segments, but no file \(Self.name), without which nobody "
                        + "knows whose they are; \(Self.advice)")
            }
            return (try make(new), true)
        }
        let memory = DiskMemory(byteCount: DiskFormat.diskHeaderBytes)
        if byteCount >= DiskFormat.diskHeaderBytes {
            try blaming { () throws(DiskFault) in try load(memory) }
        }
        let bytes = UnsafeRawBufferPointer(
            start: memory.buffer.address, count: min(byteCount, memory.buffer.count))
        do throws(DiskFormatError) {
            return (try DiskHeader(decoding: bytes), false)
        } catch {
            // Ours has its length before anything is in it; a shorter one is somebody else's.
            if segmentCount == 0, (1..<DiskFormat.diskHeaderBytes).contains(byteCount) {
                throw TierFault(
                    code: "foreign",
                    message: "\(Self.name) has \(byteCount) bytes, so Kvasir did not make it; move "
                        + "it away, or give Kvasir a directory of its own")
            }
            let isTorn = error.code == .damaged || error.code == .blank || bytes.startsUnwritten
            if let new, isTorn, segmentCount == 0 {
                try blaming { () throws(DiskFault) in
                    try calls.perform(.remove(name: Self.name))
                }
                return (try make(new), true)
            }
            throw fault(error, isOurs: isTorn)
        }
    }

    private func fault(_ error: DiskFormatError, isOurs: Bool) -> TierFault {
        var message = "\(Self.name): \(error.message)"
        if isOurs {
            // What the format says of other structures, that they are left out, is no help here.
            let what = message.split(separator: ";", maxSplits: 1)[0]
            message = "\(what); \(segmentCount == 0 ? Self.adviceAlone : Self.advice)"
        }
        return TierFault(code: error.code.description, message: message)
    }

    private static let advice =
        "put the file back, or move the segments away and start with an empty directory"
    private static let adviceAlone = "a server that starts there makes it anew"

    private func load(_ memory: DiskMemory) throws(DiskFault) {
        try calls.perform(.open(file: Self.file, name: Self.name))
        let read = Result { () throws(DiskFault) in
            try calls.perform(.read(file: Self.file, offset: 0, into: [memory.buffer]))
        }
        try calls.perform(.close(file: Self.file))
        try read.get()
    }

    private func make(_ header: DiskHeader) throws(TierFault) -> DiskHeader {
        let memory = DiskMemory(byteCount: DiskFormat.diskHeaderBytes)
        header.encode(into: memory.buffer.bytes)
        try blaming { () throws(DiskFault) in
            try calls.perform(
                .create(file: Self.file, name: Self.name, byteCount: memory.buffer.count))
            let written = Result { () throws(DiskFault) in
                try calls.perform(.write(file: Self.file, offset: 0, from: [memory.buffer]))
                try calls.perform(.sync(file: Self.file))
            }
            try calls.perform(.close(file: Self.file))
            try written.get()
        }
        return header
    }
}

/// Reads the headers of segments.
struct SegmentHeaders {
    private let calls: DiskCalls
    private let disk: DiskID
    private let block = DiskMemory(byteCount: DiskFormat.segmentHeaderBytes)

    /// Of the segments of a disk.
    init(calls: DiskCalls, disk: DiskID) {
        self.calls = calls
        self.disk = disk
    }

    /// What can be done with a file, and what an operator should know of it.
    ///
    /// - Throws: that somebody still writes to it. Without it, what was dropped could come back.
    func state(
        _ number: UInt64, byteCount: Int
    ) throws(TierFault) -> (SegmentFile.State, problem: String?) {
        // A place has 32 bits for the segment.
        guard number <= UInt64(UInt32.max) else {
            return (.untouchable, "no server counts that far; it is left alone: move it away")
        }
        if byteCount == 0 { return (.leftover, nil) }
        guard byteCount >= DiskFormat.segmentHeaderBytes else {
            return (.untouchable, Self.misshapen(byteCount))
        }
        do throws(DiskFault) {
            try load(number)
        } catch {
            if error.code == .busy { throw TierFault(error) }
            return (.untouchable, "its header can't be read, so it is left alone: \(error.message)")
        }
        do throws(DiskFormatError) {
            let header = try SegmentHeader(decoding: UnsafeRawBufferPointer(block.buffer.bytes))
            return check(header, number, byteCount: byteCount)
        } catch {
            return state(without: error, byteCount: byteCount)
        }
    }

    /// Removes a file; gives what an operator should know if that fails.
    func remove(_ number: UInt64) -> String? {
        do throws(DiskFault) {
            try calls.perform(.remove(name: DiskFormat.segmentName(number)))
            return nil
        } catch {
            return error.message
        }
    }

    private func state(
        without error: DiskFormatError, byteCount: Int
    ) -> (SegmentFile.State, problem: String?) {
        let lengths = DiskFormat.smallestSegmentBytes...DiskFormat.largestSegmentBytes
        let isAligned = byteCount % DiskFormat.alignment == 0
        let isUnwritten =
            error.code == .blank
            || UnsafeRawBufferPointer(block.buffer.bytes).startsUnwritten
        if !isUnwritten, error.code != .damaged { return (.untouchable, error.message) }
        if isAligned, lengths.contains(byteCount) {
            return (.empty, isUnwritten ? nil : error.message)
        }
        if isAligned, isUnwritten { return (.leftover, nil) }
        return (.untouchable, Self.misshapen(byteCount))
    }

    private func check(
        _ header: SegmentHeader, _ number: UInt64, byteCount: Int
    ) -> (SegmentFile.State, problem: String?) {
        do throws(DiskFormatError) {
            try header.check(disk: disk, number: number, fileBytes: byteCount)
            return (.readable(header), nil)
        } catch {
            if error.code == .foreign { return (.untouchable, error.message) }
            // A copy under another name, or cut: none of that is a work of ours.
            let what = error.message.split(separator: ";", maxSplits: 1)[0]
            return (.untouchable, "\(what); it is left alone: move it away or remove it")
        }
    }

    private static func misshapen(_ byteCount: Int) -> String {
        "has \(byteCount) bytes, which no segment has; it is left alone: move it away or remove it"
    }

    /// Reads the header of a file that is open under its number.
    func reload(_ number: UInt64, _ byteCount: Int) -> SegmentFile.State {
        do throws(DiskFault) {
            try calls.perform(.read(file: number, offset: 0, into: [block.buffer]))
        } catch {
            return .untouchable
        }
        guard
            let header = try? SegmentHeader(
                decoding: UnsafeRawBufferPointer(block.buffer.bytes))
        else { return .empty }
        return check(header, number, byteCount: byteCount).0
    }

    private func load(_ number: UInt64) throws(DiskFault) {
        let name = DiskFormat.segmentName(number)
        try calls.perform(.open(file: number, name: name))
        let read = Result { () throws(DiskFault) in
            try calls.perform(.read(file: number, offset: 0, into: [block.buffer]))
        }
        try calls.perform(.close(file: number))
        try read.get()
    }
}

extension UnsafeRawBufferPointer {
    /// Whether the first sector is zeros: what a device wrote of a first header may lack it. Files
    /// of others do not look like that.
    fileprivate var startsUnwritten: Bool {
        prefix(512).allSatisfy { $0 == 0 }
    }
}
