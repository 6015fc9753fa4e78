import ArgumentParser
import Foundation

/// Values with commas between them.
struct ListOption<Element: ExpressibleByArgument>: ExpressibleByArgument {
    var values: [Element]

    init?(argument: String) {
        var values: [Element] = []
        for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
            guard let value = Element(argument: part.trimmingCharacters(in: .whitespaces)) else {
                return nil
            }
            values.append(value)
        }
        self.values = values
    }
}

/// A number of things as people write it: `5859`, `3M`, `1.5k`. A thousand is 1000 here.
struct Quantity: ExpressibleByArgument {
    var value: Int

    init?(argument: String) {
        let digits = argument.prefix { $0.isNumber || $0 == "." }
        let factors = ["": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12]
        guard let number = Double(digits),
            let factor = factors[argument.dropFirst(digits.count).lowercased()],
            number * factor <= 1e15, number * factor >= 1
        else { return nil }
        value = Int((number * factor).rounded())
    }
}

/// A share from 0 to 1, or in percent: `0.8`, `80%`.
struct Share: ExpressibleByArgument {
    var value: Double

    init?(argument: String) {
        let isPercent = argument.hasSuffix("%")
        guard let number = Double(isPercent ? String(argument.dropLast()) : argument) else {
            return nil
        }
        value = isPercent ? number / 100 : number
        if !(0...1).contains(value) { return nil }
    }
}
