internal import FoundationEssentials

/// A model as Hugging Face stores it: a folder with `config.json`, the weights in safetensors
/// files, and `tokenizer.json`.
///
/// The weights are mapped as long as this object, or a view of one of its tensors, lives; let go of
/// it when they are read (see ``MappedFile``).
public final class ModelFolder: Sendable {
    /// The path of the folder.
    public let path: String
    /// What the model is built like.
    public let configuration: ModelConfiguration
    /// The files with the weights, sorted by their names.
    public let weightFiles: [MappedFile]
    /// The path where `tokenizer.json` belongs; it is not looked at here.
    public let tokenizerPath: String

    private let tensors: [String: TensorView]

    /// Opens a folder, reads its configuration and the headers of its weight files. No weights are
    /// read.
    ///
    /// - Parameter path: the folder, absolute or relative to the working directory.
    /// - Throws: ``ModelError``: `unreadable` if files are missing, `configuration` or `weights` if
    ///   they are damaged or contradict each other, `unsupported` if the model is of a kind that
    ///   isn't built in.
    public init(path: String) throws(ModelError) {
        try Self.checkFolder(path)
        var path = path
        while path.count > 1, path.hasSuffix("/") { path.removeLast() }
        self.path = path
        tokenizerPath = path + "/tokenizer.json"
        configuration = try Self.configuration(in: path)
        let weights = try WeightFiles(folder: path)
        weightFiles = weights.files
        tensors = weights.tensors
    }

    /// The names of all tensors, sorted.
    var tensorNames: [String] { tensors.keys.sorted() }

    /// Whether there is a tensor of a name.
    func hasTensor(_ name: String) -> Bool { tensors[name] != nil }

    /// A tensor, which is as expected and can be read.
    ///
    /// - Throws: ``ModelError``: `weights` if it is missing or of another shape, `unsupported` if
    ///   its elements are of a type that is not read.
    func tensor(_ name: String, shape: [Int]) throws(ModelError) -> TensorView {
        guard let tensor = tensors[name] else {
            throw ModelError(
                .weights,
                "the weights in \(path) have no tensor \(name.quoted), expected one of shape "
                    + "\(shape); take config.json and the weights from the same model")
        }
        guard tensor.shape == shape else {
            throw ModelError(
                .weights,
                "\(tensor.file.path): tensor \(name.quoted) has the shape \(tensor.shape), "
                    + "expected \(shape); take config.json and the weights from the same model")
        }
        guard tensor.isReadable else {
            throw ModelError(
                .unsupported,
                "\(tensor.file.path): tensor \(name.quoted) has elements of type "
                    + "\(tensor.elementType.description.quoted), expected F32, F16 or BF16; use "
                    + "the model's weights in one of these types")
        }
        return tensor
    }

    private static func checkFolder(_ path: String) throws(ModelError) {
        var isFolder = false
        guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
            throw ModelError(
                .unreadable,
                "there is no folder \(path); name the one that holds config.json and "
                    + "\(WeightFiles.singleName)")
        }
        if !isFolder {
            throw ModelError(
                .unreadable,
                "\(path) is not a folder; name the one that holds config.json and "
                    + "\(WeightFiles.singleName)")
        }
    }

    private static func configuration(in folder: String) throws(ModelError) -> ModelConfiguration {
        let file = folder + "/config.json"
        guard FileManager.default.fileExists(atPath: file) else {
            throw ModelError(
                .unreadable,
                "\(folder) has no config.json, so it is no model; name a folder with one")
        }
        let text = try configurationText(file)
        let generationFile = folder + "/generation_config.json"
        guard FileManager.default.fileExists(atPath: generationFile) else {
            return try ModelConfiguration(parsing: text, file: file)
        }
        return try ModelConfiguration(
            parsing: text, file: file,
            generation: (try configurationText(generationFile), generationFile))
    }

    private static func configurationText(_ path: String) throws(ModelError) -> [UInt8] {
        let file = try MappedFile(path: path)
        return try file.contents(.configuration, atMost: FolderLimits.configurationBytes)
    }
}

/// The weight files of a folder and the tensors in them.
private struct WeightFiles {
    static let singleName = "model.safetensors"
    static let indexName = "model.safetensors.index.json"

    let files: [MappedFile]
    let tensors: [String: TensorView]

    init(folder: String) throws(ModelError) {
        if FileManager.default.fileExists(atPath: folder + "/" + Self.singleName) {
            let (file, views) = try Self.open(folder + "/" + Self.singleName)
            files = [file]
            tensors = views
        } else if FileManager.default.fileExists(atPath: folder + "/" + Self.indexName) {
            let index = folder + "/" + Self.indexName
            (files, tensors) = try Self.shards(of: try Self.index(index), index, folder)
        } else {
            throw Self.noWeights(folder)
        }
    }

