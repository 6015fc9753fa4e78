import KVArena
import Testing

@Suite("Extents")
struct ExtentAllocatorTests {
    private func ready(pages: Int, slabPages: Int) -> ExtentAllocator {
        var allocator = ExtentAllocator(arenaBytes: pages * 4096, slabBytes: slabPages * 4096)
        allocator.slabsBecameReady(0..<allocator.slabCount)
        return allocator
    }

    @Test(
        "An arena full of one length wastes less than an eighth, and one region's slabs at the end")
    func wasteIsBounded() {
        for pages in Array(1...70) + [97, 128, 129, 200, 255, 256, 257, 500, 1000] {
            var allocator = ready(pages: 16 * 1024, slabPages: 16)
            var count = 0
            while allocator.allocate(pages: pages, owner: 1, worth: 0) != nil { count += 1 }
            let region = allocator.slabsPerRegion(extentPages: pages) * 16
            let wasted = 16 * 1024 - count * pages
            #expect(wasted < 16 * 1024 / 8 + region, "length \(pages): \(wasted) pages wasted")
            #expect(allocator.brokenInvariant() == nil)
        }
    }

    @Test("The slab of an arena is whole pages, and at most a hundredth of it from 8 MiB on")
    func slabSize() {
        for bytes in [1 << 20, 3 << 20, 100 << 20, 513 << 20, 6 << 30, 1 << 40] {
            let slab = ExtentAllocator.slabBytes(forArenaBytes: bytes)
            #expect(slab % 4096 == 0 && slab <= bytes)
            if bytes >= 8 << 20 {
                #expect(slab * 100 <= bytes || slab == 64 << 10 || slab == 2 << 20)
            }
        }
    }

    @Test("Nothing is handed out before its slab is ready")
    func onlyReadySlabs() throws {
        var allocator = ExtentAllocator(arenaBytes: 64 * 4096, slabBytes: 16 * 4096)
        let early = allocator.allocate(pages: 1, owner: 0, worth: 0)
        #expect(early == nil)
        allocator.slabsBecameReady(2..<3)
        let page = allocator.allocate(pages: 1, owner: 0, worth: 0)
        #expect((32..<48).contains(try #require(page)))
        let wide = allocator.allocate(pages: 17, owner: 0, worth: 0)
        #expect(wide == nil, "two slabs are needed, one is ready")
    }

    @Test("Extents never overlap, whatever is allocated and freed", arguments: 0..<10)
    func neverOverlap(seed: UInt64) {
        var random = Generator(state: seed)
        var allocator = ready(pages: 1024, slabPages: 16)
        var owned: [UInt32: Int] = [:]
        var isTaken = [Bool](repeating: false, count: 1024)
        for step in 0..<4000 {
            if Bool.random(using: &random) || owned.isEmpty {
                let pages = [1, 2, 3, 7, 16, 20, 33].randomElement(using: &random)!
                guard let page = allocator.allocate(pages: pages, owner: 5, worth: UInt64(step))
                else { continue }
                for index in Int(page)..<(Int(page) + pages) {
                    #expect(!isTaken[index], "seed \(seed) step \(step): page \(index) given twice")
                    isTaken[index] = true
                }
                owned[page] = pages
            } else {
                let page = owned.keys.sorted().randomElement(using: &random)!
                let pages = owned.removeValue(forKey: page)!
                allocator.free(page: page)
                for index in Int(page)..<(Int(page) + pages) { isTaken[index] = false }
            }
            if step % 100 == 0 {
                #expect(allocator.brokenInvariant() == nil, "seed \(seed) step \(step)")
            }
        }
        for page in owned.keys { allocator.free(page: page) }
        #expect(allocator.usedPages == 0)
        #expect(allocator.lengthCount == 0, "an empty region was kept")
    }

    private func allocate(_ allocator: inout ExtentAllocator, _ pages: Int) -> UInt32? {
        allocator.allocate(pages: pages, owner: 0, worth: 0)
    }

    @Test("Consecutive allocations of a fresh region are neighbours")
    func neighbours() throws {
        var allocator = ready(pages: 256, slabPages: 16)
        var pages: [UInt32] = []
        for _ in 0..<8 {
            let page = allocate(&allocator, 2)
            pages.append(try #require(page))
        }
        #expect(pages == (0..<8).map { pages[0] + UInt32($0) * 2 })
    }

    @Test("A new length displaces the place that is worth least and can move")
    func cheapestPlace() throws {
        var allocator = ready(pages: 64, slabPages: 16)
        for slab in 0..<4 {
            for _ in 0..<16 {
                _ = allocator.allocate(pages: 1, owner: UInt32(slab), worth: UInt64(10 - slab))
            }
        }
        let owners = allocator.cheapestPlace(extentPages: 5, below: .max) { $0 != 3 }
        #expect(Set(try #require(owners)) == [2], "slab 3 is cheapest but can't move")
        #expect(
            allocator.cheapestPlace(extentPages: 5, below: 8) { $0 != 3 } == nil,
            "not below that worth")
        #expect(
            allocator.cheapestPlace(extentPages: 1, below: .max) { _ in true } == nil,
            "its own length")
    }
}

private struct Generator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ (state >> 29)
    }
}
