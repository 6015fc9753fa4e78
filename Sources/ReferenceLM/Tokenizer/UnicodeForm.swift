import Foundation

/// The normal forms of Unicode (Unicode Standard Annex 15).
enum UnicodeForm: Sendable {
    case canonicalComposition
    case canonicalDecomposition
    case compatibilityComposition
    case compatibilityDecomposition

    /// The text in this form; takes O(n log n).
    func apply(_ text: String) -> String {
        // ASCII is the same in every form.
        if text.utf8.allSatisfy({ $0 < 0x80 }) { return text }
        let text = sortingMarks(of: text)
        return switch self {
        case .canonicalComposition: text.precomposedStringWithCanonicalMapping
        case .canonicalDecomposition: text.decomposedStringWithCanonicalMapping
        case .compatibilityComposition: text.precomposedStringWithCompatibilityMapping
        case .compatibilityDecomposition: text.decomposedStringWithCompatibilityMapping
        }
    }

    // MARK: - Marks in canonical order

    /// Runs of marks up to this length are left to Foundation.
    private static let shortRun = 30

    /// The text with those marks in canonical order that Foundation would not put there, or not in
    /// time.
    ///
    /// Every form has them in this order, so nothing else changes in the end. Foundation takes the
    /// square of the length of a run, minutes for a megabyte; and it loses the order in long runs
    /// whose marks decompose, and where a character becomes several marks.
    private func sortingMarks(of text: String) -> String {
        guard needsSorting(text) else { return text }
        var result = String.UnicodeScalarView()
        var run: [Unicode.Scalar] = []
        func appendRun() {
            let isEasy = run.count <= Self.shortRun && !run.contains(where: becomesMarks)
            result += isEasy ? run : sorted(run)
            run = []
        }
        for scalar in text.unicodeScalars {
            if isMark(scalar) {
                run.append(scalar)
            } else {
                appendRun()
                result.append(scalar)
            }
        }
        appendRun()
        return String(result)
    }

    private func needsSorting(_ text: String) -> Bool {
        var length = 0
        for scalar in text.unicodeScalars {
            length = isMark(scalar) ? length + 1 : 0
            if length > Self.shortRun || becomesMarks(scalar) { return true }
        }
        return false
    }

    /// The marks decomposed, by their combining class; those of the same class stay in order.
    private func sorted(_ marks: [Unicode.Scalar]) -> [Unicode.Scalar] {
        let decomposed = marks.flatMap { mark in
            let text = String(mark)
            let form =
                isCompatibility
                ? text.decomposedStringWithCompatibilityMapping
                : text.decomposedStringWithCanonicalMapping
            return Array(form.unicodeScalars)
        }
        let classes = decomposed.map(\.properties.canonicalCombiningClass.rawValue)
        let order = decomposed.indices.sorted { (classes[$0], $0) < (classes[$1], $1) }
        return order.map { decomposed[$0] }
    }

    private var isCompatibility: Bool {
        switch self {
        case .canonicalComposition, .canonicalDecomposition: false
        case .compatibilityComposition, .compatibilityDecomposition: true
        }
    }

    /// Whether a scalar is reordered, or what it decomposes into is.
    private func isMark(_ scalar: Unicode.Scalar) -> Bool {
        guard scalar.value >= 0x300 else { return false }
        return scalar.properties.canonicalCombiningClass != .notReordered || becomesMarks(scalar)
    }

    /// Whether a scalar decomposes into marks, several of them or such as it is none of itself.
    private func becomesMarks(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        // A Greek mark, and Tibetan vowel signs.
        case 0x0344, 0x0F73, 0x0F75, 0x0F81: true
        // Halfwidth Katakana sound marks.
        case 0xFF9E, 0xFF9F: isCompatibility
        default: false
        }
    }
}
