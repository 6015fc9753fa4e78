internal import Glibc

/// How much memory this machine, or the control group this process runs in, can still give.
public struct MemoryBudget: Sendable, Equatable {
    /// Physical memory in bytes.
    public var physicalBytes: Int
    /// What the kernel says could be allocated without swapping.
    public var availableBytes: Int
    /// The tightest memory limit of the control group and its parents; nil without one.
    public var groupLimitBytes: Int?
    /// What the control group uses of that limit and can't give back (its file cache is not
    /// counted).
    public var groupUsedBytes: Int?

    /// What an arena can take: the smaller of what is available and what is left in the control
    /// group.
    public var usableBytes: Int {
        guard let limit = groupLimitBytes, let used = groupUsedBytes else { return availableBytes }
        return min(availableBytes, max(0, limit - used))
    }

    /// A quarter of the memory that the machine, or the control group, has: the default size of the
    /// arena.
    public var defaultArenaBytes: Int {
        let quarter = min(physicalBytes, groupLimitBytes ?? .max) / 4
        return quarter / (2 << 20) * (2 << 20)
    }

    /// Makes a budget from given figures.
    public init(
        physicalBytes: Int, availableBytes: Int, groupLimitBytes: Int? = nil,
        groupUsedBytes: Int? = nil
    ) {
        self.physicalBytes = physicalBytes
        self.availableBytes = availableBytes
        self.groupLimitBytes = groupLimitBytes
        self.groupUsedBytes = groupUsedBytes
    }

    /// Reads the figures of this moment from `/proc` and `/sys/fs/cgroup` (versions 1 and 2).
    ///
    /// - Parameter root: prepended to the paths; for tests.
    public static func current(root: String = "") -> MemoryBudget {
        let info = fields(of: readFile(root + "/proc/meminfo") ?? "")
        var budget = MemoryBudget(
            physicalBytes: (info["MemTotal:"] ?? 0) << 10,
            availableBytes: (info["MemAvailable:"] ?? 0) << 10)
        for line in (readFile(root + "/proc/self/cgroup") ?? "").split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard parts.count == 3 else { continue }
            let files: GroupFiles
            if parts[0] == "0", parts[1].isEmpty {
                files = GroupFiles(
                    mount: root + "/sys/fs/cgroup", limit: "memory.max", usage: "memory.current",
                    inactiveFile: "inactive_file")
            } else if parts[1].split(separator: ",").contains("memory") {
                files = GroupFiles(
                    mount: root + "/sys/fs/cgroup/memory", limit: "memory.limit_in_bytes",
                    usage: "memory.usage_in_bytes", inactiveFile: "total_inactive_file")
            } else {
                continue
            }
            budget.tighten(by: files, path: String(parts[2]))
        }
        return budget
    }

    private struct GroupFiles {
        var mount: String
        var limit: String
        var usage: String
        var inactiveFile: String
    }

    /// Walks from the group up to the mount point, since every ancestor's limit holds too; inside a
    /// container the path is often not visible, and the mount point itself is the group.
    private mutating func tighten(by files: GroupFiles, path: String) {
        var parts = path.split(separator: "/")
        while true {
            let directory = ([files.mount[...]] + parts).joined(separator: "/")
            if let text = Self.readFile(directory + "/" + files.limit),
                let limit = Int(text.filter(\.isNumber)), !text.hasPrefix("max"),
                limit < physicalBytes,
                let usage = Self.readFile(directory + "/" + files.usage).flatMap({
                    Int($0.filter(\.isNumber))
                })
            {
                let statistics = Self.fields(of: Self.readFile(directory + "/memory.stat") ?? "")
                let used = max(0, usage - (statistics[files.inactiveFile] ?? 0))
                let left = limit - used
                if left < (groupLimitBytes ?? .max) - (groupUsedBytes ?? 0) {
                    groupLimitBytes = limit
                    groupUsedBytes = used
                }
            }
            if parts.isEmpty { return }
            parts.removeLast()
        }
    }

    private static func fields(of text: String) -> [String: Int] {
        var result: [String: Int] = [:]
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            if words.count >= 2, let value = Int(words[1]) { result[String(words[0])] = value }
        }
        return result
    }

    private static func readFile(_ path: String) -> String? {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        if fd < 0 { return nil }
        defer { close(fd) }
        var bytes: [UInt8] = []
        while true {
            let chunk = [UInt8](unsafeUninitializedCapacity: 16 << 10) { buffer, count in
                count = max(0, read(fd, buffer.baseAddress, buffer.count))
            }
            if chunk.isEmpty { return String(decoding: bytes, as: UTF8.self) }
            bytes += chunk
        }
    }
}
