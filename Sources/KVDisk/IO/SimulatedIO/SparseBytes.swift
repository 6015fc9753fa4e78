/// The bytes of a file: zeros but for the pages that were written. Copies share pages.
struct SparseBytes: Sendable {
    private static let pageBytes = 4096
    private var pages: [Int: [UInt8]] = [:]

    /// Overwrites from `offset` on.
    mutating func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        Self.forEachPage(offset: offset, count: bytes.count) { page, inPage, from, count in
            pages[page, default: [UInt8](repeating: 0, count: Self.pageBytes)]
                .withUnsafeMutableBytes { target in
                    UnsafeMutableRawBufferPointer(rebasing: target[inPage..<inPage + count])
                        .copyMemory(
                            from: UnsafeRawBufferPointer(rebasing: bytes[from..<from + count]))
                }
        }
    }

    /// Fills `bytes` from `offset` on.
    func read(into bytes: UnsafeMutableRawBufferPointer, at offset: Int) {
        Self.forEachPage(offset: offset, count: bytes.count) { page, inPage, from, count in
            let target = UnsafeMutableRawBufferPointer(rebasing: bytes[from..<from + count])
            if let source = pages[page] {
                source.withUnsafeBytes { source in
                    target.copyMemory(
                        from: UnsafeRawBufferPointer(rebasing: source[inPage..<inPage + count]))
                }
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    /// Turns one bit.
    mutating func flip(bit: Int, at offset: Int) {
        let page = offset / Self.pageBytes
        pages[page, default: [UInt8](repeating: 0, count: Self.pageBytes)][
            offset % Self.pageBytes] ^=
            1 << UInt8(bit)
    }

    private static func forEachPage(
        offset: Int, count: Int,
        _ body: (_ page: Int, _ inPage: Int, _ from: Int, _ count: Int) -> Void
    ) {
        var done = 0
        while done < count {
            let inPage = (offset + done) % pageBytes
            let part = min(count - done, pageBytes - inPage)
            body((offset + done) / pageBytes, inPage, done, part)
            done += part
        }
    }
}
