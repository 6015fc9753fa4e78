import Foundation
import ReferenceLM

/// The golden files that `python/tools/make_tokenizer_goldens.py` writes.
enum TokenizerGoldens {
    /// The tokenizers with a file of expectations.
    static let names = [
        "gpt2", "roberta", "llama3", "qwen2", "bert-uncased", "bert-cased", "tiny-kjv",
    ]

    struct Texts: Decodable {
        let texts: [String]
    }

    struct Encoding: Decodable {
        /// Index among the texts.
        let text: Int
        let special: Bool
        let ids: [UInt32]
        /// What the ids decode to, without special tokens if there are any; nil when it is the
        /// text itself.
        let decoded: String?
    }

    struct Decoding: Decodable {
        let ids: [UInt32]
        let skip: Bool
        let decoded: String
    }

    struct Expected: Decodable {
        let encodings: [Encoding]
        let decodings: [Decoding]
    }

    private static let tests = URL(filePath: #filePath).deletingLastPathComponent()
    static let resources = tests.appending(path: "Resources/tokenizers")
    static let models = tests.appending(path: "../../models").standardizedFileURL

    static func load<Value: Decodable>(_ type: Value.Type, _ path: String) throws -> Value {
        let data = try Data(contentsOf: resources.appending(path: path))
        return try JSONDecoder().decode(type, from: data)
    }

    static func texts() throws -> [String] { try load(Texts.self, "texts.json").texts }

    static func expected(_ name: String) throws -> Expected {
        try load(Expected.self, "\(name)/expected.json")
    }

    static func tokenizer(_ name: String) throws -> Tokenizer {
        let folder = name == "tiny-kjv" ? models : resources
        return try Tokenizer(path: folder.appending(path: "\(name)/tokenizer.json").path)
    }
}

/// A tokenizer from JSON that a test spells out.
func makeTokenizer(_ json: String) throws -> Tokenizer {
    try Tokenizer(json: Array(json.utf8), name: "test.json")
}

extension StringProtocol {
    /// The UTF-8 bytes. Strings are compared by them: `==` takes a composed and a decomposed
    /// character for the same.
    var utf8Bytes: [UInt8] { Array(utf8) }
}
