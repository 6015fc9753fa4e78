import ArgumentParser
import KVClient
import KVIdentity

/// What a chunk has to have a copy in.
enum ChunkTier: String, CaseIterable, ExpressibleByArgument {
    case memory
    case disk
    case writing

    var place: ChunkFilter.Place {
        switch self {
        case .memory: .memory
        case .disk: .disk
        case .writing: .writing
        }
    }
}

/// The options that say which chunks are meant.
struct ChunkFilterOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Of this space: its handle, or the start of its id or of the model's name.",
            valueName: "space"))
    var space: String?

    @Option(help: ArgumentHelp("Under this root: its first hex digits.", valueName: "hex"))
    var root: String?

    @Option(help: ArgumentHelp("With keys that start with these hex digits.", valueName: "hex"))
    var key: String?

    @Option(
        help: ArgumentHelp("Not used for so long: 90s, 30m, 1h, 2d.", valueName: "time"))
    var idle: Age?

    @Option(
        help: ArgumentHelp(
            "With a copy there. What is in memory may be on disk too, and the other way round; "
                + "'writing' is what no writer has finished.",
            valueName: "tier"))
    var tier: ChunkTier?

    func validate() throws {
        for (name, text) in [("--root", root), ("--key", key)] {
            if let text { try HexDigits.check(text, name) }
        }
        if let space, space.isEmpty { throw ValidationError("--space takes a handle or a name") }
    }

    /// Whether everything passes.
    var isEmpty: Bool { space == nil && root == nil && !isFiner }

    /// Whether it asks for anything but a space or a root.
    var isFiner: Bool { key != nil || idle != nil || tier != nil }
}

enum HexDigits {
    static let count = 2 * Digest.byteCount

    static func check(_ text: String, _ name: String) throws {
        if text.isEmpty || text.count > count || !text.allSatisfy(\.isHexDigit) {
            throw ValidationError("\(name) takes 1 to \(count) hexadecimal digits, not '\(text)'")
        }
    }
}
