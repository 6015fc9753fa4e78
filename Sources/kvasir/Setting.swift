import ArgumentParser
import Foundation

/// Where a setting comes from: the command line, else its environment variable, else the default.
enum Setting {
    static func value<Value>(
        _ option: Value?, _ variable: String, default standard: Value,
        _ parse: (String) throws -> Value
    ) throws -> Value {
        if let option { return option }
        guard let text = ProcessInfo.processInfo.environment[variable], !text.isEmpty else {
            return standard
        }
        do {
            return try parse(text)
        } catch {
            throw ValidationError("\(variable): \(error)")
        }
    }

    static func value<Value: ExpressibleByArgument>(
        _ option: Value?, _ variable: String, default standard: Value
    ) throws -> Value {
        try value(option, variable, default: standard) { text in
            guard let value = Value(argument: text) else {
                throw ValidationError("'\(text)' is not a value that it can take")
            }
            return value
        }
    }
}

/// A number of bytes as people write it: `4GiB`, `512MiB`, `1.5G`, `800000000`.
struct ByteCount: ExpressibleByArgument, CustomStringConvertible {
    var bytes: Int

    init(_ bytes: Int) {
        self.bytes = bytes
    }

    init?(argument: String) {
        let digits = argument.prefix { $0.isNumber || $0 == "." }
        let unit = argument.dropFirst(digits.count).trimmingCharacters(in: .whitespaces)
            .lowercased()
        let factors: [String: Double] = [
            "": 1, "b": 1, "k": 1024, "kib": 1024, "kb": 1e3, "m": 0x1p20, "mib": 0x1p20, "mb": 1e6,
            "g": 0x1p30, "gib": 0x1p30, "gb": 1e9, "t": 0x1p40, "tib": 0x1p40, "tb": 1e12,
        ]
        guard let number = Double(digits), let factor = factors[unit], number * factor < 0x1p62
        else { return nil }
        bytes = Int(number * factor)
    }

    var description: String {
        for (factor, unit) in [
            (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"),
        ] where bytes >= factor {
            let value = Double(bytes) / Double(factor)
            return value == value.rounded()
                ? "\(Int(value)) \(unit)" : String(format: "%.1f \(unit)", value)
        }
        return "\(bytes) bytes"
    }
}
