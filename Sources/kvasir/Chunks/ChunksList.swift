import ArgumentParser
import KVClient
import KVIdentity

struct ChunksList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List chunks: where they are, and since when nobody used them.",
        discussion: """
            'memory', 'disk', 'both' and 'on its way' (from disk to memory) say where a chunk is. Looking counts as no use. \
            The last line sums up all that pass the filter, shown or not.
            """)

    @OptionGroup var options: ClientOptions
    @OptionGroup(title: "Which chunks") var filter: ChunkFilterOptions

    @Option(
        help: ArgumentHelp(
            "Show so many at most; 0 for all. (default: 50, with --json all)", valueName: "n"))
    var limit: Int?

    @Flag(help: "Print a line of JSON for each chunk, with whole keys and no sum.")
    var json = false

    func validate() throws {
        if let limit, limit < 0 { throw ValidationError("--limit takes 0 or more, not \(limit)") }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let catalogue = try ChunkCatalogue(client, filter)
        let chunks = try catalogue.chunks()
        let most = limit ?? (json ? 0 : 50)
        let shown = most == 0 ? chunks[...] : chunks.prefix(most)
        if json {
            for chunk in shown {
                try JSONOutput.print(
                    ChunkLine(chunk, space: catalogue.space(of: chunk)), isPretty: false)
            }
            return
        }
        if !shown.isEmpty { print(Self.table(shown, catalogue).text + "\n") }
        print(ChunkTotal.byTier(chunks))
        if shown.count < chunks.count {
            print("\(Format.number(shown.count)) of them are shown; --limit 0 shows all")
        }
    }

    private static func table(
        _ chunks: ArraySlice<ListedChunk>, _ catalogue: ChunkCatalogue
    ) -> TextTable {
        var table = TextTable(
            "key", "space", "root", "chunk", "where", "size", "not used for", "in use")
        table.leftColumns = [0, 1, 2, 4]
        for chunk in chunks {
            table.rows.append([
                String(chunk.key.hex.prefix(12)),
                catalogue.space(of: chunk)?.title ?? "\(chunk.space)",
                String(chunk.root.digest.hex.prefix(8)), "\(chunk.number)", chunk.location.words,
                ByteCount(chunk.byteCount).description, Format.age(chunk.idleMs),
                chunk.isStatic ? "static" : chunk.isPinned ? "yes" : "",
            ])
        }
        return table
    }
}

/// What a program reads of a chunk.
struct ChunkLine: Encodable {
    let key: String
    let parent: String?
    let root: String
    let space: String?
    let spaceHandle: Int
    let modelName: String?
    let number: Int
    let location: String
    let bytes: Int
    let idleMs: Int
    let inUse: Bool
    let isStatic: Bool

    enum CodingKeys: String, CodingKey {
        case key, parent, root, space
        case spaceHandle = "space_handle"
        case modelName = "model_name"
        case number
        case location = "where"
        case bytes
        case idleMs = "idle_ms"
        case inUse = "in_use"
        case isStatic = "static"
    }

    init(_ chunk: ListedChunk, space known: StoredSpace?) {
        key = chunk.key.hex
        parent = chunk.parent?.hex
        root = chunk.root.digest.hex
        space = known?.id
        spaceHandle = chunk.space
        modelName = known?.modelName
        number = chunk.number
        location = chunk.location.name
        bytes = chunk.byteCount
        idleMs = chunk.idleMs
        inUse = chunk.isPinned
        isStatic = chunk.isStatic
    }
}
