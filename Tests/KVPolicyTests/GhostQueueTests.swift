import TestRandom
import Testing

@testable import KVPolicy

@Suite("Ghosts")
struct GhostQueueTests {
    @Test("Ghosts come and go as in the simplest queue, and leave no nodes behind")
    func model() {
        let seed = UInt64.random(in: 0..<1 << 32)
        print("ghosts: seed \(seed)")
        var random = SeededGenerator(seed: seed)
        var queue = GhostQueue<Int>()
        var model: [(fingerprint: UInt64, memory: Int)] = []
        var most = 0
        func index(_ fingerprint: UInt64) -> Int? {
            model.firstIndex { $0.fingerprint == fingerprint }
        }
        for step in 0..<30_000 {
            let fingerprint = random.next() % 400 << 54
            switch random.next() % 10 {
            case 0..<5:
                if let old = index(fingerprint) { model.remove(at: old) }
                model.append((fingerprint, step))
                queue.append(fingerprint, step)
            case 5..<7:
                let found = index(fingerprint).map { model.remove(at: $0).memory }
                #expect(queue.take(fingerprint) == found, "seed \(seed), step \(step)")
            case 7:
                let found = index(fingerprint).map { model[$0].memory }
                #expect(queue.find(fingerprint) == found, "seed \(seed), step \(step)")
            case 8:
                let found = model.isEmpty ? nil : model.removeFirst().memory
                #expect(queue.popOldest() == found, "seed \(seed), step \(step)")
            default:
                let limit = Int(random.next() % 300)
                queue.trim(to: limit)
                model.removeFirst(max(0, model.count - limit))
            }
            most = max(most, model.count)
            #expect(queue.count == model.count)
        }
        #expect(queue.nodeCount <= most + 1 && most > 100)
    }

    @Test("Tables stay small, whatever bits the fingerprints differ in: none grows for long")
    func tables() {
        for shift: UInt64 in [0, 20, 44] {
            var queue = GhostQueue<Void>()
            for number in 0..<100_000 { queue.append(UInt64(number) << shift, ()) }
            #expect(queue.largestTable <= 400, "differing from bit \(shift) on")
        }
    }
}
