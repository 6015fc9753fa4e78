import ArgumentParser
import KVClient
import KVIdentity
import KVPolicy

struct ChunksPin: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pin",
        abstract: "Keep chunks, with all that they follow, in memory: for a time, or for good.",
        discussion: """
            Pinned chunks are not evicted, whatever the policy; at most half the memory can be pinned. With --forever they \
            are static: they have no time to live any more, and on a server with a disk they outlive restarts and come to \
            memory by themselves at a start. With --memory-only that lasts until the end of the server.
            """)

    @OptionGroup var options: ClientOptions
    @OptionGroup(title: "Which chunks") var filter: ChunkFilterOptions

    @Option(name: .customLong("for"), help: "Keep them for so long: 90s, 30m, 1h, 2d.")
    var time: Age?

    @Flag(help: "Keep them until they are unpinned or dropped.")
    var forever = false

    func validate() throws {
        try filter.requireStored()
        if (time == nil) != forever {
            throw ValidationError("say for how long: --for 1h, or --forever")
        }
        if let time, time.milliseconds < 1 {
            throw ValidationError("--for takes a millisecond or more, not '\(time)'")
        }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let catalogue = try ChunkCatalogue(client, filter)
        let duration = time.map { PinDuration.milliseconds($0.milliseconds) } ?? .forever
        let count = try ChunkRun.all(catalogue).reduce(0) { sum, run in
            let space = try run.space.space()
            return sum
                + (try asking { () throws(ClientError) in
                    try client.pin(space, root: run.root, keys: run.keys, for: duration)
                })
        }
        print("pinned \(Format.count(count, "chunk"))" + (forever ? " for good" : ""))
    }
}

struct ChunksUnpin: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "unpin",
        abstract: "Take back pins of chunks, those without end too.",
        discussion: """
            What a chunk that stays static follows stays static as well. What was static has no time to live until it gets \
            one.
            """)

    @OptionGroup var options: ClientOptions
    @OptionGroup(title: "Which chunks") var filter: ChunkFilterOptions

    func validate() throws { try filter.requireStored() }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let catalogue = try ChunkCatalogue(client, filter)
        // What comes last in a prompt goes first, because it keeps what it follows.
        let count = try ChunkRun.all(catalogue).reversed().reduce(0) { sum, run in
            let space = try run.space.space()
            return sum
                + (try asking { () throws(ClientError) in
                    try client.unpin(space, root: run.root, keys: run.keys)
                })
        }
        print("unpinned \(Format.count(count, "chunk"))")
    }
}

extension ChunkFilterOptions {
    /// Chunks have to be named, and to be sealed.
    func requireStored() throws {
        if isEmpty {
            throw ValidationError("say which chunks (--space, --root, --key, --idle, --tier)")
        }
        if tier == .writing {
            throw ValidationError("what is being written can't be pinned; pin it once it is sealed")
        }
    }
}

/// Chunks of which each follows the one before it, as commands on keys take them.
struct ChunkRun {
    let space: StoredSpace
    let root: Root
    private(set) var keys: [Digest]

    /// Keys in one command.
    private static let most = 4_096

    /// What passes the filter, in runs; those that others follow come first.
    static func all(_ catalogue: ChunkCatalogue) throws -> [ChunkRun] {
        var runs: [ChunkRun] = []
        var ends: [Digest: Int] = [:]
        // Within a root they come by their place in the prompt.
        for chunk in try catalogue.chunks() {
            guard let space = catalogue.space(of: chunk) else { continue }
            if let parent = chunk.parent, let run = ends.removeValue(forKey: parent),
                runs[run].keys.count < most
            {
                runs[run].keys.append(chunk.key)
                ends[chunk.key] = run
            } else {
                runs.append(ChunkRun(space: space, root: chunk.root, keys: [chunk.key]))
                ends[chunk.key] = runs.count - 1
            }
        }
        return runs
    }
}
