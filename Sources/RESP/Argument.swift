/// Reads what commands carry as text: numbers and option words.
public enum Argument {
    /// The integer that `bytes` spell in strict decimal text, or nil.
    ///
    /// Strict means one spelling for each number: an optional `-`, digits without leading zeros, no
    /// `+`, no space, no `-0`, and a value that fits 64 bits. O(length).
    public static func integer(_ bytes: UnsafeRawBufferPointer) -> Int? {
        // SAFETY: the span is used inside this call only, for which the caller keeps the bytes.
        let span = unsafe Span<UInt8>(_unsafeBytes: bytes)
        return integer(span)
    }

    /// The integer that `bytes` spell in strict decimal text, or nil.
    ///
    /// The rules are those of ``integer(_:)-(UnsafeRawBufferPointer)``. O(length).
    public static func integer(_ bytes: Span<UInt8>) -> Int? {
        integer(bytes, 0..<bytes.count)
    }

    /// Whether `bytes` spell `word`, which must be in upper-case ASCII; the case of `bytes` is
    /// ignored.
    ///
    /// O(length), without an allocation.
    public static func matches(_ bytes: UnsafeRawBufferPointer, _ word: StaticString) -> Bool {
        precondition(word.hasPointerRepresentation, "an option word has more than one character")
        guard bytes.count == word.utf8CodeUnitCount else { return false }
        // SAFETY: `index` stays below the count of both, and a StaticString lives for ever.
        let expected = unsafe word.utf8Start
        for index in 0..<bytes.count {
            var byte = unsafe bytes[index]
            if byte &- UInt8(ascii: "a") < 26 { byte &-= 0x20 }
            if unsafe byte != expected[index] { return false }
        }
        return true
    }

    static func integer(_ bytes: Span<UInt8>, _ range: Range<Int>) -> Int? {
        var index = range.lowerBound
        guard index < range.upperBound else { return nil }
        let isNegative = bytes[index] == Byte.minus
        if isNegative { index += 1 }
        guard index < range.upperBound else { return nil }
        if bytes[index] == Byte.zero {
            return !isNegative && index + 1 == range.upperBound ? 0 : nil
        }
        guard range.upperBound - index <= 19 else { return nil }
        // Negative all the way: the least Int has no positive counterpart.
        var value = 0
        while index < range.upperBound {
            guard Byte.isDigit(bytes[index]) else { return nil }
            let (product, overflow) = value.multipliedReportingOverflow(by: 10)
            guard !overflow else { return nil }
            let digit = Int(bytes[index] &- Byte.zero)
            let (difference, underflow) = product.subtractingReportingOverflow(digit)
            guard !underflow else { return nil }
            value = difference
            index += 1
        }
        if isNegative { return value }
        return value == Int.min ? nil : -value
    }
}
