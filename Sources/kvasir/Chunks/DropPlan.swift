import KVClient
import KVIdentity

/// What is to be dropped: whole spaces or roots where the filter says that, else keys.
struct DropPlan {
    /// Keys that have no other one of them before them in their prompt.
    struct Prompt {
        var space: StoredSpace
        var root: Root
        var keys: [Digest]
    }

    private enum Target {
        case spaces([StoredSpace])
        case roots([(space: StoredSpace, root: Root)])
        case keys([Prompt])
    }

    private let client: Client
    private let target: Target
    /// All that will go.
    private let going: [ListedChunk]
    /// How many of them the filter does not name: they follow those that it names.
    private let followerCount: Int

    /// Keys in one command.
    private static let batch = 4_096

    init(_ catalogue: ChunkCatalogue) throws {
        client = catalogue.client
        let all = try catalogue.allOfChosenSpaces()
        let named = all.filter(catalogue.passes)
        let filter = catalogue.filter
        if filter.isFiner {
            let (going, first) = Self.closure(of: named, in: all)
            self.going = going
            followerCount = going.count - named.count
            target = .keys(Self.prompts(first, catalogue))
            return
        }
        going = named
        followerCount = 0
        if filter.root == nil {
            target = .spaces(catalogue.chosen)
        } else {
            target = .roots(Self.roots(named, catalogue))
        }
    }

    /// Whether there is nothing to tell the server.
    var isEmpty: Bool {
        switch target {
        case .spaces(let spaces): spaces.isEmpty
        case .roots(let roots): roots.isEmpty
        case .keys(let prompts): prompts.isEmpty
        }
    }

    func text(isDryRun: Bool) -> String {
        if isEmpty { return "no chunk passes the filter; nothing to drop" }
        var text = isDryRun ? "would go: " : "to be dropped: "
        text += ChunkTotal.byTier(going)
        if followerCount > 0 {
            text += "; \(Format.number(followerCount)) of them only because they follow the others"
        }
        let held = going.count { $0.isPinned }
        if held > 0 { text += "; \(Format.number(held)) of them are in use now" }
        switch target {
        case .spaces(let spaces): return text + "\nall of " + spaces.map(\.title).list
        case .roots(let roots):
            return text + "\nall under "
                + roots.map { "root \($0.root.digest.hex.prefix(8)) of \($0.space.title)" }.list
        case .keys(let prompts): return text + "\nfrom \(Format.count(prompts.count, "root"))"
        }
    }

    /// - Returns: how many chunks went.
    func carryOut() throws -> Int {
        switch target {
        case .spaces(let spaces):
            return try spaces.reduce(0) { count, entry in
                let space = try entry.space()
                return count
                    + (try asking { () throws(ClientError) in try client.drop(space) })
            }
        case .roots(let roots):
            return try roots.reduce(0) { count, entry in
                let space = try entry.space.space()
                return count
                    + (try asking { () throws(ClientError) in
                        try client.drop(space, root: entry.root)
                    })
            }
        case .keys(let prompts): return try prompts.reduce(0) { try $0 + drop($1) }
        }
    }

    private func drop(_ prompt: Prompt) throws -> Int {
        let space = try prompt.space.space()
        var count = 0
        for start in stride(from: 0, to: prompt.keys.count, by: Self.batch) {
            let keys = Array(prompt.keys[start...].prefix(Self.batch))
            count += try asking { () throws(ClientError) in
                try client.drop(space, root: prompt.root, keys: keys)
            }
        }
        return count
    }

    // MARK: Making it

    /// Chunks with all that follow them, and those of the chunks that follow none of the others.
    static func closure(
        of named: [ListedChunk], in all: [ListedChunk]
    ) -> (going: [ListedChunk], first: [ListedChunk]) {
        var goes = Set(named.map(\.key))
        // A chunk comes after its parent here, because its number is greater.
        let byNumber = all.sorted { $0.number < $1.number }
        for chunk in byNumber {
            if let parent = chunk.parent, goes.contains(parent) { goes.insert(chunk.key) }
        }
        let going = all.filter { goes.contains($0.key) }
        let first = named.filter { chunk in chunk.parent.map { !goes.contains($0) } ?? true }
        return (going, first)
    }

    private static func prompts(_ chunks: [ListedChunk], _ catalogue: ChunkCatalogue) -> [Prompt] {
        Dictionary(grouping: chunks, by: \.root).compactMap { root, chunks in
            guard let space = catalogue.space(of: chunks[0]) else { return nil }
            return Prompt(space: space, root: root, keys: chunks.map(\.key))
        }
    }

    private static func roots(
        _ chunks: [ListedChunk], _ catalogue: ChunkCatalogue
    ) -> [(space: StoredSpace, root: Root)] {
        var roots: [Root: StoredSpace] = [:]
        for chunk in chunks { roots[chunk.root] = catalogue.space(of: chunk) }
        // A disk may have what the server has not read yet.
        if let root = catalogue.fullRoot, catalogue.filter.space != nil,
            catalogue.chosen.count == 1
        {
            roots[root] = catalogue.chosen[0]
        }
        return roots.map { ($0.value, $0.key) }
    }
}

extension [String] {
    /// Some of them, and how many more there are.
    fileprivate var list: String {
        let shown = prefix(5).joined(separator: ", ")
        return count > 5 ? "\(shown) and \(count - 5) more" : shown
    }
}
