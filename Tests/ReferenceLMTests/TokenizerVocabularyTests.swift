import ReferenceLM
import Testing

@Suite("What a tokenizer knows about its tokens")
struct TokenizerVocabularyTests {
    @Test("Tokens that Swift's strings take for equal stay apart")
    func canonicalEquivalents() throws {
        let tokenizer = try makeTokenizer(
            """
            {"model": {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100,
              "vocab": {"?": 0, "\\u00e9": 1, "e\\u0301": 2, "\\u212b": 3, "\\u00c5": 4}}}
            """)
        #expect("\u{E9}" == "e\u{301}")
        #expect(tokenizer.vocabularySize == 5)
        #expect(tokenizer.id(of: "\u{E9}") == 1)
        #expect(tokenizer.id(of: "e\u{301}") == 2)
        #expect(tokenizer.id(of: "\u{212B}") == 3)
        #expect(tokenizer.id(of: "A\u{30A}") == nil)
        #expect(tokenizer.encode("\u{E9}") == [1])
        #expect(tokenizer.encode("e\u{301}") == [2])
        #expect(tokenizer.encode("\u{C5}") == [4])
        #expect(tokenizer.token(2)?.utf8Bytes == "e\u{301}".utf8Bytes)
    }

    @Test("Byte-pair tokens of one character stay apart, too")
    func canonicalScalars() throws {
        let tokenizer = try makeTokenizer(
            """
            {"model": {"type": "BPE", "merges": [],
              "vocab": {"\\u212b": 0, "\\u00c5": 1, "\\u2126": 2, "\\u03a9": 3}}}
            """)
        #expect(tokenizer.encode("\u{C5}\u{212B}\u{3A9}\u{2126}") == [1, 0, 3, 2])
    }

    @Test("Ids, tokens and special tokens are as the file says")
    func lookups() throws {
        let tokenizer = try TokenizerGoldens.tokenizer("llama3")
        let begin = try #require(tokenizer.id(of: "<|begin_of_text|>"))
        #expect(tokenizer.vocabularySize == Int(begin) + 5)
        #expect(tokenizer.token(begin) == "<|begin_of_text|>")
        #expect(tokenizer.isSpecial(begin))
        let the = try #require(tokenizer.id(of: "Ġthe"))
        #expect(tokenizer.token(the) == "Ġthe")
        #expect(!tokenizer.isSpecial(the))
        #expect(tokenizer.encode(" the", addSpecialTokens: false) == [the])
        #expect(tokenizer.encode(" the") == [begin, the])
        #expect(tokenizer.id(of: "no such token") == nil)
        #expect(tokenizer.token(UInt32(tokenizer.vocabularySize)) == nil)
        #expect(tokenizer.token(.max) == nil)
        #expect(!tokenizer.isSpecial(.max))
        let text = tokenizer.decode([begin, the, .max], skipSpecialTokens: false)
        #expect(text == "<|begin_of_text|> the")
    }

    @Test("An id between others may be missing")
    func holes() throws {
        let tokenizer = try makeTokenizer(
            #"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}}"#)
        #expect(tokenizer.vocabularySize == 8)
        #expect(tokenizer.token(3) == nil)
        #expect(tokenizer.decode([0, 3, 7]) == "a b")
    }

    @Test("Added tokens are found, the longest first, and left out only when special")
    func addedTokens() throws {
        let tokenizer = try makeTokenizer(
            """
            {"added_tokens": [
               {"id": 2, "content": "<tool>", "special": false, "normalized": false},
               {"id": 3, "content": "<tool>>", "special": true, "normalized": false}],
             "decoder": {"type": "ByteLevel"},
             "model": {"type": "BPE", "vocab": {"a": 0, ">": 1}, "merges": []},
             "truncation": {"max_length": 1}, "padding": {"strategy": "BatchLongest"}}
            """)
        #expect(tokenizer.encode("a<tool>a<tool>>>a<tool") == [0, 2, 0, 3, 1, 0])
        #expect(tokenizer.decode([0, 2, 3]) == "a<tool>")
        #expect(!tokenizer.isSpecial(2))
        #expect(tokenizer.isSpecial(3))
    }

    @Test("A token of normalized text keeps its name, and decodes to its normal form")
    func normalizedTokens() throws {
        let tokenizer = try TokenizerGoldens.tokenizer("bert-uncased")
        let selah = try #require(tokenizer.id(of: "Selah"))
        #expect(tokenizer.token(selah) == "Selah")
        #expect(tokenizer.encode("SELAH", addSpecialTokens: false) == [selah])
        #expect(tokenizer.decode([selah]) == "selah")
    }
}

@Suite("Long pieces")
struct TokenizerLongPieceTests {
    @Test(
        "A hundred thousand characters without a space take a second or two",
        arguments: ["gpt2", "llama3", "qwen2", "bert-uncased"])
    func longPieces(name: String) throws {
        let tokenizer = try TokenizerGoldens.tokenizer(name)
        for unit in ["a", "the", "é", "\n ", "!"] {
            let text = String(repeating: unit, count: 100_000 / unit.utf8.count) + "end"
            let start = ContinuousClock.now
            let ids = tokenizer.encode(text, addSpecialTokens: false)
            #expect(!ids.isEmpty)
            // Far less; but this also runs without optimization, beside other tests.
            #expect(ContinuousClock.now - start < .seconds(30), "\(unit.debugDescription)")
            if name == "gpt2" { #expect(tokenizer.decode(ids).utf8Bytes == text.utf8Bytes) }
        }
    }

    @Test("A million spaces are one piece, beyond the stack of the regular expressions")
    func manySpaces() throws {
        let tokenizer = try TokenizerGoldens.tokenizer("llama3")
        let short = tokenizer.encode(String(repeating: " ", count: 1024), addSpecialTokens: false)
        let long = tokenizer.encode(
            String(repeating: " ", count: 1_048_576), addSpecialTokens: false)
        #expect(long.count == short.count * 1024)
    }
}
