/// Which parts of the arena belong to whom: a pure value, without memory of its own.
///
/// The arena is cut into equal *slabs*. One or a few neighbouring slabs form a *region*, and a
/// region serves extents of one length only, so that a freed extent always fits the next chunk of
/// its layout. A region whose last extent is freed gives its slabs back, for any length. Slabs are
/// handed out only once they are *ready* (faulted in).
///
/// A region takes just enough slabs that less than an eighth of it lies idle behind its last
/// extent; that needs at most nine slabs, or as many as a single extent covers. So of an arena
/// filled with extents of one length, less than an eighth is wasted inside the regions, plus less
/// than one region's slabs at the arena's end (`docs/architecture.md` has the sum).
///
/// Lengths are in pages of ``pageBytes``. Allocating and freeing is O(slots of a region / 64) at
/// worst, usually O(1).
public struct ExtentAllocator: Sendable {
    /// Extents start on a multiple of this and are multiples of it long.
    public static let pageBytes = 4096
    /// An owner's number that means nobody.
    public static let noOwner = UInt32.max

    /// Pages of one slab.
    public let slabPages: Int
    /// How many slabs the arena has.
    public let slabCount: Int
    /// How many slabs are ready.
    public private(set) var readySlabs = 0
    /// Pages that belong to extents now.
    public private(set) var usedPages = 0
    /// How many different lengths have a region now.
    public var lengthCount: Int { regionCountByLength.count }

    struct Region: Sendable {
        var firstSlab: Int
        var slabCount: Int
        var extentPages: Int
        var owners: [UInt32]
        /// A set bit is a free slot.
        var freeSlots: [UInt64]
        var freeCount: Int
        var isOpen: Bool
        /// The largest worth that any of its chunks had when it was touched.
        var worth: UInt64
    }

    private static let freeSlab: Int32 = -1
    private static let unreadySlab: Int32 = -2

    private var regionOfSlab: [Int32]
    private var regions: [Region?] = []
    private var vacantRegions: [Int] = []
    /// Regions with a free slot, by length in pages.
    private var openRegions: [Int: [Int]] = [:]
    private var regionCountByLength: [Int: Int] = [:]
    private var freeSlabs = 0

    /// The slab size used for an arena: about a thousandth of it, so that few bytes are lost to
    /// lengths in little use, but at least 64 KiB, and whole huge pages (2 MiB) where the arena is
    /// large.
    public static func slabBytes(forArenaBytes arenaBytes: Int) -> Int {
        let grain = arenaBytes >= 512 << 20 ? 2 << 20 : 64 << 10
        return max(grain, (arenaBytes / 1024 + grain - 1) / grain * grain)
    }

    /// An arena of `arenaBytes`, of which no slab is ready yet. What does not fill a whole slab is
    /// not used.
    public init(arenaBytes: Int, slabBytes: Int? = nil) {
        let bytes = slabBytes ?? Self.slabBytes(forArenaBytes: arenaBytes)
        precondition(bytes % Self.pageBytes == 0 && bytes > 0, "slabs are whole pages")
        slabPages = bytes / Self.pageBytes
        slabCount = arenaBytes / bytes
        regionOfSlab = Array(repeating: Self.unreadySlab, count: slabCount)
    }

    /// Pages that an extent of `bytes` occupies.
    public static func pages(forBytes bytes: Int) -> Int { (bytes + pageBytes - 1) / pageBytes }

    /// How many slabs a region for extents of `pages` takes.
    public func slabsPerRegion(extentPages pages: Int) -> Int {
        var extents = 1
        while true {
            let slabs = (extents * pages + slabPages - 1) / slabPages
            let total = slabs * slabPages
            if (total - total / pages * pages) * 8 < total { return slabs }
            extents += 1
        }
    }

    /// Whether an extent of `pages` could ever be allocated.
    public func canHold(extentPages pages: Int) -> Bool {
        slabsPerRegion(extentPages: pages) <= slabCount
    }

    /// The slabs `range` are faulted in and may be handed out.
    public mutating func slabsBecameReady(_ range: Range<Int>) {
        for slab in range where regionOfSlab[slab] == Self.unreadySlab {
            regionOfSlab[slab] = Self.freeSlab
            readySlabs += 1
            freeSlabs += 1
        }
    }

