/// The type of a tensor's elements.
enum ElementType: Hashable, Sendable, CustomStringConvertible {
    case float32
    case float16
    case bfloat16
    /// A type that is not read, by its name in the file.
    case other(String)

    init(named name: String) {
        self =
            switch name {
            case "F32": .float32
            case "F16": .float16
            case "BF16": .bfloat16
            default: .other(name)
            }
    }

    /// The name in the file.
    var description: String {
        switch self {
        case .float32: "F32"
        case .float16: "F16"
        case .bfloat16: "BF16"
        case .other(let name): name
        }
    }

    /// The size of an element; nil where it is not known.
    var byteCount: Int? {
        switch self {
        case .float32: 4
        case .float16, .bfloat16: 2
        case .other("BOOL"), .other("U8"), .other("I8"), .other("F8_E5M2"), .other("F8_E4M3"): 1
        case .other("U16"), .other("I16"): 2
        case .other("U32"), .other("I32"): 4
        case .other("U64"), .other("I64"), .other("F64"), .other("C64"): 8
        case .other: nil
        }
    }
}

/// What the header of a safetensors file says, checked against the length of the file: the tensors
/// cover the data exactly, without overlaps and without holes, as the reference library demands.
///
/// Source: <https://huggingface.co/docs/safetensors>.
struct SafetensorsHeader: Sendable {
    /// A tensor: what it is and where it stands.
    struct Entry: Hashable, Sendable {
        let name: String
        let elementType: ElementType
        /// The dimensions, outermost first; none for a single number.
        let shape: [Int]
        /// Its bytes in the file.
        let range: Range<Int>
    }

    /// The tensors in the order of their bytes.
    let entries: [Entry]

    /// Reads and checks the header.
    ///
    /// - Parameters:
    ///   - bytes: the whole file.
    ///   - file: its path, for messages.
    /// - Throws: ``ModelError`` with the code `weights`.
    init(parsing bytes: UnsafeRawBufferPointer, file: String) throws(ModelError) {
        let text = try Self.text(of: bytes, file: file)
        let dataStart = Self.lengthBytes + text.count
        let object = try JSONObject(parsing: text) { problem in
            ModelError(
                .weights, "\(file): the header \(problem); the file is damaged, copy it again")
        }
        var entries: [Entry] = []
        entries.reserveCapacity(object.members.count)
        var names: Set<String> = []
        for member in object.members {
            let name = member.name.text
            if name == "__metadata__" { continue }
            let reader = EntryReader(name: name, file: file, dataStart: dataStart)
            // Names that differ in their bytes may yet be the same text.
            guard names.insert(name).inserted else { throw reader.failure("is there twice") }
            entries.append(try reader.entry(member.value))
        }
        // Empty tensors stand before the one that begins where they do.
        entries.sort {
            ($0.range.lowerBound, $0.range.upperBound, $0.name)
                < ($1.range.lowerBound, $1.range.upperBound, $1.name)
        }
        try Self.checkCover(entries, from: dataStart, to: bytes.count, file: file)
        self.entries = entries
    }

    /// The length of the header stands before it, in as many bytes.
    private static let lengthBytes = 8

    private static func text(of bytes: UnsafeRawBufferPointer, file: String) throws(ModelError)
        -> [UInt8]
    {
        guard bytes.count >= lengthBytes else {
            throw ModelError(
                .weights,
                "\(file) has \(bytes.count) bytes, a safetensors file has at least \(lengthBytes): "
                    + "it is truncated, copy it again")
        }
        // SAFETY: there are as many bytes, as was checked above.
        let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
        guard length > 0, length <= FolderLimits.safetensorsHeaderBytes else {
            throw ModelError(
                .weights,
                "\(file) says that its header has \(length) bytes, allowed are 1 to "
                    + "\(FolderLimits.safetensorsHeaderBytes): it is no safetensors file or is "
                    + "damaged, copy it again")
        }
        let end = lengthBytes + Int(length)
        guard end <= bytes.count else {
            throw ModelError(
                .weights,
                "\(file) has \(bytes.count) bytes, its header alone takes \(end): it is "
                    + "truncated, copy it again")
        }
        return Array(bytes[lengthBytes..<end])
    }

