/// The identity of one disk directory: 16 random bytes, in `kvasir-disk` and in each segment, so
/// that a segment copied from elsewhere is not taken for one of this directory.
package struct DiskID: Hashable, Sendable, BitwiseCopyable {
    /// The bytes as two little-endian words.
    package let words: (UInt64, UInt64)

    /// Makes an identity of two little-endian words.
    package init(words: (UInt64, UInt64)) {
        self.words = words
    }

    /// A new identity.
    package static func random(using generator: inout some RandomNumberGenerator) -> DiskID {
        DiskID(words: (generator.next(), generator.next()))
    }

    package static func == (left: DiskID, right: DiskID) -> Bool {
        left.words == right.words
    }

    package func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
        hasher.combine(words.1)
    }
}

extension DiskID: CustomStringConvertible {
    /// 32 lower-case hexadecimal digits, in the order of the bytes.
    package var description: String {
        Self.hex(words.0.byteSwapped) + Self.hex(words.1.byteSwapped)
    }

    private static func hex(_ word: UInt64) -> String {
        let digits = String(word, radix: 16)
        return String(repeating: "0", count: 16 - digits.utf8.count) + digits
    }
}
