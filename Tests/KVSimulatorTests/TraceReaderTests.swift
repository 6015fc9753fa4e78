import KVSimulator
import Testing

@Suite("Trace readers")
struct TraceReaderTests {
    private let line = "{\"timestamp\": 5, \"input_length\": 1030, \"hash_ids\": [7, 8, 9]}"

    // MARK: Mooncake

    @Test("A Mooncake request: full chunks, a partial one, time, fields that are not needed")
    func mooncake() throws {
        let trace = try read(
            """
            {"timestamp": 0, "input_length": 1024, "output_length": 3, "hash_ids": [4, 2]}
            { "x" : {"a\\"}": [1.5e3, null, true, "\\u00e9"]}, "hash_ids" : [ 4,2 , 900000000000 ], "input_length":1500,"timestamp":12.5}\r

            """)
        #expect(trace.requests.count == 2)
        #expect(trace.chunkCount == 5)
        #expect(trace.tokenCount == 2524)
        #expect(trace.distinctCount == 3)
        #expect(trace.storableCount == 2)
        #expect(trace.requests[1].nanoseconds == 12_500_000)
        #expect(trace.requests[1].fullCount == 2)
        #expect(trace.parents == [Trace.none, 0, 1])
        #expect(Array(trace.chunks(of: trace.requests[1], storesPartial: false)) == [0, 1])
        #expect(Array(trace.chunks(of: trace.requests[1], storesPartial: true)) == [0, 1, 2])
        #expect(trace.warnings.isEmpty)
    }

    @Test("The last line needs no line feed, and seconds may be the unit")
    func units() throws {
        let trace = try read(line) {
            $0.timeUnitNanoseconds = 1e9
            $0.blockTokens = 512
        }
        #expect(trace.requests[0].nanoseconds == 5_000_000_000)
    }

