/// Why a model can't be read or run.
public struct ModelError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What kind of error it is. New codes may be added.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        /// The code as a word.
        public let description: String

        /// A file or folder is not there or can't be read.
        public static let unreadable = Code(description: "unreadable")
        /// `config.json` is not what it should be.
        public static let configuration = Code(description: "configuration")
        /// The weights are not what they should be: damaged, missing, of another shape.
        public static let weights = Code(description: "weights")
        /// `tokenizer.json` is not what it should be.
        public static let tokenizer = Code(description: "tokenizer")
        /// The model is fine, but not of a kind that is built in.
        public static let unsupported = Code(description: "unsupported")
        /// What the caller gave can't be run: too long, an unknown token.
        public static let input = Code(description: "input")
    }

    /// What kind of error it is.
    public let code: Code
    /// What went wrong and what to do, for a person.
    public let message: String

    /// Makes an error.
    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    /// The message.
    public var description: String { message }
}
