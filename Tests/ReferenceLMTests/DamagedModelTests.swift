import FoundationEssentials
import Testing

@testable import ReferenceLM

@Suite("Folders whose weights don't make a model")
struct DamagedModelTests {
    /// A copy of a golden model's folder; its weights are in one file.
    private struct Copy {
        let folder: TemporaryFolder
        let configuration: String
        let weights: [UInt8]

        init() throws {
            let golden = GoldenModel(name: "multi-query")
            folder = try TemporaryFolder()
            let path = golden.path
            let text = try Data(contentsOf: URL(filePath: path + "/config.json"))
            configuration = String(decoding: text, as: UTF8.self)
            weights = Array(try Data(contentsOf: URL(filePath: path + "/model.safetensors")))
            try folder.write("config.json", configuration)
            try folder.write("model.safetensors", weights)
        }

        /// Writes the weights with something in their header replaced by as many bytes.
        func replace(_ text: String, by other: String) throws {
            let (old, new) = (Array(text.utf8), Array(other.utf8))
            try #require(old.count == new.count)
            let length = weights.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
            let places = (8..<8 + Int(length) - old.count).filter {
                weights[$0] == old[0] && weights[$0..<$0 + old.count].elementsEqual(old)
            }
            try #require(places.count == 1, "\(text) is in the header \(places.count) times")
            var damaged = weights
            damaged.replaceSubrange(places[0]..<places[0] + old.count, with: new)
            try folder.write("model.safetensors", damaged)
        }

        func load() throws(ModelError) {
            _ = try Model(ModelFolder(path: folder.path), threads: 1)
        }
    }

    /// The parts of a layer that have weights, and which of them have biases.
    private static let names: [String] = {
        var names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
        for layer in 0..<3 {
            let start = "model.layers.\(layer)"
            for name in ["input_layernorm", "post_attention_layernorm"] {
                names.append("\(start).\(name).weight")
            }
            for name in ["q", "k", "v"] {
                names.append("\(start).self_attn.\(name)_proj.weight")
                names.append("\(start).self_attn.\(name)_proj.bias")
            }
            names.append("\(start).self_attn.o_proj.weight")
            for name in ["gate", "up", "down"] { names.append("\(start).mlp.\(name)_proj.weight") }
        }
        return names
    }()

    @Test("are refused for each tensor that is missing, by its name")
    func missing() throws {
        let copy = try Copy()
        try copy.load()
        let present = try ModelFolder(path: copy.folder.path).tensorNames
        #expect(present == Self.names.sorted())
        for name in Self.names {
            try copy.replace("\"\(name)\"", by: "\"\(name.dropLast())_\"")
            expectError(.weights, ["have no tensor \"\(name)\"", copy.folder.path]) {
                () throws(ModelError) in try copy.load()
            }
        }
    }

    @Test(
        "are refused for tensors of another shape",
        arguments: [
            (
                "\"hidden_size\": 128", "\"hidden_size\": 64",
                "model.layers.0.input_layernorm.weight"
            ),
            ("\"vocab_size\": 100", "\"vocab_size\": 99", "model.embed_tokens.weight"),
            ("\"vocab_size\": 100", "\"vocab_size\": 101", "model.embed_tokens.weight"),
            (
                "\"num_attention_heads\": 4", "\"num_attention_heads\": 2",
                "model.layers.0.self_attn.k_proj.weight"
            ),
            (
                "\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2",
                "model.layers.0.self_attn.k_proj.weight"
            ),
            (
                "\"intermediate_size\": 96", "\"intermediate_size\": 97",
                "model.layers.0.mlp.gate_proj.weight"
            ),
            (
                "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4",
                "model.layers.3.input_layernorm.weight"
            ),
        ])
    func otherShape(_ old: String, _ new: String, _ tensor: String) throws {
        let copy = try Copy()
        try #require(copy.configuration.contains(old))
        let changed = copy.configuration.split(separator: old, omittingEmptySubsequences: false)
        try copy.folder.write("config.json", changed.joined(separator: new))
        expectError(.weights, ["\"\(tensor)\"", "expected", "from the same model"]) {
            () throws(ModelError) in try copy.load()
        }
    }

    @Test("are refused for elements of a type that is not read")
    func otherType() throws {
        let copy = try Copy()
        let name = "model.layers.1.mlp.up_proj.weight"
        try copy.replace("\"\(name)\":{\"dtype\":\"F16\"", by: "\"\(name)\":{\"dtype\":\"I16\"")
        expectError(.unsupported, ["\"\(name)\"", "\"I16\"", "expected F32, F16 or BF16"]) {
            () throws(ModelError) in try copy.load()
        }
    }

    @Test("are refused for a file that is cut short")
    func cut() throws {
        let copy = try Copy()
        try copy.folder.write("model.safetensors", Array(copy.weights.dropLast()))
        expectError(.weights, ["model.safetensors", "truncated"]) {
            () throws(ModelError) in try copy.load()
        }
    }

    @Test("are used all the same when they hold more than is needed")
    func more() throws {
        let copy = try Copy()
        // A layer less: the tensors of the last are left alone.
        let changed = copy.configuration.split(separator: "\"num_hidden_layers\": 3")
        try copy.folder.write("config.json", changed.joined(separator: "\"num_hidden_layers\": 2"))
        try copy.load()
    }
}
