import Testing

@testable import ReferenceLM

@Suite("Safetensors")
struct SafetensorsTests {
    private static let one = TensorFile.entry("a", "F32", "[1]", 0, 4)

    @Test("are read as they are written, in any order and unaligned")
    func valid() throws {
        let header = """
            {"__metadata__": {"format": "pt"},
             "b\\u00e9": {"shape": [2, 1], "data_offsets": [5, 9], "dtype": "BF16"},
             "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
             "number": {"dtype": "F32", "shape": [], "data_offsets": [1, 5]},
             "none": {"dtype": "F16", "shape": [3, 0, 2], "data_offsets": [5, 5]}}\u{20}\u{20}
            """
        let data: [UInt8] = [7, 0, 0, 0x80, 0x3F, 0x80, 0x3F, 0x00, 0xC0]
        let file = TensorFile.bytes(header: header, data: data)
        let start = file.count - data.count
        let parsed = try SafetensorsHeader(bytes: file)
        #expect(parsed.entries.map(\.name) == ["byte", "number", "none", "bé"])
        #expect(parsed.entries.map(\.shape) == [[1], [], [3, 0, 2], [2, 1]])
        #expect(
            parsed.entries.map(\.elementType) == [.other("U8"), .float32, .float16, .bfloat16])
        #expect(parsed.entries.map(\.range.lowerBound) == [0, 1, 5, 5].map { start + $0 })

