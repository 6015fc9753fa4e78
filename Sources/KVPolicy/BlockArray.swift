/// An array that grows without moving what it holds: a store waits for every call of its policy, and
/// to move the entries of a million chunks takes long.
struct BlockArray<Element: Sendable>: Sendable {
    private static var shift: Int { 12 }

    private var blocks: [[Element]] = []

    /// Elements there are: whole blocks.
    var count: Int { blocks.count << Self.shift }

    /// Makes room for `index`; new elements are all the same. - Complexity: O(1) amortised, and never
    /// more than a block at a time where indexes come in order.
    mutating func extend(to index: Int, with element: Element) {
        while index >= count {
            blocks.append(Array(repeating: element, count: 1 << Self.shift))
        }
    }

    subscript(index: Int) -> Element {
        get { blocks[index >> Self.shift][index & (1 << Self.shift - 1)] }
        _modify { yield &blocks[index >> Self.shift][index & (1 << Self.shift - 1)] }
    }
}
