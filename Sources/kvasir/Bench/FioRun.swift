import Foundation

/// What `fio` says of a directory's device, where it is installed: a judge that is not ours.
struct FioRun {
    let directory: String
    let byteCount: Int

    private static let requestBytes = 8 << 20
    private static let program = "fio"

    /// One line for people; nil where there is no `fio`.
    func describe() -> String? {
        guard let path = Self.find() else { return nil }
        do {
            let write = try rate(path, "write", depth: 2)
            let read = try rate(path, "read", depth: 4)
            return "write \(Format.fixed(write, 2)) GB/s (8 MiB, 2 under way, fsync at the end), "
                + "read \(Format.fixed(read, 2)) GB/s (8 MiB, 4 under way)"
        } catch {
            return "failed: \(error)"
        }
    }

    private static func find() -> String? {
        let folders = ProcessInfo.processInfo.environment["PATH"]?.split(separator: ":") ?? []
        return folders.map { "\($0)/\(program)" }.first { access($0, X_OK) == 0 }
    }

    /// - Parameter kind: `read` or `write`, in order. - Returns: gigabytes a second.
    private func rate(_ path: String, _ kind: String, depth: Int) throws -> Double {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = [
            "--name=kvasir-bench", "--filename=\(directory)/fio", "--rw=\(kind)", "--direct=1",
            "--ioengine=io_uring", "--bs=\(Self.requestBytes)", "--iodepth=\(depth)",
            "--size=\(byteCount)", "--end_fsync=1", "--output-format=json",
        ]
        let output = Pipe()
        process.standardOutput = output
        process.standardError = FileHandle.nullDevice
        try process.run()
        let text = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw CommandFailure("it ended with status \(process.terminationStatus)")
        }
        return try JSONDecoder().decode(Report.self, from: text).rate(of: kind)
    }

    /// The part of `fio`'s report that is used.
    private struct Report: Decodable {
        struct Job: Decodable {
            let read: Transfer
            let write: Transfer
        }

        struct Transfer: Decodable {
            /// Bytes a second.
            let bandwidth: Double

            enum CodingKeys: String, CodingKey {
                case bandwidth = "bw_bytes"
            }
        }

        let jobs: [Job]

        func rate(of kind: String) throws -> Double {
            guard let job = jobs.first else { throw CommandFailure("it told of no job") }
            return (kind == "read" ? job.read : job.write).bandwidth / 1e9
        }
    }
}
