import ReferenceLM
import Testing

@Suite("Tokenizers that can't be read say why")
struct TokenizerErrorTests {
    /// A file that is refused.
    struct Refusal: Sendable, CustomTestStringConvertible {
        let json: String
        let code: ModelError.Code
        /// What the message must contain.
        let words: [String]

        init(_ json: String, _ code: ModelError.Code, _ words: String...) {
            self.json = json
            self.code = code
            self.words = words
        }

        var testDescription: String { words.joined(separator: " … ") }
    }

    private static let model = #""model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}"#

    /// A whole file around a byte-pair model, to whose members these are added.
    private static func bytePair(_ members: String) -> String {
        #"{"model": {"type": "BPE", \#(members)}}"#
    }

    /// A byte-pair model that is complete without these members.
    private static func complete(_ members: String) -> String {
        bytePair(#""vocab": {"a": 0}, "merges": [], \#(members)"#)
    }

    private static func wordPiece(_ members: String) -> String {
        #"{"model": {"type": "WordPiece", \#(members)}}"#
    }

    /// A whole file with another part.
    private static func part(_ name: String, _ value: String) -> String {
        #"{\#(model), "\#(name)": \#(value)}"#
    }

    private static func check(_ refusal: Refusal) throws {
        let error = #expect(throws: ModelError.self) { try makeTokenizer(refusal.json) }
        let message = error?.message ?? ""
        #expect(error?.code == refusal.code, "\(message)")
        #expect(message.contains("test.json"))
        for word in refusal.words { #expect(message.contains(word), "\(message)") }
    }

    @Test(
        "Damaged files",
        arguments: [
            Refusal("", .tokenizer, "not valid JSON"),
            Refusal("[]", .tokenizer, "holds an array of 0, expected an object"),
            Refusal("{}", .tokenizer, "has no `model`"),
            Refusal(#"{"model": 1}"#, .tokenizer, "`model`", "should be an object"),
            Refusal(#"{"model": {}}"#, .tokenizer, "has no `type`"),
            Refusal(#"{"model": {"type": 1}}"#, .tokenizer, "`model.type`", "a string"),
        ])
    func damaged(refusal: Refusal) throws { try Self.check(refusal) }

    @Test(
        "Vocabularies",
        arguments: [
            Refusal(bytePair(#""merges": []"#), .tokenizer, "has no `vocab`"),
            Refusal(bytePair(#""vocab": {}, "merges": []"#), .tokenizer, "is empty"),
            Refusal(bytePair(#""vocab": [], "merges": []"#), .tokenizer, "should be an object"),
            Refusal(
                bytePair(#""vocab": {"a": "0"}, "merges": []"#), .tokenizer, "vocab[\"a\"]",
                "whole number"),
            Refusal(
                bytePair(#""vocab": {"a": -1}, "merges": []"#), .tokenizer, "is -1", "between"),
            Refusal(
                bytePair(#""vocab": {"a": 4194304}, "merges": []"#), .tokenizer, "4194303"),
            Refusal(
                bytePair(#""vocab": {"a": 0.5}, "merges": []"#), .tokenizer, "whole number"),
            Refusal(
                bytePair(#""vocab": {"a": 0, "b": 0}, "merges": []"#), .tokenizer,
                "the id 0 to two tokens"),
            Refusal(
                bytePair(#""vocab": {"a": 0, "a": 1}, "merges": []"#), .tokenizer,
                "\"a\" appears twice"),
        ])
    func vocabularies(refusal: Refusal) throws { try Self.check(refusal) }

    @Test(
        "Merges",
        arguments: [
            Refusal(bytePair(#""vocab": {"a": 0}"#), .tokenizer, "has no `merges`"),
            Refusal(
                bytePair(#""vocab": {"a": 0}, "merges": ["a b"]"#), .tokenizer, "\"a b\"",
                "not in the vocabulary"),
            Refusal(
                bytePair(#""vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]"#), .tokenizer,
                "not in the vocabulary"),
            Refusal(
                bytePair(#""vocab": {"a": 0}, "merges": ["a a a"]"#), .tokenizer, "pair of tokens"),
            Refusal(bytePair(#""vocab": {"a": 0}, "merges": [1]"#), .tokenizer, "pair of tokens"),
            Refusal(
                bytePair(#""vocab": {"a": 0}, "merges": [["a"]]"#), .tokenizer, "pair of tokens"),
            Refusal(
                bytePair(#""vocab": {"a": 0}, "merges": {}"#), .tokenizer, "should be an array"),
        ])
    func merges(refusal: Refusal) throws { try Self.check(refusal) }

    @Test(
        "Options of byte-pair models",
        arguments: [
            Refusal(
                complete(#""unk_token": "b""#), .tokenizer, "unk_token", "not in the vocabulary"),
            Refusal(complete(#""fuse_unk": 1"#), .tokenizer, "fuse_unk", "true or false"),
            Refusal(
                complete(#""byte_fallback": true"#), .unsupported, "SentencePiece-style",
                "byte-level BPE"),
            Refusal(complete(#""dropout": 0.1"#), .unsupported, "model.dropout"),
            Refusal(
                complete(#""end_of_word_suffix": "</w>""#), .unsupported, "end_of_word_suffix"),
            Refusal(
                complete(#""continuing_subword_prefix": "@@""#), .unsupported,
                "continuing_subword_prefix"),
        ])
    func bytePairOptions(refusal: Refusal) throws { try Self.check(refusal) }

    @Test("Options that say nothing are accepted")
    func emptyOptions() throws {
        _ = try makeTokenizer(
            Self.complete(
                """
                "unk_token": "", "dropout": 0.0, "end_of_word_suffix": "", "byte_fallback": false,
                "continuing_subword_prefix": null, "fuse_unk": null
                """))
    }

    @Test(
        "WordPiece models",
        arguments: [
            Refusal(wordPiece(#""unk_token": "a""#), .tokenizer, "has no `vocab`"),
            Refusal(wordPiece(#""vocab": {"a": 0}"#), .tokenizer, "has no `unk_token`"),
            Refusal(
                wordPiece(#""vocab": {"a": 0}, "unk_token": "b""#), .tokenizer,
                "not in the vocabulary"),
            Refusal(
                wordPiece(#""vocab": {"a": 0}, "unk_token": "a""#), .tokenizer,
                "has no `continuing_subword_prefix`"),
            Refusal(
                wordPiece(
                    #""vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "-""#),
                .tokenizer, "has no `max_input_chars_per_word`"),
        ])
    func wordPieces(refusal: Refusal) throws { try Self.check(refusal) }

    @Test(
        "Kinds that are not built in are named, and those that are",
        arguments: [
            Refusal(#"{"model": {"type": "Unigram"}}"#, .unsupported, "Unigram", "WordPiece"),
            Refusal(#"{"version": "2.0", \#(model)}"#, .unsupported, "2.0", "1.0"),
            Refusal(part("normalizer", #"{"type": "Nmt"}"#), .unsupported, "Nmt", "NFKC"),
            Refusal(
                part("normalizer", #"{"type": "Sequence", "normalizers": [{"type": "X"}]}"#),
                .unsupported, "normalizer.normalizers[0]", #"type "X""#),
            Refusal(
                part("pre_tokenizer", #"{"type": "Metaspace"}"#), .unsupported, "Metaspace",
                "ByteLevel"),
            Refusal(
                part("pre_tokenizer", #"{"type": "Punctuation", "behavior": "Odd"}"#),
                .unsupported, "Odd", "Isolated"),
            Refusal(
                part(
                    "pre_tokenizer",
                    #"{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}"#),
                .unsupported, "pattern.Regex", "regular expression"),
            Refusal(
                part("post_processor", #"{"type": "Odd"}"#), .unsupported, "Odd",
                "RobertaProcessing"),
            Refusal(
                part(
                    "post_processor",
                    #"{"type": "TemplateProcessing", "single": [{"Other": {}}]}"#),
                .unsupported, "single[0]"),
            Refusal(part("decoder", #"{"type": "CTC"}"#), .unsupported, "CTC", "ByteLevel"),
            Refusal(
                part(
                    "decoder",
                    #"{"type": "Sequence", "decoders": [{"type": "WordPiece"}, {"type": "CTC"}]}"#),
                .unsupported, "decoders[1]", "CTC"),
        ])
    func unsupported(refusal: Refusal) throws { try Self.check(refusal) }

    @Test(
        "Parts that are not as they should be",
        arguments: [
            Refusal(part("normalizer", "{}"), .tokenizer, "`normalizer` has no `type`"),
            Refusal(part("pre_tokenizer", #"{"type": "Split"}"#), .tokenizer, "no `pattern`"),
            Refusal(
                part("pre_tokenizer", #"{"type": "Split", "pattern": {"Regex": "a"}}"#),
                .tokenizer, "no `behavior`"),
            Refusal(
                part("pre_tokenizer", #"{"type": "Split", "pattern": {}}"#), .tokenizer,
                "neither `Regex` nor `String`"),
            Refusal(
                part("pre_tokenizer", #"{"type": "Sequence"}"#), .tokenizer, "no `pretokenizers`"),
            Refusal(
                part("post_processor", #"{"type": "BertProcessing", "cls": ["a", 0]}"#),
                .tokenizer, "no `sep`"),
            Refusal(
                part("post_processor", #"{"type": "BertProcessing", "cls": ["a"]}"#), .tokenizer,
                "a token and its id"),
            Refusal(
                part(
                    "post_processor",
                    #"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}]}"#),
                .tokenizer, "not among the template's"),
            Refusal(
                part("post_processor", #"{"type": "TemplateProcessing", "single": []}"#),
                .tokenizer, "no place for the text"),
            Refusal(
                part("decoder", #"{"type": "Sequence", "decoders": []}"#), .tokenizer,
                "no decoders"),
        ])
    func malformed(refusal: Refusal) throws { try Self.check(refusal) }

    @Test(
        "Added tokens that contradict the vocabulary or each other",
        arguments: [
            Refusal(part("added_tokens", "{}"), .tokenizer, "`added_tokens` should be an array"),
            Refusal(part("added_tokens", #"[{"id": 1}]"#), .tokenizer, "no `content`"),
            Refusal(part("added_tokens", #"[{"content": "a"}]"#), .tokenizer, "no `id`"),
            Refusal(
                part("added_tokens", #"[{"id": 0, "content": "b"}]"#), .tokenizer,
                "id 0, which another token has"),
            Refusal(
                part("added_tokens", #"[{"id": 1, "content": "a"}]"#), .tokenizer,
                "has the id 1, but the same token has the id 0"),
            Refusal(
                part("added_tokens", #"[{"id": 1, "content": "b"}, {"id": 1, "content": "c"}]"#),
                .tokenizer, "added_tokens[1]", "id 1, which another token has"),
            Refusal(
                part("added_tokens", #"[{"id": 1, "content": "b"}, {"id": 2, "content": "b"}]"#),
                .tokenizer, "has the id 2, but the same token has the id 1"),
        ])
    func addedTokens(refusal: Refusal) throws { try Self.check(refusal) }

    @Test("A file that is not there")
    func missingFile() throws {
        let path = "/nonexistent/tokenizer.json"
        let error = #expect(throws: ModelError.self) { try Tokenizer(path: path) }
        #expect(error?.code == .unreadable)
        #expect(error?.message.contains(path) == true)
    }
}
