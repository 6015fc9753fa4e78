import CKvasir
import Foundation
import KVArena

/// Looks at memory, limits and what the kernel can do, by trying it.
struct MachineExamination {
    private(set) var findings: [Finding] = []

    init(serverAnswers: Bool) {
        findings = [
            memory(serverAnswers: serverAnswers), openFiles(), lockedMemory(), kernel(), memfd(),
            pidfd(), populate(),
            ioUring(), hugePages(), sharedMemory(),
        ]
    }

    private func memory(serverAnswers: Bool) -> Finding {
        let budget = MemoryBudget.current()
        var found =
            "\(ByteCount(budget.physicalBytes)) physical, \(ByteCount(budget.availableBytes)) available"
        if let limit = budget.groupLimitBytes {
            found +=
                ", control group \(ByteCount(budget.groupUsedBytes ?? 0)) of \(ByteCount(limit))"
        }
        found += "; the default arena is \(ByteCount(budget.defaultArenaBytes))"
        if serverAnswers || budget.usableBytes >= budget.defaultArenaBytes {
            return Finding(name: "memory", level: .fine, found: found)
        }
        return Finding(
            name: "memory", level: .problem, found: found + ", which does not fit",
            remedy: "free memory, or start with --memory \(max(1, budget.usableBytes >> 20) / 2)MiB"
        )
    }

    private static func limit(_ resource: Int32) -> UInt {
        var limit = rlimit()
        getrlimit(resource, &limit)
        return limit.rlim_cur
    }

    private func openFiles() -> Finding {
        let limit = Self.limit(Int32(RLIMIT_NOFILE.rawValue))
        // A connection takes a socket and a pidfd.
        let needed: UInt = 2 * 1_024 + 64
        let found = limit == .max ? "no limit" : "\(limit) (ulimit -n)"
        return limit >= needed
            ? Finding(name: "open files", level: .fine, found: found)
            : Finding(
                name: "open files", level: .warning,
                found: "\(found); 1,024 connections take \(needed)",
                remedy: "ulimit -n 4096, or LimitNOFILE=4096 in the service's unit")
    }

    private func lockedMemory() -> Finding {
        // RLIMIT_MEMLOCK, which the Glibc module hides.
        let limit = Self.limit(8)
        let found = limit == .max ? "no limit" : "\(ByteCount(Int(clamping: limit))) (ulimit -l)"
        return limit >= 8 << 20
            ? Finding(name: "locked memory", level: .fine, found: found)
            : Finding(
                name: "locked memory", level: .warning,
                found: "\(found); registered I/O buffers take 8 MiB",
                remedy: "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service's unit")
    }

