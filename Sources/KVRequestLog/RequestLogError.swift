/// Why a request log can't be kept.
public struct RequestLogError: Error, Sendable, Hashable, CustomStringConvertible {
    /// What went wrong and how to mend it.
    public var message: String

    init(_ message: String) {
        self.message = message
    }

    public var description: String { message }
}
