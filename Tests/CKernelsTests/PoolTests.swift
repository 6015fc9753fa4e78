import CKernels
import Glibc
import TestRandom
import Testing

@Suite("Thread pools")
struct PoolTests {
    @Test("have the threads that were asked for, at least one")
    func counts() throws {
        for (asked, given) in [(1, 1), (2, 2), (7, 7), (0, 1), (-5, 1)] as [(Int32, Int32)] {
            let pool = try Pool(threads: asked)
            #expect(kvk_pool_threads(pool.pointer) == given)
        }
        kvk_pool_destroy(nil)
    }

    @Test("begin and end any number of times, used or not")
    func lives() throws {
        var random = SeededGenerator(seed: 1)
        let work = Work(.matmul, &random)
        let kind = try #require(Kind.all.first)
        let expected = work.run(kind, try Pool())
        for round in 0..<150 {
            let pool = try Pool(threads: 1 + Int32(round % 5))
            if round.isMultiple(of: 10) {
                let found = difference(work.run(kind, pool), expected)
                #expect(found == nil, "round \(round)")
            }
        }
    }

    @Test("give each of several callers its own result", arguments: [1, 3] as [Int32])
    func callers(_ threads: Int32) throws {
        var random = SeededGenerator(seed: 2)
        // Small and large ones, so that some wake threads and some don't.
        let works = (0..<4).flatMap { _ in
            [Work(.matmul, &random), Work(.attention, &random), Work(.smallAttention, &random)]
        }
        let kind = try #require(Kind.all.first)
        let pool = try Pool(threads: threads)
        let expected = works.map { $0.run(kind, pool) }
        let callers = works.indices.map { index in
            Caller { () -> String? in
                for _ in 0..<(works[index].name == .smallAttention ? 100 : 3) {
                    if let found = difference(works[index].run(kind, pool), expected[index]) {
                        return found
                    }
                }
                return nil
            }
        }
        for (index, caller) in callers.enumerated() {
            let found = caller.result()
            #expect(found == nil, "seed 2, caller \(index), \(works[index].name)")
        }
    }
}

/// Something to compute, always the same.
private struct Work: Sendable {
    enum Name { case matmul, attention, smallAttention }
    let name: Name
    private let some: AttentionCase
    private let a: [Float]
    private let packed: [Float]

    init(_ name: Name, _ random: inout SeededGenerator) {
        self.name = name
        some = AttentionCase(
            kvHeads: 2, group: 2, headSize: 24, tokens: name == .attention ? 160 : 40, &random)
        a = random.values(100 * 130)
        packed = random.values(320 * 130)
    }

    func run(_ kind: Kind, _ pool: Pool) -> [Float] {
        guard name == .matmul else {
            return some.attend(kind, pool, 0..<some.tokens, over: Pages(of: some), "\(name)")
        }
        var out = Guarded(100 * 320)
        out.write {
            kvk_matmul(pool.pointer, kind.pointer, a, 130, 100, packed, 320, 130, $0, 320)
        }
        return out.values
    }
}

/// A thread that computes something: the cooperative ones must not be held up.
private final class Caller: @unchecked Sendable {
    // SAFETY: `found` is written by the thread, and read after it was joined.
    private let body: @Sendable () -> String?
    private var found: String?
    private var thread = pthread_t()

    init(_ body: @escaping @Sendable () -> String?) {
        self.body = body
        let status = pthread_create(
            &thread, nil,
            { argument in
                let caller = Unmanaged<Caller>.fromOpaque(argument!).takeRetainedValue()
                caller.found = caller.body()
                return nil
            }, Unmanaged.passRetained(self).toOpaque())
        precondition(status == 0, "the system gives no more threads")
    }

    func result() -> String? {
        pthread_join(thread, nil)
        return found
    }
}