    private func kernel() -> Finding {
        var names = utsname()
        uname(&names)
        let release = withUnsafeBytes(of: &names.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        let numbers = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap {
            Int($0)
        }
        let isRecent = numbers.count == 2 && (numbers[0], numbers[1]) >= (5, 14)
        return isRecent
            ? Finding(name: "kernel", level: .fine, found: "Linux \(release)")
            : Finding(
                name: "kernel", level: .warning,
                found: "Linux \(release); 5.14 has all that Kvasir uses",
                remedy: "upgrade the kernel; the findings below say what is missing")
    }

    private func memfd() -> Finding {
        let fd = kv_memfd("kvasir-doctor", 4096)
        if fd >= 0 {
            close(fd)
            return Finding(name: "memfd", level: .fine, found: "sealed shared memory can be made")
        }
        return Finding(
            name: "memfd", level: .problem,
            found: "memfd_create fails: \(String(cString: strerror(errno)))",
            remedy: "allow memfd_create and F_ADD_SEALS in the container's seccomp profile")
    }

    private func pidfd() -> Finding {
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0 else {
            return Finding(
                name: "pidfd", level: .warning,
                found: "no socket pair: \(String(cString: strerror(errno)))",
                remedy: "raise the limit of open files")
        }
        defer { for fd in pair { close(fd) } }
        let fd = kv_peer_pidfd(pair[0])
        if fd >= 0 {
            close(fd)
            return Finding(name: "pidfd", level: .fine, found: "a client's death can be watched")
        }
        return Finding(
            name: "pidfd", level: .warning,
            found: "no pidfd of a peer: memory of a crashed writer may stay in quarantine",
            remedy:
                "Linux 5.3 or later (6.5 with containers), and allow pidfd_open in the seccomp profile"
        )
    }

    private func populate() -> Finding {
        let size = 1 << 16
        let mapped = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        guard let mapped, mapped != MAP_FAILED else {
            return Finding(
                name: "populate", level: .problem,
                found: "can't map memory: \(String(cString: strerror(errno)))",
                remedy: "raise ulimit -v")
        }
        defer { munmap(mapped, size) }
        let code = kv_populate_write(mapped, size)
        return code == 0
            ? Finding(
                name: "populate", level: .fine, found: "memory can be faulted in without risk")
            : Finding(
                name: "populate", level: .problem,
                found: "MADV_POPULATE_WRITE fails: \(String(cString: strerror(code)))",
                remedy: "Linux 5.14 or later")
    }

    /// Disks are faster with it.
    private func ioUring() -> Finding {
        let setting = Self.firstLine("/proc/sys/kernel/io_uring_disabled")
        if let setting, setting != "0" {
            return Finding(
                name: "io_uring", level: .warning,
                found: "switched off (io_uring_disabled is \(setting))",
                remedy: "sysctl kernel.io_uring_disabled=0; without it disks are served by threads")
        }
        // The call is variadic and so has no Swift name. With a null argument an allowed call says EFAULT.
        typealias Call = @convention(c) (Int, UInt, UnsafeMutableRawPointer?) -> Int
        guard let symbol = dlsym(nil, "syscall") else {
            return Finding(name: "io_uring", level: .warning, found: "can't be tried here")
        }
        let result = unsafeBitCast(symbol, to: Call.self)(425, 1, nil)
        let code = errno
        if result < 0, code == EFAULT {
            return Finding(name: "io_uring", level: .fine, found: "allowed")
        }
        return Finding(
            name: "io_uring", level: .warning, found: "refused: \(String(cString: strerror(code)))",
            remedy:
                "allow io_uring_setup in the seccomp profile; without it disks are served by threads"
        )
    }

    private func hugePages() -> Finding {
        let setting =
            Self.firstLine("/sys/kernel/mm/transparent_hugepage/shmem_enabled") ?? "unknown"
        let chosen = setting.split(separator: " ").first { $0.hasPrefix("[") }.map {
            $0.dropFirst().dropLast()
        }
        let obtained = HugePageProbe.obtainedBytes()
        if obtained > 0 {
            return Finding(
                name: "huge pages", level: .fine,
                found: "obtained for shared memory (shmem_enabled: \(chosen ?? "?"))")
        }
        return Finding(
            name: "huge pages", level: .warning,
            found:
                "none for shared memory (shmem_enabled: \(chosen ?? "?")): copies and faults are slower",
            remedy:
                "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, as root, before 'kvasir serve'"
        )
    }

    private func sharedMemory() -> Finding {
        var status = statvfs()
        guard statvfs("/dev/shm", &status) == 0 else {
            return Finding(
                name: "/dev/shm", level: .fine, found: "not there; the arena needs none")
        }
        let size = Int(status.f_frsize) * Int(status.f_blocks)
        return Finding(
            name: "/dev/shm", level: .fine, found: "\(ByteCount(size)); the arena takes none of it")
    }

    private static func firstLine(_ path: String) -> String? {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else { return nil }
        return text.split(separator: "\n").first.map(String.init)
    }
}

/// Whether a memfd really gets huge pages: `madvise` can succeed and do nothing.
enum HugePageProbe {
    /// Bytes of a small memfd that the kernel backed with huge pages.
    static func obtainedBytes() -> Int {
        let huge = 2 << 20
        let fd = kv_memfd("kvasir-doctor-huge", UInt64(4 * huge))
        if fd < 0 { return 0 }
        defer { close(fd) }
        let mapped = mmap(nil, 4 * huge, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        guard let mapped, mapped != MAP_FAILED else { return 0 }
        defer { munmap(mapped, 4 * huge) }
        _ = kv_advise_huge_pages(mapped, 4 * huge)
        if kv_populate_write(mapped, 4 * huge) != 0 { return 0 }
        guard let maps = try? String(contentsOfFile: "/proc/self/smaps", encoding: .utf8) else {
            return 0
        }
        var isOurs = false
        for line in maps.split(separator: "\n") {
            if line.contains("kvasir-doctor-huge") { isOurs = true }
            if isOurs, line.hasPrefix("ShmemPmdMapped:") {
                let words = line.split(separator: " ")
                return words.count > 1 ? (Int(words[1]) ?? 0) << 10 : 0
            }
        }
        return 0
    }
}
