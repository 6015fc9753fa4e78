import Foundation
import KVIdentity
import KvasirEngine
import ReferenceLM
import Testing

@Suite("The space of a model's chunks")
struct IdentityTests {
    @Test("Weights, configuration, chunk size and rounding each make another space")
    func differs() throws {
        let model = try Small.model()
        let base = try Small.space(of: model)
        #expect(try Small.space(of: try Small.model()) == base)
        #expect(try Small.space(of: model, weights: 2) != base)
        #expect(try Small.space(of: model, chunkTokens: 128) != base)
        #expect(try Small.space(of: try Small.model(context: 4_096)) != base)
        #expect(try Small.space(of: try Small.model(layers: 3)) != base)
        for kernels in Kernels.available {
            let other = try Model(
                Small.configuration(), weights: RandomWeights(seed: 1), threads: 1,
                kernels: kernels)
            #expect((try Small.space(of: other) == base) == (other.numerics == model.numerics))
        }
    }

    @Test("A chunk is whole pages")
    func chunkTokens() throws {
        let model = try Small.model()
        #expect(throws: IdentityError.self) { try Small.space(of: model, chunkTokens: 100) }
        #expect(throws: IdentityError.self) { try Small.space(of: model, chunkTokens: 0) }
        let space = try Small.space(of: model, chunkTokens: 192)
        #expect(space.chunkBytes == 3 * model.layout.pageBytes)
    }

    @Test("One changed byte in a weight file is another identity")
    func weights() throws {
        let models = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent()
            .appendingPathComponent("ReferenceLMTests/Resources/models")
        let source = models.appendingPathComponent("grouped")
        let copy = FileManager.default.temporaryDirectory
            .appendingPathComponent("kvasir-test-\(UUID().uuidString)")
        try FileManager.default.copyItem(at: source, to: copy)
        defer { try? FileManager.default.removeItem(at: copy) }
        let wanted = try ModelIdentity.weights(of: try ModelFolder(path: source.path))
        #expect(try ModelIdentity.weights(of: try ModelFolder(path: copy.path)) == wanted)
        let files = try FileManager.default.contentsOfDirectory(atPath: copy.path)
            .filter { $0.hasSuffix(".safetensors") }
        #expect(files.count == 2)
        for file in files {
            let place = copy.appendingPathComponent(file)
            let bytes = try Data(contentsOf: place)
            var changed = bytes
            changed[changed.count - 1] ^= 1
            try changed.write(to: place)
            #expect(try ModelIdentity.weights(of: try ModelFolder(path: copy.path)) != wanted)
            try bytes.write(to: place)
        }
        #expect(try ModelIdentity.weights(of: try ModelFolder(path: copy.path)) == wanted)

        // Written in place after the folder was opened: what was read of it may be of either version.
        let folder = try ModelFolder(path: copy.path)
        _ = try Model(folder, threads: 1)
        let handle = try FileHandle(forWritingTo: copy.appendingPathComponent(files[0]))
        try handle.write(contentsOf: Data([0]))
        try handle.close()
        let late = #expect(throws: ModelError.self) { try ModelIdentity.weights(of: folder) }
        #expect(late?.message.contains("was changed while it was read") ?? false)
    }
}
