internal import KVIdentity
internal import KVStore
internal import RESP

/// An error as a client gets it: a code word and a sentence.
struct CommandError: Error {
    var code: String
    var message: String

    init(_ code: String, _ message: String) {
        self.code = code
        self.message = message
    }

    init(_ error: StoreError) {
        self.init(error.code.description, error.message)
    }
}

/// The arguments of one command, the command's name included, where they were received. Valid until
/// the command returns.
struct Arguments {
    let bytes: UnsafeRawBufferPointer
    let ranges: [Range<Int>]

    var count: Int { ranges.count }

    subscript(_ index: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: bytes[ranges[index]])
    }

    func text(_ index: Int) -> String { String(decoding: self[index], as: UTF8.self) }

    /// The argument in capitals, as names of commands and options are compared.
    func word(_ index: Int) -> String {
        let bytes = self[index]
        // Programs send capitals; that way takes no detour over single characters.
        if !bytes.contains(where: { (97...122).contains($0) }) {
            return String(decoding: bytes, as: UTF8.self)
        }
        return String(
            decoding: bytes.map { (97...122).contains($0) ? $0 & 0xDF : $0 }, as: UTF8.self)
    }

    func matches(_ index: Int, _ word: StaticString) -> Bool { Argument.matches(self[index], word) }

    func integer(_ index: Int, _ what: String, _ range: ClosedRange<Int>) throws(CommandError)
        -> Int
    {
        guard let value = Argument.integer(self[index]), range.contains(value) else {
            throw CommandError(
                "KVARG",
                "\(what) is '\(text(index).prefix(32))'; give a number from \(range.lowerBound) to \(range.upperBound)"
            )
        }
        return value
    }

    func digest(_ index: Int, _ what: String, isHex: Bool) throws(CommandError) -> Digest {
        let value = self[index]
        if isHex, let digest = Digest(hex: text(index)) { return digest }
        if !isHex, value.count == Digest.byteCount { return Digest(value) }
        throw CommandError(
            "KVARG",
            isHex
                ? "\(what) must be 64 hexadecimal digits"
                : "\(what) has \(value.count) bytes; give 32, or HEX as the last word for hexadecimal digits"
        )
    }

    func digests(_ index: Int, isHex: Bool) throws(CommandError) -> [Digest] {
        let value = self[index]
        let unit = isHex ? 64 : Digest.byteCount
        if value.isEmpty || value.count % unit != 0 {
            throw CommandError(
                "KVARG",
                "keys have \(value.count) bytes; give \(unit) for each key, one behind the other")
        }
        if value.count / unit > StoreLimits.keys {
            throw CommandError(
                "KVLIMIT",
                "\(value.count / unit) keys; a command takes \(StoreLimits.keys), so split it")
        }
        if !isHex {
            return (0..<(value.count / unit)).map { Digest(value, at: $0 * unit) }
        }
        var result: [Digest] = []
        let text = text(index)
        var start = text.startIndex
        while start < text.endIndex {
            let end = text.index(start, offsetBy: 64, limitedBy: text.endIndex) ?? text.endIndex
            guard let digest = Digest(hex: text[start..<end]) else {
                throw CommandError("KVARG", "keys must be hexadecimal digits, 64 for each key")
            }
            result.append(digest)
            start = end
        }
        return result
    }
}
