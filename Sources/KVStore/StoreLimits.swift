/// The store's named limits. `docs/protocol.md` lists them for users.
public enum StoreLimits {
    /// Keys in one call.
    public static let keys = 65_536
    /// Holds and leases of one session.
    public static let leasesPerSession = 65_536
    /// Spaces that are open or have chunks.
    public static let spaces = 1_024
    /// Keys of a reservation times shards of its space.
    public static let extentsPerReservation = 1 << 20
    /// Chunks in all holds and read leases of one session together.
    public static let chunksHeldPerSession = 1 << 22
    /// Checks that wait for a thread; beyond it none is started that nobody waits for.
    package static let waitingChecks = 4_096
    /// Syncs under way at a time.
    public static let waitingSyncs = 1_024
    /// Directories of the disk tier.
    public static let disks = 256
    /// The longest time a hold or lease can be asked for, in milliseconds (one hour).
    public static let leaseMs: UInt64 = 3_600_000
    /// The longest time to live or pin, in milliseconds (a year).
    public static let lifetimeMs: UInt64 = 31_536_000_000
    /// Of the arena, what can be pinned: one part in this many.
    public static let pinnedShareOfArena = 2
    /// Chunks that are static at a time, those among them that are missing included.
    public static let staticChunks = 65_536
    /// Of what the disks may take together, if each is taken for as small as the smallest, what static
    /// chunks may need: one part in this many.
    public static let staticShareOfDisk = 4
    /// Removed chunks whose fate `explain` still knows.
    package static let rememberedFates = 65_536
}
