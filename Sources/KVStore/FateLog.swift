internal import KVIdentity

/// Remembers what became of the chunks removed last: a fixed table, newer fates overwrite older
/// ones.
struct FateLog {
    private struct Entry {
        var fingerprint: UInt64 = 0
        var timeMs: UInt64 = 0
        var fate: Fate?
    }

    private var entries = [Entry](repeating: Entry(), count: StoreLimits.rememberedFates)

    mutating func record(_ key: Digest, _ fate: Fate, nowMs: UInt64) {
        entries[place(of: key)] = Entry(fingerprint: key.words.1, timeMs: nowMs, fate: fate)
    }

    func fate(of key: Digest) -> (fate: Fate, timeMs: UInt64)? {
        let entry = entries[place(of: key)]
        guard let fate = entry.fate, entry.fingerprint == key.words.1 else { return nil }
        return (fate, entry.timeMs)
    }

    private func place(of key: Digest) -> Int { Int(key.words.0 % UInt64(entries.count)) }
}
