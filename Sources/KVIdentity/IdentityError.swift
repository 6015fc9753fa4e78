/// Why a description of a space was refused.
public struct IdentityError: Error, Hashable, Sendable {
    /// What kind of mistake it is. New codes may be added.
    public struct Code: RawRepresentable, Hashable, Sendable {
        /// The code as text, for logs and tests.
        public let rawValue: String

        /// Makes a code of its text.
        public init(rawValue: String) {
            self.rawValue = rawValue
        }

        /// The text is not one JSON object.
        public static let malformedJSON = Code(rawValue: "malformed-json")
        /// A field that this version does not know.
        public static let unknownField = Code(rawValue: "unknown-field")
        /// A field that stands there twice.
        public static let duplicateField = Code(rawValue: "duplicate-field")
        /// A field that must be there and is not.
        public static let missingField = Code(rawValue: "missing-field")
        /// A field with a value of another type than its own.
        public static let wrongType = Code(rawValue: "wrong-type")
        /// A value outside what its field allows, or at odds with another field.
        public static let invalidValue = Code(rawValue: "invalid-value")
        /// A version of the format that this program does not know.
        public static let unsupportedVersion = Code(rawValue: "unsupported-version")
        /// More than a limit allows.
        public static let limitExceeded = Code(rawValue: "limit-exceeded")
    }

    /// What kind of mistake it is.
    public let code: Code
    /// What is wrong and how to mend it, for a person.
    public let message: String
    /// The field it is about, if it is about one.
    public let field: String?

    /// Makes an error.
    public init(code: Code, message: String, field: String? = nil) {
        self.code = code
        self.message = message
        self.field = field
    }
}

extension IdentityError: CustomStringConvertible {
    /// Code and message on one line.
    public var description: String { "\(code.rawValue): \(message)" }
}
