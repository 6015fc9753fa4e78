/// Text on its way through the pre-tokenizers: bytes, and the pieces they are split into.
struct SplitText {
    /// Valid UTF-8, and so is each piece.
    var bytes: [UInt8]
    /// In order, without overlap, none empty; what lies in no piece has been removed.
    var pieces: [Range<Int>]

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
        pieces = bytes.isEmpty ? [] : [0..<bytes.count]
    }

    /// Splits each piece at what `find` finds in it.
    ///
    /// `find` gives the matches in a piece, in order and without overlap.
    mutating func split(
        _ behavior: SplitBehavior, invert: Bool = false, find: (ArraySlice<UInt8>) -> [Range<Int>]
    ) {
        var result: [Range<Int>] = []
        result.reserveCapacity(pieces.count)
        for piece in pieces {
            let segments = Self.segments(of: piece, matches: find(bytes[piece]), invert: invert)
            result += behavior.apply(segments).filter { !$0.isEmpty }
        }
        pieces = result
    }

    /// Splits each piece at the scalars of a class, each of which is a match of its own.
    mutating func split(_ behavior: SplitBehavior, at isMatch: (Unicode.Scalar) -> Bool) {
        split(behavior) { bytes in
            var matches: [Range<Int>] = []
            bytes.forEachScalar { scalar, range in if isMatch(scalar) { matches.append(range) } }
            return matches
        }
    }

    /// Replaces each piece by what `write` appends for it.
    mutating func replacePieces(_ write: (ArraySlice<UInt8>, inout [UInt8]) -> Void) {
        var replaced: [UInt8] = []
        replaced.reserveCapacity(bytes.count + bytes.count / 4)
        for index in pieces.indices {
            let start = replaced.count
            write(bytes[pieces[index]], &replaced)
            pieces[index] = start..<replaced.count
        }
        bytes = replaced
    }

    /// The matches and what lies between them.
    private static func segments(
        of piece: Range<Int>, matches: [Range<Int>], invert: Bool
    ) -> [SplitBehavior.Segment] {
        var segments: [SplitBehavior.Segment] = []
        segments.reserveCapacity(matches.count)
        var end = piece.lowerBound
        for match in matches {
            if end < match.lowerBound {
                segments.append(.init(range: end..<match.lowerBound, isMatch: invert))
            }
            segments.append(.init(range: match, isMatch: !invert))
            end = match.upperBound
        }
        if end < piece.upperBound {
            segments.append(.init(range: end..<piece.upperBound, isMatch: invert))
        }
        return segments
    }
}

/// What becomes of the places at which text is split.
enum SplitBehavior: String, Sendable, CaseIterable {
    case removed = "Removed"
    case isolated = "Isolated"
    case mergedWithPrevious = "MergedWithPrevious"
    case mergedWithNext = "MergedWithNext"
    case contiguous = "Contiguous"

    struct Segment {
        var range: Range<Int>
        let isMatch: Bool
    }

    init(_ field: TokenizerField) throws(ModelError) {
        let name = try field.string()
        guard let behavior = SplitBehavior(rawValue: name) else {
            let all = Self.allCases.map(\.rawValue).joined(separator: ", ")
            throw field.unsupported("is \(name.quoted)", supported: all)
        }
        self = behavior
    }

    /// The pieces that are left of the segments of a text.
    func apply(_ segments: [Segment]) -> [Range<Int>] {
        switch self {
        case .removed: segments.filter { !$0.isMatch }.map(\.range)
        case .isolated: segments.map(\.range)
        case .mergedWithPrevious: Self.merge(segments) { $0.isMatch && !$1 }
        case .contiguous: Self.merge(segments) { $0.isMatch == $1 }
        case .mergedWithNext: Self.merge(segments.reversed()) { $0.isMatch && !$1 }.reversed()
        }
    }

    /// Joins a segment to the piece before it where `joins` says so; it is given whether the
    /// segment before was a match, which counts as "no" at the start.
    private static func merge(
        _ segments: [Segment], _ joins: (Segment, Bool) -> Bool
    ) -> [Range<Int>] {
        var pieces: [Range<Int>] = []
        var wasMatch = false
        for segment in segments {
            if joins(segment, wasMatch), let last = pieces.last {
                let start = min(last.lowerBound, segment.range.lowerBound)
                let end = max(last.upperBound, segment.range.upperBound)
                pieces[pieces.count - 1] = start..<end
            } else {
                pieces.append(segment.range)
            }
            wasMatch = segment.isMatch
        }
        return pieces
    }
}

extension ArraySlice<UInt8> {
    /// Calls `body` with each scalar and its place; the bytes must be valid UTF-8.
    fileprivate func forEachScalar(_ body: (Unicode.Scalar, Range<Int>) -> Void) {
        var start = startIndex
        for scalar in String(decoding: self, as: UTF8.self).unicodeScalars {
            let end = start + UTF8.width(scalar)
            body(scalar, start..<end)
            start = end
        }
    }
}
