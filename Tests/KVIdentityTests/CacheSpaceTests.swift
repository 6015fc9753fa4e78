import KVIdentity
import TestRandom
import Testing

/// Fields of a space as JSON text, to be changed one by one.
private struct SpaceText {
    var fields: [(name: String, value: String)] = [
        ("version", "1"),
        ("model", "\"\(String(repeating: "ab", count: 32))\""),
        ("model_name", "\"Llama\""),
        ("dtype", "\"bfloat16\""),
        ("kind", "\"attention\""),
        ("layers", "32"),
        ("heads", "8"),
        ("head_size", "256"),
        ("order", "\"planes/LBHNC\""),
        ("byte_order", "\"little\""),
        ("block_tokens", "16"),
        ("chunk_tokens", "256"),
        ("stages", "2"),
        ("ranks", "1"),
        ("shard_bytes", "[1024,2048]"),
        ("generation", "\"\""),
    ]

    func with(_ changes: [String: String?]) -> String {
        var fields = fields.filter { changes[$0.name] == nil }.map { ($0.name, $0.value) }
        for (name, value) in changes {
            if let value { fields.append((name, value)) }
        }
        return "{" + fields.map { "\"\($0.0)\":\($0.1)" }.joined(separator: ",") + "}"
    }

    func error(_ changes: [String: String?]) -> IdentityError? {
        do throws(IdentityError) {
            _ = try CacheSpace(json: with(changes))
            return nil
        } catch {
            return error
        }
    }
}

@Suite("Cache spaces")
struct CacheSpaceTests {
    private let text = SpaceText()

    @Test("are read from the JSON of docs/formats.md")
    func reading() throws {
        let space = try CacheSpace(json: text.with([:]))
        #expect(space.modelName == "Llama")
        #expect(space.dtype == "bfloat16")
        #expect(space.kind == .attention)
        #expect(space.headSize == 256)
        #expect(space.shardBytes == [1024, 2048])
        #expect(space.shardCount == 2)
        #expect(space.chunkBytes == 3072)
        #expect(space.shard(stage: 1, rank: 0) == 1)
        #expect(try CacheSpace(json: space.json) == space)
        #expect(try CacheSpace(json: " \n" + text.with([:]) + "\t\r\n") == space)
    }

