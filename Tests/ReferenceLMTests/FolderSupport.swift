import FoundationEssentials
import Glibc
import Testing

@testable import ReferenceLM

/// A directory that is removed with this object.
final class TemporaryFolder {
    let path: String

    init() throws {
        var template = Array("/tmp/kvasir-model-XXXXXX".utf8CString)
        let made = try #require(mkdtemp(&template))
        path = String(cString: made)
    }

    deinit {
        do {
            try FileManager.default.removeItem(atPath: path)
        } catch {
            Issue.record("\(path) can't be removed: \(error)")
        }
    }

    func file(_ name: String) -> String { path + "/" + name }

    func write(_ name: String, _ bytes: [UInt8]) throws {
        try Data(bytes).write(to: URL(filePath: file(name)))
    }

    func write(_ name: String, _ text: String) throws {
        try write(name, Array(text.utf8))
    }
}

/// Makes safetensors files by the book, or not.
enum TensorFile {
    /// A file with this header and so much data.
    static func bytes(header: String, data: [UInt8] = []) -> [UInt8] {
        bytes(header: Array(header.utf8), data: data)
    }

    static func bytes(header: [UInt8], data: [UInt8] = []) -> [UInt8] {
        withUnsafeBytes(of: UInt64(header.count).littleEndian) { Array($0) } + header + data
    }

    /// A file of float32 tensors whose elements count up from 0 over the whole file.
    static func counting(_ tensors: [(name: String, shape: [Int])]) -> [UInt8] {
        var fields: [String] = []
        var data: [UInt8] = []
        var element: Float = 0
        for tensor in tensors {
            let begin = data.count
            for _ in 0..<tensor.shape.reduce(1, *) {
                withUnsafeBytes(of: element.bitPattern.littleEndian) { data.append(contentsOf: $0) }
                element += 1
            }
            fields.append(entry(tensor.name, "F32", "\(tensor.shape)", begin, data.count))
        }
        return bytes(header: "{" + fields.joined(separator: ",") + "}", data: data)
    }

    static func entry(_ name: String, _ type: String, _ shape: String, _ begin: Int, _ end: Int)
        -> String
    {
        "\"\(name)\":{\"dtype\":\"\(type)\",\"shape\":\(shape),\"data_offsets\":[\(begin),\(end)]}"
    }
}

extension SafetensorsHeader {
    init(bytes: [UInt8]) throws(ModelError) {
        let result = bytes.withUnsafeBytes { bytes in
            Result { () throws(ModelError) in
                try SafetensorsHeader(parsing: bytes, file: "x.safetensors")
            }
        }
        self = try result.get()
    }
}

/// Expects an error of a kind, whose message says all of this.
func expectError(
    _ code: ModelError.Code, _ parts: [String], sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws(ModelError) -> Void
) {
    do {
        try body()
        Issue.record("nothing was thrown", sourceLocation: sourceLocation)
    } catch {
        #expect(error.code == code, "\(error)", sourceLocation: sourceLocation)
        for part in parts {
            #expect(error.message.contains(part), "lacks: \(part)", sourceLocation: sourceLocation)
        }
        #expect(!error.message.contains("\n"), sourceLocation: sourceLocation)
    }
}

/// A small `config.json`, with fields replaced or removed (by nil).
func configurationText(_ changes: KeyValuePairs<String, String?> = [:]) -> String {
    var fields = [
        "architectures": #"["LlamaForCausalLM"]"#,
        "vocab_size": "100",
        "hidden_size": "64",
        "intermediate_size": "96",
        "num_hidden_layers": "2",
        "num_attention_heads": "8",
        "num_key_value_heads": "2",
        "max_position_embeddings": "2048",
    ]
    for (name, value) in changes { fields[name] = value }
    let lines = fields.sorted { $0.key < $1.key }.map { "\"\($0.key)\": \($0.value)" }
    return "{" + lines.joined(separator: ", ") + "}"
}
