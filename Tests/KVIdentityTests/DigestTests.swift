import KVIdentity
import TestRandom
import Testing

@Suite("Digests")
struct DigestTests {
    @Test("hold 32 bytes in the order in which they came")
    func bytes() throws {
        let bytes = (0..<32).map { UInt8($0 * 7) }
        let digest = try #require(Digest(bytes))
        #expect(digest.bytes == bytes)
        #expect(digest.words.0 == 0x312A_231C_150E_0700)
        #expect(bytes.withUnsafeBytes { Digest($0) } == digest)
        #expect(([1, 2, 3] + bytes).withUnsafeBytes { Digest($0, at: 3) } == digest)
        var copy = [UInt8](repeating: 0, count: 40)
        copy.withUnsafeMutableBytes { digest.copyBytes(to: $0) }
        #expect(Array(copy[..<32]) == bytes)
        #expect(MemoryLayout<Digest>.stride == 32)
        #expect(Digest(Array(bytes.dropLast())) == nil)
        #expect(Digest(bytes + [0]) == nil)
    }

    @Test("are written as 64 lower-case digits and read in either case")
    func hex() throws {
        let text = "00ff10a5" + String(repeating: "0b", count: 28)
        let digest = try #require(Digest(hex: text))
        #expect(digest.hex == text)
        #expect("\(digest)" == text)
        #expect(Digest(hex: text.uppercased()) == digest)
        for wrong in [
            "", "0", text + "0", text + "00", String(text.dropLast()), text.dropLast() + "g",
        ] {
            #expect(Digest(hex: wrong) == nil)
        }
        #expect(Digest(hex: " " + text.dropFirst()) == nil)
        #expect(Digest(hex: "０" + text.dropFirst()) == nil)
    }

    @Test("are ordered as their bytes are")
    func order() throws {
        var random = SeededGenerator(seed: 7)
        for _ in 0..<200 {
            let (left, right) = (random.digest(), random.digest())
            #expect((left < right) == left.bytes.lexicographicallyPrecedes(right.bytes))
        }
    }

    @Test("hash as SHA-256 does")
    func sha256() {
        let digest = Array("abc".utf8).withUnsafeBytes { Digest.sha256(of: $0) }
        #expect(
            digest.hex == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    }

    @Test("a digest of another size is a programmer's error")
    func wrongSize() async {
        await #expect(processExitsWith: .failure) {
            _ = [UInt8](repeating: 0, count: 31).withUnsafeBytes { Digest($0) }
        }
    }
}
