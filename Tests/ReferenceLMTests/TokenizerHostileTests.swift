import Foundation
import Glibc
import Testing

@testable import ReferenceLM

@Suite("Tokenizers and texts that are made to do harm")
struct TokenizerHostileTests {
    private static let bytePair = #""model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}"#

    private static func wordPiece(vocab: String, longestWord: Int = 100) -> String {
        """
        {"model": {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
          "max_input_chars_per_word": \(longestWord), "vocab": {"?": 0, \(vocab)}}}
        """
    }

    private static func split(_ pattern: String) throws -> SplitPattern {
        try SplitPattern(pattern, field: TokenizerField(.null, file: "test.json"))
    }

    private static func refuse(
        _ json: String, _ code: ModelError.Code, _ parts: String...,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectError(code, parts + ["test.json"], sourceLocation: sourceLocation) {
            () throws(ModelError) in
            _ = try Tokenizer(json: Array(json.utf8), name: "test.json")
        }
    }

    /// Far more than it takes, far less than its square would.
    private static func takesSeconds<Result>(
        _ what: String, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Result
    ) rethrows -> Result {
        let start = ContinuousClock.now
        let result = try body()
        let time = ContinuousClock.now - start
        #expect(time < .seconds(20), "\(what)", sourceLocation: sourceLocation)
        return result
    }

    // MARK: - Time

