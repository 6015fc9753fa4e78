import CKvasir
import Foundation
import KVClient
import KVIdentity
import KVSocket
import RESP
import ReferenceLM

/// (a) What a request costs beside the least that two processes can exchange over a Unix socket.
///
/// Whether the kernel wakes the other side on the same processor or on one that has gone to sleep makes
/// a factor of five, and it decides anew for each pair of processes. So both are tied down: to one
/// processor, which shows what the code costs, then to two, which shows what the machine adds.
struct BenchDescriptors {
    static let name = "descriptors"
    private static let keyCount = 4
    /// `*3`, `:4`, `$4` and four bytes, `:0`, each with CR LF.
    private static let replyBytes = 22

    let server: BenchServer
    let rounds: Int
    let progress: Progress

    func run() throws -> [BenchResult] {
        let directory = try TemporaryDirectory()
        let socket = directory.path + "/raw.sock"
        let client = try asking { () throws(ClientError) in try Client(.init(socket: server.socket))
        }
        defer { client.close() }
        let space = try BenchSpace.make(chunkBytes: 4096)
        let root = Root(space: space.id)
        var random = SeededRandom(seed: 1)
        let keys = Digest.random(Self.keyCount, &random)
        try store(keys, client, space, root)
        let request = try Self.request(client, space, root, keys)
        let peer = try ChildProcess([
            "bench-peer", "--socket", socket, "--request", "\(request.count)", "--reply",
            "\(Self.replyBytes)",
        ])
        defer { peer.stop() }
        let raw = try Self.connect(socket, request)
        let asked = try RawServerClient(
            socket: server.socket, space: space, request: request, replyBytes: Self.replyBytes)
        var all: [BenchResult] = []
        for (place, index) in [("one processor", Int32(0)), ("two processors", 1)] {
            let codes = [kv_pin(0, 0), kv_pin(peer.process, index), kv_pin(server.process, index)]
            defer { for process in [0, peer.process, server.process] { _ = kv_pin(process, -1) } }
            if codes.contains(where: { $0 != 0 }) { continue }
            all += try measure(place, raw, asked, client, peer, (space, root, keys), request.count)
        }
        return all
    }

    private func measure(
        _ place: String, _ raw: RawClient, _ asked: RawServerClient, _ client: Client,
        _ peer: ChildProcess, _ target: (space: CacheSpace, root: Root, keys: [Digest]),
        _ requestBytes: Int
    ) throws -> [BenchResult] {
        var times: [[[Double]]] = [[], [], []]
        var costs: [[Cost]] = [[], [], []]
        for round in 0...rounds {
            progress.tell("descriptors, \(place): round \(round) of \(rounds)")
            let parts: [(other: Int32, body: () throws -> Void)] = [
                (peer.process, { try raw.roundTrip() }),
                (server.process, { try asked.roundTrip() }),
                (
                    server.process,
                    {
                        let match = try client.match(
                            target.space, root: target.root, keys: target.keys)
                        if match.count != Self.keyCount {
                            throw CommandFailure("the chunks were evicted meanwhile")
                        }
                    }
                ),
            ]
            for (index, part) in parts.enumerated() {
                let (block, cost) = try Self.block(part.other, part.body)
                // The first round warms up.
                if round > 0 {
                    times[index].append(block)
                    costs[index].append(cost)
                }
            }
        }
        progress.done()
        return results(times, costs, requestBytes: requestBytes, place)
    }

    private static func block(_ other: Int32, _ body: () throws -> Void) throws -> ([Double], Cost)
    {
        let count = 3_000
        var times: [Double] = []
        times.reserveCapacity(count)
        let cost = try Measure.cost(with: other) {
            for _ in 0..<count {
                let started = Measure.now()
                try body()
                times.append(Double(Measure.now() - started))
            }
        }
        return (times, cost / count)
    }

    private func results(
        _ times: [[[Double]]], _ costs: [[Cost]], requestBytes: Int, _ place: String
    )
        -> [BenchResult]
    {
        let medians = times.map { $0.map(\.median) }
        let worst = times.map { blocks in blocks.map { $0.percentile(0.99) }.median }
        let cpu = costs.map { $0.map(\.cpu).median }
        let sizes = "\(requestBytes) → \(Self.replyBytes) bytes"
        let names = [
            (1, "\(place), raw client, \(sizes)"),
            (2, "\(place), Swift client"),
        ]
        return names.map { index, what in
            let ratio = zip(medians[index], medians[0]).map { $0 / $1 }.median
            return BenchResult(
                bench: Self.name, what: what, unit: "ns", limit: medians[0].median,
                kvasir: medians[index].median,
                limitCPU: cpu[0], kvasirCPU: cpu[index], ratio: ratio,
                ratioCPU: cpu[index] / cpu[0], aim: "at most 1.3", reached: ratio <= 1.3,
                details: ["limitP99": worst[0], "kvasirP99": worst[index]])
        }
    }

    private func store(_ keys: [Digest], _ client: Client, _ space: CacheSpace, _ root: Root) throws
    {
        try asking { () throws(ClientError) in
            let lease = try client.reserve(space, root: root, keys: keys)
            if lease.id != 0 { try client.commit(lease) }
        }
    }

    static func request(_ client: Client, _ space: CacheSpace, _ root: Root, _ keys: [Digest])
        throws -> [UInt8]
    {
        let handle = try asking { () throws(ClientError) in try client.open(space).handle }
        var writer = ReplyWriter()
        writer.command("KV.MATCH", arguments: 3)
        writer.bulk("\(handle)")
        writer.bulk(root.digest.bytes)
        writer.bulk(ChunkKeys.packed(keys))
        return writer.output.copyBytes()
    }

    private static func connect(_ socket: String, _ request: [UInt8]) throws -> RawClient {
        let deadline = Measure.now() + 5_000_000_000
        while true {
            if let client = try? RawClient(socket: socket, request: request, replyBytes: replyBytes)
            {
                return client
            }
            if Measure.now() > deadline { throw CommandFailure("the raw peer doesn't start") }
            usleep(5_000)
        }
    }
}

/// Raw code that asks the real server: what is left of the difference is the server's.
private final class RawServerClient {
    private let raw: RawClient

    init(socket: String, space: CacheSpace, request: [UInt8], replyBytes: Int) throws {
        var writer = ReplyWriter()
        writer.command("KV.OPEN", arguments: 1)
        writer.bulk(space.json)
        raw = try RawClient(
            socket: socket, request: request, replyBytes: replyBytes,
            greeting: writer.output.copyBytes())
    }

    func roundTrip() throws { try raw.roundTrip() }
}
