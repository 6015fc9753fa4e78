/// What is done to text before it is split: Unicode forms, lower case, accents.
enum Normalizer: Sendable {
    case form(UnicodeForm)
    case lowercase
    case stripAccents
    case bert(BertNormalizer)
    case sequence([Normalizer])

    static let supported = "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, BertNormalizer, Sequence"

    init(_ field: TokenizerField) throws(ModelError) {
        switch try field.type() {
        case "NFC": self = .form(.canonicalComposition)
        case "NFD": self = .form(.canonicalDecomposition)
        case "NFKC": self = .form(.compatibilityComposition)
        case "NFKD": self = .form(.compatibilityDecomposition)
        case "Lowercase": self = .lowercase
        case "StripAccents": self = .stripAccents
        case "BertNormalizer": self = .bert(try BertNormalizer(field))
        case "Sequence":
            self = .sequence(
                try field.steps("normalizers") { element throws(ModelError) in
                    let step = try Normalizer(element)
                    if case .sequence(let steps) = step { return steps }
                    return [step]
                })
        case let type:
            throw field.unsupported(
                "is a normalizer of type \(type.quoted)", supported: Self.supported)
        }
    }

    /// The text in its normal form.
    func apply(_ text: String) -> String {
        switch self {
        case .form(let form): form.apply(text)
        case .lowercase: text.lowercasedByScalar()
        case .stripAccents: text.filteringScalars { !$0.isCombiningMark }
        case .bert(let normalizer): normalizer.apply(text)
        case .sequence(let normalizers): normalizers.reduce(text) { $1.apply($0) }
        }
    }
}

extension String {
    /// Lower case without regard to what stands around a character: a final sigma is no exception.
    func lowercasedByScalar() -> String {
        var scalars = String.UnicodeScalarView()
        for scalar in unicodeScalars {
            if scalar.isASCII {
                let isUpper = ("A"..."Z").contains(scalar)
                scalars.append(isUpper ? Unicode.Scalar(UInt8(scalar.value) | 0x20) : scalar)
            } else {
                scalars.append(contentsOf: scalar.properties.lowercaseMapping.unicodeScalars)
            }
        }
        return String(scalars)
    }

    func filteringScalars(_ isKept: (Unicode.Scalar) -> Bool) -> String {
        var scalars = String.UnicodeScalarView()
        for scalar in unicodeScalars where isKept(scalar) { scalars.append(scalar) }
        return String(scalars)
    }
}
