import ArgumentParser
import KVClient

struct Ping: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Ask a server whether it is there, and how fast it answers.")

    @OptionGroup var options: ClientOptions

    @Option(help: ArgumentHelp("How many times.", valueName: "n"))
    var count = 100

    @Flag(help: "Print JSON.")
    var json = false

    private struct Report: Encodable {
        var socket: String
        var server: String
        var pid: Int
        var count: Int
        var minNanoseconds: UInt64
        var medianNanoseconds: UInt64
        var maxNanoseconds: UInt64
    }

    func validate() throws {
        if !(1...1_000_000).contains(count) {
            throw ValidationError("--count takes 1 to 1000000, not \(count)")
        }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let version = try asking { () throws(ClientError) in try client.version() }
        var times: [UInt64] = []
        for _ in 0..<count {
            times.append(try asking { () throws(ClientError) in try client.ping() })
        }
        times.sort()
        let report = Report(
            socket: client.socketPath, server: version.server, pid: version.processID, count: count,
            minNanoseconds: times[0], medianNanoseconds: times[times.count / 2],
            maxNanoseconds: times[times.count - 1])
        if json { return try JSONOutput.print(report) }
        print("kvasir \(version.server) (pid \(version.processID)) answers on \(client.socketPath)")
        let figures = [report.minNanoseconds, report.medianNanoseconds, report.maxNanoseconds]
        let texts = figures.map { Format.duration(Double($0)) }
        print("round trip of \(count): least \(texts[0]), median \(texts[1]), most \(texts[2])")
    }
}
