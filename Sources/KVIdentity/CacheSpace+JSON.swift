extension CacheSpace {
    /// Reads what a client sends to `KV.OPEN`: a JSON object with the fields of `docs/formats.md`.
    ///
    /// Fields that are unknown, missing or there twice, numbers with a fraction or an exponent, and
    /// values out of range are refused. O(length).
    ///
    /// - Throws: what is wrong and how to mend it.
    public init(json: [UInt8]) throws(IdentityError) {
        guard json.count <= Limits.jsonBytes else {
            throw IdentityError(
                code: .limitExceeded,
                message:
                    "the space has \(json.count) bytes of JSON: at most \(Limits.jsonBytes) are "
                    + "allowed")
        }
        var fields = Fields(
            values: try FlatJSON.fields(of: json, maximumElements: Limits.shards))
        let version = try fields.integer("version")
        guard version == Self.version else {
            throw IdentityError(
                code: .unsupportedVersion,
                message:
                    "the space has version \(version), this server knows \(Self.version): use a "
                    + "client and a server of the same release",
                field: "version")
        }
        let model = try fields.string("model")
        guard let model = Digest(hex: model) else {
            throw Check.invalid("model", "must be 64 hexadecimal digits")
        }
        let modelName = try fields.optionalString("model_name")
        let dtype = try fields.string("dtype")
        let kind = try fields.choice("kind", Kind.self)
        let layers = try fields.integer("layers")
        let heads = try fields.integer("heads")
        let headSize = try fields.integer("head_size")
        let order = try fields.string("order")
        let byteOrder = try fields.choice("byte_order", ByteOrder.self)
        let blockTokens = try fields.integer("block_tokens")
        let chunkTokens = try fields.integer("chunk_tokens")
        let stages = try fields.integer("stages")
        let ranks = try fields.integer("ranks")
        let shardBytes = try fields.integers("shard_bytes")
        let generation = try fields.string("generation")
        try fields.refuseTheRest()
        try self.init(
            model: model, modelName: modelName, dtype: dtype, kind: kind, layers: layers,
            heads: heads, headSize: headSize, order: order, byteOrder: byteOrder,
            blockTokens: blockTokens, chunkTokens: chunkTokens, stages: stages, ranks: ranks,
            shardBytes: shardBytes, generation: generation)
    }

    /// Reads what a client sends to `KV.OPEN`, from text. See ``init(json:)-([UInt8])``.
    public init(json: String) throws(IdentityError) {
        try self.init(json: [UInt8](json.utf8))
    }

    /// The space as JSON in one line, as `KV.OPEN` takes it.
    public var json: String {
        var fields = [
            "\"version\":\(Self.version)",
            "\"model\":\"\(model.hex)\"",
        ]
        if let modelName { fields.append("\"model_name\":\(jsonString(modelName))") }
        fields += [
            "\"dtype\":\(jsonString(dtype))",
            "\"kind\":\"\(kind.rawValue)\"",
            "\"layers\":\(layers)",
            "\"heads\":\(heads)",
            "\"head_size\":\(headSize)",
            "\"order\":\(jsonString(order))",
            "\"byte_order\":\"\(byteOrder.rawValue)\"",
            "\"block_tokens\":\(blockTokens)",
            "\"chunk_tokens\":\(chunkTokens)",
            "\"stages\":\(stages)",
            "\"ranks\":\(ranks)",
            "\"shard_bytes\":[\(shardBytes.map(String.init).joined(separator: ","))]",
            "\"generation\":\(jsonString(generation))",
        ]
        return "{\(fields.joined(separator: ","))}"
    }

    /// Fields of an object that are taken out one by one, so that what is left is unknown.
    private struct Fields {
        var values: [String: FlatValue]

        mutating func integer(_ name: String) throws(IdentityError) -> Int {
            guard case .integer(let value) = try take(name) else {
                throw wrongType(name, "an integer")
            }
            return value
        }

        mutating func integers(_ name: String) throws(IdentityError) -> [Int] {
            guard case .integers(let value) = try take(name) else {
                throw wrongType(name, "an array of integers")
            }
            return value
        }

        mutating func string(_ name: String) throws(IdentityError) -> String {
            guard case .string(let value) = try take(name) else {
                throw wrongType(name, "a string")
            }
            return value
        }

        mutating func optionalString(_ name: String) throws(IdentityError) -> String? {
            values[name] == nil ? nil : try string(name)
        }

        mutating func choice<Choice: RawRepresentable & CaseIterable>(
            _ name: String, _ type: Choice.Type
        ) throws(IdentityError) -> Choice where Choice.RawValue == String {
            let text = try string(name)
            guard let choice = Choice(rawValue: text) else {
                let known = Choice.allCases.map(\.rawValue).joined(separator: ", ")
                throw Check.invalid(name, "is \(quoted(text)): it must be one of \(known)")
            }
            return choice
        }

        func refuseTheRest() throws(IdentityError) {
            guard let name = values.keys.min() else { return }
            throw IdentityError(
                code: .unknownField,
                message: "the field \(quoted(name)) is unknown: correct its name, or use a client "
                    + "and a server of the same release",
                field: name)
        }

        private mutating func take(_ name: String) throws(IdentityError) -> FlatValue {
            guard let value = values.removeValue(forKey: name) else {
                throw IdentityError(
                    code: .missingField, message: "the field \"\(name)\" is missing: add it",
                    field: name)
            }
            return value
        }

        private func wrongType(_ name: String, _ type: String) -> IdentityError {
            IdentityError(
                code: .wrongType, message: "the field \"\(name)\" must be \(type)", field: name)
        }
    }
}
