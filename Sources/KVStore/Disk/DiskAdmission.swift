/// Which sealed chunks go to disk.
public enum DiskAdmission: String, Sendable, CaseIterable {
    /// All, as soon as they are sealed.
    case all
    /// Those that were used again after they were sealed: matched, or saved once more.
    case secondUse = "second-use"
    /// Those that memory would give up.
    case eviction
}