    @Test(
        "What is wrong with a line is said, with its number and what to do",
        arguments: [
            (
                "{\"timestamp\": -5, \"input_length\": 1, \"hash_ids\": [1]}",
                "'timestamp' is negative"
            ),
            ("{\"timestamp\": 1, \"input_length\": -1, \"hash_ids\": [1]}", "a negative number"),
            (
                "{\"timestamp\": 1, \"input_length\": \"9\", \"hash_ids\": [1]}",
                "is a string, but must be a whole"
            ),
            ("{\"timestamp\": 1, \"input_length\": 9.5, \"hash_ids\": [1]}", "without point"),
            ("{\"timestamp\": 1, \"input_length\": 9e1, \"hash_ids\": [1]}", "without point"),
            ("{\"timestamp\": true, \"input_length\": 9, \"hash_ids\": [1]}", "true or false"),
            (
                "{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": 1}",
                "is a number, but must be an array"
            ),
            ("{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [-1]}", "a negative number"),
            ("{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [null]}", "is null"),
            ("{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [01]}", "starts with 0"),
            (
                "{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [99999999999999999999]}",
                "above 2⁶⁴"
            ),
            (
                "{\"timestamp\": 1e40, \"input_length\": 9, \"hash_ids\": [1]}",
                "too large for a time"
            ),
            ("{\"timestamp\": 1, \"input_length\": 9999999999, \"hash_ids\": [1]}", "more than"),
            ("{\"timestamp\": 1, \"hash_ids\": [1]}", "'input_length' is missing"),
            ("{\"input_length\": 1, \"hash_ids\": [1]}", "'timestamp' is missing"),
            ("{\"timestamp\": 1, \"input_length\": 9}", "'hash_ids' is missing"),
            (
                "{\"timestamp\": 1, \"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [1]}",
                "twice"
            ),
            (
                "{\"timestamp\": 1, \"input_length\": 600, \"hash_ids\": [1, ",
                "is the file complete?"
            ),
            ("{\"timestamp\": 1, \"input_length\": 600, \"hash_", "is the file complete?"),
            ("{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [1]} x", "something follows"),
            ("{\"timestamp\": 1, \"input_length\": 9, \"hash_ids\": [1],}", "a name is expected"),
            ("[1, 2]", "'{' is expected"),
            ("hello", "'{' is expected"),
            (
                "{\"timestamp\": 1, \"input_length\": 1024, \"hash_ids\": [7, 9]}",
                "in the order of time"
            ),
            (
                "{\"timestamp\": 9, \"input_length\": 1024, \"hash_ids\": [8, 7]}",
                "another block before it than in line 1"
            ),
            (
                "{\"timestamp\": 9, \"input_length\": 1024, \"hash_ids\": [7, 7]}",
                "another block before it"
            ),
        ])
    func malformed(_ text: String, _ message: String) throws {
        let said = try #require(failure(line + "\n" + text + "\n", format: .mooncake))
        #expect(said.hasPrefix("log, line 2: "), "\(said)")
        #expect(said.contains(message), "\(said)")
    }

    @Test("Every prefix of a good file is a good file or an error, and never a crash")
    func truncated() {
        let text =
            line + "\n" + "{\"timestamp\": 6, \"input_length\": 1030, \"hash_ids\": [7, 8, 9]}\n"
        var good = 0
        for length in 0...text.utf8.count where failure(String(text.utf8.prefix(length))!) == nil {
            good += 1
        }
        // At the ends of the two lines, with and without the line feed.
        #expect(good == 4)
    }

    @Test("Files that hold nothing, or something else, say so")
    func wrongFiles() throws {
        #expect(failure("") == "the trace holds no line")
        #expect(failure("\n\n \n") == "the trace holds no line")
        #expect(try #require(failure("{\"a\": 1}")).contains("--format"))
        let gzip = [UInt8]([0x1F, 0x8B, 8, 0, 0, 0])
        var reader = TraceReader(.init())
        #expect(throws: TraceError.self) {
            try gzip.withUnsafeBufferPointer { try reader.read($0, file: "log.gz") }
        }
        do {
            try gzip.withUnsafeBufferPointer { try reader.read($0, file: "log.gz") }
        } catch {
            #expect("\(error)".contains("gzip -dc FILE | kvasir simulate -"))
        }
    }

    @Test("More or fewer ids than tokens is only a warning, since some logs are like that")
    func mismatch() throws {
        let trace = try read("{\"timestamp\": 5, \"input_length\": 5000, \"hash_ids\": [7, 8, 9]}")
        #expect(trace.chunkCount == 3)
        #expect(trace.requests[0].fullCount == 3)
        #expect(trace.warnings.count == 1)
        #expect(trace.warnings[0].contains("--block-tokens"))
    }

    @Test("Larger chunks are made of blocks, and have the name of their last")
    func regrouping() throws {
        let trace = try read(
            """
            {"timestamp": 0, "input_length": 2048, "hash_ids": [1, 2, 3, 4]}
            {"timestamp": 0, "input_length": 2100, "hash_ids": [1, 2, 3, 5, 6]}
            {"timestamp": 0, "input_length": 1536, "hash_ids": [1, 2, 3]}
            """
        ) { $0.chunkTokens = 1024 }
        #expect(trace.chunkTokens == 1024)
        #expect(trace.requests.map(\.chunkCount) == [2, 3, 2])
        #expect(trace.requests.map(\.fullCount) == [2, 2, 1])
        #expect(trace.storableCount == 3)
        #expect(try #require(failure(line) { $0.chunkTokens = 700 }).contains("multiple of 512"))
    }

    @Test("Several files are one trace")
    func files() throws {
        var reader = TraceReader(.init())
        for (name, time) in [("a", 5), ("b", 6)] {
            let text =
                "{\"timestamp\": \(time), \"input_length\": 1030, \"hash_ids\": [7, 8, 9]}\n"
            try Array(text.utf8).withUnsafeBufferPointer { try reader.read($0, file: name) }
        }
        let trace = try reader.finish()
        #expect(trace.requests.count == 2)
        #expect(trace.distinctCount == 3)
    }

    // MARK: Kvasir's own

    private let header = "{\"kvasir_trace\": 1, \"chunk_tokens\": 4}\n"

    @Test("Keys may be hexadecimal or numbers; a partial chunk needs none")
    func chunkKeys() throws {
        let long = String(repeating: "ab", count: 32)
        let trace = try read(
            header + """
                {"ms": 1, "tokens": 10, "chunks": ["0A", "\(long)"], "hint": "closed"}
                {"ms": 2.5, "tokens": 8, "chunks": ["0a", "\(long)"], "output_tokens": 7}
                {"ms": 3, "tokens": 9, "chunks": [10, 11, 12], "hint": "pending", "expected_ms": 1500}
                """)
        #expect(trace.requests.map(\.chunkCount) == [3, 2, 3])
        #expect(trace.requests.map(\.fullCount) == [2, 2, 2])
        #expect(trace.requests.map(\.hint) == [.closed, .none, .pending(seconds: 1.5)])
        #expect(trace.references == [0, 1, 0, 1, 2, 3, 4])
    }

    @Test("Token ids are chained: the same tokens after others are another chunk")
    func tokenIDs() throws {
        let trace = try read(
            header + """
                {"ms": 0, "token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}
                {"ms": 0, "token_ids": [1, 2, 3, 4, 5, 6, 7, 8], "tokens": 8}
                {"ms": 0, "token_ids": [5, 6, 7, 8]}
                {"ms": 0, "token_ids": [1, 2, 3, 4], "root": "tenant b"}
                """)
        #expect(trace.requests.map(\.fullCount) == [2, 2, 1, 1])
        #expect(trace.references == [0, 1, 2, 0, 1, 3, 4])
    }

    @Test(
        "What is wrong with a request is said",
        arguments: [
            (
                "{\"ms\": 1, \"tokens\": 10, \"chunks\": [1]}",
                "10 tokens are 3 chunks of 4 (2 full ones)"
            ),
            ("{\"ms\": 1, \"chunks\": [1]}", "'tokens' is missing"),
            ("{\"tokens\": 4, \"chunks\": [1]}", "'ms' is missing"),
            ("{\"ms\": 1, \"tokens\": 4}", "either 'chunks' or 'token_ids'"),
            ("{\"ms\": 1, \"tokens\": 4, \"chunks\": [1], \"token_ids\": [1]}", "either"),
            ("{\"ms\": 1, \"tokens\": 4, \"chunks\": [\"xy\"]}", "not hexadecimal"),
            ("{\"ms\": 1, \"tokens\": 4, \"chunks\": [\"\"]}", "1 to 64"),
            ("{\"ms\": 1, \"tokens\": 5, \"token_ids\": [1]}", "'tokens' is 5"),
            (
                "{\"ms\": 1, \"tokens\": 4, \"chunks\": [1], \"hint\": \"maybe\"}",
                "none, closed or pending"
            ),
        ])
    func malformedRequest(_ text: String, _ message: String) throws {
        let said = try #require(failure(header + text))
        #expect(said.hasPrefix("log, line 2: "))
        #expect(said.contains(message), "\(said)")
    }

    @Test("A last line that is cut off, as a crash leaves it, is left out with a warning")
    func cutOff() throws {
        let first = "{\"ms\": 1, \"tokens\": 4, \"chunks\": [\"ab\"]}\n"
        let last =
            "{\"ms\": 12.5, \"tokens\": 8, \"chunks\": [\"ab\", \"cd\"], \"hint\": \"pending\", \"expected_ms\": 150}"
        for length in 1..<last.utf8.count {
            let trace = try read(header + first + String(last.utf8.prefix(length))!)
            #expect(trace.requests.count == 1)
            #expect(trace.warnings.count == 1)
            #expect(trace.warnings[0].hasPrefix("log, line 3: "))
            // The same in the middle of a file is an error.
            let said = failure(header + first + String(last.utf8.prefix(length))! + "\n")
            #expect(said?.hasPrefix("log, line 3: ") == true)
        }
        let whole = try read(header + first + last)
        #expect(whole.requests.count == 2)
        #expect(whole.warnings.isEmpty)
        // What is whole and wrong, or no JSON, is an error in the last line, too.
        #expect(failure(header + first + "{\"ms\": 2, \"chunks\": [\"ab\"]}") != nil)
        #expect(failure(header + first + "{\"ms\": 2, tok") != nil)
        #expect(failure(header + first + "hello") != nil)
        #expect(failure(String(header.dropLast(3))) != nil)
    }

    @Test("Logs of two starts are refused as one trace; parts of one are not")
    func twoLogs() throws {
        func text(_ log: String, ms: Int) -> [UInt8] {
            Array(
                ("{\"kvasir_trace\": 1, \"chunk_tokens\": 4\(log)}\n"
                    + "{\"ms\": \(ms), \"tokens\": 4, \"chunks\": [\"ab\"]}\n").utf8)
        }
        for (first, second, isGood) in [
            ("", "", true), (", \"log\": \"1f\"", ", \"log\": \"1f\"", true),
            (", \"log\": \"1f\"", ", \"log\": \"2f\"", false), (", \"log\": \"1f\"", "", false),
        ] {
            var reader = TraceReader(TraceReader.Options())
            try text(first, ms: 1).withUnsafeBufferPointer { try reader.read($0, file: "one") }
            do {
                try text(second, ms: 2).withUnsafeBufferPointer { try reader.read($0, file: "two") }
                #expect(isGood)
            } catch {
                #expect(!isGood && "\(error)".contains("one at a time"))
            }
        }
    }

    @Test("The header is asked for, and its version is checked")
    func headers() throws {
        #expect(try #require(failure("{\"ms\": 1}", format: .kvasir)).contains("first line"))
        #expect(
            try #require(failure("{\"kvasir_trace\": 2, \"chunk_tokens\": 4}")).contains(
                "version 2"))
        #expect(try #require(failure("{\"kvasir_trace\": 1}")).contains("chunk_tokens"))
        #expect(failure(header) == "the trace holds no request")
    }

    // MARK: vLLM's events

    @Test("Stored blocks are prompts: what continues soon is the same one, what branches another")
    func events() throws {
        func stored(_ time: Double, _ hashes: String, parent: String, _ more: String = "") -> String
        {
            "[\(time), [{\"type\": \"BlockStored\", \"block_hashes\": \(hashes), "
                + "\"parent_block_hash\": \(parent), \"token_ids\": [1, 2], \"block_size\": 16, "
                + "\"medium\": \"GPU\"\(more)}], 0]"
        }
        let trace = try read(
            [
                stored(100, "[11, 12]", parent: "null"),
                // The rest of a prompt that was computed in two pieces, and an answer.
                stored(100.2, "[13]", parent: "12"), stored(101, "[14]", parent: "13"),
                // The next turn, later.
                stored(200, "[15]", parent: "14"),
                // Another prompt that shares two blocks.
                "{\"ts\": 201, \"events\": [{\"type\": \"AllBlocksCleared\"}, {\"type\": \"BlockRemoved\", "
                    + "\"block_hashes\": [14], \"medium\": \"GPU\"}, {\"type\": \"BlockStored\", "
                    + "\"block_hashes\": [\"aGFzaA==\"], \"parent_block_hash\": 12, \"block_size\": 16, "
                    + "\"medium\": null}]}",
                // Not the engine's own memory; another group; a block whose parent is unknown.
                stored(202, "[14]", parent: "13").replacing("GPU", with: "CPU"),
                stored(203, "[77]", parent: "null", ", \"group_idx\": 1"),
                stored(204, "[78]", parent: "999"),
            ].joined(separator: "\n"))
        #expect(trace.chunkTokens == 16)
        #expect(trace.requests.map(\.chunkCount) == [4, 5, 3])
        #expect(trace.references == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 5])
        #expect(trace.requests[0].nanoseconds == 100_000_000_000)
        #expect(trace.warnings.count == 2)
    }

    @Test("Events that can't be understood are errors")
    func malformedEvents() throws {
        for (text, message) in [
            ("[1, [{\"type\": \"Surprise\"}]]", "'Surprise' is not known"),
            ("[1, [{\"block_size\": 16}]]", "no 'type'"),
            ("[1, [{\"type\": \"BlockStored\", \"block_hashes\": [1]}]]", "no 'block_size'"),
            ("[\"x\", []]", "must be a number"), ("{\"events\": []}", "'ts' is missing"),
            ("[1, [{\"type\": \"BlockRemoved\"}]]", "holds no BlockStored"),
        ] {
            #expect(try #require(failure(text)).contains(message), "\(failure(text) ?? "")")
        }
    }
}
