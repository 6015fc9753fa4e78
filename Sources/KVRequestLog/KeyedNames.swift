internal import KVIdentity

// One by one, because Crypto has a Digest, too.
internal import struct Crypto.HMAC
internal import struct Crypto.SHA256
internal import struct Crypto.SymmetricKey

/// Names of chunks that tell nothing without a secret, which nobody keeps.
///
/// A name is an HMAC-SHA256 (RFC 2104) over the name before it and the chunk's key; the first one
/// follows an HMAC over space and root. So equal names mean equal paths from the root of one space,
/// whatever keys clients choose, and all names of a log form a tree.
struct KeyedNames {
    /// Bytes of a name that are logged.
    static let byteCount = 8

    private let keyed: HMAC<SHA256>

    /// With a new random secret, which only this value has.
    init() {
        keyed = HMAC<SHA256>(key: SymmetricKey(size: .bits256))
    }

    /// With a known secret, for tests.
    init(secret: [UInt8]) {
        keyed = HMAC<SHA256>(key: SymmetricKey(data: secret))
    }

    /// What all files of this secret have in their headers. Tells nothing of it.
    var id: UInt64 { hash(Digest(words: (0, 0, 0, 0)), Digest(words: (0, 0, 0, 0))).words.0 }

    /// The names of a prompt's chunks. O(keys), about a microsecond each.
    func names(space: Digest, root: Digest, keys: [Digest]) -> [UInt64] {
        var before = hash(space, root)
        return keys.map { key in
            before = hash(before, key)
            // Big-endian, so that its digits are those of the code's first bytes.
            return before.words.0.byteSwapped
        }
    }

    private func hash(_ first: Digest, _ second: Digest) -> Digest {
        var code = keyed
        first.withUnsafeBytes { code.update(data: $0) }
        second.withUnsafeBytes { code.update(data: $0) }
        return code.finalize().withUnsafeBytes { Digest($0) }
    }
}
