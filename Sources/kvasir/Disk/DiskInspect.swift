import ArgumentParser
import Foundation
import KVDisk
import KVDiskFormat
import KVIdentity

struct DiskInspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect",
        abstract: "Show what disk directories hold: their segments, spaces and chunks.",
        discussion: "What is live is judged as a server does at its start. Changes nothing.")

    @Argument(help: "The directories: all of a server together.", completion: .directory)
    var directories: [String]

    @Flag(help: "Print JSON: an object, for several directories an array of them.")
    var json = false

    func run() throws {
        let look = try DiskLook(paths: directories)
        defer { look.close() }
        let reports = DiskReport.all(look)
        if !json {
            print(reports.map(\.text).joined(separator: "\n\n"))
        } else if reports.count == 1 {
            try JSONOutput.print(reports[0])
        } else {
            try JSONOutput.print(reports)
        }
    }
}

/// What `kvasir disk inspect` prints of a directory.
struct DiskReport: Encodable {
    struct Segment: Encodable {
        let number: UInt64
        let state: String
        let bytes: Int
        let entries: Int
        let shards: Int
        let shardBytes: Int
        let liveShards: Int
        let liveBytes: Int
        let epoch: UInt64?

        enum CodingKeys: String, CodingKey {
            case number, state, bytes, entries, shards, epoch
            case shardBytes = "shard_bytes"
            case liveShards = "live_shards"
            case liveBytes = "live_bytes"
        }
    }

    struct Space: Encodable {
        let id: String
        let modelName: String?
        let dtype: String
        let shards: Int
        var chunks = 0
        var bytes = 0

        enum CodingKeys: String, CodingKey {
            case id, dtype, shards, chunks, bytes
            case modelName = "model_name"
        }
    }

    let directory: String
    let disk: String
    let createdMs: UInt64
    let bytes: Int
    let liveBytes: Int
    let segments: [Segment]
    let spaces: [Space]
    let chunks: Int
    /// Of the directory's list; nil where there is none that can be read.
    let staticChunks: Int?
    /// Chunks, or shards, that a start leaves out, by why.
    let leftOut: [String: Int]
    let problems: [String]
    let notes: [String]

    enum CodingKeys: String, CodingKey {
        case directory, disk, bytes, segments, spaces, chunks, problems, notes
        case createdMs = "created_ms"
        case liveBytes = "live_bytes"
        case leftOut = "left_out"
        case staticChunks = "static_chunks"
    }

    /// Of all directories.
    static func all(_ look: DiskLook) -> [DiskReport] {
        let spaces = spaces(look.recovered)
        return look.paths.indices.map { DiskReport(look, $0, spaces[$0]) }
    }

    private init(_ look: DiskLook, _ volume: Int, _ spaces: [Space]) {
        let found = look.recovered.volumes[volume]
        directory = look.paths[volume]
        disk = look.directories[volume].disk.description
        createdMs = look.directories[volume].header.createdMs
        segments = found.summaries.map(Segment.init)
        bytes = segments.reduce(0) { $0 + $1.bytes }
        liveBytes = segments.reduce(0) { $0 + $1.liveBytes }
        self.spaces = spaces
        chunks = found.counts.chunks
        leftOut = Self.leftOut(found.counts)
        if case .list(_, let marks) = look.statics[volume] {
            staticChunks = marks.count
        } else {
            staticChunks = nil
        }
        problems = look.problems(volume)
        notes = look.notes(volume)
    }

    /// By directory the spaces that it has chunks of.
    private static func spaces(_ disks: RecoveredDisks) -> [[Space]] {
        let none = disks.spaces.map { space in
            Space(
                id: space.id.hex, modelName: space.modelName, dtype: space.dtype,
                shards: space.shardCount)
        }
        var spaces = [[Space]](repeating: none, count: disks.volumes.count)
        disks.forEachBatch { batch in
            for chunk in batch.chunks {
                spaces[chunk.volume][chunk.space].chunks += 1
                spaces[chunk.volume][chunk.space].bytes += disks.spaces[chunk.space].chunkBytes
            }
            return true
        }
        return spaces.map { $0.filter { $0.chunks > 0 }.sorted { $0.bytes > $1.bytes } }
    }