    /// First page of a free extent of `pages`, now owned by `owner`; nil when there is neither a
    /// free slot of this length nor room for a new region.
    public mutating func allocate(pages: Int, owner: UInt32, worth: UInt64) -> UInt32? {
        if openRegions[pages]?.isEmpty ?? true {
            guard makeRegion(extentPages: pages) else { return nil }
        }
        guard let index = openRegions[pages]?.last else { return nil }
        let slot = takeFreeSlot(ofRegion: index, owner: owner)
        if regions[index]!.freeCount == 0 {
            openRegions[pages]!.removeLast()
            regions[index]!.isOpen = false
        }
        regions[index]!.worth = max(regions[index]!.worth, worth)
        usedPages += pages
        return UInt32(regions[index]!.firstSlab * slabPages + slot * pages)
    }

    /// Gives back the extent that starts at `page`.
    public mutating func free(page: UInt32) {
        let (index, slot) = locate(page)
        precondition(
            regions[index]!.owners[slot] != Self.noOwner || !isFree(slot, in: index), "freed twice")
        regions[index]!.owners[slot] = Self.noOwner
        regions[index]!.freeSlots[slot / 64] |= 1 << UInt64(slot % 64)
        regions[index]!.freeCount += 1
        let pages = regions[index]!.extentPages
        usedPages -= pages
        if regions[index]!.freeCount == regions[index]!.owners.count {
            dissolve(index)
        } else if !regions[index]!.isOpen {
            regions[index]!.isOpen = true
            openRegions[pages, default: []].append(index)
        }
    }

    /// Changes who owns the extent at `page`; ``noOwner`` for one that no chunk has (it is
    /// quarantined).
    public mutating func setOwner(ofPage page: UInt32, _ owner: UInt32) {
        let (index, slot) = locate(page)
        regions[index]!.owners[slot] = owner
    }

    /// The chunk at `page` is worth `worth` now.
    public mutating func touch(page: UInt32, worth: UInt64) {
        let index = Int(regionOfSlab[Int(page) / slabPages])
        if regions[index]!.worth < worth { regions[index]!.worth = worth }
    }

    /// The owners that have to go so that a new region for extents of `pages` finds room, where
    /// that region would displace only chunks of other lengths whose worth is below `worth`. Nil
    /// when there is no such place.
    ///
    /// - Parameter isMovable: whether the owner may go. It is asked for every owner in the place
    ///   that is chosen.
    /// - Complexity: O(slabs × slabs of a region), a sort of what qualifies, and O(slots) of each
    ///   place that turns out to be immovable.
    public func cheapestPlace(
        extentPages pages: Int, below worth: UInt64, isMovable: (UInt32) -> Bool
    ) -> [UInt32]? {
        let width = slabsPerRegion(extentPages: pages)
        if width > slabCount { return nil }
        var places: [(cost: UInt64, start: Int)] = []
        for start in 0...(slabCount - width) {
            let cost = cost(ofSlabs: start..<(start + width), length: pages)
            if let cost, cost < worth { places.append((cost, start)) }
        }
        places.sort { ($0.cost, $0.start) < ($1.cost, $1.start) }
        var immovable: Set<Int32> = []
        for place in places {
            let members = Set(regionOfSlab[place.start..<(place.start + width)]).filter { $0 >= 0 }
            if !immovable.isDisjoint(with: members) { continue }
            if let blocked = members.first(where: { !isRegionMovable($0, isMovable) }) {
                immovable.insert(blocked)
                continue
            }
            return members.flatMap { index in
                let region = regions[Int(index)]!
                return region.owners.indices.filter { !isFree($0, in: Int(index)) }
                    .map { region.owners[$0] }
            }
        }
        return nil
    }

    /// Whether every owner in a region may go.
    private func isRegionMovable(_ index: Int32, _ isMovable: (UInt32) -> Bool) -> Bool {
        let region = regions[Int(index)]!
        return region.owners.indices.allSatisfy { slot in
            isFree(slot, in: Int(index))
                || (region.owners[slot] != Self.noOwner && isMovable(region.owners[slot]))
        }
    }

    // MARK: Parts

    /// What would go with these slabs is worth at most this; nil if they can't become one region of
    /// that length.
    private func cost(ofSlabs slabs: Range<Int>, length: Int) -> UInt64? {
        var cost: UInt64 = 0
        for slab in slabs {
            let index = Int(regionOfSlab[slab])
            if index == Int(Self.unreadySlab) { return nil }
            if index == Int(Self.freeSlab) { continue }
            if regions[index]!.extentPages == length { return nil }
            cost = max(cost, regions[index]!.worth)
        }
        return cost
    }

