import ArgumentParser
import Foundation
import KVStore
import Logging

/// The options of the disk tier.
struct DiskOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Directory of the disk tier, on NVMe if there is; give it several times for several devices. [KVASIR_DISK, separated by ':'] (default: kvasir/disk in the user's cache directory)",
            valueName: "directory"))
    var disk: [String] = []

    @Option(
        help: ArgumentHelp(
            "Most bytes that the files of each directory take, e.g. 200GiB. [KVASIR_DISK_SIZE] (default: a quarter of the free space)",
            valueName: "size"))
    var diskSize: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Which chunks go to disk: 'all', those used a second time ('second-use'), or those that memory gives up ('eviction'). [KVASIR_DISK_ADMISSION] (default: all)",
            valueName: "rule"))
    var diskAdmission: String?

    @Flag(help: "No disk tier: what is stored is gone when the server ends. [KVASIR_MEMORY_ONLY]")
    var memoryOnly = false

    /// What a server is to use.
    struct Plan {
        var disks: [DiskConfiguration]
        var admission: DiskAdmission
        /// Nobody asked for these directories: if they can't be used, memory alone will do.
        var isDefault: Bool
    }

    func resolve() throws -> Plan {
        let environment = ProcessInfo.processInfo.environment
        let rule = try Setting.value(diskAdmission, "KVASIR_DISK_ADMISSION", default: "all")
        guard let admission = DiskAdmission(rawValue: rule.lowercased()) else {
            let all = DiskAdmission.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("--disk-admission takes one of \(all), not '\(rule)'")
        }
        let size = try Setting.value(diskSize, "KVASIR_DISK_SIZE", default: ByteCount(0))
        let bytes = size.bytes == 0 ? nil : size.bytes
        // An option wins over a variable: who names a directory wants it.
        let isOff =
            try memoryOnly
            || (disk.isEmpty && Self.isSet("KVASIR_MEMORY_ONLY", environment))
        if isOff {
            if memoryOnly, !disk.isEmpty {
                throw ValidationError(
                    "--memory-only and --disk exclude each other; give one of them")
            }
            if memoryOnly, diskSize != nil {
                throw ValidationError("--memory-only has no use for --disk-size; give one of them")
            }
            return Plan(disks: [], admission: admission, isDefault: false)
        }
        var directories = disk
        if directories.isEmpty, let listed = environment["KVASIR_DISK"], !listed.isEmpty {
            directories = listed.split(separator: ":").map(String.init)
        }
        if directories.contains(where: \.isEmpty) {
            throw ValidationError("--disk takes the path of a directory")
        }
        let isDefault = directories.isEmpty
        if isDefault {
            guard let usual = Self.usualDirectory(environment) else {
                if bytes != nil {
                    throw ValidationError(
                        "--disk-size needs a directory, and this user has no home; name one with --disk"
                    )
                }
                return Plan(disks: [], admission: admission, isDefault: true)
            }
            directories = [usual]
        }
        return Plan(
            disks: directories.map { DiskConfiguration(directory: $0, byteCount: bytes) },
            admission: admission, isDefault: isDefault && bytes == nil)
    }

    /// `kvasir/disk` in the user's cache directory; nil for a user without a home.
    static func usualDirectory(_ environment: [String: String]) -> String? {
        // The specification wants an absolute path, and others ignored.
        if let cache = environment["XDG_CACHE_HOME"], cache.hasPrefix("/") {
            return cache + "/kvasir/disk"
        }
        guard let home = environment["HOME"], home.hasPrefix("/") else { return nil }
        return home + "/.cache/kvasir/disk"
    }

    private static func isSet(_ variable: String, _ environment: [String: String]) throws -> Bool {
        switch environment[variable]?.lowercased() {
        case nil, "", "0", "false", "no", "off": return false
        case "1", "true", "yes", "on": return true
        case let text?:
            throw ValidationError("\(variable): give 1 or 0, not '\(text)'")
        }
    }
}
