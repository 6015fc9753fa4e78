import FoundationEssentials
import Glibc
import Testing

@testable import ReferenceLM

@Suite("Model folders")
struct ModelFolderTests {
    @Test("with one weight file give its tensors")
    func single() throws {
        let folder = try made()
        try folder.write("generation_config.json", #"{"eos_token_id": [3]}"#)
        for path in [folder.path, folder.path + "//"] {
            let model = try ModelFolder(path: path)
            #expect(model.path == folder.path)
            #expect(model.configuration.layerCount == 2)
            #expect(model.configuration.endTokenIDs == [3])
            #expect(model.tokenizerPath == folder.file("tokenizer.json"))
            #expect(model.weightFiles.map(\.path) == [folder.file("model.safetensors")])
            #expect(model.tensorNames == ["a", "b"])
            #expect(model.hasTensor("a") && !model.hasTensor("c"))
            #expect(elements(try model.tensor("b", shape: [3])) == [4, 5, 6])
        }
    }

    @Test("with several weight files give the tensors of all, in one order")
    func sharded() throws {
        let folder = try made(weights: false)
        try folder.write("z.safetensors", TensorFile.counting([("a", [2])]))
        try folder.write("y.safetensors", TensorFile.counting([("x", [1]), ("b", [3])]))
        try folder.write("unused.safetensors", "not read")
        try folder.write(
            Self.index,
            #"{"metadata": {}, "weight_map": {"a": "z.safetensors", "b": "y.safetensors"}}"#)
        let model = try ModelFolder(path: folder.path)
        #expect(
            model.weightFiles.map(\.path)
                == [folder.file("y.safetensors"), folder.file("z.safetensors")])
        #expect(model.tensorNames == ["a", "b"])
        #expect(elements(try model.tensor("a", shape: [2])) == [0, 1])
        #expect(elements(try model.tensor("b", shape: [3])) == [1, 2, 3])
    }

    @Test("may hold links, as the cache of Hugging Face does")
    func links() throws {
        let folder = try made(weights: false)
        let elsewhere = try TemporaryFolder()
        try elsewhere.write("blob", TensorFile.counting([("a", [2])]))
        try #require(symlink(elsewhere.file("blob"), folder.file("model.safetensors")) == 0)
        #expect(try ModelFolder(path: folder.path).tensorNames == ["a"])
    }

    @Test("keep a tensor readable after they are gone")
    func ownership() throws {
        let folder = try made()
        let view = try ModelFolder(path: folder.path).tensor("a", shape: [2, 2])
        #expect(elements(view) == [0, 1, 2, 3])
    }

    @Test("that are missing, or no folders, are refused")
    func noFolder() throws {
        let folder = try made()
        refuse(.unreadable, folder.file("no"), "there is no folder \(folder.file("no")); name the")
        refuse(.unreadable, "", "there is no folder")
        let file = folder.file("model.safetensors")
        refuse(.unreadable, file, "\(file) is not a folder; name the one that holds config.json")
    }

    @Test("without a configuration, or with a bad one, are refused")
    func configuration() throws {
        let empty = try TemporaryFolder()
        refuse(.unreadable, empty.path, "\(empty.path) has no config.json")
        let folder = try made()
        try folder.write("config.json", "")
        refuse(.configuration, folder.path, "\(folder.file("config.json")) is not valid JSON")
        try folder.write("config.json", String(repeating: " ", count: 4 << 20 + 1))
        refuse(.configuration, folder.path, "config.json has 4194305 bytes, allowed are 4194304")
        try folder.write("config.json", configurationText())
        try folder.write("generation_config.json", "[]")
        refuse(.configuration, folder.path, "generation_config.json holds an array of 0")
        try FileManager.default.removeItem(atPath: folder.file("config.json"))
        try FileManager.default.createDirectory(
            atPath: folder.file("config.json"), withIntermediateDirectories: false)
        refuse(.unreadable, folder.path, "config.json is not a regular file")
    }

    @Test("without weights are refused, and what other weights can be made into is said")
    func noWeights() throws {
        let folder = try made(weights: false)
        let neither = "has neither model.safetensors nor model.safetensors.index.json"
        refuse(.unreadable, folder.path, neither, "copy the model's weights there")
        try folder.write("consolidated.safetensors", "")
        refuse(.unreadable, folder.path, neither, "\"consolidated.safetensors\"; rename it")
        try folder.write("pytorch_model.bin", "")
        refuse(
            .unsupported, folder.path, neither, "\"pytorch_model.bin\"",
            "only safetensors are read",
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)")
        try folder.write("q4.gguf", "")
        refuse(
            .unsupported, folder.path, neither, "\"q4.gguf\"", "only safetensors are read",
            "gguf_file=\"q4.gguf\"")
    }

    @Test("with damaged weights are refused")
    func damaged() throws {
        let folder = try made()
        let file = folder.file("model.safetensors")
        let whole = TensorFile.counting([("a", [2, 2])])
        try folder.write("model.safetensors", Array(whole.dropLast()))
        refuse(.weights, folder.path, "\(file): the file has", "truncated, copy it again")
        try folder.write("model.safetensors", "")
        refuse(.weights, folder.path, "\(file) has 0 bytes")
        try FileManager.default.removeItem(atPath: file)
        try #require(mkfifo(file, 0o600) == 0)
        refuse(.unreadable, folder.path, "\(file) is not a regular file")
    }

    @Test("whose index is damaged are refused")
    func index() throws {
        for (text, part) in [
            ("{", "is not valid JSON"), ("[]", "holds an array of 0, expected an object"),
            ("{}", "has no \"weight_map\", expected an object"),
            (#"{"weight_map": []}"#, "has an array of 0 as \"weight_map\""),
            (#"{"weight_map": {}}"#, "has an empty \"weight_map\""),
            (#"{"weight_map": {"a": 1}}"#, "tensor \"a\" is in the number 1, expected the plain"),
            (#"{"weight_map": {"a": "x", "a": "y"}}"#, "the name \"a\" appears twice"),
            (#"{"weight_map": {"\u212a": "x", "K": "y"}}"#, "names the tensor \"K\" twice"),
        ] {
            let folder = try made(weights: false)
            try folder.write(Self.index, text)
            refuse(.weights, folder.path, folder.file(Self.index), part)
        }
    }

    @Test("never read weights from outside")
    func outside() throws {
        for name in [
            "/etc/passwd", "../x", "a/b", "a/../b", "..", ".", "", "./x", "x/", "x\\u0000y", "x\\n",
        ] {
            let folder = try made(weights: false)
            try folder.write(Self.index, #"{"weight_map": {"a": "\#(name)"}}"#)
            refuse(
                .weights, folder.path, "tensor \"a\" is in", "expected the plain name of a file")
        }
    }

    @Test("whose index names files or tensors that are not there are refused")
    func missingShards() throws {
        let folder = try made(weights: false)
        try folder.write("y.safetensors", TensorFile.counting([("b", [3])]))
        try folder.write(
            Self.index, #"{"weight_map": {"a": "z.safetensors", "b": "y.safetensors"}}"#)
        refuse(
            .unreadable, folder.path, "names the file \"z.safetensors\", which is not in the folder"
        )
        try folder.write("z.safetensors", TensorFile.counting([("b", [3])]))
        refuse(
            .weights, folder.path, "tensor \"a\" is in \"z.safetensors\", which doesn't have it")
        try folder.write("z.safetensors", "damaged and long enough")
        refuse(.weights, folder.path, folder.file("z.safetensors"))
    }

    @Test("refuse tensors that are missing, of another shape, or of a type that isn't read")
    func tensors() throws {
        let folder = try made(weights: false)
        let entries = [
            TensorFile.entry("a", "F32", "[1,2]", 0, 8), TensorFile.entry("q", "I8", "[4]", 8, 12),
        ]
        try folder.write(
            "model.safetensors",
            TensorFile.bytes(
                header: "{" + entries.joined(separator: ",") + "}",
                data: [UInt8](repeating: 0, count: 12)))
        let model = try ModelFolder(path: folder.path)
        func refuse(_ code: ModelError.Code, _ name: String, _ shape: [Int], _ parts: String...) {
            expectError(code, parts + [folder.path]) { () throws(ModelError) in
                _ = try model.tensor(name, shape: shape)
            }
        }
        refuse(.weights, "c", [3, 4], "have no tensor \"c\", expected one of shape [3, 4]")
        refuse(.weights, "a", [2, 1], "tensor \"a\" has the shape [1, 2], expected [2, 1]")
        refuse(.weights, "a", [2], "has the shape [1, 2], expected [2]")
        refuse(.weights, "a", [], "has the shape [1, 2], expected []")
        refuse(
            .unsupported, "q", [4], "tensor \"q\" has elements of type \"I8\", expected F32, F16 or"
        )
    }

    // MARK: - Mapped files

    @Test("map their files, empty ones too")
    func mapping() throws {
        let folder = try TemporaryFolder()
        let content = (0..<10_000).map { UInt8(truncatingIfNeeded: $0 * 7) }
        try folder.write("x", content)
        try folder.write("empty", "")
        let file = try MappedFile(path: folder.file("x"))
        #expect(file.path == folder.file("x"))
        #expect(Array(file.bytes) == content)
        let empty = try MappedFile(path: folder.file("empty"))
        #expect(empty.bytes.isEmpty)
        // The bytes outlive the name.
        try FileManager.default.removeItem(atPath: folder.file("x"))
        #expect(withExtendedLifetime(file) { Array(file.bytes) } == content)
    }

    @Test("say why a file can't be mapped")
    func unmappable() throws {
        let folder = try TemporaryFolder()
        expectError(.unreadable, [folder.file("no"), "No such file", "check the path"]) {
            () throws(ModelError) in
            _ = try MappedFile(path: folder.file("no"))
        }
        expectError(.unreadable, ["\(folder.path) is not a regular file"]) {
            () throws(ModelError) in
            _ = try MappedFile(path: folder.path)
        }
    }

    // MARK: - Helpers

    private static let index = "model.safetensors.index.json"

    /// A folder with a configuration and perhaps one weight file.
    private func made(weights: Bool = true) throws -> TemporaryFolder {
        let folder = try TemporaryFolder()
        try folder.write("config.json", configurationText())
        if weights {
            try folder.write(
                "model.safetensors", TensorFile.counting([("a", [2, 2]), ("b", [3])]))
        }
        return folder
    }

    private func elements(_ view: TensorView) -> [Float] {
        [Float](unsafeUninitializedCapacity: view.count) { buffer, count in
            view.read(into: UnsafeMutableBufferPointer(rebasing: buffer[..<view.count]))
            count = view.count
        }
    }

    private func refuse(
        _ code: ModelError.Code, _ path: String, _ parts: String...,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectError(code, parts, sourceLocation: sourceLocation) { () throws(ModelError) in
            _ = try ModelFolder(path: path)
        }
    }
}
