import KVDiskFormat
import KVIdentity
import KVThreads
import KVTier
import TestDisk

@testable import KVDisk

/// A directory in memory whose requests end at once, with faults where a test wants them.
final class MemoryIO: DiskIO {
    struct State: Sendable {
        var files: [String: [UInt8]]
        var open: [UInt64: String] = [:]
        var reads = 0
        var readBytes = 0
        var isWritten = false
        /// Reads that touch these ranges fail.
        var badRanges: [String: Range<Int>] = [:]
    }

    let state: Locked<State>

    init(_ files: [String: [UInt8]]) { state = Locked(State(files: files)) }

    var files: [String: [UInt8]] { state.withLock { $0.files } }
    var isDirect: Bool { true }

    func list() -> [(name: String, byteCount: Int)] {
        files.map { ($0.key, $0.value.count) }.sorted { $0.0 < $1.0 }
    }

    func stop() {}

    func submit(
        _ request: DiskRequest, completion: @escaping @Sendable (DiskOutcome) -> Void
    ) {
        precondition(request.operation.misuse == nil, "\(request.operation.misuse!)")
        let outcome = state.withLock { state in Self.carryOut(request.operation, &state) }
        completion(outcome)
    }

    private static func carryOut(
        _ operation: DiskRequest.Operation, _ state: inout State
    ) -> DiskOutcome {
        func fault(_ code: DiskFault.Code) -> DiskOutcome { .failed(DiskFault(code, "do that")) }
        switch operation {
        case .read(let file, let offset, let buffers):
            guard let name = state.open[file] else { return fault(.notFound) }
            var position = offset
            for buffer in buffers {
                let range = position..<position + buffer.count
                if range.upperBound > state.files[name]!.count { return fault(.endOfFile) }
                if state.badRanges[name]?.overlaps(range) ?? false { return fault(.inputOutput) }
                state.files[name]!.withUnsafeBytes {
                    buffer.bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[range]))
                }
                position += buffer.count
            }
            state.reads += 1
            state.readBytes += position - offset
        case .write(let file, let offset, let buffers):
            guard let name = state.open[file] else { return fault(.notFound) }
            var position = offset
            for buffer in buffers {
                state.files[name]!.replaceSubrange(
                    position..<position + buffer.count, with: buffer.bytes)
                position += buffer.count
            }
            state.isWritten = true
        case .create(let file, let name, let byteCount):
            if state.files[name] != nil { return fault(.exists) }
            state.files[name] = [UInt8](repeating: 0, count: byteCount)
            state.open[file] = name
            state.isWritten = true
        case .open(let file, let name):
            precondition(state.open[file] == nil, "file number \(file) is in use")
            if state.files[name] == nil { return fault(.notFound) }
            state.open[file] = name
        case .close(let file): state.open[file] = nil
        case .remove(let name):
            state.files[name] = nil
            state.isWritten = true
        case .sync: break
        }
        return .done
    }
}

/// Recovered directories, laid open for comparisons.
struct Recovered {
    let directories: [DiskDirectory]
    let disks: RecoveredDisks
    var chunks: [(chunk: RecoveredChunk, shards: [RecoveredShard])] = []

    init(_ io: any DiskIO, wallMs: UInt64 = 1_000, mostShards: Int = 1 << 20) throws {
        try self.init([io], wallMs: wallMs, mostShards: mostShards)
    }

    init(_ files: [any DiskIO], wallMs: UInt64 = 1_000, mostShards: Int = 1 << 20) throws {
        var random = SystemRandomNumberGenerator()
        var directories: [DiskDirectory] = []
        for io in files {
            directories.append(try DiskDirectory.open(io, nowMs: 1, random: &random))
        }
        self.directories = directories
        disks = DiskRecovery(directories, wallMs: wallMs, mostShards: mostShards).run()!
        disks.forEachBatch(of: 7) { batch in
            precondition(batch.firstNumber == chunks.count)
            for (index, chunk) in batch.chunks.enumerated() {
                chunks.append((chunk, Array(batch.shards(of: index))))
            }
            return true
        }
    }

    /// Of the only one.
    var directory: DiskDirectory { directories[0] }
    var disk: RecoveredVolume { disks.volumes[0] }
    var keys: Set<Digest> { Set(chunks.map(\.chunk.key)) }
    var problems: String {
        disks.volumes.flatMap { $0.problems + $0.notes }.joined(separator: "\n")
    }

    func state(_ segment: UInt64) -> String {
        switch disk.segments.first(where: { $0.number == segment })?.state {
        case .closed: "closed"
        case .unfinished: "unfinished"
        case .walked: "walked"
        case .free: "free"
        case .untouchable: "untouchable"
        case nil: "gone"
        }
    }

    /// What is wrong with what was recovered, seen from what was written; nil if nothing.
    func complaint(_ files: [String: [UInt8]], _ written: [Written]) -> String? {
        complaint([(files, written)])
    }

    func complaint(_ disks: [SampleDisk]) -> String? {
        complaint(disks.map { ($0.files, $0.written) })
    }

    private func complaint(
        _ volumes: [(files: [String: [UInt8]], written: [Written])]
    ) -> String? {
        var number: [Digest: Int] = [:]
        let versions = volumes.map { volume in
            Dictionary(grouping: volume.written.filter { $0.entry.kind == .chunk }) {
                $0.entry.key
            }
        }
        for (index, (chunk, shards)) in chunks.enumerated() {
            if number.updateValue(index, forKey: chunk.key) != nil { return "a key twice" }
            if let parent = chunk.parent {
                if number[parent] == nil || number[parent] != chunk.parentNumber {
                    return "a chunk before its parent"
                }
            } else if chunk.chunkIndex != 0 || chunk.parentNumber != nil {
                return "a chunk without its parent"
            }
            let space = disks.spaces[chunk.space]
            if shards.count != space.shardCount { return "not all shards" }
            for (shard, place) in shards.enumerated() {
                let known = (versions[chunk.volume][chunk.key] ?? []).filter {
                    let entry = $0.entry
                    return entry.shard == shard && entry.root == chunk.root
                        && entry.space == space.id && entry.chunkIndex == chunk.chunkIndex
                        && entry.bodyChecksum == place.checksum
                        && (entry.chunkIndex == 0 ? nil : entry.parent) == chunk.parent
                }
                if known.isEmpty { return "a shard that nobody wrote" }
                guard
                    let file = volumes[chunk.volume].files[
                        SampleDisk.name(UInt64(place.place.segment))]
                else {
                    return "a place in no file"
                }
                let start = Int(place.place.page) * 4096
                let end = start + space.shardBytes[shard]
                if end > file.count { return "a place outside of its file" }
                let bytes = [UInt8](file[start..<end])
                // What the reader would take for right must be right.
                let isTaken = TestDisk.checksum(bytes) == place.checksum
                if isTaken, !known.contains(where: { $0.body == bytes }) { return "wrong bytes" }
            }
        }
        return nil
    }
}
