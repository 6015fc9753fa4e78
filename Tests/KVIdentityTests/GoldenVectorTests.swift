import KVIdentity
import Testing

@Suite("The golden vectors that Swift and Python share")
struct GoldenVectorTests {
    private let vectors: Vectors

    init() throws {
        vectors = try Vectors.load()
    }

    @Test("spaces have the ids of docs/formats.md")
    func spaces() throws {
        #expect(!vectors.spaces.isEmpty)
        for vector in vectors.spaces {
            let space = try CacheSpace(json: vector.text)
            #expect(space.id.hex == vector.id, "\(vector.name)")
            let again = try CacheSpace(json: space.json)
            #expect(again.id == space.id, "\(vector.name)")
            #expect(again.modelName == space.modelName, "\(vector.name)")
        }
    }

    @Test("spaces that are not valid are refused")
    func refusedSpaces() {
        #expect(!vectors.refusedSpaces.isEmpty)
        for vector in vectors.refusedSpaces {
            #expect(throws: IdentityError.self, "\(vector.why)") {
                try CacheSpace(json: vector.text)
            }
        }
    }

    @Test("roots")
    func roots() throws {
        #expect(!vectors.roots.isEmpty)
        for vector in vectors.roots {
            let space = try #require(Digest(hex: vector.space))
            let root = Root(space: space, adapter: Digest(hex: vector.adapter), salt: vector.salt)
            #expect(root.description == vector.root)
        }
    }

    @Test("chains of chunk keys, and their extras")
    func chains() throws {
        #expect(!vectors.chains.isEmpty)
        for vector in vectors.chains {
            var extra: [Int: Extra] = [:]
            for (chunk, items) in vector.extras.enumerated() where !items.isEmpty {
                let value = Extra(
                    items.map {
                        Extra.Item(kind: $0.kind, identifier: $0.identifier, offset: $0.offset)
                    })
                let hex = value.encoded.map { byte in
                    (byte < 16 ? "0" : "") + String(byte, radix: 16)
                }
                #expect(hex.joined() == vector.extrasEncoded[chunk], "\(vector.name)")
                extra[chunk] = value
            }
            let start = try #require(Digest(hex: vector.parent))
            let keys = ChunkKeys.chain(
                root: Root(start), tokens: vector.tokens, chunkTokens: vector.chunkTokens,
                extra: extra)
            #expect(keys.map(\.hex) == vector.keys, "\(vector.name)")
        }
    }
}
