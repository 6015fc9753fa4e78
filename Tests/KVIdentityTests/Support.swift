import FoundationEssentials
import KVIdentity
import TestRandom

extension SeededGenerator {
    mutating func digest() -> Digest {
        Digest(words: (next(), next(), next(), next()))
    }

    mutating func text(_ maximum: Int, from alphabet: String = "abcXYZ019_/") -> String {
        let letters = Array(alphabet)
        return String((0..<(1 + below(maximum))).map { _ in letters[below(letters.count)] })
    }
}

/// The golden values that Swift and Python both check.
struct Vectors: Decodable {
    struct Space: Decodable {
        let name: String
        let text: String
        let id: String
    }

    struct RefusedSpace: Decodable {
        let why: String
        let text: String
    }

    struct Root: Decodable {
        let space: String
        let adapter: String
        let salt: String
        let root: String
    }

    struct Item: Decodable {
        let kind: String
        let identifier: String
        let offset: Int
    }

    struct Chain: Decodable {
        let name: String
        let parent: String
        let chunkTokens: Int
        let tokens: [UInt32]
        let extras: [[Item]]
        let extrasEncoded: [String]
        let keys: [String]
    }

    let spaces: [Space]
    let refusedSpaces: [RefusedSpace]
    let roots: [Root]
    let chains: [Chain]

    static func load() throws -> Vectors {
        let directory = URL(filePath: #filePath).deletingLastPathComponent()
        let file = directory.appending(path: "Resources/identity-vectors.json")
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(Vectors.self, from: Data(contentsOf: file))
    }
}
