import ArgumentParser
import KVClient
import KVIdentity

struct ChunksVerify: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Have the server compare chunks with the checksums made when they were stored.",
        discussion: """
            A chunk that is bad is given up by the server, with all that follow it; engines compute it again. The exit \
            status is 1 if one is bad.

            What is on disk only is read into memory for this, where other chunks may have to make room for it, and every \
            chunk that is looked at counts as used. 'kvasir disk verify DIRECTORY' checks a disk without that.
            """)

    @OptionGroup var options: ClientOptions
    @OptionGroup(title: "Which chunks (default: all)") var filter: ChunkFilterOptions

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        if filter.tier == .writing {
            throw ValidationError("what is being written can't be verified yet")
        }
    }

    func run() throws {
        let client = try options.connect()
        defer { client.close() }
        let catalogue = try ChunkCatalogue(client, filter)
        let chunks = try catalogue.chunks()
        let onDisk = chunks.count { !$0.isInMemory }
        if onDisk > 0, !json {
            Output.tell(
                "\(Format.count(onDisk, "chunk")) on disk only: read into memory for this; "
                    + "'kvasir disk verify' checks a disk without that\n")
        }
        var report = VerifyReport()
        try verify(chunks, catalogue, &report)
        if json { try JSONOutput.print(report) } else { print(report.text) }
        if report.bad > 0 { throw ExitCode(1) }
    }

    private func verify(
        _ chunks: [ListedChunk], _ catalogue: ChunkCatalogue, _ report: inout VerifyReport
    ) throws {
        var spaces: [Int: CacheSpace] = [:]
        let bar = ProgressBar("verifying")
        defer { bar.done() }
        let total = ChunkTotal(chunks).byteCount
        var done = 0
        for chunk in chunks {
            done += chunk.byteCount
            if spaces[chunk.space] == nil {
                spaces[chunk.space] = try catalogue.space(of: chunk)?.space()
            }
            // Its space came after the list of spaces was asked for.
            guard let space = spaces[chunk.space] else { continue }
            let result = try asking { () throws(ClientError) in
                try catalogue.client.verify(space, root: chunk.root, key: chunk.key)
            }
            report.add(chunk, result)
            if case .bad(let why) = result, !json {
                bar.done()
                print("bad: \(chunk.key.hex), chunk \(chunk.number): \(why)")
            }
            bar.tell(done, of: total)
        }
    }
}

/// What verifying found.
private struct VerifyReport: Encodable {
    private(set) var verified = 0
    private(set) var bytes = 0
    private(set) var good = 0
    private(set) var bad = 0
    private(set) var gone = 0
    private(set) var unchecked = 0
    private(set) var badKeys: [String] = []

    enum CodingKeys: String, CodingKey {
        case verified, bytes, good, bad, gone, unchecked
        case badKeys = "bad_keys"
    }

    mutating func add(_ chunk: ListedChunk, _ result: Verification) {
        switch result {
        case .good: good += 1
        case .bad:
            bad += 1
            badKeys.append(chunk.key.hex)
        case .absent:
            gone += 1
            return
        case .unchecked:
            unchecked += 1
            return
        }
        verified += 1
        bytes += chunk.byteCount
    }

    var text: String {
        var text = "\(Format.count(verified, "chunk")) verified, \(ByteCount(bytes)): "
        text += bad == 0 ? "all good" : "\(Format.number(good)) good, \(Format.number(bad)) bad"
        if gone > 0 { text += "; \(Format.number(gone)) went meanwhile" }
        if unchecked > 0 {
            text +=
                "; \(Format.number(unchecked)) could not be read into memory, which is all in use"
        }
        return text
    }
}
