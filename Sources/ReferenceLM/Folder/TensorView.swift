/// A tensor in a mapped file. Its elements are read from there; it keeps the file mapped.
struct TensorView: Sendable {
    let name: String
    let elementType: ElementType
    /// The dimensions, outermost first; elements stand in row-major order.
    let shape: [Int]
    /// The file that owns the bytes.
    let file: MappedFile
    /// The place of the bytes in the file; not aligned to anything.
    let range: Range<Int>

    init(_ entry: SafetensorsHeader.Entry, in file: MappedFile) {
        name = entry.name
        elementType = entry.elementType
        shape = entry.shape
        range = entry.range
        self.file = file
    }

    /// The number of elements.
    var count: Int { shape.reduce(1, *) }

    /// The bytes as they are in the file; valid as long as ``file`` lives.
    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: file.bytes[range]) }

    /// Whether ``read(into:)`` can read the elements.
    var isReadable: Bool {
        if case .other = elementType { false } else { true }
    }

    /// Reads all elements, each converted to float32 exactly (a NaN keeps its sign and payload).
    ///
    /// - Precondition: the tensor is readable (``ModelFolder/tensor(_:shape:)`` gives no other),
    ///   and `destination` has room for exactly its elements.
    /// - Complexity: linear; some gigabytes a second in an optimized build.
    func read(into destination: UnsafeMutableBufferPointer<Float>) {
        precondition(destination.count == count, "a tensor is read into a buffer of its size")
        withExtendedLifetime(file) {
            let bytes = bytes
            guard let source = bytes.baseAddress, let target = destination.baseAddress else {
                return
            }
            // SAFETY: the header was checked against the length of the file, so the range lies in
            // it and has as many bytes as the elements take; the destination has room for them all.
            // They may be anywhere, so they are loaded unaligned.
            switch elementType {
            case .float32:
                UnsafeMutableRawPointer(target).copyMemory(from: source, byteCount: bytes.count)
            case .float16:
                for index in 0..<destination.count {
                    let bits = source.loadUnaligned(fromByteOffset: index &* 2, as: UInt16.self)
                    target[index] = Float(float16Bits: UInt16(littleEndian: bits))
                }
            case .bfloat16:
                for index in 0..<destination.count {
                    let bits = source.loadUnaligned(fromByteOffset: index &* 2, as: UInt16.self)
                    target[index] = Float(bfloat16Bits: UInt16(littleEndian: bits))
                }
            case .other(let name):
                preconditionFailure("elements of type \(name) are never read")
            }
        }
    }
}

extension Float {
    /// The value of an IEEE 754 half-precision number.
    ///
    /// Integer operations and one multiplication, so that loops over it are vectorized: without
    /// the F16C instructions `Float(Float16)` is a call for each element.
    @inline(__always)
    init(float16Bits bits: UInt16) {
        // With exponent and fraction at their places in a float32, the value lacks a factor of
        // 2^(127 - 15). Multiplying by it is exact and turns subnormal halves into normal floats.
        let scale = Float(bitPattern: (127 + 127 - 15) << 23)
        let magnitude = Float(bitPattern: UInt32(bits & 0x7FFF) << 13) * scale
        // The greatest exponent means infinity and NaN in both formats.
        let special: UInt32 = bits & 0x7C00 == 0x7C00 ? 0x7F80_0000 : 0
        self.init(
            bitPattern: magnitude.bitPattern | special | UInt32(bits & 0x8000) << 16)
    }

    /// The value of a bfloat16 number: the upper half of a float32.
    @inline(__always)
    init(bfloat16Bits bits: UInt16) {
        self.init(bitPattern: UInt32(bits) << 16)
    }
}
