import Foundation
import ReferenceLM
import Testing

@Suite("Tokenizers do what Hugging Face's library does")
struct TokenizerGoldenTests {
    @Test("Texts become the same tokens", arguments: TokenizerGoldens.names)
    func encodings(name: String) throws {
        let tokenizer = try TokenizerGoldens.tokenizer(name)
        let texts = try TokenizerGoldens.texts()
        let cases = try TokenizerGoldens.expected(name).encodings
        #expect(cases.count > texts.count)
        for encoding in cases {
            let text = texts[encoding.text]
            let ids = tokenizer.encode(text, addSpecialTokens: encoding.special)
            #expect(ids == encoding.ids, "text \(encoding.text): \(text.debugDescription)")
        }
    }

    @Test("Their tokens become the same text", arguments: TokenizerGoldens.names)
    func decodedEncodings(name: String) throws {
        let tokenizer = try TokenizerGoldens.tokenizer(name)
        let texts = try TokenizerGoldens.texts()
        for encoding in try TokenizerGoldens.expected(name).encodings {
            let want = encoding.decoded ?? texts[encoding.text]
            let text = tokenizer.decode(encoding.ids, skipSpecialTokens: encoding.special)
            #expect(
                text.utf8Bytes == want.utf8Bytes,
                "text \(encoding.text): \(want.debugDescription)")
        }
    }

    @Test(
        "Random tokens, unknown ones among them, become the same text",
        arguments: TokenizerGoldens.names)
    func decodings(name: String) throws {
        let tokenizer = try TokenizerGoldens.tokenizer(name)
        for decoding in try TokenizerGoldens.expected(name).decodings {
            let text = tokenizer.decode(decoding.ids, skipSpecialTokens: decoding.skip)
            #expect(text.utf8Bytes == decoding.decoded.utf8Bytes, "ids \(decoding.ids)")
        }
    }

    @Test("A corpus comes back from its tokens")
    func roundTrip() throws {
        let tokenizer = try TokenizerGoldens.tokenizer("tiny-kjv")
        let corpus = TokenizerGoldens.models.appending(path: "tiny-kjv/corpus.txt")
        let text = String(decoding: try Data(contentsOf: corpus).prefix(300_000), as: UTF8.self)
        let ids = tokenizer.encode(text)
        #expect(ids.count < text.utf8.count / 3)
        #expect(tokenizer.decode(ids).utf8Bytes == text.utf8Bytes)
    }
}
