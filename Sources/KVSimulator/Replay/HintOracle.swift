package import KVPolicy

extension Trace {
    /// By request a hint that knows the future and is right with some probability: `pending` where
    /// its last full chunk will be asked for again, else `closed`.
    ///
    /// - Parameter accuracy: 1 is always right, 0.5 as good as none.
    package func oracleHints(accuracy: Double, seed: UInt64 = 1) -> [ReuseHint] {
        var hints = [ReuseHint](repeating: .none, count: requests.count)
        var isUsedLater = [Bool](repeating: false, count: distinctCount)
        for number in requests.indices.reversed() {
            let path = chunks(of: requests[number], storesPartial: false)
            if let last = path.last {
                let random = ChunkName.mix(seed &* 0xD1B5_4A32_D192_ED03 &+ UInt64(number))
                let isRight = Double(random >> 11) * 0x1p-53 < accuracy
                hints[number] = isUsedLater[Int(last)] == isRight ? .pending : .closed
            }
            for chunk in path { isUsedLater[Int(chunk)] = true }
        }
        return hints
    }
}
