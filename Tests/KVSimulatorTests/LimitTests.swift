import ArgumentParser
import Foundation
import KVPolicy
import KVSimulator
import KVStore
import Testing

@testable import kvasir

/// What is too large is a sentence that says what to do, never a trap or a wait without end.
@Suite("Limits of simulate and plan")
struct LimitTests {
    /// What `body` fails with; empty, with an issue, if it doesn't.
    private func problem(
        of what: String, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: () throws -> Void
    ) -> String {
        do {
            try body()
            Issue.record("\(what) was taken", sourceLocation: sourceLocation)
            return ""
        } catch {
            return "\(error)"
        }
    }

    // MARK: Traces

    private func stored(_ time: Int, _ hashes: [Int], parent: Int?, blockTokens: Int) -> String {
        "[\(time), [{\"type\": \"BlockStored\", \"block_hashes\": \(hashes), "
            + "\"parent_block_hash\": \(parent.map { "\($0)" } ?? "null"), "
            + "\"block_size\": \(blockTokens), \"medium\": \"GPU\"}], 0]"
    }

    @Test("A prompt of KV events has at most 2³¹ − 1 tokens")
    func longPrompt() throws {
        let size = 1 << 20
        let most = Int(Int32.max) / size
        let trace = try read(stored(1, Array(1...most), parent: nil, blockTokens: size))
        #expect(trace.tokenCount == most * size)
        for count in [most + 1, 5000] {
            let text = stored(1, Array(1...count), parent: nil, blockTokens: size)
            let said = try #require(failure(text))
            #expect(said.hasPrefix("line 1: "), "\(said)")
            #expect(said.contains("\(count * size) tokens"), "\(said)")
            #expect(said.contains("2147483647"), "\(said)")
        }
    }

    @Test("KV events that are all prompts of their own are counted, not multiplied out")
    func chainOfPrompts() throws {
        // One block every 20 s: the prompt of line n has n blocks, n² ÷ 2 up to there.
        let lines = (1...14_150).map {
            stored(20 * $0, [$0], parent: $0 == 1 ? nil : $0 - 1, blockTokens: 16)
        }
        let said = try #require(failure(lines.joined(separator: "\n")))
        #expect(said.hasPrefix("log, line 14142: "), "\(said)")
        #expect(said.contains("more than 100000000 blocks"), "\(said)")
        #expect(said.contains("cut the log"), "\(said)")
        // The same in quick succession is one prompt.
        let quick = (1...14_150).map {
            stored($0, [$0], parent: $0 == 1 ? nil : $0 - 1, blockTokens: 16)
        }
        #expect(try read(quick.joined(separator: "\n")).requests.map(\.chunkCount) == [14_150])
    }

