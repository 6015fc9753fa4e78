import ReferenceLM
import Testing

@Suite("Text that is decoded as tokens come")
struct TokenizerStreamingTests {
    /// The parts that a streaming decoder gives out.
    private static func stream(
        _ tokenizer: Tokenizer, _ ids: [UInt32], skip: Bool
    ) -> [String] {
        var decoder = StreamingDecoder(tokenizer, skipSpecialTokens: skip)
        return ids.map { decoder.append($0) } + [decoder.finish()]
    }

    @Test("Random tokens give the text that they give at once", arguments: TokenizerGoldens.names)
    func randomTokens(name: String) throws {
        let tokenizer = try TokenizerGoldens.tokenizer(name)
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        let last = UInt32(tokenizer.vocabularySize) + 3
        for _ in 0..<300 {
            let count = Int.random(in: 0...60, using: &random)
            let highest = Bool.random(using: &random) ? last : 300
            let ids = (0..<count).map { _ in UInt32.random(in: 0...highest, using: &random) }
            let skip = Bool.random(using: &random)
            let parts = Self.stream(tokenizer, ids, skip: skip)
            let whole = tokenizer.decode(ids, skipSpecialTokens: skip)
            #expect(parts.joined().utf8Bytes == whole.utf8Bytes, "seed \(seed), ids \(ids)")
        }
    }

    @Test("Random bytes give the text that they give at once")
    func randomBytes() throws {
        let tokenizer = try Self.bytesTokenizer()
        let seed = UInt64.random(in: 0...UInt64.max)
        var random = SeededRandom(seed: seed)
        // The bytes at which UTF-8 decoders go wrong come often.
        let edges: [UInt32] = [
            0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE1, 0xED,
            0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF,
        ]
        for _ in 0..<5000 {
            let count = Int.random(in: 0...12, using: &random)
            let bytes = (0..<count).map { _ in edges.randomElement(using: &random)! }
            let parts = Self.stream(tokenizer, bytes, skip: true)
            let whole = String(decoding: bytes.map { UInt8($0) }, as: UTF8.self).utf8Bytes
            #expect(parts.joined().utf8Bytes == whole, "seed \(seed), bytes \(bytes)")
            #expect(tokenizer.decode(bytes).utf8Bytes == whole, "seed \(seed), bytes \(bytes)")
        }
    }

    @Test("No part of a character is given out before the rest, and nothing waits longer")
    func completeCharacters() throws {
        let tokenizer = try Self.bytesTokenizer()
        let bytes = "aé神🙂z".utf8.map { UInt32($0) }
        let parts = Self.stream(tokenizer, bytes, skip: true)
        #expect(parts == ["a", "", "é", "", "", "神", "", "", "", "🙂", "z", ""])
    }

    @Test("What was held back comes at the end, and the decoder starts anew")
    func finish() throws {
        var decoder = StreamingDecoder(try Self.bytesTokenizer())
        #expect(decoder.append(0xE7) == "")
        #expect(decoder.append(0xA5) == "")
        #expect(decoder.finish() == "\u{FFFD}")
        #expect(decoder.finish() == "")
        #expect(decoder.append(0x41) == "A")
    }

    @Test("Words get the space between them, and the first has none")
    func words() throws {
        let tokenizer = try TokenizerGoldens.tokenizer("bert-uncased")
        let ids = tokenizer.encode("And God said, go.")
        let parts = Self.stream(tokenizer, ids, skip: true)
        #expect(parts.first == "")
        #expect(parts[1] == "and")
        #expect(parts.joined() == "and god said, go.")
    }

    /// A tokenizer whose ids are bytes.
    private static func bytesTokenizer() throws -> Tokenizer {
        var next: UInt32 = 0x100
        let tokens = (0...255).map { (byte: UInt32) -> String in
            let isPrinted = (0x21...0x7E).contains(byte) || (0xA1...0xFF).contains(byte)
            var scalar = byte
            if !isPrinted || byte == 0xAD {
                scalar = next
                next += 1
            }
            return "\"\\u" + String(String(0x10000 + scalar, radix: 16).dropFirst()) + "\":\(byte)"
        }
        return try makeTokenizer(
            """
            {"decoder": {"type": "ByteLevel"},
             "model": {"type": "BPE", "vocab": {\(tokens.joined(separator: ","))}, "merges": []}}
            """)
    }
}
