import KVClient
import KVIdentity

/// A space that the server knows, and what it says of it.
struct StoredSpace {
    let handle: Int
    let id: String
    let modelName: String
    let chunkCount: Int
    let byteCount: Int
    /// Its canonical JSON, which opens it.
    let json: String

    init?(_ fields: [String: String]) {
        guard let handle = fields["handle"].flatMap(Int.init), let id = fields["id"],
            let json = fields["json"]
        else { return nil }
        self.handle = handle
        self.id = id
        self.json = json
        modelName = fields["model_name"] ?? ""
        chunkCount = fields["chunks"].flatMap(Int.init) ?? 0
        byteCount = fields["bytes"].flatMap(Int.init) ?? 0
    }

    /// For a person: enough of the id, and the name.
    var title: String { modelName.isEmpty ? shortID : "\(shortID) \(modelName)" }
    private var shortID: String { String(id.prefix(8)) }

    /// The space as commands that name keys need it.
    func space() throws -> CacheSpace {
        do {
            return try CacheSpace(json: json)
        } catch {
            throw CommandFailure(
                "the server describes the space \(title) in a way that this program doesn't understand "
                    + "(\(error.message)); use the same release of both")
        }
    }

    /// All spaces of a server, by the handle.
    static func all(of client: Client) throws -> [StoredSpace] {
        let answers = try asking { () throws(ClientError) in try client.spaces() }
        let spaces = answers.compactMap(StoredSpace.init)
        if spaces.count != answers.count {
            throw CommandFailure(
                "the server is of another release than this program; restart it so that it runs what is installed"
            )
        }
        return spaces.sorted { $0.handle < $1.handle }
    }

    /// Those that a person means by a handle, the start of an id, or the start of a model's name.
    static func named(_ name: String, among spaces: [StoredSpace]) throws -> [StoredSpace] {
        if let handle = Int(name), let exact = spaces.first(where: { $0.handle == handle }) {
            return [exact]
        }
        let wanted = name.lowercased()
        let found = spaces.filter {
            $0.id.hasPrefix(wanted) || $0.modelName.lowercased().hasPrefix(wanted)
        }
        if !found.isEmpty { return found }
        let known = spaces.map(\.title).joined(separator: ", ")
        throw CommandFailure(
            "no space has the handle \(name), or an id or model name that starts so; "
                + (known.isEmpty ? "the server has none" : "there are: \(known)"))
    }
}