    @Test("An expected time of 0 is a time; none is none")
    func expectedAtOnce() throws {
        let trace = try read(
            """
            {"kvasir_trace": 1, "chunk_tokens": 4}
            {"ms": 1, "tokens": 4, "chunks": [1], "hint": "pending", "expected_ms": 0}
            {"ms": 2, "tokens": 4, "chunks": [1], "hint": "pending"}
            {"ms": 3, "tokens": 4, "chunks": [1], "expected_ms": 0, "hint": "pending"}
            """)
        #expect(
            trace.requests.map(\.hint) == [
                .pending(seconds: 0), .pending(seconds: nil), .pending(seconds: 0),
            ])
        #expect(
            trace.requests.map { ReuseHint($0.hint) } == [
                ReuseHint("pending:0"), ReuseHint("pending"), ReuseHint("pending:0"),
            ])
    }

    @Test("A time that is expected is at most a year ahead, as far as hints reach")
    func expectedLate() throws {
        func log(_ ms: String) -> String {
            """
            {"kvasir_trace": 1, "chunk_tokens": 4}
            {"ms": 1, "tokens": 4, "chunks": [1], "hint": "pending", "expected_ms": \(ms)}
            """
        }
        let year = ReuseHint.mostSeconds
        let trace = try read(log("31536000000"))
        #expect(trace.requests[0].hint == .pending(seconds: year))
        #expect(ReuseHint(trace.requests[0].hint) == ReuseHint("pending:31536000"))
        #expect(ReuseHint("pending:31536000.001") == nil)
        for late in ["31536000001", "1e15", "31536000001.0"] {
            let said = try #require(failure(log(late)))
            #expect(said.hasPrefix("log, line 2: 'expected_ms' is more than a year"), "\(said)")
        }
    }

    // MARK: Made-up traffic

    @Test(
        "A profile that is too large says what to make smaller",
        arguments: [
            (
                "{\"turns\": 1, \"hours\": 1e9, \"sessions_per_hour\": 1e-3, \"first_tokens\": 10, "
                    + "\"gap_seconds\": 1}", 256, "'hours' must be from 0 to 8760"
            ),
            ("{\"gap_seconds\": 1e9, \"gap_spread\": 5}", 256, "smaller 'gap_seconds'"),
            (
                "{\"turns\": 1e9, \"turn_tokens\": 0, \"answer_tokens\": 0, \"longest_tokens\": 1000, "
                    + "\"first_tokens\": 1, \"system_tokens\": 1, \"sessions_per_hour\": 1, "
                    + "\"gap_seconds\": 1}", 256, "more than 2000000 prompts"
            ),
            (
                "{\"first_tokens\": 1e9, \"tokens_spread\": 5, \"longest_tokens\": 1e9, \"hours\": 1, "
                    + "\"sessions_per_hour\": 10}", 1, "more than 100000000 chunks"
            ),
            ("{\"sessions_per_hour\": 1e9}", 256, "more than 1000000 sessions"),
        ])
    func profiles(_ text: String, _ chunkTokens: Int, _ message: String) {
        let said = problem(of: text) {
            _ = try SessionProfile(json: Data(text.utf8)).trace(chunkTokens: chunkTokens)
        }
        #expect(said.contains(message), "\(said)")
    }

    // MARK: Models

    private func config(_ more: String, hidden: Int = 64, heads: Int = 4) -> String {
        "{\"num_hidden_layers\": 4, \"hidden_size\": \(hidden), \"num_attention_heads\": \(heads), "
            + "\"vocab_size\": 1000\(more.isEmpty ? "" : ", " + more)}"
    }

    @Test("Heads and ranks have 1 to 65,536 numbers")
    func headSizes() throws {
        func shape(_ text: String) throws -> ModelShape { try ModelShape(config: Data(text.utf8)) }
        let names = ["qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"]
        for size in [0, 65_537, 1 << 40] {
            var cases = [("head_dim", config("\"head_dim\": \(size)"))]
            cases += names.map { ($0, config("\"kv_lora_rank\": 8, \"\($0)\": \(size)")) }
            if size > 0 {
                cases.append(("kv_lora_rank", config("\"kv_lora_rank\": \(size)")))
                cases.append(
                    ("q_lora_rank", config("\"kv_lora_rank\": 8, \"q_lora_rank\": \(size)")))
            }
            for (name, text) in cases {
                let said = problem(of: text) { _ = try shape(text) }
                #expect(said.contains("'\(name)' is \(size)"), "\(said)")
                #expect(said.contains("from 1 to 65536"), "\(said)")
            }
        }
        let narrow = problem(of: "a narrow model") {
            _ = try shape(config("", hidden: 16, heads: 32))
        }
        #expect(narrow.contains("give 'head_dim'"), "\(narrow)")
        // No rank is no projection.
        #expect(try shape(config("\"kv_lora_rank\": 0")).attention == .multiHead)
        #expect(
            try shape(config("\"kv_lora_rank\": 8, \"q_lora_rank\": null")).attention == .latent)
        let largest = try shape(
            "{\"num_hidden_layers\": 10000, \"hidden_size\": 64, \"num_attention_heads\": 65536, "
                + "\"head_dim\": 65536, \"vocab_size\": 9}")
        #expect(largest.bytesPerToken() == 10_000 * 2 * 0x1p32 * 2)
    }

    @Test("A pattern of layers has one letter for each")
    func pattern() throws {
        for pattern in ["*M*", "*M*M*", ""] {
            let said = problem(of: pattern) {
                _ = try ModelShape(
                    config: Data(config("\"hybrid_override_pattern\": \"\(pattern)\"").utf8))
            }
            #expect(
                said.contains("'hybrid_override_pattern' names \(pattern.count) layers of 4"),
                "\(said)")
        }
        let good = try ModelShape(
            config: Data(config("\"hybrid_override_pattern\": \"*M-*\"").utf8))
        #expect(good.cachedLayerCount == 2)
    }

    // MARK: Reports

    @Test("What is beyond the integers is the nearest one")
    func clamping() {
        let values = [0, 2.9, -2.9, 0x1p62, 0x1p63, -0x1p63, 1e300, -.infinity, .infinity, .nan]
        #expect(
            values.map { Int(clamping: $0) } == [
                0, 2, -2, 1 << 62, .max, .min, .max, .min, .max, 0,
            ])
        #expect(Format.whole(1e30) == "9,223,372,036,854,775,807")
        #expect(Format.whole(-1e30) == "-9,223,372,036,854,775,808")
        #expect(Format.whole(1234.9) == "1,234")
        #expect(Format.milliseconds(1e300).hasSuffix(" ms"))
    }

    @Test("A plan for the largest model at the slowest rate can be told")
    func largestPlan() throws {
        let model = try ModelShape(
            config: Data(
                """
                {"num_hidden_layers": 10000, "hidden_size": 1048576, "num_attention_heads": 65536,
                 "head_dim": 65536, "vocab_size": 1099511627776, "intermediate_size": 1099511627776}
                """.utf8))
        let rate = ComputeRate(
            flops: ComputeRate.flopsMinimum, gpuCount: 1,
            utilization: ComputeRate.utilizationMinimum)
        try rate.check()
        let trace = try SessionProfile().trace(chunkTokens: 256)
        var prices = CapacityPlan.Prices()
        prices.gpuHour = 1e6
        var bandwidths = CapacityPlan.Bandwidths()
        bandwidths.memory = 1
        let plan = CapacityPlan(
            trace, model: model, rate: rate, bandwidths: bandwidths, prices: prices)
        var report = PlanReport(model: model, gpu: nil, rate: rate, elementBytes: nil)
        report.add(
            plan, trace: trace, name: "chat", memories: [1, 0x1p62], disks: [0, 0x1p62],
            assumesNoLoadTime: false)
        // Seconds of prefill of a chat: some 10²⁶.
        #expect(report.text.contains("9,223,372,036,854,775,807"), "\(report.text)")
        #expect(try JSONOutput.snakeCase(report.object).contains("\"prefill_seconds_without\""))
    }

    @Test("Sizes and times beyond the integers are told by simulate, too")
    func largestSimulation() throws {
        let trace = try read("{\"timestamp\": 5, \"input_length\": 1030, \"hash_ids\": [7, 8, 9]}")
        var simulation = Simulation(trace)
        simulation.timing = Timing(ServiceModel(secondsPerToken: 1e30))
        let contender = try #require(Simulation.Contender(named: "lru"))
        let points = try simulation.run(contender, capacities: [Int(Int32.max)])
        let report = SimulationReport(
            simulation: simulation, files: ["log"], points: points, tokenBytes: 1e12)
        #expect(try report.json().contains("\"capacity_bytes\" : \(Int.max)"))
        #expect(report.text.contains("9,223,372,036,854,775,807"))
        #expect(report.csv.contains("\(Int.max)"))
    }

    @Test("Rates have a least value")
    func rates() throws {
        for (flops, utilization, word) in [
            (1.0, 0.5, "--flops"), (0.9e9, 0.5, "--flops"), (.infinity, 0.5, "--flops"),
            (.nan, 0.5, "--flops"), (1e12, 1e-300, "--mfu"), (1e12, 0, "--mfu"),
            (1e12, .nan, "--mfu"), (1e12, 1.1, "--mfu"),
        ] {
            let said = problem(of: "\(flops) \(utilization)") {
                try ComputeRate(flops: flops, gpuCount: 1, utilization: utilization).check()
            }
            #expect(said.contains(word), "\(said)")
        }
        let model = ["--model", "config.json"]
        for (arguments, word) in [
            (["--flops", "1"], "--flops must be at least 1G"),
            (["--flops", "1T", "--mfu", "1e-300"], "--mfu must be from 0.001"),
        ] {
            do {
                _ = try Plan.parse(model + arguments)
                Issue.record("\(arguments) were taken")
            } catch {
                #expect(Plan.message(for: error).contains(word))
            }
            #expect(throws: (any Error).self) { try Simulate.parse(["log"] + model + arguments) }
        }
        _ = try Plan.parse(model + ["--flops", "1G", "--mfu", "0.001"])
        _ = try Plan.parse(model + ["--gpu", "H100", "--mfu", "40%"])
    }

    // MARK: Sizes and outputs

    @Test("Sizes with a disk have a limit, up to which they work")
    func diskSizes() throws {
        let trace = try read("{\"timestamp\": 5, \"input_length\": 1030, \"hash_ids\": [7, 8, 9]}")
        let most = CoreReplay.chunksMaximum
        let core = CoreReplay(trace, memoryChunks: most, diskChunks: most)
        #expect(
            try core.run(policy: PolicyName.lru.make(), admission: .all).found.hitChunks == 0)
        var simulation = Simulation(trace)
        let lru = try #require(Simulation.Contender(named: "lru"))
        for (capacity, disk, word) in [
            (16, most + 1, "disk of"), (most + 1, 256, "memory of"), (16, 100_000_000, "disk of"),
        ] {
            let said = problem(of: "\(capacity), \(disk)") {
                _ = try simulation.run(lru, capacities: [16, capacity], disks: [256, disk])
            }
            #expect(said.contains(word) && said.contains("smaller size"), "\(said)")
        }
        simulation.cluster.servers = 1000
        simulation.cluster.sharing = .all
        for (capacity, disk) in [(Int(Int32.max), Int(Int32.max)), (most / 999, 256)] {
            let said = problem(of: "shared \(capacity), \(disk)") {
                _ = try simulation.run(lru, capacities: [capacity], disks: [disk])
            }
            #expect(said.contains("memory of \(capacity * 1000) chunks"), "\(said)")
        }
        // The optimum needs no core, and so has no such limit.
        let optimum = try #require(Simulation.Contender(named: "optimum"))
        _ = try simulation.run(optimum, capacities: [most], disks: [most])
    }

    @Test("Standard output is for one of JSON, CSV and SVG, and then for nothing else")
    func standardOutput() throws {
        let options = ["--json", "--csv", "--svg"]
        for option in options {
            #expect(try Simulate.parse(["log", option, "-"]).printsText == false)
            #expect(try Simulate.parse(["log", option, "file"]).printsText)
            for other in options where other != option {
                #expect(throws: (any Error).self) {
                    try Simulate.parse(["log", option, "-", other, "-"])
                }
                #expect(try !Simulate.parse(["log", option, "-", other, "file"]).printsText)
            }
        }
        #expect(try Simulate.parse(["log"]).printsText)
    }
}
