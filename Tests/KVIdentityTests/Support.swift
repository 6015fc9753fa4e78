import FoundationEssentials
import KVIdentity

/// SplitMix64: small, fast, and the same everywhere. Source: Vigna, <https://prng.di.unimi.it/>.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    mutating func below(_ bound: Int) -> Int {
        Int(truncatingIfNeeded: next() >> 33) % bound
    }

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
