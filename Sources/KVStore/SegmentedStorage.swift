/// An array of plain values that grows without moving what it holds, so that growing costs no pause
/// and no second copy.
///
/// It owns its memory. Elements never move, and are never destroyed one by one: they are plain
/// bytes.
struct SegmentedStorage<Element: BitwiseCopyable>: ~Copyable {
    private static var segmentShift: Int { 16 }
    private static var segmentCount: Int { 1 << segmentShift }

    private var segments: [UnsafeMutablePointer<Element>] = []
    /// How many elements there are.
    private(set) var count = 0

    init() {}

    deinit {
        for segment in segments { segment.deallocate() }
    }

    /// Adds `value` `copies` times at the end. - Returns: the index of the first.
    mutating func append(_ value: Element, copies: Int = 1) -> UInt32 {
        let first = count
        for _ in 0..<copies {
            if count == segments.count << Self.segmentShift {
                segments.append(.allocate(capacity: Self.segmentCount))
            }
            let segment = segments[count >> Self.segmentShift]
            (segment + (count & (Self.segmentCount - 1))).initialize(to: value)
            count += 1
        }
        return UInt32(first)
    }

    subscript(index: UInt32) -> Element {
        @inline(__always) _read {
            yield pointer(index).pointee
        }
        @inline(__always) _modify {
            yield &pointer(index).pointee
        }
    }

    @inline(__always)
    private func pointer(_ index: UInt32) -> UnsafeMutablePointer<Element> {
        precondition(Int(index) < count, "index out of range")
        // SAFETY: every segment has room for segmentCount elements, and all below count are
        // initialised.
        return segments[Int(index) >> Self.segmentShift] + (Int(index) & (Self.segmentCount - 1))
    }
}
