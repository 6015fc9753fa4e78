package import KVIdentity
package import KVPolicy

// Pins that end by themselves, by a request or never. What is pinned for good is static too, see
// `StoreCore+Static`.

extension StoreCore {
    /// When a pin without end is due.
    static var never: UInt64 { .max }

    /// Keeps the leading keys from eviction; for good, with what they follow. - Returns: how many.
    package mutating func pin(
        space handle: UInt32, root: Digest, keys: [Digest], for duration: PinDuration,
        session: SessionID, now: UInt64
    ) throws(StoreError) -> Int {
        advance(to: now)
        try requireKeys(keys)
        _ = try requireSpace(handle, session: session)
        try require(duration)
        let found = visiblePrefix(space: handle, root: root, keys: keys)
        let until = end(of: duration)
        let run = until == Self.never ? withAncestors(found) : found
        try requireRoomForPins(run)
        if until == Self.never {
            try requireRoomForMarks(run)
            for chunk in run { mark(chunk) }
        }
        for chunk in run.reversed() { pin(chunk, until: until) }
        return found.count
    }

    private func requireRoomForPins(_ run: [UInt32]) throws(StoreError) {
        let added = run.reduce(0) { $0 + (chunks[$1].isPinnedUntil ? 0 : chunkBytes(of: $1)) }
        if added > pinnableBytes {
            throw StoreError(
                .limit,
                "\(pinnedBytes) bytes are pinned; with these \(added) it would be more than half the arena"
            )
        }
    }

    /// Pins as a request has hinted: as many of the leading chunks as may be pinned still, and none
    /// for less long than it is pinned already.
    mutating func pinAsHinted(_ run: [UInt32], until: UInt64) {
        let asked = run.count
        var room = pinnableBytes
        var marks = roomForMarks
        var run = run
        if until == Self.never, let first = run.first {
            // Where none of it fits, what it follows isn't walked through for each chunk anew.
            let bytes = chunkBytes(of: first)
            if !isStatic(first), room < bytes || marks.count < 1 || marks.bytes < bytes {
                counters.pinsRefused += asked
                return
            }
            run = withAncestors(run)
        }
        let kept = run.prefix { chunk in
            if !chunks[chunk].isPinnedUntil { room -= chunkBytes(of: chunk) }
            if until != Self.never || isStatic(chunk) { return room >= 0 }
            marks.count -= 1
            marks.bytes -= chunkBytes(of: chunk)
            return room >= 0 && marks.count >= 0 && marks.bytes >= 0
        }
        counters.pinsRefused += min(asked, run.count - kept.count)
        if until == Self.never { for chunk in kept { mark(chunk) } }
        for chunk in kept.reversed() where pinsUntil[chunk] ?? 0 < until {
            pin(chunk, until: until)
        }
    }

    /// Of the arena, what may be pinned yet.
    var pinnableBytes: Int {
        configuration.arenaBytes / StoreLimits.pinnedShareOfArena - pinnedBytes
    }

    /// When a pin that begins now ends.
    func end(of duration: PinDuration) -> UInt64 {
        switch duration {
        case .milliseconds(let ms): currentTime + UInt64(clamping: ms) * 1_000_000
        case .forever: Self.never
        }
    }

    func require(_ duration: PinDuration) throws(StoreError) {
        if case .milliseconds(let ms) = duration {
            try requireLifetime(UInt64(clamping: ms), smallest: 1)
        }
    }

    /// A pin without end stays one. What is not sealed yet is pinned when it is.
    mutating func pin(_ chunk: UInt32, until: UInt64) {
        if pinsUntil[chunk] == Self.never || chunks[chunk].state != .sealed { return }
        if !chunks[chunk].isPinnedUntil {
            chunks[chunk].isPinnedUntil = true
            pinnedBytes += chunkBytes(of: chunk)
            pin(chunk)
        }
        pinsUntil[chunk] = until
        if until != Self.never { deadlines.add(.pin(chunk: chunk), due: until) }
    }

    /// Takes pins off the given keys. What is static because something static follows it stays so.
    ///
    /// - Returns: how many had a pin, or were static and are missing.
    package mutating func unpin(
        space handle: UInt32, root: Digest, keys: [Digest], session: SessionID, now: UInt64
    ) throws(StoreError) -> Int {
        advance(to: now)
        try requireKeys(keys)
        let space = try requireSpace(handle, session: session)
        let slot = rootSlots[root]
        var count = 0
        // What follows goes first, so that nothing static follows what is asked for later.
        for key in keys.reversed() {
            let chunk = find(key, space: handle, rootSlot: slot)
            var had = false
            if let mark = statics.marks[key], mark.root == root, mark.space == space.id {
                if let chunk, hasStaticChild(chunk) { continue }
                statics.remove(key)
                had = true
            }
            if let chunk, chunks[chunk].isPinnedUntil {
                endTimedPin(chunk)
                had = true
            }
            if had { count += 1 }
        }
        return count
    }

    mutating func endTimedPin(_ chunk: UInt32) {
        pinsUntil[chunk] = nil
        chunks[chunk].isPinnedUntil = false
        pinnedBytes -= chunkBytes(of: chunk)
        unpin(chunk)
        if statics.isShortOfPins { wantStatics(in: Self.secondNs) }
    }

    func chunkBytes(of chunk: UInt32) -> Int { spaces[chunks[chunk].space]!.chunkBytes }
}
