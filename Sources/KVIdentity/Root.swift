/// The identity of one request inside a space: what keys of its chunks are chained from.
///
/// Requests with another adapter or salt have another root and so share no chunk.
public struct Root: Hashable, Sendable {
    /// The digest that commands carry.
    public let digest: Digest

    /// The root that a command carried.
    public init(_ digest: Digest) {
        self.digest = digest
    }

    /// Makes the root of requests in a space.
    ///
    /// `adapter` is the content hash of the LoRA adapter, nil without one; `salt` separates tenants
    /// or requests, empty without one. O(length of the salt).
    public init(space: Digest, adapter: Digest? = nil, salt: String = "") {
        var root = CanonicalEncoder(domain: "kvasir.root.1")
        root.digest(space)
        root.prefixed(adapter?.bytes ?? [])
        root.prefixed(salt.utf8)
        digest = root.sha256()
    }
}

extension Root: CustomStringConvertible {
    /// 64 lower-case hexadecimal digits.
    public var description: String { digest.hex }
}
