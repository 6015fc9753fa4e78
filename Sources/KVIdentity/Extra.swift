/// What makes equal token ids of one chunk mean different things: images, audio…
///
/// Placeholders of an image have the same token ids whatever the image shows, so the image's
/// identity goes into the key of every chunk that has tokens of it.
public struct Extra: Hashable, Sendable {
    /// One thing that tokens of the chunk stand for.
    public struct Item: Hashable, Sendable {
        /// What it is, for instance `mm`.
        public var kind: String
        /// Which one it is: for instance the hash of an image.
        public var identifier: String
        /// The thing's first token minus the chunk's first token; negative if it began earlier.
        public var offset: Int

        /// Makes an item.
        public init(kind: String, identifier: String, offset: Int) {
            self.kind = kind
            self.identifier = identifier
            self.offset = offset
        }

        /// Compares bytes: Swift's strings are equal when they look alike, keys must not be.
        public static func == (left: Item, right: Item) -> Bool {
            left.offset == right.offset
                && left.kind.utf8.elementsEqual(right.kind.utf8)
                && left.identifier.utf8.elementsEqual(right.identifier.utf8)
        }
    }

    /// The things, in the order of their first tokens.
    public var items: [Item]

    /// Makes the extra of a chunk; without items it is empty and adds nothing to the key.
    public init(_ items: [Item] = []) {
        self.items = items
    }

    /// The bytes that go into the key: `lp(kind) ‖ lp(identifier) ‖ i64 offset` of each item.
    ///
    /// No two lists of items have the same bytes: every part says how long it is.
    public var encoded: [UInt8] {
        var encoder = CanonicalEncoder()
        for item in items {
            encoder.prefixed(item.kind.utf8)
            encoder.prefixed(item.identifier.utf8)
            encoder.i64(item.offset)
        }
        return encoder.bytes
    }
}
