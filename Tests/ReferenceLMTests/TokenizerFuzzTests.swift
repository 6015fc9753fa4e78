import Foundation
import ReferenceLM
import Testing

@Suite("Tokenizers damaged at random")
struct TokenizerFuzzTests {
    private static let texts = [
        "", "In the beginning God created the heaven and the earth.",
        "[MASK] <|eot_id|>\u{0}\t\n  ",
        "é e\u{301} ﬁ Ǆ İ 神は 👩‍👧 \u{FFFD} a\u{323}\u{301}\u{FF9E}", "aaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    ]

    /// Small files with every part in them.
    private static let samples = [
        """
        {"version": "1.0", "added_tokens": [
          {"id": 9, "content": "<s>", "special": true, "normalized": false, "lstrip": true},
          {"id": 8, "content": "É", "single_word": true, "rstrip": true, "normalized": true}],
         "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
           {"type": "Split", "pattern": {"Regex": "\\\\p{N}{1,3}|\\\\s+(?!\\\\S)|[^a-c]+"},
            "behavior": "MergedWithNext", "invert": true},
           {"type": "Digits", "individual_digits": true},
           {"type": "Punctuation", "behavior": "Contiguous"},
           {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]},
         "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
           {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}},
             {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [9]}}}]},
         "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]},
         "model": {"type": "BPE", "unk_token": "a", "fuse_unk": true, "ignore_merges": true,
           "dropout": null, "vocab": {"a": 0, "b": 1, "ab": 2, "aab": 3, "Ġ": 4, "aa": 5},
           "merges": ["a b", ["a", "ab"], "a a"]}}
        """,
        """
        {"added_tokens": [{"id": 5, "content": "[MASK]", "special": true, "lstrip": true}],
         "normalizer": {"type": "BertNormalizer", "clean_text": true, "strip_accents": null,
           "handle_chinese_chars": true, "lowercase": true},
         "pre_tokenizer": {"type": "BertPreTokenizer"},
         "post_processor": {"type": "BertProcessing", "sep": ["[S]", 1], "cls": ["[C]", 2]},
         "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
         "model": {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
           "max_input_chars_per_word": 20,
           "vocab": {"?": 0, "[S]": 1, "[C]": 2, "a": 3, "##a": 4, "in": 6, "##é": 7}}}
        """,
    ]

    /// What literals are replaced by.
    private static let replacements = [
        "null", "true", "-1", "0", "1", "7", "0.5", "1e400", "4194303", "4194304", "4294967296",
        "9223372036854775807", "[]", "{}", #""""#, #"" ""#, #""a""#, #""\u0000""#, #""\u00e9""#,
        #""e\u0301""#, "\"##\"", #""(a|aa)+$""#, #""[\\s""#, #""a*""#, #""(?<=a)|$""#,
        #""Sequence""#,
        #""ByteLevel""#, #""WordPiece""#, #""BPE""#, #""Split""#, #""Whitespace""#, #""NFKD""#,
        #""StripAccents""#, #""Removed""#, #""Isolated""#, #""MergedWithPrevious""#, #""String""#,
        #""BertPreTokenizer""#, #""RobertaProcessing""#, #"{"type": "ByteLevel"}"#,
    ].map { Array($0.utf8) }

    @Test(
        "Files either say why they can't be read, or make tokens of any text",
        arguments: ["bert-cased", "gpt2", "llama3", "qwen2", "roberta"])
    func fixtures(name: String) throws {
        let file = TokenizerGoldens.resources.appending(path: "\(name)/tokenizer.json")
        _ = try Self.damage([UInt8](try Data(contentsOf: file)), times: 60)
    }

    @Test("So do small files, in which damage hits what matters", arguments: [0, 1])
    func smallFiles(index: Int) throws {
        let accepted = try Self.damage(Array(Self.samples[index].utf8), times: 1500)
        #expect((1..<1500).contains(accepted))
    }

    /// Reads damaged copies of a file, and says how many were accepted.
    private static func damage(_ whole: [UInt8], times: Int) throws -> Int {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("Tokenizers damaged at random: seed \(seed)")
        var random = SeededRandom(seed: seed)
        let literals = literals(of: whole)
        _ = try Tokenizer(json: whole, name: "whole.json")
        var accepted = 0
        for number in 0..<times {
            let json = damaged(whole, literals, &random)
            do {
                let tokenizer = try Tokenizer(json: json, name: "test.json")
                use(tokenizer, "seed \(seed), case \(number)")
                accepted += 1
            } catch {
                #expect(error.message.contains("test.json"), "seed \(seed), case \(number)")
                #expect(!error.message.contains("\n"), "seed \(seed), case \(number)")
                #expect(error.message.count < 2000, "seed \(seed), case \(number)")
            }
        }
        return accepted
    }

    /// Encodes and decodes; what was promised of all tokenizers holds of this one.
    private static func use(_ tokenizer: Tokenizer, _ which: String) {
        for text in texts {
            let ids = tokenizer.encode(text)
            let whole = tokenizer.decode(ids, skipSpecialTokens: false)
            var decoder = StreamingDecoder(tokenizer, skipSpecialTokens: false)
            let parts = ids.map { decoder.append($0) } + [decoder.finish()]
            #expect(parts.joined().utf8Bytes == whole.utf8Bytes, "\(which): \(text)")
        }
        _ = tokenizer.decode([0, .max, UInt32(tokenizer.vocabularySize)])
    }

    /// The places of strings, numbers and words.
    private static func literals(of json: [UInt8]) -> [Range<Int>] {
        let marks = Set(" \n\t,:[]{}".utf8)
        var ranges: [Range<Int>] = []
        var place = 0
        while place < json.count {
            let start = place
            if json[place] == UInt8(ascii: "\"") {
                place += 1
                while json[place] != UInt8(ascii: "\"") {
                    place += json[place] == UInt8(ascii: "\\") ? 2 : 1
                }
                place += 1
            } else {
                while place < json.count, !marks.contains(json[place]) { place += 1 }
            }
            if start < place { ranges.append(start..<place) } else { place += 1 }
        }
        return ranges
    }

    private static func damaged(
        _ whole: [UInt8], _ literals: [Range<Int>], _ random: inout SeededRandom
    ) -> [UInt8] {
        var json = whole
        // From back to front, so that the places before stay where they are.
        let places = (0..<(1 + random.below(3))).map { _ in
            // Most of a file is vocabulary; half of the damage is done before it.
            random.below(random.below(2) == 0 ? min(120, literals.count) : literals.count)
        }
        for literal in Set(places).sorted(by: >).map({ literals[$0] }) {
            switch random.below(8) {
            case 0:
                let place = literal.lowerBound + random.below(literal.count)
                json[place] = UInt8(truncatingIfNeeded: random.next())
            case 1:
                json.removeSubrange(literal)
            case 2, 3:
                let other = literals[random.below(literals.count)]
                json.replaceSubrange(literal, with: whole[other])
            default:
                json.replaceSubrange(literal, with: replacements[random.below(replacements.count)])
            }
        }
        return json
    }
}