    @Test("accept each limit and refuse one more")
    func limits() {
        let tokens = CacheSpace.Limits.tokens
        for field in ["layers", "heads", "head_size"] {
            #expect(text.error([field: "1"]) == nil)
            #expect(text.error([field: "9007199254740991"]) == nil)
            #expect(text.error([field: "9007199254740992"])?.field == field)
            #expect(text.error([field: "0"])?.field == field)
        }
        #expect(text.error(["block_tokens": "\(tokens)", "chunk_tokens": "\(tokens)"]) == nil)
        #expect(text.error(["chunk_tokens": "\(tokens + 16)"])?.field == "chunk_tokens")
        #expect(text.error(["block_tokens": "\(tokens + 1)"])?.field == "block_tokens")
        #expect(text.error(["shard_bytes": "[1,4294967296]"]) == nil)
        #expect(text.error(["shard_bytes": "[1,4294967297]"])?.field == "shard_bytes")
        #expect(text.error(["shard_bytes": "[0,1]"])?.field == "shard_bytes")
        #expect(text.error(["dtype": "\"\(String(repeating: "x", count: 64))\""]) == nil)
        #expect(
            text.error(["dtype": "\"\(String(repeating: "x", count: 65))\""])?.field == "dtype")
        #expect(text.error(["order": "\"\(String(repeating: "x", count: 256))\""]) == nil)
        #expect(
            text.error(["order": "\"\(String(repeating: "x", count: 257))\""])?.field == "order")
        #expect(text.error(["model_name": "\"\(String(repeating: "é", count: 128))\""]) == nil)
        #expect(
            text.error(["model_name": "\"\(String(repeating: "é", count: 128))x\""])?.field
                == "model_name")
        let cells = [String](repeating: "1", count: 4097)
        let most = "[\(cells.dropLast().joined(separator: ","))]"
        #expect(text.error(["stages": "64", "ranks": "64", "shard_bytes": most]) == nil)
        let more = "[\(cells.joined(separator: ","))]"
        #expect(
            text.error(["stages": "17", "ranks": "241", "shard_bytes": more])?.code
                == .limitExceeded)
        #expect(
            text.error(["stages": "17", "ranks": "241", "shard_bytes": "[1]"])?.code
                == .limitExceeded)
        let padding = String(repeating: " ", count: CacheSpace.Limits.jsonBytes)
        #expect(throws: IdentityError.self) { try CacheSpace(json: text.with([:]) + padding) }
    }

    @Test(
        "refuse a value that its field does not take, and name the field",
        arguments: [
            ("version", "2", IdentityError.Code.unsupportedVersion),
            ("version", "\"1\"", .wrongType),
            ("version", "1.0", .wrongType),
            ("version", "true", .wrongType),
            ("model", "\"ab\"", .invalidValue),
            ("model", "7", .wrongType),
            ("dtype", "\"\"", .invalidValue),
            ("dtype", "\"b f\"", .invalidValue),
            ("dtype", "\"bflöat\"", .invalidValue),
            ("kind", "\"Attention\"", .invalidValue),
            ("layers", "-1", .invalidValue),
            ("layers", "01", .wrongType),
            ("layers", "1e1", .wrongType),
            ("layers", "-0", .wrongType),
            ("layers", "99999999999999999999", .wrongType),
            ("layers", "null", .wrongType),
            ("layers", "{}", .wrongType),
            ("chunk_tokens", "250", .invalidValue),
            ("byte_order", "\"\"", .invalidValue),
            ("shard_bytes", "[]", .invalidValue),
            ("shard_bytes", "[1]", .invalidValue),
            ("shard_bytes", "[1,2,3]", .invalidValue),
            ("shard_bytes", "[1,\"2\"]", .wrongType),
            ("shard_bytes", "3072", .wrongType),
            ("generation", "\"a\\nb\"", .invalidValue),
            ("chunk_token", "256", .unknownField),
            ("", "256", .unknownField),
        ])
    func values(field: String, value: String, code: IdentityError.Code) {
        let error = text.error([field: value])
        #expect(error?.code == code)
        #expect(error?.field == field)
        #expect(error?.message.contains(field) == true)
    }

    @Test("of latent attention have one head")
    func latentAttention() {
        #expect(text.error(["kind": "\"mla\""])?.field == "heads")
        #expect(text.error(["kind": "\"mla\"", "heads": "1"]) == nil)
    }

    @Test("need every field but the name for people")
    func missing() {
        for (field, _) in text.fields {
            let error = text.error([field: String?.none])
            #expect(error?.code == (field == "model_name" ? nil : .missingField))
        }
    }

    @Test("refuse a field that stands there twice")
    func duplicates() {
        let twice = text.with([:]).dropLast() + ",\"layers\":32}"
        #expect(throws: IdentityError.self) { try CacheSpace(json: String(twice)) }
        let escaped = text.with([:]).dropLast() + ",\"l\\u0061yers\":32}"
        do throws(IdentityError) {
            _ = try CacheSpace(json: String(escaped))
            Issue.record("accepted")
        } catch {
            #expect(error.code == .duplicateField)
        }
    }

    @Test(
        "refuse what is not JSON",
        arguments: [
            "", " ", "{", "}", "[]", "null", "1", "{}x", "{\"a\"}", "{\"a\":}", "{\"a\":1,}",
            "{\"a\":1 \"b\":2}", "{a:1}", "{\"a\":[1,]}", "{\"a\":[1", "{\"a\":[,1]}", "{\"a",
            "{\"a\\", "{\"\\u12", "{\"\\u12g4\":1}", "{\"\\ud800\":1}", "{\"\\ud800\\u0041\":1}",
            "{\"\\udc00\":1}", "{\"\\x\":1}", "{\"a\nb\":1}", "{\"a\":-}", "{\"a\":--1}",
        ])
    func notJSON(text: String) {
        #expect(throws: IdentityError.self) { try CacheSpace(json: text) }
    }

    @Test("refuse strings that are not UTF-8")
    func notUTF8() {
        let bytes = Array(text.with([:]).utf8)
        let place = bytes.firstRange(of: Array("Llama".utf8))?.lowerBound
        var broken = bytes
        broken[place ?? 0] = 0xFF
        #expect(throws: IdentityError.self) { try CacheSpace(json: broken) }
    }

    @Test("read escapes as what they stand for")
    func escapes() throws {
        let name = "\"\\\"\\\\\\/ \\u00e9 \\uD83D\\uDC0D\""
        let space = try CacheSpace(json: text.with(["model_name": name]))
        #expect(space.modelName == "\"\\/ é 🐍")
        #expect(try CacheSpace(json: space.json).modelName == space.modelName)
    }

    @Test("survive any damage to their text without a crash")
    func damage() {
        var random = SeededGenerator(seed: 0x5EED_0003)
        let original = Array(text.with([:]).utf8)
        let interesting = Array("{}[]\",:\\u0019-.e \n\u{0}".utf8) + [0xFF, 0xC3]
        var accepted = 0
        for _ in 0..<5_000 {
            var bytes = original
            for _ in 0..<(1 + random.below(3)) {
                let place = random.below(bytes.count)
                switch random.below(3) {
                case 0: bytes[place] = interesting[random.below(interesting.count)]
                case 1: bytes.insert(interesting[random.below(interesting.count)], at: place)
                default: bytes.removeSubrange(place..<min(bytes.count, place + random.below(9)))
                }
                if bytes.isEmpty { bytes = original }
            }
            accepted += (try? CacheSpace(json: bytes)) == nil ? 0 : 1
        }
        #expect(accepted < 2_500)
    }

    @Test("change their id with any field but the name for people")
    func idCoversEveryField() throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        for _ in 0..<30 {
            let base = try RandomSpace(&random)
            let id = try base.space().id
            var ids: Set<Digest> = [id]
            let changes = RandomSpace.changes
            for change in changes {
                var other = base
                change(&other, &random)
                ids.insert(try other.space().id)
            }
            #expect(ids.count == changes.count + 1, "seed \(seed)")
            var named = base
            named.modelName = "another"
            #expect(try named.space().id == id, "seed \(seed)")
            #expect(try named.space() == base.space(), "seed \(seed)")
        }
    }

    @Test("don't mistake a part of one field for a part of the next")
    func fieldsDoNotRunTogether() throws {
        var random = SeededGenerator(seed: 11)
        var left = try RandomSpace(&random)
        var right = left
        (left.dtype, left.order) = ("ab", "c")
        (right.dtype, right.order) = ("a", "bc")
        #expect(try left.space().id != right.space().id)
        left = right
        (left.stages, left.ranks, left.shardBytes) = (1, 2, [1, 2])
        (right.stages, right.ranks, right.shardBytes) = (2, 1, [1, 2])
        #expect(try left.space().id != right.space().id)
    }
}

