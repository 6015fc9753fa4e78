/// What the estimate of reuse tells chunks apart by: what the last request said, how often the
/// chunk was used, and how much of that request was new.
///
/// Classes with little experience of their own borrow from *hint and uses*, these from *hint*,
/// these from all.
enum ReuseClass {
    private static let useClasses = 7
    private static let newClasses = 4
    private static let hintClasses = 7
    private static let leafCount = hintClasses * useClasses * newClasses

    /// Priorities make three levels of lists.
    static let levels = 3

    /// For each class the more general one.
    static let parents: [Int] = {
        var parents: [Int] = []
        for pair in 0..<hintClasses * useClasses {
            parents += Array(repeating: leafCount + pair, count: newClasses)
        }
        let hints = leafCount + hintClasses * useClasses
        for hint in 0..<hintClasses {
            parents += Array(repeating: hints + hint, count: useClasses)
        }
        let all = hints + hintClasses
        parents += Array(repeating: all, count: hintClasses + 1)
        return parents
    }()

    static func of(hintClass: Int, uses: Int, newChunks: Int) -> Int {
        return (hintClass * useClasses + useClass(uses)) * newClasses + newClass(newChunks)
    }

    /// What was said of the chunks of a class.
    static func hintClass(ofClass kind: Int) -> Int { kind / (useClasses * newClasses) }

    static func level(_ hint: ReuseHint) -> Int { 1 + hint.priority.signum() }

    /// What the worth of a level's chunks is multiplied by.
    static func factor(level: Int) -> Double { level == 0 ? 0.25 : level == 1 ? 1 : 4 }

    private static func useClass(_ uses: Int) -> Int {
        uses < 5 ? max(1, uses) - 1 : uses < 9 ? 4 : uses < 17 ? 5 : 6
    }

    private static func newClass(_ count: Int) -> Int {
        count < 2 ? 0 : count < 5 ? 1 : count < 64 ? 2 : 3
    }

    static func hintClass(_ hint: ReuseHint) -> Int {
        switch hint.expectation {
        case .unknown: return 0
        case .closed: return 1
        case .pending:
            guard let seconds = hint.seconds, seconds.isFinite else { return 2 }
            return seconds < 4 ? 3 : seconds < 32 ? 4 : seconds < 256 ? 5 : 6
        }
    }
}
