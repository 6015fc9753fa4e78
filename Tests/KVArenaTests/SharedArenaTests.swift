import Foundation
import Glibc
import KVArena
import Testing

@Suite("Shared memory")
struct SharedArenaTests {
    @Test("Nobody can shrink or grow the arena")
    func sealed() throws {
        let arena = try SharedArena(byteCount: 1 << 20, hugePages: false)
        #expect(ftruncate(arena.descriptor, 4096) == -1 && errno == EPERM)
        #expect(ftruncate(arena.descriptor, 2 << 20) == -1 && errno == EPERM)
    }

    @Test("The read-only descriptor can't be mapped for writing")
    func readOnly() throws {
        let arena = try SharedArena(byteCount: 1 << 20, hugePages: false)
        #expect(
            mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, arena.readOnlyDescriptor, 0)
                == MAP_FAILED)
        let mapped = mmap(nil, 4096, PROT_READ, MAP_SHARED, arena.readOnlyDescriptor, 0)
        #expect(mapped != MAP_FAILED)
        munmap(mapped, 4096)
    }

    @Test("Populated bytes take memory, others don't; all is given back in the end")
    func populates() throws {
        var status = stat()
        do {
            let arena = try SharedArena(byteCount: 4 << 20, hugePages: false)
            fstat(arena.descriptor, &status)
            #expect(status.st_blocks == 0)
            try arena.populate(0..<(1 << 20))
            fstat(arena.descriptor, &status)
            #expect(status.st_blocks * 512 == 1 << 20)
        }
        let left = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").compactMap {
            try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)")
        }
        // Other tests run beside this one, so only an arena of this very size would be ours.
        #expect(left.filter { $0.contains("kvasir-arena") }.count < 20)
    }
}

@Suite("How much memory there is")
struct MemoryBudgetTests {
    private func write(_ files: [String: String]) throws -> String {
        let root = NSTemporaryDirectory() + "budget-" + UUID().uuidString
        for (path, text) in files {
            let url = URL(fileURLWithPath: root + path)
            try FileManager.default.createDirectory(
                at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
            try text.write(to: url, atomically: true, encoding: .utf8)
        }
        return root
    }

    private let info = "MemTotal:       16777216 kB\nMemFree: 100 kB\nMemAvailable:    8388608 kB\n"

    @Test("Without a limit, what the kernel calls available")
    func noGroup() throws {
        let root = try write(["/proc/meminfo": info, "/proc/self/cgroup": "0::/user\n"])
        let budget = MemoryBudget.current(root: root)
        #expect(budget.usableBytes == 8 << 30)
        #expect(budget.defaultArenaBytes == 4 << 30)
    }

    @Test("A control group's limit, and the tightest of its parents'")
    func versionTwo() throws {
        let root = try write([
            "/proc/meminfo": info, "/proc/self/cgroup": "0::/a/b\n",
            "/sys/fs/cgroup/a/b/memory.max": "max\n",
            "/sys/fs/cgroup/a/b/memory.current": "5\n",
            "/sys/fs/cgroup/a/memory.max": "2147483648\n",
            "/sys/fs/cgroup/a/memory.current": "1610612736\n",
            "/sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 536870912\n",
        ])
        let budget = MemoryBudget.current(root: root)
        #expect(budget.groupLimitBytes == 2 << 30)
        #expect(budget.usableBytes == 1 << 30, "the file cache can be given back")
        #expect(budget.defaultArenaBytes == 512 << 20)
    }

    @Test("Version 1, inside a container where the path is not visible")
    func versionOne() throws {
        let root = try write([
            "/proc/meminfo": info, "/proc/self/cgroup": "5:cpu,memory:/docker/abc\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": "268435456\n",
        ])
        #expect(MemoryBudget.current(root: root).usableBytes == 768 << 20)
    }
}
