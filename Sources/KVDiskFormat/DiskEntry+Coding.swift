internal import KVIdentity

extension DiskEntry {
    /// Where the fields of an entry are.
    private enum Place {
        static let key = 0
        static let parent = 32
        static let space = 64
        static let root = 96
        static let kind = 128
        static let codec = 129
        static let cipher = 130
        static let flags = 131
        static let shard = 132
        static let chunkIndex = 136
        static let cipherKey = 140
        static let sequence = 144
        static let bodyBytes = 152
        static let decodedBytes = 160
        static let bodyOffset = 168
        static let bodyChecksum = 176
        static let writtenMs = 184
        static let expiresMs = 192
        static let nonce = 200
        static let bound = 224
        static let reserved = 232
    }

    /// A field with a value that its kind can't have.
    struct Problem {
        let place: Int
        let field: StaticString
        let problem: String

        init(_ place: Int, _ field: StaticString, _ problem: String) {
            self.place = place
            self.field = field
            self.problem = problem
        }
    }

    /// Writes 256 bytes at `offset`, where the writer has left zeros.
    ///
    /// - Precondition: the entry has no problem.
    func encode(with writer: FieldWriter, at offset: Int) {
        if let problem {
            preconditionFailure("an entry's \(problem.field) \(problem.problem)")
        }
        writer.store(key, at: offset + Place.key)
        writer.store(parent, at: offset + Place.parent)
        writer.store(space, at: offset + Place.space)
        writer.store(root, at: offset + Place.root)
        writer.store(kind.rawValue, at: offset + Place.kind)
        writer.store(shard, at: offset + Place.shard)
        writer.store(chunkIndex, at: offset + Place.chunkIndex)
        writer.store(sequence, at: offset + Place.sequence)
        writer.store(size: bodyBytes, at: offset + Place.bodyBytes)
        writer.store(size: decodedBytes, at: offset + Place.decodedBytes)
        writer.store(size: bodyOffset, at: offset + Place.bodyOffset)
        writer.store(bodyChecksum, at: offset + Place.bodyChecksum)
        writer.store(writtenMs, at: offset + Place.writtenMs)
        writer.store(expiresMs, at: offset + Place.expiresMs)
        writer.store(bound, at: offset + Place.bound)
    }

    /// Reads the 256 bytes at `offset`. The body's place is checked by who knows where it must be.
    init(with reader: FieldReader, at offset: Int) throws(DiskFormatError) {
        let kindByte = reader.u8(at: offset + Place.kind)
        guard let kind = Kind(rawValue: kindByte) else {
            throw reader.damaged(offset + Place.kind, "kind of entry", "is \(kindByte), not 1 to 6")
        }
        self.kind = kind
        for (place, field) in Self.bytesThatAreZero where reader.u8(at: offset + place) != 0 {
            throw reader.damaged(
                offset + place, field,
                "is \(reader.u8(at: offset + place)), not 0")
        }
        try reader.requireZeros(
            (offset + Place.cipherKey)..<(offset + Place.cipherKey + 4), "key id of the cipher")
        try reader.requireZeros(
            (offset + Place.nonce)..<(offset + Place.bound), "nonce")
        try reader.requireZeros(
            (offset + Place.reserved)..<(offset + DiskFormat.entryBytes), "reserved")
        key = reader.digest(at: offset + Place.key)
        parent = reader.digest(at: offset + Place.parent)
        space = reader.digest(at: offset + Place.space)
        root = reader.digest(at: offset + Place.root)
        shard = reader.u32(at: offset + Place.shard)
        chunkIndex = reader.u32(at: offset + Place.chunkIndex)
        sequence = reader.u64(at: offset + Place.sequence)
        bodyBytes = try reader.size(
            at: offset + Place.bodyBytes, "body bytes", from: 0, to: DiskFormat.largestBodyBytes)
        decodedBytes = try reader.size(
            at: offset + Place.decodedBytes, "decoded bytes", from: 0,
            to: DiskFormat.largestBodyBytes)
        bodyOffset = try reader.alignedSize(
            at: offset + Place.bodyOffset, "body offset", from: 0,
            to: DiskFormat.largestSegmentBytes)
        bodyChecksum = reader.u64(at: offset + Place.bodyChecksum)
        writtenMs = reader.u64(at: offset + Place.writtenMs)
        expiresMs = reader.u64(at: offset + Place.expiresMs)
        bound = reader.u64(at: offset + Place.bound)
        if let problem {
            throw reader.damaged(offset + problem.place, problem.field, problem.problem)
        }
    }