    private static func open(_ path: String) throws(ModelError)
        -> (MappedFile, [String: TensorView])
    {
        let file = try MappedFile(path: path)
        let header = try withExtendedLifetime(file) { () throws(ModelError) in
            try SafetensorsHeader(parsing: file.bytes, file: path)
        }
        var views: [String: TensorView] = [:]
        for entry in header.entries { views[entry.name] = TensorView(entry, in: file) }
        return (file, views)
    }

    /// Opens the shards that an index names, and finds each tensor where the index says it is.
    private static func shards(
        of shardOfTensor: [String: String], _ index: String, _ folder: String
    ) throws(ModelError) -> ([MappedFile], [String: TensorView]) {
        var files: [MappedFile] = []
        var found: [String: [String: TensorView]] = [:]
        for shard in Set(shardOfTensor.values).sorted() {
            guard FileManager.default.fileExists(atPath: folder + "/" + shard) else {
                throw ModelError(
                    .unreadable,
                    "\(index) names the file \(shard.quoted), which is not in the folder; copy it "
                        + "there")
            }
            let (file, views) = try open(folder + "/" + shard)
            files.append(file)
            found[shard] = views
        }
        var tensors: [String: TensorView] = [:]
        for (name, shard) in shardOfTensor {
            guard let tensor = found[shard]?[name] else {
                throw ModelError(
                    .weights,
                    "\(index) says that tensor \(name.quoted) is in \(shard.quoted), which doesn't "
                        + "have it; copy the index and all its files from the same model")
            }
            tensors[name] = tensor
        }
        return (files, tensors)
    }

    /// The file of each tensor, by an index.
    private static func index(_ path: String) throws(ModelError) -> [String: String] {
        let file = try MappedFile(path: path)
        let text = try file.contents(.weights, atMost: FolderLimits.indexBytes)
        let index = try JSONObject(parsing: text) { indexFailure(path, $0) }
        let value = index["weight_map"]
        guard let map = value?.object else {
            let found = value.map { "has \($0.shown) as" } ?? "has no"
            throw indexFailure(path, "\(found) \"weight_map\", expected an object")
        }
        if map.members.isEmpty { throw indexFailure(path, "has an empty \"weight_map\"") }
        var result: [String: String] = [:]
        for member in map.members {
            let name = member.name.text
            guard let shard = member.value.string, isPlainName(shard) else {
                throw indexFailure(
                    path,
                    "says that tensor \(name.quoted) is in \(member.value.shown), expected the "
                        + "plain name of a file in the same folder")
            }
            guard result.updateValue(shard, forKey: name) == nil else {
                throw indexFailure(path, "names the tensor \(name.quoted) twice")
            }
        }
        return result
    }

    /// Whether a name can't lead out of the folder.
    private static func isPlainName(_ name: String) -> Bool {
        !name.isEmpty && name != "." && name != ".."
            && !name.utf8.contains { $0 == UInt8(ascii: "/") || $0 < 0x20 || $0 == 0x7F }
    }

    private static func indexFailure(_ path: String, _ what: String) -> ModelError {
        ModelError(.weights, "\(path) \(what); the file is damaged, copy it again")
    }

    /// The error for a folder without weights, with what can be done about those it has.
    private static func noWeights(_ folder: String) -> ModelError {
        let start = "\(folder) has neither \(singleName) nor \(indexName)"
        let names: [String]
        do {
            names = try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
        } catch {
            return ModelError(
                .unreadable, "\(start), and can't be listed; give this user the right to read it")
        }
        if let name = names.first(where: { $0.hasSuffix(".gguf") }) {
            return ModelError(
                .unsupported,
                "\(start), but \(name.quoted); only safetensors are read: download the model's "
                    + "original weights, or convert these in Python with transformers: "
                    + "AutoModelForCausalLM.from_pretrained(folder, gguf_file=\(name.quoted))"
                    + ".save_pretrained(new_folder)")
        }
        if let name = names.first(where: { $0.hasSuffix(".bin") || $0.hasSuffix(".pth") }) {
            return ModelError(
                .unsupported,
                "\(start), but \(name.quoted); only safetensors are read: convert the weights in "
                    + "Python with transformers: AutoModelForCausalLM.from_pretrained(folder)"
                    + ".save_pretrained(new_folder)")
        }
        if let name = names.first(where: { $0.hasSuffix(".safetensors") }) {
            return ModelError(
                .unreadable,
                "\(start), but \(name.quoted); rename it to \(singleName) if it holds the whole "
                    + "model, or copy the index that belongs to it")
        }
        return ModelError(.unreadable, "\(start); copy the model's weights there")
    }
}