    private static func leftOut(_ counts: RecoveryCounts) -> [String: Int] {
        let all = [
            "dropped_chunks": counts.droppedChunks, "expired_chunks": counts.expiredChunks,
            "incomplete_chunks": counts.incompleteChunks,
            "orphaned_chunks": counts.orphanedChunks,
            "superseded_chunks": counts.supersededChunks,
            "superseded_shards": counts.supersededShards,
            "unknown_space_chunks": counts.unknownSpaceChunks,
            "damaged_bodies": counts.damagedBodies, "shards_beyond_limit": counts.beyondLimit,
        ]
        return all.filter { $0.value > 0 }
    }
}

extension DiskReport.Segment {
    init(_ summary: SegmentSummary) {
        number = summary.file.number
        state = summary.stateName
        bytes = summary.file.byteCount
        entries = summary.entryCount
        shards = summary.shardCount
        shardBytes = summary.shardBytes
        liveShards = summary.liveShardCount
        liveBytes = summary.liveBytes
        epoch = summary.file.header.map { $0.firstSequence >> DiskDirectory.epochShift }
    }
}

extension SegmentSummary {
    /// One word for what it is.
    var stateName: String {
        if file.state == .leftover { return "leftover" }
        switch recovered.state {
        case .closed: return "closed"
        case .unfinished, .walked: return "open"
        case .free: return "free"
        case .untouchable: return "alien"
        }
    }
}

// For people.
extension DiskReport {
    /// Segments that are shown one by one.
    private static let mostSegments = 64

    var text: String {
        var lines = [
            "disk \(disk) in \(directory)",
            "\(Format.count(segments.count, "segment")), \(ByteCount(bytes)); "
                + "live: \(Format.count(chunks, "chunk")), \(ByteCount(liveBytes)) "
                + "(\(Self.percent(liveBytes, of: bytes)))",
        ]
        if let staticChunks {
            lines.append("its list has \(Format.count(staticChunks, "static chunk")) of all disks")
        }
        if !segments.isEmpty { lines += ["", segmentTable] }
        if segments.count > Self.mostSegments {
            lines.append("… \(segments.count - Self.mostSegments) more; --json has all")
        }
        if !spaces.isEmpty { lines += ["", spaceTable] }
        if !leftOut.isEmpty {
            lines += ["", "left out at a start:"]
            for (name, count) in leftOut.sorted(by: { $0.key < $1.key }) {
                let what = name.replacingOccurrences(of: "_", with: " ")
                lines.append("  \(Format.number(count)) \(what)")
            }
        }
        if !problems.isEmpty || !notes.isEmpty { lines.append("") }
        lines += problems.map { "problem: \($0)" } + notes.map { "note: \($0)" }
        if segments.contains(where: { $0.state == "open" }) {
            lines += [
                "",
                "If a server is using the directory, the end of an open segment is on the move.",
            ]
        }
        return lines.joined(separator: "\n")
    }

    private var segmentTable: String {
        var table = TextTable("segment", "state", "size", "entries", "shards", "live", "share")
        table.leftColumns = [1]
        for segment in segments.prefix(Self.mostSegments) {
            table.rows.append([
                String(segment.number), segment.state, ByteCount(segment.bytes).description,
                Format.number(segment.entries), Format.number(segment.shards),
                ByteCount(segment.liveBytes).description,
                Self.percent(segment.liveBytes, of: segment.bytes),
            ])
        }
        return table.text
    }

    private var spaceTable: String {
        var table = TextTable("space", "model", "dtype", "shards", "chunks", "bytes")
        table.leftColumns = [0, 1, 2]
        for space in spaces {
            table.rows.append([
                String(space.id.prefix(12)), space.modelName ?? "", space.dtype,
                Format.number(space.shards), Format.number(space.chunks),
                ByteCount(space.bytes).description,
            ])
        }
        return table.text
    }

    private static func percent(_ part: Int, of whole: Int) -> String {
        whole == 0 ? "0 %" : "\(Format.fixed(Double(part) / Double(whole) * 100, 0)) %"
    }
}