/// Fields of a valid space, drawn by chance.
private struct RandomSpace {
    var model: Digest
    var modelName: String?
    var dtype: String
    var kind: CacheSpace.Kind
    var layers: Int
    var heads: Int
    var headSize: Int
    var order: String
    var byteOrder: CacheSpace.ByteOrder
    var blockTokens: Int
    var chunkTokens: Int
    var stages: Int
    var ranks: Int
    var shardBytes: [Int]
    var generation: String

    init(_ random: inout SeededGenerator) throws {
        model = random.digest()
        modelName = random.below(2) == 0 ? nil : random.text(20)
        dtype = random.text(20)
        kind = [.attention, .opaque][random.below(2)]
        layers = 1 + random.below(100)
        heads = 1 + random.below(100)
        headSize = 1 + random.below(1000)
        order = random.text(20)
        byteOrder = [.little, .big][random.below(2)]
        blockTokens = 2 + random.below(64)
        chunkTokens = blockTokens * (1 + random.below(16))
        stages = 1 + random.below(4)
        ranks = 1 + random.below(4)
        shardBytes = []
        for _ in 0..<(stages * ranks) { shardBytes.append(1 + random.below(1 << 30)) }
        generation = random.text(20)
    }

    func space() throws -> CacheSpace {
        try CacheSpace(
            model: model, modelName: modelName, dtype: dtype, kind: kind, layers: layers,
            heads: heads, headSize: headSize, order: order, byteOrder: byteOrder,
            blockTokens: blockTokens, chunkTokens: chunkTokens, stages: stages, ranks: ranks,
            shardBytes: shardBytes, generation: generation)
    }

    typealias Change = @Sendable (inout RandomSpace, inout SeededGenerator) -> Void

    /// One change for each field; every one leaves the space valid.
    static let changes: [Change] = [
        { space, random in
            let bit: UInt64 = 1 << UInt64(random.below(64))
            let words = space.model.words
            space.model = Digest(words: (words.0, words.1 ^ bit, words.2, words.3))
        },
        { space, _ in space.dtype += "x" },
        { space, _ in space.kind = space.kind == .attention ? .opaque : .attention },
        { space, _ in space.layers += 1 },
        { space, _ in space.heads += 1 },
        { space, _ in space.headSize += 1 },
        { space, _ in space.order += "x" },
        { space, _ in space.byteOrder = space.byteOrder == .big ? .little : .big },
        { space, _ in
            space.blockTokens = space.blockTokens == space.chunkTokens ? 1 : space.chunkTokens
        },
        { space, _ in space.chunkTokens += space.blockTokens },
        { space, random in
            space.stages += 1
            for _ in 0..<space.ranks { space.shardBytes.append(1 + random.below(9)) }
        },
        { space, random in
            space.ranks += 1
            for _ in 0..<space.stages { space.shardBytes.append(11 + random.below(9)) }
        },
        { space, random in space.shardBytes[random.below(space.shardBytes.count)] += 1 },
        { space, _ in space.generation += "x" },
    ]
}
