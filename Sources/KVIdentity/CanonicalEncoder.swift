internal import Crypto

/// Builds the byte sequences of `docs/formats.md` that digests are made of.
struct CanonicalEncoder {
    private(set) var bytes: [UInt8] = []

    /// Starts with a domain, so that no two kinds of digest are made of the same bytes.
    init(domain: StaticString) {
        raw(String(describing: domain).utf8)
        bytes.append(0)
    }

    init() {}

    mutating func raw(_ value: some Sequence<UInt8>) {
        bytes.append(contentsOf: value)
    }

    mutating func digest(_ value: Digest) {
        unsafe value.withUnsafeBytes { unsafe bytes.append(contentsOf: $0) }
    }

    mutating func u32(_ value: UInt32) {
        // SAFETY: the pointer does not leave the closure.
        unsafe withUnsafeBytes(of: value.littleEndian) { unsafe bytes.append(contentsOf: $0) }
    }

    mutating func u64(_ value: Int) {
        precondition(value >= 0, "formats.md has no negative u64")
        i64(value)
    }

    mutating func i64(_ value: Int) {
        let value = Int64(value).littleEndian
        // SAFETY: the pointer does not leave the closure.
        unsafe withUnsafeBytes(of: value) { unsafe bytes.append(contentsOf: $0) }
    }

    /// `lp(x)`: the length as u32, then the bytes.
    mutating func prefixed(_ value: some Collection<UInt8>) {
        guard let count = UInt32(exactly: value.count) else {
            preconditionFailure("a length-prefixed part has less than 4 GiB")
        }
        u32(count)
        raw(value)
    }

    func sha256() -> Digest {
        Digest(SHA256.hash(data: bytes))
    }
}

extension Digest {
    init(_ digest: SHA256.Digest) {
        // SAFETY: the pointer does not leave the closure; SHA-256 has 32 bytes.
        self = unsafe digest.withUnsafeBytes { unsafe Digest($0) }
    }

    /// The SHA-256 of `bytes`, for content hashes (adapters). O(count).
    public static func sha256(of bytes: UnsafeRawBufferPointer) -> Digest {
        var hasher = SHA256()
        unsafe hasher.update(bufferPointer: bytes)
        return Digest(hasher.finalize())
    }

    /// The SHA-256 digest of `bytes`.
    public static func sha256(of bytes: [UInt8]) -> Digest {
        // SAFETY: the pointer does not leave the closure.
        unsafe bytes.withUnsafeBytes { unsafe sha256(of: $0) }
    }
}
