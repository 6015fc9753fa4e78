/// Why the store could not do what it was asked to.
public struct StoreError: Error, Sendable, Hashable, CustomStringConvertible {
    /// What kind of error it is; the code word on the wire (`docs/protocol.md`).
    public struct Code: Sendable, Hashable, CustomStringConvertible {
        /// The code word.
        public let description: String

        /// An argument is not what the call takes.
        public static let argument = Code(description: "KVARG")
        /// No such space.
        public static let unknownSpace = Code(description: "KVSPACE")
        /// No such hold or lease, or it belongs to another session.
        public static let unknownLease = Code(description: "KVLEASE")
        /// The lease's deadline has passed.
        public static let expired = Code(description: "KVEXPIRED")
        /// The keys neither start at chunk 0 nor follow a chunk that is held here.
        public static let gap = Code(description: "KVGAP")
        /// A key is already known under another parent or space.
        public static let chain = Code(description: "KVCHAIN")
        /// No room: everything is held, pinned or being written.
        public static let full = Code(description: "KVFULL")
        /// A limit was reached.
        public static let limit = Code(description: "KVLIMIT")
        /// Something did not happen in time.
        public static let timeout = Code(description: "KVTIMEOUT")
        /// A disk failed.
        public static let disk = Code(description: "KVDISK")
        /// Another store uses the directory.
        public static let diskInUse = Code(description: "KVDISKINUSE")
        /// The tier that the call needs is not configured.
        public static let noTier = Code(description: "KVNOTIER")
    }

    /// What kind of error it is.
    public var code: Code
    /// What went wrong and how to mend it.
    public var message: String

    /// Makes an error.
    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    public var description: String { "\(code) \(message)" }
}
