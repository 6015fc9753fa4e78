import Testing

@testable import KVDisk

/// Drives a disk with random requests, many under way, beside plain arrays that say what every read
/// must get. It never breaks the rules of a disk. Everything but the order of completions follows
/// from the seed.
struct Reference {
    struct File {
        var name: String
        var bytes: [UInt8]
        /// Ranges under way, by request.
        var ranges: [UInt64: (range: Range<Int>, isWrite: Bool)] = [:]
        /// Requests under way, transfers and others.
        var underWay = 0
        var isReady = false
        var isWritten = false
    }

    struct UnderWay {
        var operation: DiskRequest.Operation
        var pages: [Int] = []
        /// What a write puts there.
        var bytes: [UInt8] = []
    }

    static let pageBytes = DiskBuffer.alignment
    private static let pageCount = 512

    private let io: any DiskIO
    private let wait: () -> (id: UInt64, outcome: DiskOutcome)
    private let submit: (DiskRequest.Operation, UInt64) -> Void
    private let memory = DiskMemory(byteCount: pageCount * pageBytes)
    /// What each page held when it became free: nobody may have touched it since.
    private var shadow: [[UInt8]]
    private var freePages: Set<Int>
    private var random: SeededRandom
    private(set) var files: [UInt64: File] = [:]
    private var underWay: [UInt64: UnderWay] = [:]
    private var lastID: UInt64 = 0
    private var lastFile: UInt64 = 0
    private(set) var completions = 0
    private(set) var readBytes = 0

    init(
        _ io: any DiskIO, seed: UInt64, submit: @escaping (DiskRequest.Operation, UInt64) -> Void,
        wait: @escaping () -> (id: UInt64, outcome: DiskOutcome)
    ) {
        self.io = io
        self.submit = submit
        self.wait = wait
        random = SeededRandom(seed: seed)
        shadow = Array(
            repeating: [UInt8](repeating: 0, count: Self.pageBytes), count: Self.pageCount)
        freePages = Set(0..<Self.pageCount)
    }

    /// Makes so many requests and waits for all of them.
    mutating func run(requests: Int, depth: Int) {
        let last = lastID + UInt64(requests)
        while lastID < last {
            while underWay.count >= depth { complete() }
            let before = lastID
            switch Int.random(in: 0..<100, using: &random) {
            case 0..<45: read()
            case 45..<85: write()
            case 85..<93: sync()
            case 93..<97: create()
            default: remove()
            }
            // What the rules forbid now may be allowed when others have ended.
            if lastID == before, !underWay.isEmpty { complete() }
        }
        while !underWay.isEmpty { complete() }
    }

    /// Reads every file as a whole and compares.
    mutating func compareAll() {
        for number in files.keys.sorted() where files[number]!.isWritten {
            var offset = 0
            while offset < files[number]!.bytes.count {
                let count = min(64 * Self.pageBytes, files[number]!.bytes.count - offset)
                read(number, offset..<offset + count)
                offset += count
                while !underWay.isEmpty { complete() }
            }
        }
    }

    // MARK: Requests

    private mutating func read() {
        guard let (number, range) = randomRange(isWrite: false) else { return }
        read(number, range)
    }

    private mutating func read(_ number: UInt64, _ range: Range<Int>) {
        guard let pages = takePages(range.count / Self.pageBytes) else { return }
        let id = add(
            .read(file: number, offset: range.lowerBound, into: buffers(pages)), pages: pages)
        files[number]!.ranges[id] = (range, false)
        files[number]!.underWay += 1
        submit(underWay[id]!.operation, id)
    }

    private mutating func write() {
        guard let (number, range) = randomRange(isWrite: true),
            let pages = takePages(range.count / Self.pageBytes)
        else { return }
        var bytes: [UInt8] = []
        for page in pages {
            // Two random words, and where the page is, make every page another.
            let (first, second) = (random.next(), random.next())
            for offset in stride(from: 0, to: Self.pageBytes, by: 64) {
                self.page(page).bytes.storeBytes(
                    of: first &+ UInt64(offset) &* second, toByteOffset: offset, as: UInt64.self)
            }
            shadow[page] = self.page(page).copy
            bytes += shadow[page]
        }
        let id = add(
            .write(file: number, offset: range.lowerBound, from: buffers(pages)), pages: pages)
        underWay[id]!.bytes = bytes
        files[number]!.ranges[id] = (range, true)
        files[number]!.underWay += 1
        submit(underWay[id]!.operation, id)
    }

    private mutating func sync() {
        guard let number = randomFile({ $0.isReady }) else { return }
        let id = add(.sync(file: number))
        files[number]!.underWay += 1
        submit(underWay[id]!.operation, id)
    }