    private func locate(_ page: UInt32) -> (region: Int, slot: Int) {
        let index = Int(regionOfSlab[Int(page) / slabPages])
        precondition(index >= 0, "page \(page) belongs to no region")
        let region = regions[index]!
        let slot = (Int(page) - region.firstSlab * slabPages) / region.extentPages
        return (index, slot)
    }

    private func isFree(_ slot: Int, in index: Int) -> Bool {
        regions[index]!.freeSlots[slot / 64] & (1 << UInt64(slot % 64)) != 0
    }

    private mutating func takeFreeSlot(ofRegion index: Int, owner: UInt32) -> Int {
        for word in regions[index]!.freeSlots.indices where regions[index]!.freeSlots[word] != 0 {
            let bit = regions[index]!.freeSlots[word].trailingZeroBitCount
            regions[index]!.freeSlots[word] &= ~(1 << UInt64(bit))
            regions[index]!.freeCount -= 1
            regions[index]!.owners[word * 64 + bit] = owner
            return word * 64 + bit
        }
        preconditionFailure("an open region has a free slot")
    }

    /// Makes a region in the first free place that is wide enough.
    private mutating func makeRegion(extentPages pages: Int) -> Bool {
        let width = slabsPerRegion(extentPages: pages)
        if freeSlabs < width { return false }
        var run = 0
        for slab in 0..<slabCount {
            run = regionOfSlab[slab] == Self.freeSlab ? run + 1 : 0
            if run < width { continue }
            let first = slab + 1 - width
            let capacity = width * slabPages / pages
            var freeSlots = [UInt64](repeating: .max, count: (capacity + 63) / 64)
            if capacity % 64 != 0 {
                freeSlots[freeSlots.count - 1] = (1 << UInt64(capacity % 64)) - 1
            }
            let region = Region(
                firstSlab: first, slabCount: width, extentPages: pages,
                owners: Array(repeating: Self.noOwner, count: capacity), freeSlots: freeSlots,
                freeCount: capacity, isOpen: true, worth: 0)
            let index = vacantRegions.popLast() ?? regions.count
            if index == regions.count { regions.append(region) } else { regions[index] = region }
            for member in first..<(first + width) { regionOfSlab[member] = Int32(index) }
            freeSlabs -= width
            openRegions[pages, default: []].append(index)
            regionCountByLength[pages, default: 0] += 1
            return true
        }
        return false
    }

    private mutating func dissolve(_ index: Int) {
        let region = regions[index]!
        for slab in region.firstSlab..<(region.firstSlab + region.slabCount) {
            regionOfSlab[slab] = Self.freeSlab
        }
        freeSlabs += region.slabCount
        if region.isOpen {
            openRegions[region.extentPages]!.removeAll { $0 == index }
            if openRegions[region.extentPages]!.isEmpty { openRegions[region.extentPages] = nil }
        }
        let left = regionCountByLength[region.extentPages]! - 1
        regionCountByLength[region.extentPages] = left == 0 ? nil : left
        regions[index] = nil
        vacantRegions.append(index)
    }
}

extension ExtentAllocator {
    /// Checks every internal agreement; for tests. Returns what is wrong, or nil.
    /// - Complexity: O(slabs + slots).
    public func brokenInvariant() -> String? {
        var used = 0
        var free = 0
        for slab in 0..<slabCount {
            let index = regionOfSlab[slab]
            if index == Self.freeSlab { free += 1 }
            if index < 0 { continue }
            guard let region = regions[Int(index)] else {
                return "slab \(slab) in a dissolved region"
            }
            if !(region.firstSlab..<(region.firstSlab + region.slabCount)).contains(slab) {
                return "slab \(slab) outside its region"
            }
        }
        for (index, region) in regions.enumerated() {
            guard let region else { continue }
            let bits = region.freeSlots.reduce(0) { $0 + $1.nonzeroBitCount }
            if bits != region.freeCount { return "region \(index): free count" }
            if region.freeCount == region.owners.count { return "region \(index): empty but kept" }
            if region.isOpen != (region.freeCount > 0) { return "region \(index): open flag" }
            if region.isOpen != (openRegions[region.extentPages]?.contains(index) ?? false) {
                return "region \(index): open list"
            }
            used += (region.owners.count - region.freeCount) * region.extentPages
        }
        if used != usedPages { return "used pages \(usedPages), counted \(used)" }
        if free != freeSlabs { return "free slabs \(freeSlabs), counted \(free)" }
        return nil
    }
}
