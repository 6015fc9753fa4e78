import Foundation

/// (c) with the Python client: a script does the work and prints figures as JSON.
struct PythonCopy {
    let python: String
    let socket: String
    let sizes: [Int]

    private struct Figures: Decodable {
        var what: String
        var bytes: Int
        var roundTrip: Double
        var limits: [Double]
        var limitsCpu: [Double]
        var times: [Double]
        var timesCpu: [Double]
    }

    func run() throws -> [BenchResult] {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments =
            [python, try Self.script(), "--socket", socket, "--sizes"]
            + [sizes.map(String.init).joined(separator: ",")]
        let output = Pipe()
        process.standardOutput = output
        do {
            try process.run()
        } catch {
            throw CommandFailure("can't run \(python): \(error.localizedDescription)")
        }
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        guard process.terminationStatus == 0,
            let all = try? decoder.decode([Figures].self, from: data)
        else {
            throw CommandFailure(
                "\(python) failed; its message is above. It needs the package: pip install ./python"
            )
        }
        return all.map { figures in
            let limits = zip(figures.limits, figures.limitsCpu).map { Cost(wall: $0, cpu: $1) }
            let costs = zip(figures.times, figures.timesCpu).map { Cost(wall: $0, cpu: $1) }
            return BenchCopy.result(
                "\(figures.what) \(ByteCount(figures.bytes)), Python", figures.bytes, limits, costs,
                figures.roundTrip, 1)
        }
    }

    /// `python/tools/bench_copy.py`, from the working directory or beside the build.
    private static func script() throws -> String {
        let name = "python/tools/bench_copy.py"
        var directory = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        var places = [FileManager.default.currentDirectoryPath]
        for _ in 0..<5 {
            places.append(directory.path)
            directory.deleteLastPathComponent()
        }
        let found = places.map { $0 + "/" + name }.first {
            FileManager.default.fileExists(atPath: $0)
        }
        guard let found else {
            throw CommandFailure(
                "\(name) is not here; run 'kvasir bench' in the project's directory")
        }
        return found
    }
}
