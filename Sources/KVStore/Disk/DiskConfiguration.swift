internal import Glibc

/// A directory that the store keeps chunks in.
public struct DiskConfiguration: Sendable {
    /// Its path; made if it does not exist. One store uses it at a time.
    public var directory: String
    /// The most bytes that its files may take; nil for a quarter of what is free there, or is the
    /// store's already.
    public var byteCount: Int?
    /// Bytes of a segment file, the unit in which room is given back; nil for what suits
    /// `byteCount`.
    public var segmentBytes: Int?

    /// Names a directory.
    public init(directory: String, byteCount: Int? = nil, segmentBytes: Int? = nil) {
        self.directory = directory
        self.byteCount = byteCount
        self.segmentBytes = segmentBytes
    }

    /// The fewest segments of a disk: with fewer, the one that is written and those in reserve would
    /// be most of it.
    public static let fewestSegments = 8
    /// The fewest bytes that a disk may be given.
    public static let smallestBytes = 16 << 20
    /// Bytes of a segment where nothing else is asked for, if there is room for many of them.
    static let usualSegmentBytes = 256 << 20
    /// Of the free space, what a disk takes where nothing else is asked for: one part in this many.
    public static let shareOfFreeSpace = 4

    /// What a directory is given where nothing else is asked for.
    ///
    /// - Parameter takenBytes: of its files now: they count as free.
    public static func usualByteCount(freeBytes: Int, takenBytes: Int) -> Int {
        (freeBytes + takenBytes) / shareOfFreeSpace
    }

    /// Bytes that are free for this user in the file system of a path; nil, and `errno`, if it
    /// doesn't tell.
    public static func freeBytes(at path: String) -> Int? {
        var status = statvfs()
        if statvfs(path, &status) != 0 { return nil }
        return Int(status.f_bavail) * Int(status.f_frsize)
    }
}
