import ArgumentParser
import KVClient
import KVIdentity

struct ChunksLocate: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "locate", abstract: "Say where chunks are, or why they are not there.",
        discussion: """
            Takes keys, or the first digits of keys. Why a chunk is absent can only be told for a whole key. The exit \
            status is 1 if one of them is absent.
            """)

    @OptionGroup var options: ClientOptions

    @Argument(help: ArgumentHelp("Keys in hex digits, or how they start.", valueName: "key"))
    var keys: [String]

    @Flag(help: "Print a line of JSON for each.")
    var json = false

    func validate() throws {
        for key in keys { try HexDigits.check(key, "locate") }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let catalogue = try ChunkCatalogue(client, ChunkFilterOptions.parse([]))
        let known = try catalogue.chunks() + Self.beingWritten(client)
        var isAnyAbsent = false
        for key in keys {
            let found = known.filter { $0.key.hex.hasPrefix(key.lowercased()) }
            for chunk in found { try tell(chunk, catalogue) }
            if !found.isEmpty { continue }
            isAnyAbsent = true
            try tellAbsent(key, Self.reason(key, catalogue))
        }
        if isAnyAbsent { throw ExitCode(1) }
    }

    private static func beingWritten(_ client: Client) throws -> [ListedChunk] {
        try asking { () throws(ClientError) in
            try client.allChunks(ChunkFilter(place: .writing))
        }
    }

    private func tell(_ chunk: ListedChunk, _ catalogue: ChunkCatalogue) throws {
        let space = catalogue.space(of: chunk)
        if json { return try JSONOutput.print(ChunkLine(chunk, space: space), isPretty: false) }
        var text = "\(chunk.key.hex)  \(chunk.location.words): "
        text += "chunk \(chunk.number) of root \(chunk.root.digest.hex.prefix(8)), "
        text += "space \(space?.title ?? "\(chunk.space)"), \(ByteCount(chunk.byteCount))"
        if chunk.location != .writing { text += ", not used for \(Format.age(chunk.idleMs))" }
        print(text)
    }

    private func tellAbsent(_ key: String, _ reason: (code: String?, sentence: String)) throws {
        if json {
            return try JSONOutput.print(
                AbsentLine(key: key.lowercased(), code: reason.code, why: reason.sentence),
                isPretty: false)
        }
        print("\(key.lowercased())  absent: \(reason.sentence)")
    }

    /// Why a key is not there. The server remembers that by the key alone, so any space and root do for the question.
    private static func reason(
        _ text: String, _ catalogue: ChunkCatalogue
    ) throws -> (code: String?, sentence: String) {
        guard let key = Digest(hex: text) else {
            return (nil, "no key starts so; give the whole key to learn why it is absent")
        }
        guard let space = try catalogue.chosen.first?.space() else {
            return ("never-stored", "the server has stored nothing yet")
        }
        let answer = try asking { () throws(ClientError) in
            try catalogue.client.explain(space, root: Root(space: space.id), keys: [key])
        }
        if answer.code == "never-stored" {
            return (answer.code, "never stored here, or gone so long ago that it is forgotten")
        }
        // The sentence begins with the place among the keys asked for, which says nothing here.
        let parts = answer.sentence.split(separator: "…) ", maxSplits: 1)
        return (answer.code, "it " + (parts.last.map(String.init) ?? answer.sentence))
    }

    private struct AbsentLine: Encodable {
        let key: String
        let location = "absent"
        let code: String?
        let why: String

        enum CodingKeys: String, CodingKey {
            case key, code, why
            case location = "where"
        }
    }
}
