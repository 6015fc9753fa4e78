import RESP
import TestRandom
import Testing

/// A bounded fuzz: streams of the corpus, damaged from a fixed seed. `make fuzz` looks longer.
@Suite("Damaged streams")
struct MutationTests {
    private static let cases = 100_000
    private static let interesting: [UInt8] = [
        0, 10, 13, 32, 34, 36, 39, 42, 43, 45, 48, 49, 57, 58, 92, 120, 124, 126, 128, 255,
    ]

    @Test("crash no request parser, and split alike")
    func requests() {
        let limits = ParserLimits(
            arguments: 8, argumentBytes: 64, commandBytes: 160, inlineBytes: 48)
        var random = SeededGenerator(seed: 0x5EED_0001)
        var failures = 0
        for number in 0..<Self.cases {
            let stream = Self.damaged(Corpus.requests, &random)
            let whole = parseRequests(stream, limits: limits)
            let cuts = randomCuts(1 + random.below(3), in: stream.count, &random)
            let split = parseRequests(stream, cuts: cuts, limits: limits)
            guard whole == split, whole.broken == nil else {
                Issue.record("case \(number), \(stream), cuts \(cuts): \(whole), \(split)")
                return
            }
            failures += whole.failure == nil ? 0 : 1
        }
        #expect(failures > Self.cases / 10, "the damage must do damage")
        #expect(failures < Self.cases * 9 / 10, "and not too much")
    }

    @Test("crash no reply parser, and split alike")
    func replies() {
        let limits = ReplyLimits(
            depth: 6, elements: 40, bulkBytes: 64, lineBytes: 64, replyBytes: 200)
        var random = SeededGenerator(seed: 0x5EED_0002)
        var failures = 0
        for number in 0..<Self.cases {
            let stream = Self.damaged(Corpus.replies, &random)
            let whole = parseReplies(stream, limits: limits)
            let cuts = randomCuts(1 + random.below(3), in: stream.count, &random)
            let split = parseReplies(stream, cuts: cuts, limits: limits)
            guard whole == split, whole.broken == nil else {
                Issue.record("case \(number), \(stream), cuts \(cuts): \(whole), \(split)")
                return
            }
            failures += whole.failure == nil ? 0 : 1
        }
        #expect(failures > Self.cases / 10, "the damage must do damage")
        #expect(failures < Self.cases * 9 / 10, "and not too much")
    }

    private static func damaged(
        _ corpus: [[UInt8]], _ random: inout SeededGenerator
    ) -> [UInt8] {
        var stream = corpus[random.below(corpus.count)]
        for _ in 0..<random.below(3) {
            guard !stream.isEmpty else { break }
            let place = random.below(stream.count)
            switch random.below(5) {
            case 0: stream[place] = interesting[random.below(interesting.count)]
            case 1: stream.insert(interesting[random.below(interesting.count)], at: place)
            case 2: stream.remove(at: place)
            case 3: stream.removeSubrange(place..<min(stream.count, place + random.below(8)))
            default:
                let other = corpus[random.below(corpus.count)]
                stream.insert(contentsOf: other.prefix(random.below(other.count + 1)), at: place)
            }
        }
        return stream
    }
}