    /// Codecs, ciphers and flags come with a newer version.
    private static let bytesThatAreZero: [(Int, StaticString)] = [
        (Place.codec, "codec"), (Place.cipher, "cipher"), (Place.flags, "flags"),
    ]

    /// The first field whose value does not go with the entry's kind; nil if all do.
    var problem: Problem? {
        bodyProblem ?? identityProblem
    }

    private var bodyProblem: Problem? {
        let most = kind == .space ? DiskFormat.largestSpaceBytes : DiskFormat.largestBodyBytes
        let allowed = kind.hasBody ? 1...most : 0...0
        if !allowed.contains(bodyBytes) {
            return Problem(
                Place.bodyBytes, "body bytes",
                "is \(bodyBytes), not \(allowed.lowerBound) to \(allowed.upperBound)")
        }
        if decodedBytes != bodyBytes {
            return Problem(
                Place.decodedBytes, "decoded bytes",
                "is \(decodedBytes), and without a codec must be \(bodyBytes)")
        }
        if !kind.hasBody, bodyOffset != 0 {
            return Problem(Place.bodyOffset, "body offset", "is \(bodyOffset) without a body")
        }
        if !kind.hasBody, bodyChecksum != 0 {
            return Problem(Place.bodyChecksum, "checksum of the body", "is not 0 without a body")
        }
        return nil
    }

    private var identityProblem: Problem? {
        if kind != .chunk, kind != .dropKey, kind != .expireKey, key != .zeros {
            return Problem(Place.key, "key", "is not zero")
        }
        if kind != .chunk || chunkIndex == 0, parent != .zeros {
            return Problem(Place.parent, "parent key", "is not zero")
        }
        if kind == .space || kind == .dropSpace, root != .zeros {
            return Problem(Place.root, "root", "is not zero")
        }
        if kind != .chunk, shard != 0 {
            return Problem(Place.shard, "shard", "is \(shard), not 0")
        }
        if kind != .chunk, chunkIndex != 0 {
            return Problem(Place.chunkIndex, "chunk index", "is \(chunkIndex), not 0")
        }
        if kind != .chunk, kind != .expireKey, expiresMs != 0 {
            return Problem(Place.expiresMs, "expires", "is \(expiresMs), not 0")
        }
        return boundProblem
    }

    private var boundProblem: Problem? {
        if !kind.isDrop, bound != 0 {
            return Problem(Place.bound, "bound", "is \(bound), and nothing is dropped")
        }
        if kind.isDrop, bound == 0 || bound > sequence {
            return Problem(Place.bound, "bound", "is \(bound), not 1 to \(sequence)")
        }
        return nil
    }

    /// Checks the sequence of the entry at `offset`.
    func require(
        sequence expected: UInt64, _ reader: FieldReader, at offset: Int
    ) throws(DiskFormatError) {
        guard sequence == expected else {
            throw reader.damaged(
                offset + Place.sequence, "sequence", "is \(sequence), not \(expected)")
        }
    }

    /// Checks that the body starts at `least` or behind and ends, padded, at `most` or before, and
    /// gives its end; without a body that is `least`.
    ///
    /// `isNext`: it must start exactly at `least`.
    func requireBody(
        from least: Int, to most: Int, isNext: Bool, _ reader: FieldReader, at offset: Int
    ) throws(DiskFormatError) -> Int {
        guard kind.hasBody else { return least }
        guard isNext ? bodyOffset == least : bodyOffset >= least else {
            throw reader.damaged(
                offset + Place.bodyOffset, "body offset",
                "is \(bodyOffset), not \(least)\(isNext ? "" : " or more")")
        }
        // Both are within their limits, so nothing overflows.
        let end = bodyOffset + paddedBodyBytes
        guard end <= most else {
            throw reader.damaged(
                offset + Place.bodyBytes, "body bytes",
                "is \(bodyBytes), so the body ends at \(end), behind \(most)")
        }
        return end
    }
}
