import Foundation

/// A value of a model's `config.json`.
enum ConfigValue: Decodable, Sendable {
    case null
    case boolean(Bool)
    case integer(Int)
    case number(Double)
    case string(String)
    case array([ConfigValue])
    case object([String: ConfigValue])

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .boolean(value)
        } else if let value = try? container.decode(Int.self) {
            self = .integer(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([ConfigValue].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: ConfigValue].self))
        }
    }
}

/// The members of a `config.json` that count here, checked as they are asked for.
struct Config {
    let members: [String: ConfigValue]

    /// A positive whole number; nil where it isn't there, or null.
    func count(_ names: String...) throws(PlanError) -> Int? {
        for name in names {
            switch members[name] {
            case nil, .null: continue
            case .integer(let value) where value >= 0 && value <= 1 << 40: return value
            default:
                throw PlanError("config.json: '\(name)' must be a whole number of 0 or more")
            }
        }
        return nil
    }

    /// What a size of a head or a rank may be.
    static let sizes = 1...1 << 16

    /// A size of a head or a rank; nil where it isn't there, or null.
    func size(_ name: String) throws(PlanError) -> Int? {
        guard let value = try count(name) else { return nil }
        if !Self.sizes.contains(value) {
            throw PlanError(
                "config.json: '\(name)' is \(value), but must be from \(Self.sizes.lowerBound) to "
                    + "\(Self.sizes.upperBound)")
        }
        return value
    }

    /// The rank of a projection; nil where there is none, which 0 says, too.
    func rank(_ name: String) throws(PlanError) -> Int? {
        try count(name) == 0 ? nil : size(name)
    }

    /// A whole number that must be there.
    func required(_ names: String..., of what: String) throws(PlanError) -> Int {
        for name in names {
            if let value = try count(name), value > 0 { return value }
        }
        throw PlanError(
            "config.json has no '\(names.joined(separator: "' or '"))', \(what); is it the config.json "
                + "of a Hugging Face model?")
    }

    func string(_ name: String) -> String? {
        if case .string(let value) = members[name] { value } else { nil }
    }

    func flag(_ name: String) -> Bool? {
        if case .boolean(let value) = members[name] { value } else { nil }
    }

    func strings(_ name: String) -> [String]? {
        guard case .array(let values) = members[name] else { return nil }
        let strings = values.compactMap { if case .string(let value) = $0 { value } else { nil } }
        return strings.count == values.count ? strings : nil
    }

    func counts(_ name: String) -> [Int]? {
        guard case .array(let values) = members[name] else { return nil }
        let counts = values.compactMap { if case .integer(let value) = $0 { value } else { nil } }
        return counts.count == values.count ? counts : nil
    }

    func object(_ name: String) -> Config? {
        if case .object(let members) = members[name] { Config(members: members) } else { nil }
    }
}

/// Why a plan can't be made: what is wrong, and what to do.
package struct PlanError: Error, CustomStringConvertible, Sendable, Equatable {
    package let description: String

    package init(_ description: String) {
        self.description = description
    }
}
