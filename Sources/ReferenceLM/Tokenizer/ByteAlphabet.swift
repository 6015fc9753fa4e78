/// The 256 characters by which GPT-2 and its descendants write bytes, so that each token is
/// printable text: those that Latin-1 prints stand for themselves, the others follow from U+0100
/// on (a space is `Ġ`).
enum ByteAlphabet {
    /// The scalar that stands for each byte.
    static let scalars: [Unicode.Scalar] = {
        var next: UInt32 = 0x100
        return (0...255).map { (byte: UInt8) in
            if standsForItself(byte) { return Unicode.Scalar(byte) }
            defer { next += 1 }
            return Unicode.Scalar(next)!
        }
    }()

    /// The UTF-8 bytes of the scalar that stands for each byte.
    private static let encoded: [[UInt8]] = scalars.map { Array(String($0).utf8) }

    /// The byte that each scalar stands for, by the scalar's value.
    private static let byteOfScalar: [UInt8?] = {
        var table = [UInt8?](repeating: nil, count: Int(scalars.map(\.value).max()!) + 1)
        for (byte, scalar) in scalars.enumerated() { table[Int(scalar.value)] = UInt8(byte) }
        return table
    }()

    private static func standsForItself(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: true
        default: false
        }
    }

    /// Appends how `bytes` are written.
    static func encode(_ bytes: ArraySlice<UInt8>, into text: inout [UInt8]) {
        for byte in bytes { text += encoded[Int(byte)] }
    }

    /// The bytes that a token stands for; the token's own bytes when one of its characters is not
    /// of the alphabet.
    static func decode(_ token: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(token.count)
        for scalar in String(decoding: token, as: UTF8.self).unicodeScalars {
            guard scalar.value < byteOfScalar.count, let byte = byteOfScalar[Int(scalar.value)]
            else { return token }
            bytes.append(byte)
        }
        return bytes
    }
}
