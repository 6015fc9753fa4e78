/// A SHA-256 digest: the id of a space, a root, or the key of a chunk.
///
/// A plain value of 32 bytes, held as four words, so that comparing and hashing take a few
/// instructions and arrays of them are packed as on the wire.
public struct Digest: Hashable, Sendable, BitwiseCopyable {
    /// Bytes of a digest.
    public static let byteCount = 32

    /// The bytes as four little-endian words, the first bytes first.
    ///
    /// Uniformly distributed for digests that a hash made. A client may choose keys that are not:
    /// mix a secret in before using a word as the slot of a table.
    public let words: (UInt64, UInt64, UInt64, UInt64)

    /// Makes a digest of four little-endian words.
    public init(words: (UInt64, UInt64, UInt64, UInt64)) {
        self.words = words
    }

    /// Takes the 32 bytes of `bytes`.
    ///
    /// - Precondition: `bytes` has 32 bytes.
    public init(_ bytes: UnsafeRawBufferPointer) {
        precondition(bytes.count == Self.byteCount, "a digest has 32 bytes")
        // SAFETY: the four loads stay inside the 32 bytes checked above and need no alignment.
        words = unsafe (
            UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: 0, as: UInt64.self)),
            UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)),
            UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt64.self)),
            UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: 24, as: UInt64.self))
        )
    }

    /// Takes the 32 bytes at `offset` of `bytes`, for instance of packed keys.
    ///
    /// - Precondition: `bytes` has at least `offset + 32` bytes.
    public init(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        precondition(
            offset >= 0 && bytes.count >= Self.byteCount && offset <= bytes.count - Self.byteCount,
            "a digest has 32 bytes")
        // SAFETY: the range was checked above.
        unsafe self.init(UnsafeRawBufferPointer(rebasing: bytes[offset..<(offset + 32)]))
    }

    /// Takes the 32 bytes of `bytes`.
    ///
    /// - Precondition: `bytes` has 32 bytes.
    public init(_ bytes: RawSpan) {
        // SAFETY: the pointer does not leave the closure.
        self = unsafe bytes.withUnsafeBytes { unsafe Digest($0) }
    }

    /// Takes the 32 bytes of `bytes`; nil if there are not 32.
    public init?(_ bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        // SAFETY: the pointer does not leave the closure.
        self = unsafe bytes.withUnsafeBytes { unsafe Digest($0) }
    }

    /// Reads 64 hexadecimal digits of either case; nil if `hex` is anything else.
    public init?(hex: some StringProtocol) {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Self.byteCount)
        var high: UInt8?
        for character in hex.utf8 {
            guard let digit = Self.hexValue(character), bytes.count < Self.byteCount else {
                return nil
            }
            if let pending = high {
                bytes.append(pending << 4 | digit)
                high = nil
            } else {
                high = digit
            }
        }
        guard high == nil else { return nil }
        self.init(bytes)
    }

    /// The 32 bytes.
    public var bytes: [UInt8] {
        unsafe withUnsafeBytes { unsafe [UInt8]($0) }
    }

    /// 64 lower-case hexadecimal digits.
    public var hex: String {
        let digits: StaticString = "0123456789abcdef"
        return unsafe String(unsafeUninitializedCapacity: Self.byteCount * 2) { text in
            // SAFETY: `text` has room for 64 bytes, all are written; a nibble is below 16.
            unsafe withUnsafeBytes { bytes in
                for index in 0..<Self.byteCount {
                    let byte = Int(unsafe bytes[index])
                    unsafe text[index * 2] = unsafe digits.utf8Start[byte >> 4]
                    unsafe text[index * 2 + 1] = unsafe digits.utf8Start[byte & 15]
                }
            }
            return Self.byteCount * 2
        }
    }

    /// Shows the 32 bytes to `body`; they are valid during the call only.
    public func withUnsafeBytes<Result, Failure: Error>(
        _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let littleEndian = (
            words.0.littleEndian, words.1.littleEndian, words.2.littleEndian, words.3.littleEndian
        )
        // SAFETY: four UInt64 are 32 bytes without padding, and live as long as the call.
        return try unsafe Swift.withUnsafeBytes(of: littleEndian, body)
    }

    /// Writes the 32 bytes to the start of `destination`.
    ///
    /// - Precondition: `destination` has room for 32 bytes.
    public func copyBytes(to destination: UnsafeMutableRawBufferPointer) {
        precondition(destination.count >= Self.byteCount, "a digest has 32 bytes")
        // SAFETY: both have 32 bytes; the source is on the stack and can't overlap.
        unsafe withUnsafeBytes { unsafe destination.copyMemory(from: $0) }
    }

    /// Whether the 32 bytes are equal. O(1).
    public static func == (left: Digest, right: Digest) -> Bool {
        left.words == right.words
    }

    /// Feeds the 32 bytes to `hasher`. O(1).
    public func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
        hasher.combine(words.1)
        hasher.combine(words.2)
        hasher.combine(words.3)
    }

    private static func hexValue(_ byte: UInt8) -> UInt8? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}

extension Digest: Comparable {
    /// Orders as the bytes do, from the first on.
    public static func < (left: Digest, right: Digest) -> Bool {
        let mine = (
            left.words.0.byteSwapped, left.words.1.byteSwapped, left.words.2.byteSwapped,
            left.words.3.byteSwapped
        )
        let other = (
            right.words.0.byteSwapped, right.words.1.byteSwapped, right.words.2.byteSwapped,
            right.words.3.byteSwapped
        )
        return mine < other
    }
}

extension Digest: CustomStringConvertible {
    /// 64 lower-case hexadecimal digits.
    public var description: String { hex }
}
