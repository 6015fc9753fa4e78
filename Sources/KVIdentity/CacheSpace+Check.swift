extension CacheSpace {
    /// The rules of `docs/formats.md` for the values of fields.
    enum Check {
        static func range(
            _ field: String, _ value: Int, _ range: ClosedRange<Int>
        ) throws(IdentityError) {
            guard range.contains(value) else {
                throw invalid(
                    field,
                    "is \(value): it must be between \(range.lowerBound) and \(range.upperBound)")
            }
        }

        /// A name that programs compare: printable ASCII, not empty.
        static func word(
            _ field: String, _ value: String, maximumBytes: Int
        ) throws(IdentityError) {
            guard !value.isEmpty, value.utf8.count <= maximumBytes else {
                throw invalid(
                    field, "has \(value.utf8.count) bytes: it must have 1 to \(maximumBytes)")
            }
            guard value.utf8.allSatisfy({ (0x21...0x7E).contains($0) }) else {
                throw invalid(
                    field, "is \(quoted(value)): it must be printable ASCII without spaces")
            }
        }

        /// Text that is shown to people: on one line.
        static func text(
            _ field: String, _ value: String, maximumBytes: Int
        ) throws(IdentityError) {
            guard value.utf8.count <= maximumBytes else {
                throw invalid(
                    field, "has \(value.utf8.count) bytes: at most \(maximumBytes) are allowed")
            }
            guard value.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7F }) else {
                throw invalid(field, "has control characters: take them out")
            }
        }

        static func consistency(
            kind: Kind, heads: Int, blockTokens: Int, chunkTokens: Int
        ) throws(IdentityError) {
            guard kind != .mla || heads == 1 else {
                throw invalid("heads", "is \(heads): with kind \"mla\" it must be 1")
            }
            guard chunkTokens.isMultiple(of: blockTokens) else {
                throw invalid(
                    "chunk_tokens",
                    "is \(chunkTokens): it must be a multiple of block_tokens (\(blockTokens))")
            }
        }

        static func shards(
            stages: Int, ranks: Int, shardBytes: [Int]
        ) throws(IdentityError) {
            let count = stages * ranks
            guard count <= Limits.shards else {
                throw IdentityError(
                    code: .limitExceeded,
                    message: "stages × ranks is \(count): at most \(Limits.shards) shards are "
                        + "allowed",
                    field: "ranks")
            }
            guard shardBytes.count == count else {
                throw invalid(
                    "shard_bytes",
                    "has \(shardBytes.count) elements: it must have stages × ranks (\(count))")
            }
            for (shard, bytes) in shardBytes.enumerated()
            where !(1...Limits.shardBytes).contains(bytes) {
                throw invalid(
                    "shard_bytes",
                    "has \(bytes) for shard \(shard): it must be between 1 and \(Limits.shardBytes)"
                )
            }
        }

        static func invalid(_ field: String, _ problem: String) -> IdentityError {
            IdentityError(
                code: .invalidValue, message: "the field \"\(field)\" \(problem)", field: field)
        }
    }
}
