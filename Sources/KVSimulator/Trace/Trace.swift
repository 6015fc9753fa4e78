/// What a server was asked for, reduced to what caching depends on: when, how many tokens, and which
/// chunks, as small numbers in the order of their first appearance.
///
/// Chunks form a tree: each has one parent, or none, and a parent's number is smaller than its
/// children's.
package struct Trace: Sendable {
    /// One prompt.
    package struct Request: Sendable, Equatable {
        /// Since the zero of the trace's own clock.
        package var nanoseconds: UInt64
        /// Of the prompt.
        package var tokens: UInt32
        /// Chunks of the prompt, a last partial one included; may be more than are named.
        package var chunkCount: UInt32
        /// Of the named chunks, those that are full. At most one named chunk follows them.
        package var fullCount: UInt32
        /// Place of the first named chunk in ``Trace/references``.
        package var first: UInt32
        /// Named chunks.
        package var namedCount: UInt32
        /// What the log says of what comes after it.
        package var hint: Hint
    }

    /// What whoever sent a request said of the time after it.
    package enum Hint: Sendable, Equatable {
        case none
        /// No request will follow.
        case closed
        /// A tool is out; the next request is expected in so many seconds, nil if that wasn't said.
        case pending(seconds: Double?)
    }

    /// What stands for "no parent".
    package static let none = UInt32.max

    /// Tokens of a full chunk.
    package let chunkTokens: Int
    /// In the order of time.
    package var requests: [Request]
    /// The named chunks of all requests, one after the other.
    package let references: [UInt32]
    /// By chunk: the chunk before it, or ``none``.
    package let parents: [UInt32]
    /// By chunk: 64 bits of its name, mixed; equal in every run.
    package let fingerprints: [UInt64]
    /// What is odd about the file, for people.
    package var warnings: [String] = []

    /// Different chunks.
    package var distinctCount: Int { parents.count }

    /// Chunks that requests ask for, partial ones included.
    package var chunkCount: Int { requests.reduce(0) { $0 + Int($1.chunkCount) } }

    /// Tokens of all prompts.
    package var tokenCount: Int { requests.reduce(0) { $0 + Int($1.tokens) } }

    /// From the first request to the last.
    package var seconds: Double {
        guard let first = requests.first, let last = requests.last else { return 0 }
        return Double(last.nanoseconds - first.nanoseconds) / 1e9
    }

    /// Different chunks that are ever full: what a cache without bound holds in the end.
    package var storableCount: Int {
        var isStorable = [Bool](repeating: false, count: parents.count)
        for request in requests {
            for chunk in chunks(of: request, storesPartial: false) {
                isStorable[Int(chunk)] = true
            }
        }
        return isStorable.count { $0 }
    }

    /// The chunks of a request that may be stored, in the order of the prompt.
    @inline(__always)
    package func chunks(of request: Request, storesPartial: Bool) -> ArraySlice<UInt32> {
        let count = storesPartial ? request.namedCount : request.fullCount
        return references[Int(request.first)..<Int(request.first + count)]
    }

    /// The same trace with some of its requests only.
    package func keeping(_ isKept: (Int, Request) -> Bool) -> Trace {
        var trace = self
        trace.requests = requests.enumerated().filter { isKept($0.offset, $0.element) }.map(
            \.element)
        return trace
    }
}

/// Why a trace can't be read: where, what is wrong, and what to do.
package struct TraceError: Error, CustomStringConvertible, Sendable, Equatable {
    package let description: String

    package init(_ description: String) {
        self.description = description
    }

    init(file: String, line: Int, _ message: String) {
        description = "\(file), line \(line): \(message)"
    }
}