    @Test(
        "A hundred thousand marks on one letter take no more than their number",
        arguments: ["NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"])
    func marks(type: String) throws {
        let tokenizer = try makeTokenizer(
            #"{\#(Self.bytePair), "normalizer": {"type": "\#(type)"}}"#)
        let text = "a" + String(repeating: "\u{301}\u{323}", count: 50_000)
        _ = Self.takesSeconds(type) { tokenizer.encode(text) }
    }

    @Test("Long runs of marks have the normal forms that short ones have")
    func markForms() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        // Such as don't decompose: where some do, Foundation is wrong beyond 64 of them.
        let marks: [Unicode.Scalar] = [
            "\u{301}", "\u{323}", "\u{334}", "\u{313}", "\u{345}", "\u{F71}", "\u{F72}", "\u{3099}",
            "\u{5B0}", "\u{1D165}", "\u{308}",
        ]
        let others: [Unicode.Scalar] = ["a", "é", "\u{30AB}", "\u{FF76}", "\u{1100}", "\u{34F}"]
        for _ in 0..<100 {
            var scalars = String.UnicodeScalarView()
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                scalars.append(others.randomElement(using: &random)!)
                for _ in 0..<Int.random(in: 0...200, using: &random) {
                    scalars.append(marks.randomElement(using: &random)!)
                }
            }
            let text = String(scalars)
            let cases: [(UnicodeForm, String)] = [
                (.canonicalComposition, text.precomposedStringWithCanonicalMapping),
                (.canonicalDecomposition, text.decomposedStringWithCanonicalMapping),
                (.compatibilityComposition, text.precomposedStringWithCompatibilityMapping),
                (.compatibilityDecomposition, text.decomposedStringWithCompatibilityMapping),
            ]
            for (form, want) in cases {
                let isSame = form.apply(text).utf8Bytes == want.utf8Bytes
                #expect(isSame, "seed \(seed), \(form)")
            }
        }
    }

    @Test("Marks that come of decomposition are put in order, too")
    func hiddenMarks() {
        let cases: [(UnicodeForm, String, String)] = [
            (.canonicalDecomposition, "a\u{F73}\u{334}", "a\u{334}\u{F71}\u{F72}"),
            (.canonicalComposition, "a\u{F81}\u{334}\u{301}", "á\u{334}\u{F71}\u{F80}"),
            (.compatibilityDecomposition, "\u{30AB}\u{323}\u{FF9E}", "\u{30AB}\u{3099}\u{323}"),
            (.compatibilityComposition, "\u{FF76}\u{323}\u{FF9E}", "\u{30AC}\u{323}"),
            (.canonicalComposition, "\u{30AB}\u{323}\u{FF9E}", "\u{30AB}\u{323}\u{FF9E}"),
        ]
        for (form, text, want) in cases {
            #expect(form.apply(text).utf8Bytes == want.utf8Bytes, "\(form)")
        }
        for (mark, parts) in [("\u{344}", "\u{308}\u{301}"), ("\u{341}", "\u{301}")] {
            let many = UnicodeForm.canonicalDecomposition.apply(
                "a" + String(repeating: "\(mark)\u{323}", count: 50))
            let want = [
                "a", String(repeating: "\u{323}", count: 50), String(repeating: parts, count: 50),
            ]
            #expect(many.utf8Bytes == want.joined().utf8Bytes)
        }
    }

    @Test("A pattern that takes forever is given up, and no text is lost")
    func patterns() throws {
        let tokenizer = try makeTokenizer(
            """
            {\(Self.bytePair), "pre_tokenizer": {"type": "Split", "behavior": "Isolated",
              "pattern": {"Regex": "(a|aa)+$|b"}}}
            """)
        let text = "b" + String(repeating: "a", count: 60) + "c"
        let ids = Self.takesSeconds("exponential") { tokenizer.encode(text) }
        #expect(ids.count == 60)
        let square = try Self.split("a*b")
        let long = String(repeating: "a", count: 20_000).utf8Bytes
        #expect(Self.takesSeconds("square") { square.matches(in: long[...]) }.isEmpty)
    }

    @Test("Tokens that take white space along look through it once")
    func strips() throws {
        let tokenizer = try makeTokenizer(
            """
            {\(Self.bytePair), "added_tokens": [
              {"id": 1, "content": " ", "normalized": false, "rstrip": true},
              {"id": 2, "content": "\\t", "normalized": false, "lstrip": true}]}
            """)
        let ids = Self.takesSeconds("white space") {
            tokenizer.encode(String(repeating: " \t", count: 50_000) + "a")
        }
        #expect(ids == Array(repeating: [1, 2], count: 50_000).flatMap { $0 } + [0])
    }

    @Test("Words of long tokens take time in proportion to both")
    func words() throws {
        let long = String(repeating: "a", count: 500)
        let tokenizer = try makeTokenizer(
            Self.wordPiece(
                vocab: "\"a\": 1, \"##a\": 2, \"##\(long)b\": 3", longestWord: 1_000_000))
        let ids = Self.takesSeconds("words") {
            tokenizer.encode(String(repeating: "a", count: 5_000) + "b")
        }
        #expect(ids == [1] + Array(repeating: 2, count: 4_499) + [3])
    }

    // MARK: - Limits

    @Test("What would take more than its share of memory or time is refused")
    func limits() throws {
        let long = String(repeating: "a", count: 5_000)
        Self.refuse(
            #"{"model": {"type": "BPE", "vocab": {"\#(long)": 0}, "merges": []}}"#, .tokenizer,
            "`model.vocab[\"aaa", "more than 4096 bytes")
        Self.refuse(
            Self.wordPiece(vocab: "\"\(long.prefix(600))\": 1"), .tokenizer, "more than 512 bytes")
        Self.refuse(
            Self.wordPiece(vocab: "\"a\": 1", longestWord: -1), .tokenizer, "is -1",
            "the longest word is between 0 and")
        Self.refuse(
            #"{\#(Self.bytePair), "added_tokens": [{"id": 1, "content": "\#(long)"}]}"#,
            .tokenizer, "`added_tokens[0]` has more than 512 bytes")

        let steps = Array(repeating: #"{"type": "Lowercase"}"#, count: 33).joined(separator: ",")
        let half = #"{"type": "Sequence", "normalizers": [\#(steps)]}"#
        _ = try makeTokenizer(#"{\#(Self.bytePair), "normalizer": \#(half)}"#)
        Self.refuse(
            """
            {\(Self.bytePair), "normalizer": {"type": "Sequence", "normalizers": [\(half),\(half)]}}
            """, .tokenizer, "has 66 steps; 64 is the most")
    }

    @Test("Bytes are written as characters once: each time would double the text")
    func byteLevels() throws {
        let level = #"{"type": "ByteLevel"}"#
        let inner = #"{"type": "Sequence", "pretokenizers": [\#(level)]}"#
        for steps in ["\(level), \(level)", "\(inner), \(level)", "\(inner), \(inner)"] {
            Self.refuse(
                """
                {\(Self.bytePair), "pre_tokenizer":
                  {"type": "Sequence", "pretokenizers": [\(steps)]}}
                """, .unsupported, "`pre_tokenizer` writes bytes twice")
        }
    }

    @Test("Special tokens around a text have a limit")
    func specialTokens() throws {
        func template(items: Int, ids: Int) -> String {
            let item = #"{"SpecialToken": {"id": "s\n", "type_id": 0}},"#
            return """
                {"type": "TemplateProcessing",
                 "single": [\(String(repeating: item, count: items)) {"Sequence": {"id": "A"}}],
                 "special_tokens": {"s\\n": {"ids": \(Array(repeating: 0, count: ids))}}}
                """
        }
        func file(_ processor: String) -> String {
            "{\(Self.bytePair), \"post_processor\": \(processor)}"
        }
        let most = template(items: 32, ids: 32)
        #expect(try makeTokenizer(file(most)).encode("a").count == 1025)
        Self.refuse(
            file(template(items: 33, ids: 32)), .tokenizer, "single[32]", "more than 1024 special")
        Self.refuse(
            file(#"{"type": "Sequence", "processors": [\#(most), \#(most)]}"#), .tokenizer,
            "processors[1]", "more than 1024 special")
        // The name of the token is data, which a message shows on one line.
        Self.refuse(
            file(most.replacing(#""ids""#, with: #""odd""#)), .tokenizer,
            #"`post_processor.special_tokens["s\n"]` has no `ids`"#)
    }

    @Test("A file that is no regular one is not waited for")
    func namedPipe() throws {
        let folder = try TemporaryFolder()
        let path = folder.file("tokenizer.json")
        try #require(mkfifo(path, 0o600) == 0)
        expectError(.unreadable, [path, "not a regular file"]) { () throws(ModelError) in
            _ = try Tokenizer(path: path)
        }
    }

    // MARK: - What is not left to chance

    @Test("Of two tokens with the same normal form the first is found, each time")
    func sameForm() throws {
        for _ in 0..<20 {
            let tokenizer = try makeTokenizer(
                """
                {\(Self.bytePair), "normalizer": {"type": "Lowercase"}, "added_tokens": [
                  {"id": 5, "content": "FOO"}, {"id": 4, "content": "foo"},
                  {"id": 3, "content": "Foo"}]}
                """)
            #expect(tokenizer.encode("fOo") == [5])
        }
    }

    @Test("Lines end at line feeds alone, for points and anchors")
    func lines() throws {
        for (pattern, text, want) in [
            (".", "a\rb\u{85}c\u{2028}\n", ["a", "\r", "b", "\u{85}", "c", "\u{2028}"]),
            ("^a", "a\na\ra", ["a", "a"]), ("a$", "a\ra\na", ["a", "a"]),
        ] {
            let bytes = text.utf8Bytes
            let found = try Self.split(pattern).matches(in: bytes[...]).map { Array(bytes[$0]) }
            #expect(found == want.map(\.utf8Bytes), "\(pattern)")
        }
    }

    @Test("A member that comes twice is refused")
    func twice() {
        Self.refuse(
            #"{\#(Self.bytePair), \#(Self.bytePair)}"#, .tokenizer,
            "the name \"model\" appears twice")
    }
}