    private mutating func create() {
        guard files.count < 6 else { return }
        lastFile += 1
        let count = Int.random(in: 1...512, using: &random) * Self.pageBytes
        let name = "file-\(lastFile)"
        files[lastFile] = File(name: name, bytes: [UInt8](repeating: 0, count: count))
        let id = add(.create(file: lastFile, name: name, byteCount: count))
        submit(underWay[id]!.operation, id)
    }

    private mutating func remove() {
        guard let number = randomFile({ $0.isReady && $0.underWay == 0 }) else { return }
        files[number]!.isReady = false
        // Removed while open, or after it was closed: both must do.
        let id = add(.close(file: number))
        submit(underWay[id]!.operation, id)
        if Bool.random(using: &random) {
            while underWay[id] != nil { complete() }
        }
        let removal = add(.remove(name: files[number]!.name))
        submit(underWay[removal]!.operation, removal)
        files[number] = nil
    }

    private mutating func add(
        _ operation: DiskRequest.Operation, pages: [Int] = []
    ) -> UInt64 {
        lastID += 1
        underWay[lastID] = UnderWay(operation: operation, pages: pages)
        return lastID
    }

    // MARK: Completions

    private mutating func complete() {
        let (id, outcome) = wait()
        guard let ended = underWay.removeValue(forKey: id) else {
            Issue.record("request \(id) completed twice")
            return
        }
        completions += 1
        #expect(outcome == .done, "request \(id)")
        switch ended.operation {
        case .read(let number, let offset, _):
            for (index, page) in ended.pages.enumerated() {
                let position = offset + index * Self.pageBytes
                let isEqual = self.page(page).equals(files[number]!.bytes, from: position)
                #expect(isEqual, "request \(id): bytes at \(position) of file \(number)")
            }
            readBytes += ended.pages.count * Self.pageBytes
        case .write(let number, let offset, _):
            let range = offset..<offset + ended.bytes.count
            files[number]!.bytes.replaceSubrange(range, with: ended.bytes)
            files[number]!.isWritten = true
        case .create(let number, _, _): files[number]!.isReady = true
        case .sync, .open, .close, .remove: break
        }
        if let number = ended.operation.number, files[number]?.isReady == true {
            files[number]!.ranges[id] = nil
            if case .create = ended.operation {} else { files[number]!.underWay -= 1 }
        }
        for page in ended.pages {
            if case .write = ended.operation {
                #expect(self.page(page).equals(shadow[page]), "a write changed its buffer")
            }
            shadow[page] = self.page(page).copy
            freePages.insert(page)
        }
    }

    // MARK: Choosing

    private mutating func randomFile(_ isFit: (File) -> Bool) -> UInt64? {
        files.keys.filter { isFit(files[$0]!) }.sorted().randomElement(using: &random)
    }

    private mutating func randomRange(isWrite: Bool) -> (UInt64, Range<Int>)? {
        let isFit = { (file: File) in file.isReady && (isWrite || file.isWritten) }
        guard let number = randomFile(isFit) else { return nil }
        let blocks = files[number]!.bytes.count / Self.pageBytes
        let first = Int.random(in: 0..<blocks, using: &random)
        let end = Int.random(in: first + 1...min(blocks, first + 24), using: &random)
        let range = first * Self.pageBytes..<end * Self.pageBytes
        let isTaken = files[number]!.ranges.values.contains {
            (isWrite || $0.isWrite) && $0.range.overlaps(range)
        }
        return isTaken ? nil : (number, range)
    }

    /// Takes pages in runs of random lengths, after a look at whether they were left alone.
    private mutating func takePages(_ count: Int) -> [Int]? {
        guard freePages.count >= count * 2 else { return nil }
        var pages: [Int] = []
        while pages.count < count {
            var page = Int.random(in: 0..<Self.pageCount, using: &random)
            var run = Int.random(in: 1...8, using: &random)
            while run > 0, pages.count < count, freePages.remove(page) != nil {
                pages.append(page)
                run -= 1
                page += 1
            }
        }
        for page in pages {
            #expect(self.page(page).equals(shadow[page]), "a free page was touched")
        }
        return pages
    }

    /// The pages as buffers: neighbours together or apart.
    private mutating func buffers(_ pages: [Int]) -> [DiskBuffer] {
        var buffers: [DiskBuffer] = []
        var index = 0
        while index < pages.count {
            var end = index + 1
            while end < pages.count, pages[end] == pages[end - 1] + 1,
                Bool.random(using: &random)
            {
                end += 1
            }
            buffers.append(memory.blocks(pages[index]..<pages[index] + end - index))
            index = end
        }
        return buffers
    }

    private func page(_ page: Int) -> DiskBuffer { memory.blocks(page..<page + 1) }
}