    private static func checkCover(
        _ entries: [Entry], from start: Int, to end: Int, file: String
    ) throws(ModelError) {
        var expected = start
        for entry in entries {
            guard entry.range.lowerBound == expected else {
                let start = entry.range.lowerBound
                let what = start < expected ? "overlaps the one before it" : "leaves a hole"
                throw ModelError(
                    .weights,
                    "\(file): tensor \(entry.name.quoted) begins at byte \(start) "
                        + "instead of \(expected), it \(what); the file is damaged, copy it again")
            }
            expected = entry.range.upperBound
        }
        if expected > end {
            throw ModelError(
                .weights,
                "\(file): the file has \(end) bytes, its header promises \(expected): it is "
                    + "truncated, copy it again")
        }
        if expected < end {
            throw ModelError(
                .weights,
                "\(file): the file has \(end) bytes, its header accounts for \(expected): "
                    + "something was added or its header is damaged, copy it again")
        }
    }
}

/// Reads what the header says of one tensor.
private struct EntryReader {
    let name: String
    let file: String
    /// Where the data begins in the file.
    let dataStart: Int

    func entry(_ value: JSON) throws(ModelError) -> SafetensorsHeader.Entry {
        guard let fields = value.object else {
            throw failure("is described by \(value.shown), expected an object")
        }
        guard let typeName = fields["dtype"]?.string else {
            throw unexpected("dtype", fields, "a string")
        }
        let elementType = ElementType(named: typeName)
        let shape = try integers("shape", fields)
        let offsets = try integers("data_offsets", fields)
        guard offsets.count == 2 else {
            throw failure("has \(offsets.count) \"data_offsets\", expected 2")
        }
        guard offsets[0] <= offsets[1] else {
            throw failure("ends at \(offsets[1]), before it begins at \(offsets[0])")
        }
        try check(byteCount: offsets[1] - offsets[0], shape, elementType)
        let (end, overflows) = dataStart.addingReportingOverflow(offsets[1])
        if overflows { throw failure("ends at \(offsets[1]), which no file reaches") }
        return SafetensorsHeader.Entry(
            name: name, elementType: elementType, shape: shape, range: dataStart + offsets[0]..<end)
    }

    private func integers(_ field: String, _ fields: JSONObject) throws(ModelError) -> [Int] {
        let expected = "an array of integers that are not negative and have at most 63 bits"
        guard let elements = fields[field]?.array else {
            throw unexpected(field, fields, expected)
        }
        var result: [Int] = []
        for element in elements {
            guard let integer = element.integer, integer >= 0 else {
                throw failure("has \(element.shown) in \"\(field)\", expected \(expected)")
            }
            result.append(integer)
        }
        return result
    }

    private func check(byteCount: Int, _ shape: [Int], _ elementType: ElementType)
        throws(ModelError)
    {
        var product = elementType.byteCount ?? 1
        for dimension in shape {
            let (next, overflows) = product.multipliedReportingOverflow(by: dimension)
            if overflows { throw failure("has the shape \(shape), more than any file holds") }
            product = next
        }
        if elementType.byteCount != nil, product != byteCount {
            throw failure(
                "has \(byteCount) bytes, its shape \(shape) of \(elementType) takes \(product)")
        }
    }

    private func unexpected(
        _ field: String, _ fields: JSONObject, _ expected: String
    ) -> ModelError {
        guard let value = fields[field] else {
            return failure("has no \"\(field)\", expected \(expected)")
        }
        return failure("has \(value.shown) as \"\(field)\", expected \(expected)")
    }

    func failure(_ what: String) -> ModelError {
        ModelError(
            .weights,
            "\(file): tensor \(name.quoted) \(what); the file is damaged, copy it again")
    }
}
