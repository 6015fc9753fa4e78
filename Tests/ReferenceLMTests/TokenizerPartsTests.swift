import Foundation
import Testing

@testable import ReferenceLM

@Suite("Normalizers and pre-tokenizers do what Hugging Face's do")
struct TokenizerPartsTests {
    private static func parts() throws -> TokenizerField {
        let file = TokenizerGoldens.resources.appending(path: "parts.json")
        let bytes = [UInt8](try Data(contentsOf: file))
        return try TokenizerField(parsing: bytes, file: "parts.json")
    }

    private static func texts(_ parts: TokenizerField) throws -> [String] {
        let texts = try TokenizerGoldens.texts()
        return try parts.list("texts") { index throws(ModelError) in texts[try index.integer()] }
    }

    @Test("Pre-tokenizers split at the same places")
    func preTokenizers() throws {
        let parts = try Self.parts()
        let texts = try Self.texts(parts)
        let cases = try parts.required("pre_tokenizers").elements()
        #expect(cases.count > 15)
        for part in cases {
            let preTokenizer = try PreTokenizer(try part.required("config"))
            let expected = try part.required("pieces").elements()
            #expect(expected.count == texts.count)
            for (text, pieces) in zip(texts, expected) {
                var split = SplitText(text.utf8Bytes)
                preTokenizer.apply(&split)
                let found = split.pieces.map { Array(split.bytes[$0]) }
                let want = try pieces.elements().map { try $0.bytes() }
                #expect(found == want, "\(part.path) \(preTokenizer): \(text.debugDescription)")
            }
        }
    }

    @Test("Normalizers make the same text")
    func normalizers() throws {
        let parts = try Self.parts()
        let texts = try Self.texts(parts)
        let cases = try parts.required("normalizers").elements()
        #expect(cases.count == 10)
        for part in cases {
            let normalizer = try Normalizer(try part.required("config"))
            let expected = try part.required("normalized").elements()
            #expect(expected.count == texts.count)
            for (text, normalized) in zip(texts, expected) {
                let want = try normalized.bytes()
                let found = normalizer.apply(text).utf8Bytes
                #expect(found == want, "\(part.path) \(normalizer): \(text.debugDescription)")
            }
        }
    }

    @Test("A pattern is rewritten only where a bare white-space class stands")
    func spaceAsSet() {
        let rewritten = [
            #"\s+(?!\S)|[^\s\p{L}]+"#: #"[\s]+(?![\S])|[^\s\p{L}]+"#,
            #"\\s\[\s\]\s"#: #"\\s\[[\s]\][\s]"#,
            #"[a[\s]\s]\s"#: #"[a[\s]\s][\s]"#,
            #"\Q\s\E"#: #"\Q\s\E"#,
            "\\": "\\",
        ]
        for (pattern, want) in rewritten { #expect(SplitPattern.withSpaceAsSet(pattern) == want) }
    }

    @Test("Where the engine runs out of stack, matches are cut and no text is lost")
    func windows() throws {
        let field = TokenizerField(.null, file: "test.json", path: .member(.root, "pattern"))
        let pattern = try SplitPattern("(ab|cd|é)+", field: field)
        for unit in ["ab", "é"] {
            let bytes = (String(repeating: unit, count: 600_000) + " ab cd").utf8Bytes
            let matches = pattern.matches(in: bytes[...])
            #expect(matches.count > 3)
            let long = matches.dropLast(2)
            #expect(long.first?.lowerBound == 0)
            #expect(long.last?.upperBound == bytes.count - 6)
            #expect(zip(long, long.dropFirst()).allSatisfy { $0.upperBound == $1.lowerBound })
            let words = matches.suffix(2).map { String(decoding: bytes[$0], as: UTF8.self) }
            #expect(words == ["ab", "cd"])
        }
    }
}
