package import KVIdentity
package import KVTier

/// A chunk that is valid, with all its shards.
package struct RecoveredChunk: Sendable, Hashable {
    /// Its key.
    package var key: Digest
    /// The key before it; nil at chunk 0.
    package var parent: Digest?
    /// Which of all chunks its parent is, in the order in which they are handed over; nil at chunk
    /// 0. Always less than its own number.
    package var parentNumber: Int?
    /// Its root.
    package var root: Digest
    /// The volume that all its shards are on.
    package var volume: Int
    /// Its space: a place among ``RecoveredDisks/spaces``.
    package var space: Int
    /// Its place in the prompt, from 0.
    package var chunkIndex: UInt32
    /// When it expires, in milliseconds since 1970; 0 for never.
    package var expiresMs: UInt64
    /// The highest sequence of its shards: of two chunks on one volume, the one that was written
    /// later has the higher one.
    package var sequence: UInt64
}

/// Where a shard of a valid chunk is.
package struct RecoveredShard: Sendable, Hashable, BitwiseCopyable {
    /// The place to read it from.
    package var place: TierPlace
    /// XXH3-64 of its bytes without padding, as many as the space says.
    package var checksum: UInt64
}

/// Consecutive chunks, with their shards.
package struct RecoveredBatch: Sendable {
    /// The number of the first one among all.
    package let firstNumber: Int
    /// The chunks.
    package let chunks: [RecoveredChunk]
    /// The shards of all of them: those of the first chunk by their numbers, then those of the
    /// second…
    package let shards: [RecoveredShard]
    /// Where the shards of each chunk start.
    private let firstShards: [Int]

    init(
        firstNumber: Int, chunks: [RecoveredChunk], shards: [RecoveredShard], firstShards: [Int]
    ) {
        self.firstNumber = firstNumber
        self.chunks = chunks
        self.shards = shards
        self.firstShards = firstShards
    }

    /// The shards of `chunks[index]`: shard 0 first, as many as the space has. O(1).
    package func shards(of index: Int) -> ArraySlice<RecoveredShard> {
        let end = index + 1 < firstShards.count ? firstShards[index + 1] : shards.count
        return shards[firstShards[index]..<end]
    }
}

/// What a recovery found on one volume.
package struct RecoveredVolume: Sendable {
    /// What the log is to know of each file, by number.
    package var segments: [RecoveredSegment] { summaries.map(\.recovered) }
    /// What was found in each file, by number.
    package let summaries: [SegmentSummary]
    /// What an operator should know: a line each that names the file and says what to do, and a last
    /// one that counts what there was no room for.
    package let problems: [String]
    /// What a crash leaves, and is nothing to worry about: where unfinished segments end early.
    package let notes: [String]
    /// How much there was of what.
    package let counts: RecoveryCounts
}

/// What is valid in the directories of a store, at the time of the recovery.
package struct RecoveredDisks: Sendable {
    /// The spaces of the valid chunks.
    package let spaces: [CacheSpace]
    /// What was found on each volume.
    package let volumes: [RecoveredVolume]

    private let table: ChunkTable
    private let roots: RootTable
    private let resolved: ResolvedChunks
    /// By the place of a segment among those of all volumes: its number.
    private let segmentNumbers: [UInt32]

    /// Valid chunks.
    package var chunkCount: Int { resolved.chunks.count }

    /// Tells what is valid of what was found.
    ///
    /// - Parameters:
    ///   - segments: of all volumes.
    ///   - ranges: by volume, its own among them.
    init(
        _ found: consuming FoundEntries, _ segments: [SegmentSummary], _ ranges: [Range<Int>],
        wallMs: UInt64
    ) {
        var summaries = segments
        var resolver = ChunkResolver(found, wallMs: wallMs)
        resolver.resolve(&summaries)
        spaces = resolver.resolved.spaces
        volumes = zip(resolver.found.volumes, ranges).map { found, range in
            RecoveredVolume(
                summaries: Array(summaries[range]), problems: found.problems.lines,
                notes: found.notes.lines, counts: found.counts)
        }
        segmentNumbers = summaries.map { UInt32(truncatingIfNeeded: $0.file.number) }
        table = resolver.found.chunks
        roots = resolver.found.roots
        resolved = resolver.resolved
    }

    /// Hands all chunks over, parents before their children.
    ///
    /// - Parameters:
    ///   - batchChunks: chunks of a batch at most.
    ///   - body: false ends it.
    package func forEachBatch(
        of batchChunks: Int = 1024, _ body: (RecoveredBatch) throws -> Bool
    ) rethrows {
        var start = 0
        while start < chunkCount {
            let end = min(start + batchChunks, chunkCount)
            if try !body(batch(start..<end)) { return }
            start = end
        }
    }

    /// The key of a chunk by its number.
    func key(of number: Int) -> Digest {
        table.versions[Int(resolved.chunks[number].version)].key
    }

    private func batch(_ numbers: Range<Int>) -> RecoveredBatch {
        let firstShard = resolved.chunks[numbers.lowerBound].firstShard
        let shardsEnd =
            numbers.upperBound < chunkCount
            ? resolved.chunks[numbers.upperBound].firstShard : resolved.shards.count
        var chunks: [RecoveredChunk] = []
        chunks.reserveCapacity(numbers.count)
        var firstShards: [Int] = []
        firstShards.reserveCapacity(numbers.count)
        for number in numbers {
            chunks.append(chunk(number))
            firstShards.append(resolved.chunks[number].firstShard - firstShard)
        }
        let shards = resolved.shards[firstShard..<shardsEnd].map { place in
            let shard = table.shards[Int(place)]
            let segment = segmentNumbers[Int(shard.segment)]
            return RecoveredShard(
                place: TierPlace(segment: segment, page: shard.page), checksum: shard.checksum)
        }
        return RecoveredBatch(
            firstNumber: numbers.lowerBound, chunks: chunks, shards: shards,
            firstShards: firstShards)
    }

    private func chunk(_ number: Int) -> RecoveredChunk {
        let chunk = resolved.chunks[number]
        let version = table.versions[Int(chunk.version)]
        let root = roots.roots[Int(version.root)]
        let isFirst = version.chunkIndex == 0
        return RecoveredChunk(
            key: version.key, parent: isFirst ? nil : version.parent,
            parentNumber: isFirst ? nil : Int(chunk.parent), root: root.digest,
            volume: Int(version.volume), space: resolved.spacePlaces[Int(root.space)],
            chunkIndex: version.chunkIndex, expiresMs: version.expiresMs,
            sequence: version.sequence)
    }
}
