import KVClient
import KVIdentity

/// The chunks of a server that a filter lets through.
struct ChunkCatalogue {
    let client: Client
    let filter: ChunkFilterOptions
    /// All that the server knows, by handle.
    let spaces: [Int: StoredSpace]
    /// Those that the filter names.
    let chosen: [StoredSpace]

    init(_ client: Client, _ filter: ChunkFilterOptions) throws {
        self.client = client
        self.filter = filter
        let all = try StoredSpace.all(of: client)
        spaces = Dictionary(uniqueKeysWithValues: all.map { ($0.handle, $0) })
        chosen = try filter.space.map { try StoredSpace.named($0, among: all) } ?? all
        try tellIfIncomplete()
    }

    /// What passes, prompt by prompt.
    func chunks() throws -> [ListedChunk] { try list(request).filter(passes).sorted(by: precedes) }

    /// All of the chosen spaces that can be matched, whatever else the filter says.
    func allOfChosenSpaces() throws -> [ListedChunk] {
        let handles = Set(chosen.map(\.handle))
        return try list(ChunkFilter(space: onlyHandle))
            .filter { handles.contains($0.space) }.sorted(by: precedes)
    }

    func passes(_ chunk: ListedChunk) -> Bool {
        if let key = filter.key, !chunk.key.hex.hasPrefix(key.lowercased()) { return false }
        if let root = filter.root, !chunk.root.digest.hex.hasPrefix(root.lowercased()) {
            return false
        }
        if filter.space != nil, !chosen.contains(where: { $0.handle == chunk.space }) {
            return false
        }
        if let idle = filter.idle, chunk.idleMs < idle.milliseconds { return false }
        return Self.has(chunk, filter.tier)
    }

    private static func has(_ chunk: ListedChunk, _ tier: ChunkTier?) -> Bool {
        switch tier {
        case .memory: chunk.isInMemory
        case .disk: chunk.isOnDisk
        case .writing: chunk.location == .writing
        case nil: true
        }
    }

    /// The root that the filter names in full.
    var fullRoot: Root? { filter.root.flatMap { Digest(hex: $0) }.map { Root($0) } }

    func space(of chunk: ListedChunk) -> StoredSpace? { spaces[chunk.space] }

    // MARK: Asking

    private var onlyHandle: Int? {
        filter.space != nil && chosen.count == 1 ? chosen[0].handle : nil
    }

    /// As much of the filter as the server can apply.
    private var request: ChunkFilter {
        ChunkFilter(
            space: onlyHandle, root: fullRoot, place: filter.tier?.place,
            idleMs: filter.idle?.milliseconds ?? 0)
    }

    private func list(_ request: ChunkFilter) throws -> [ListedChunk] {
        try asking { () throws(ClientError) in try client.allChunks(request) }
    }

    private func precedes(_ first: ListedChunk, _ second: ListedChunk) -> Bool {
        if first.space != second.space { return first.space < second.space }
        if first.root != second.root { return first.root.digest.hex < second.root.digest.hex }
        if first.number != second.number { return first.number < second.number }
        return first.key.hex < second.key.hex
    }

    private func tellIfIncomplete() throws {
        let values = try asking { () throws(ClientError) in try client.stats() }
        if values.contains(where: { $0.name == "disks_recovering" && $0.value > 0 }) {
            Output.tell("the server still reads what is on disk; the rest is missing here\n")
        }
    }
}

extension ListedChunk {
    var isInMemory: Bool { location == .memory || location == .memoryAndDisk }
    var isOnDisk: Bool { location == .disk || location == .memoryAndDisk || location == .loading }
}

extension Location {
    /// For a person.
    var words: String {
        switch self {
        case .absent: "absent"
        case .memory: "memory"
        case .disk: "disk"
        case .memoryAndDisk: "both"
        case .loading: "on its way"
        case .writing: "being written"
        }
    }

    /// For a program.
    var name: String {
        switch self {
        case .absent: "absent"
        case .memory: "memory"
        case .disk: "disk"
        case .memoryAndDisk: "both"
        case .loading: "loading"
        case .writing: "writing"
        }
    }
}

/// How many chunks, and of what size.
struct ChunkTotal {
    private(set) var count = 0
    private(set) var byteCount = 0

    init(_ chunks: some Sequence<ListedChunk> = []) {
        for chunk in chunks { add(chunk) }
    }

    mutating func add(_ chunk: ListedChunk) {
        count += 1
        byteCount += chunk.byteCount
    }

    var text: String { "\(Format.count(count, "chunk")), \(ByteCount(byteCount))" }

    /// The same with what there is of it in each tier.
    static func byTier(_ chunks: [ListedChunk]) -> String {
        let memory = ChunkTotal(chunks.lazy.filter(\.isInMemory))
        let disk = ChunkTotal(chunks.lazy.filter(\.isOnDisk))
        let loading = chunks.count { $0.location == .loading }
        let writing = chunks.count { $0.location == .writing }
        var parts = ["in memory \(memory.text)", "on disk \(disk.text)"]
        if loading > 0 { parts.append("on their way \(Format.number(loading))") }
        if writing > 0 { parts.append("being written \(Format.number(writing))") }
        return ChunkTotal(chunks).text + " (" + parts.joined(separator: "; ") + ")"
    }
}