        let folder = try TemporaryFolder()
        try folder.write("x", file)
        let mapped = try MappedFile(path: folder.file("x"))
        let values = parsed.entries[1...].map { read(TensorView($0, in: mapped)) }
        #expect(values == [[1], [], [1, -2]])
    }

    @Test("may have no tensors")
    func empty() throws {
        #expect(try SafetensorsHeader(bytes: TensorFile.bytes(header: "{}")).entries.isEmpty)
    }

    @Test("that are too short, or whose header is, are refused")
    func short() {
        expect(Array(repeating: 0, count: 0), "has 0 bytes", "truncated, copy it again")
        expect(Array(repeating: 0, count: 7), "has 7 bytes", "truncated")
        expect(Array(repeating: 0, count: 8), "header has 0 bytes", "allowed are 1 to 100000000")
        let huge = withUnsafeBytes(of: UInt64(100_000_001).littleEndian) { Array($0) }
        expect(huge, "header has 100000001 bytes", "allowed are 1 to 100000000")
        expect([UInt8](repeating: 255, count: 20), "header has \(UInt64.max) bytes")
        let cut = Array(TensorFile.bytes(header: "{}").dropLast())
        expect(cut, "has 9 bytes, its header alone takes 10", "truncated, copy it again")
    }

    @Test("whose header is no JSON object are refused")
    func notJSON() {
        refuse(header: "{\"a\": 1", "not valid JSON", "at byte 7")
        refuse(header: "[]", "the header holds an array of 0, expected an object")
        refuse(header: "{} x", "something follows the value")
        expect(TensorFile.bytes(header: [0x7B, 0xFF, 0x7D]), "it is not UTF-8")
        refuse(header: "{\"a\u{1}\": 1}", "a control character")
        refuse(header: String(repeating: "[", count: 100_000), "nested more than 32 deep")
    }

    @Test("that name a tensor or a field twice are refused")
    func twice() {
        let again = TensorFile.entry("a", "F32", "[1]", 4, 8)
        let data = [UInt8](repeating: 0, count: 8)
        refuse(header: "{\(Self.one),\(again)}", data: data, "the name \"a\" appears twice")
        let escaped = TensorFile.entry("\\u0061", "F32", "[1]", 4, 8)
        refuse(header: "{\(Self.one),\(escaped)}", data: data, "the name \"a\" appears twice")
        refuse(
            header: #"{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}}"#,
            data: data, "the name \"shape\" appears twice")
        // Other bytes, but the same text for whoever looks tensors up.
        let kelvin = TensorFile.entry("\\u212a", "F32", "[1]", 0, 4)
        let letter = TensorFile.entry("K", "F32", "[1]", 4, 8)
        refuse(header: "{\(kelvin),\(letter)}", data: data, "tensor \"K\" is there twice")
    }

    @Test("whose tensors overlap, or leave bytes to nobody, are refused")
    func cover() {
        let data = [UInt8](repeating: 0, count: 12)
        let entry = TensorFile.entry
        refuse(
            header: "{\(Self.one),\(entry("b", "F32", "[2]", 0, 8))}", data: data,
            "tensor \"b\" begins at byte", "overlaps the one before it")
        refuse(
            header: "{\(Self.one),\(entry("b", "F32", "[1]", 8, 12))}", data: data,
            "tensor \"b\" begins at byte", "leaves a hole")
        refuse(
            header: "{\(entry("b", "F32", "[1]", 8, 12))}", data: data, "it leaves a hole")
        refuse(header: "{\(Self.one)}", data: data, "the file has 74 bytes", "accounts for 66")
        refuse(
            header: "{\(Self.one)}", data: [0, 0, 0],
            "the file has 65 bytes, its header promises 66: it is truncated, copy it again")
    }

    @Test("with offsets that can't be are refused")
    func offsets() {
        let max = Int.max
        refuse(header: header(offsets: "[4,0]"), "ends at 0, before it begins at 4")
        refuse(header: header(offsets: "[0,4,8]"), "3 \"data_offsets\", expected 2")
        refuse(header: header(offsets: "[]"), "0 \"data_offsets\", expected 2")
        refuse(header: header(offsets: "[-4,0]"), "the number -4 in \"data_offsets\"")
        refuse(header: header(offsets: "[0,9223372036854775808]"), "at most 63 bits")
        refuse(
            header: header(shape: "[0]", offsets: "[\(max),\(max)]"),
            "ends at \(max), which no file reaches")
        refuse(
            header: header(shape: "[1000000000]", offsets: "[0,4000000000]"), data: [0],
            "its header promises 400000008", "truncated")
    }

    @Test("whose shapes don't go with the bytes are refused")
    func shapes() {
        refuse(header: header(shape: "[2]"), "has 4 bytes, its shape [2] of F32 takes 8")
        refuse(header: header(shape: "[0]"), "has 4 bytes, its shape [0] of F32 takes 0")
        refuse(header: header(shape: "[-1]"), "the number -1 in \"shape\"")
        refuse(
            header: header(shape: "[4294967296, 4294967296, 0]"),
            "has the shape [4294967296, 4294967296, 0], more than any file holds")
        refuse(header: header(type: "\"F64\""), "its shape [1] of F64 takes 8")
    }

    @Test("with values of other types are refused")
    func types() {
        for (shape, found) in [
            ("[true]", "true"), ("[1.0]", "the number 1.0"), ("[1e0]", "the number 1e0"),
            ("[\"1\"]", "the string \"1\""), ("[null]", "null"), ("[[1]]", "an array of 1"),
            ("[{}]", "an object of 0"),
        ] {
            refuse(header: header(shape: shape), "tensor \"a\" has \(found) in \"shape\", expected")
        }
        refuse(header: header(shape: "1"), "has the number 1 as \"shape\", expected an array")
        refuse(header: header(offsets: "\"0\""), "as \"data_offsets\", expected an array")
        refuse(header: header(type: "32"), "has the number 32 as \"dtype\", expected a string")
        refuse(header: #"{"a": [1]}"#, "is described by an array of 1, expected an object")
        refuse(header: #"{"a": {}}"#, "tensor \"a\" has no \"dtype\", expected a string")
        refuse(header: #"{"a": {"dtype": "F32"}}"#, "has no \"shape\"")
    }

    @Test("say names on one line, however they are made")
    func names() {
        refuse(header: #"{"a\n\u001b": 1}"#, "tensor \"a\\n\\u{1B}\" is described")
        let long = String(repeating: "x", count: 100_000)
        do {
            _ = try SafetensorsHeader(bytes: TensorFile.bytes(header: "{\"\(long)\": 1}"))
            Issue.record("a number is no tensor")
        } catch {
            #expect(error.message.utf8.count < 400)
        }
    }

    @Test("may hold types that are not known")
    func unknown() throws {
        let header = header(type: "\"F4_NEW\"", shape: "[8]")
        let entries = try SafetensorsHeader(
            bytes: TensorFile.bytes(header: header, data: [0, 0, 0, 0])
        )
        .entries
        #expect(entries.map(\.elementType) == [.other("F4_NEW")])
    }

    @Test("damaged at random never crash and never point out of the file")
    func mutations() {
        let seed: UInt64 = 0x5AFE_0001
        var random = SeededRandom(seed: seed)
        let whole = Self.sample
        let headerEnd = 8 + Int(whole[0]) + Int(whole[1]) << 8
        var refused = 0
        let cases = 20_000
        for number in 0..<cases {
            let file = Self.damaged(whole, headerEnd, &random)
            do {
                let header = try SafetensorsHeader(bytes: file)
                let isInside = header.entries.allSatisfy { entry in
                    entry.range.lowerBound >= 8 && entry.range.upperBound <= file.count
                        && entry.shape.allSatisfy { $0 >= 0 }
                }
                guard isInside else {
                    Issue.record("seed \(seed), case \(number): \(header.entries), \(file)")
                    return
                }
            } catch {
                refused += error.code == .weights ? 1 : 0
            }
        }
        #expect(refused > cases / 2, "the damage must do damage, seed \(seed)")
        #expect(refused < cases, "and not always, seed \(seed)")
    }

    @Test("damaged at random and mapped can be read as far as they are accepted")
    func mutatedFiles() throws {
        let seed: UInt64 = 0x5AFE_0002
        var random = SeededRandom(seed: seed)
        let folder = try TemporaryFolder()
        let whole = Self.sample
        let headerEnd = 8 + Int(whole[0]) + Int(whole[1]) << 8
        var read = 0
        for number in 0..<2_000 {
            try folder.write("x", Self.damaged(whole, headerEnd, &random))
            let file = try MappedFile(path: folder.file("x"))
            do throws(ModelError) {
                let header = try SafetensorsHeader(parsing: file.bytes, file: file.path)
                for view in header.entries.map({ TensorView($0, in: file) }) where view.isReadable {
                    #expect(self.read(view).count == view.count, "seed \(seed), case \(number)")
                    read += 1
                }
            } catch {
                #expect(error.code == .weights, "seed \(seed), case \(number): \(error)")
            }
        }
        #expect(read > 0, "seed \(seed)")
    }

    @Test("of half precision are converted exactly, all 65,536 of them")
    func float16() throws {
        #if arch(arm64) || os(Linux)
            for bits in UInt16.min...UInt16.max {
                let value = Float(float16Bits: bits)
                let half = Float16(bitPattern: bits)
                if half.isNaN {
                    // Sign and payload stay; whether a NaN signals is left as it is.
                    let expected: UInt32 =
                        UInt32(bits & 0x8000) << 16 | 0x7F80_0000 | UInt32(bits & 0x3FF) << 13
                    try #require(value.isNaN && value.bitPattern == expected, "\(bits)")
                } else {
                    try #require(value.bitPattern == Float(half).bitPattern, "\(bits)")
                }
            }
        #endif
    }

    @Test("of bfloat16 are converted exactly, all 65,536 of them")
    func bfloat16() throws {
        for bits in UInt16.min...UInt16.max {
            try #require(Float(bfloat16Bits: bits).bitPattern == UInt32(bits) << 16, "\(bits)")
        }
    }

    @Test("give every bit pattern of 16 bits through a file, at an odd address")
    func allPatterns() throws {
        let patterns = (UInt16.min...UInt16.max).flatMap { [UInt8($0 & 0xFF), UInt8($0 >> 8)] }
        let entries = [
            TensorFile.entry("odd", "U8", "[1]", 0, 1),
            TensorFile.entry("half", "F16", "[256, 256]", 1, 131_073),
            TensorFile.entry("brain", "BF16", "[65536]", 131_073, 262_145),
        ]
        let folder = try TemporaryFolder()
        // An even header, so that the one odd byte makes the tensors unaligned.
        var header = "{" + entries.joined(separator: ",") + "}"
        if header.utf8.count % 2 == 1 { header += " " }
        try folder.write("x", TensorFile.bytes(header: header, data: [0] + patterns + patterns))
        let file = try MappedFile(path: folder.file("x"))
        let parsed = try SafetensorsHeader(parsing: file.bytes, file: file.path)
        let half = read(TensorView(parsed.entries[1], in: file))
        let brain = read(TensorView(parsed.entries[2], in: file))
        #expect(parsed.entries[1].range.lowerBound % 2 == 1)
        for bits in UInt16.min...UInt16.max {
            try #require(half[Int(bits)].bitPattern == Float(float16Bits: bits).bitPattern)
            try #require(brain[Int(bits)].bitPattern == UInt32(bits) << 16)
        }
    }

    @Test("keep the bits of float32")
    func float32() throws {
        let patterns: [UInt32] = [
            0, 1, 0x8000_0000, 0x007F_FFFF, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0001, 0x7F80_0001,
        ]
        let data = patterns.flatMap { pattern in
            withUnsafeBytes(of: pattern.littleEndian) { Array($0) }
        }
        let folder = try TemporaryFolder()
        let header = "{\(TensorFile.entry("a", "F32", "[8]", 0, 32))}"
        try folder.write("x", TensorFile.bytes(header: header, data: data))
        let file = try MappedFile(path: folder.file("x"))
        let entries = try SafetensorsHeader(parsing: file.bytes, file: file.path).entries
        #expect(read(TensorView(entries[0], in: file)).map(\.bitPattern) == patterns)
    }

    // MARK: - Helpers

    /// A valid file with tensors of several kinds.
    private static let sample: [UInt8] = {
        let entry = TensorFile.entry
        let entries = [
            #""__metadata__":{"format":"pt"}"#,
            entry("model.a.weight", "F32", "[2, 3]", 0, 24), entry("b", "BF16", "[4]", 24, 32),
            entry("c", "F16", "[1,2]", 32, 36), entry("none", "F32", "[0]", 36, 36),
            entry("d", "I8", "[4]", 36, 40),
        ]
        return TensorFile.bytes(
            header: "{" + entries.joined(separator: ",") + "}",
            data: (0..<40).map { UInt8($0) })
    }()

    private static let interesting: [UInt8] = Array("0123456789{}[]\",:-.eE\\ FB".utf8) + [0, 255]

    private static func damaged(
        _ whole: [UInt8], _ headerEnd: Int, _ random: inout SeededRandom
    ) -> [UInt8] {
        var file = whole
        for _ in 0..<(1 + random.below(3)) {
            // Mostly the header: damage to the data can't be noticed.
            let end = random.below(10) == 0 ? file.count : min(headerEnd, file.count)
            guard end > 0 else { return file }
            let place = random.below(end)
            switch random.below(6) {
            case 0: file[place] = UInt8(truncatingIfNeeded: random.next())
            case 1: file[place] ^= 1 << UInt8(random.below(8))
            case 2, 3: file[place] = interesting[random.below(interesting.count)]
            case 4: file.removeSubrange((random.below(4) == 0 ? place : file.count - 1)...)
            default: file.insert(interesting[random.below(interesting.count)], at: place)
            }
        }
        return file
    }

    private func read(_ view: TensorView) -> [Float] {
        [Float](unsafeUninitializedCapacity: view.count) { buffer, count in
            view.read(into: UnsafeMutableBufferPointer(rebasing: buffer[..<view.count]))
            count = view.count
        }
    }

    private func header(
        type: String = "\"F32\"", shape: String = "[1]", offsets: String = "[0,4]"
    ) -> String {
        "{\"a\":{\"dtype\":\(type),\"shape\":\(shape),\"data_offsets\":\(offsets)}}"
    }

    private func refuse(
        header: String, data: [UInt8] = [0, 0, 0, 0], _ parts: String...,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let file = TensorFile.bytes(header: header, data: data)
        expectError(.weights, parts + ["x.safetensors"], sourceLocation: sourceLocation) {
            () throws(ModelError) in
            _ = try SafetensorsHeader(bytes: file)
        }
    }

    private func expect(
        _ file: [UInt8], _ parts: String..., sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectError(.weights, parts + ["x.safetensors"], sourceLocation: sourceLocation) {
            () throws(ModelError) in
            _ = try SafetensorsHeader(bytes: file)
        }
    }
}
