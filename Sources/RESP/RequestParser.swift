/// Finds commands in what a client sends: arrays of bulk strings, and inline lines of text.
///
/// The parser owns no bytes. Its caller keeps one receive buffer for each connection and shows the
/// parser everything received and not consumed yet, always starting at the same byte:
///
/// ```swift
/// while true {
///     switch parser.next(received) {
///     case .command(let consumed):
///         execute(parser.arguments, in: received)
///         received = dropping(consumed)
///     case .ignored(let consumed):
///         received = dropping(consumed)
///     case .needMore(let bytes):
///         return receive(untilAtLeast: bytes)
///     case .failure(let error):
///         return close(after: error)
///     }
/// }
/// ```
///
/// Arguments are ranges of that buffer, so nothing is copied; the buffer may move between calls.
/// What was understood in one call is not looked at again in the next, so a bulk string that
/// arrives in a thousand pieces costs no more than one that arrives whole. Any split of the same
/// bytes gives the same commands and the same error.
///
/// Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>; inline commands are
/// split as Redis' `sdssplitargs` does.
public struct RequestParser: Sendable {
    /// What the bytes shown so far amount to.
    public enum Step: Hashable, Sendable {
        /// The command is not complete: it takes at least this many bytes in all, from its first
        /// on.
        ///
        /// Always more than were shown. Lengths are the client's word: grow a receive buffer with
        /// what really arrives, not at once to this size.
        case needMore(atLeast: Int)
        /// An empty line or array: drop so many bytes and go on. It gets no reply.
        case ignored(consumed: Int)
        /// One command of so many bytes; ``RequestParser/arguments`` says where its parts are.
        case command(consumed: Int)
        /// The stream is broken here for good. Every later call returns the same.
        case failure(ProtocolError)
    }

    private enum Phase: Sendable {
        case start
        case inline
        case arrayHeader
        case bulkHeader
        case bulkBody
    }

    /// The least that an argument takes on the wire: `$0`, CR LF, CR LF.
    static let leastArgumentBytes = 6

    /// What a client may send in one command.
    public let limits: ParserLimits

    /// Where the arguments of the last command are, as ranges of the buffer that was shown.
    ///
    /// Never empty after ``Step/command(consumed:)``; meaningful until the next call of
    /// ``next(_:)``. The array is reused: no command allocates once one with as many arguments has
    /// been seen.
    public private(set) var arguments: [Range<Int>] = []

    private var phase = Phase.start
    /// Everything in front of it is understood.
    private var position = 0
    /// Arguments that the current command still lacks.
    private var missing = 0
    /// Announced length of the current argument.
    private var bodyBytes = 0
    private var failure: ProtocolError?

    /// Makes a parser for one connection.
    public init(limits: ParserLimits = ParserLimits()) {
        self.limits = limits
    }

    /// Looks for the next command in `buffer`: all bytes received and not consumed yet.
    ///
    /// The words of an inline command that are quoted are unquoted where they stand, which is why
    /// the buffer must be writable; nothing else is changed. O(bytes not seen before), and
    /// O(arguments) for a command of bulk strings, however long these are.
    public mutating func next(_ buffer: UnsafeMutableRawBufferPointer) -> Step {
        if let failure { return .failure(failure) }
        do throws(ProtocolError) {
            return unsafe try advance(buffer)
        } catch {
            failure = error
            arguments.removeAll()
            return .failure(error)
        }
    }

    /// The bytes of one argument of the last command, in the buffer it was found in.
    ///
    /// - Precondition: `index` is an index of ``arguments``; `buffer` is the one that was shown.
    public func argument(
        _ index: Int, in buffer: UnsafeRawBufferPointer
    ) -> UnsafeRawBufferPointer {
        // SAFETY: slicing checks the range against the buffer in debug builds; ranges come from a
        // buffer of at least this size.
        unsafe UnsafeRawBufferPointer(rebasing: buffer[arguments[index]])
    }

    private mutating func advance(
        _ buffer: UnsafeMutableRawBufferPointer
    ) throws(ProtocolError) -> Step {
        // SAFETY: the span ends with this call, for which the caller keeps the buffer; every access
        // through it is checked.
        let bytes = unsafe Span<UInt8>(_unsafeBytes: UnsafeRawBufferPointer(buffer))
        if phase == .start {
            guard !bytes.isEmpty else { return .needMore(atLeast: 1) }
            arguments.removeAll(keepingCapacity: true)
            position = 0
            phase = bytes[0] == Byte.asterisk ? .arrayHeader : .inline
        }
        if phase == .inline {
            guard let end = try lineEnd(bytes) else { return .needMore(atLeast: bytes.count + 1) }
            // SAFETY: `bytes` is not used after this; `end` lies inside the buffer.
            var line = unsafe MutableSpan<UInt8>(
                _unsafeBytes: UnsafeMutableRawBufferPointer(rebasing: buffer[0..<end]))
            try splitWords(&line)
            phase = .start
            let consumed = end + 1
            return arguments.isEmpty ? .ignored(consumed: consumed) : .command(consumed: consumed)
        }
        return try advanceArray(bytes)
    }

    private mutating func advanceArray(_ bytes: Span<UInt8>) throws(ProtocolError) -> Step {
        if phase == .arrayHeader {
            let header = try length(
                in: bytes, from: 1, limit: limits.arguments, named: "arguments", unit: "arguments")
            guard let header else { return .needMore(atLeast: bytes.count + 1) }
            missing = header.value
            position = header.next
            guard missing > 0 else {
                phase = .start
                return .ignored(consumed: position)
            }
            phase = .bulkHeader
        }
        while missing > 0 {
            let leastRest = (missing - 1) * Self.leastArgumentBytes
            if phase == .bulkHeader {
                guard try readBulkHeader(bytes) else {
                    let least = position + Self.leastArgumentBytes + leastRest
                    return .needMore(atLeast: max(bytes.count + 1, least))
                }
                phase = .bulkBody
            }
            let end = position + bodyBytes
            guard try isTerminated(bytes, at: end) else {
                return .needMore(atLeast: end + 2 + leastRest)
            }
            arguments.append(position..<end)
            position = end + 2
            missing -= 1
            phase = .bulkHeader
        }
        phase = .start
        return .command(consumed: position)
    }

    /// Reads `$length` CR LF; false when it is not there yet.
    private mutating func readBulkHeader(_ bytes: Span<UInt8>) throws(ProtocolError) -> Bool {
        guard position < bytes.count else { return false }
        guard bytes[position] == Byte.dollar else {
            throw .malformed(
                .unexpectedByte, "expected '$', got \(Byte.describe(bytes[position]))")
        }
        let header = try length(
            in: bytes, from: position + 1, limit: limits.argumentBytes, named: "argument-bytes",
            unit: "bytes of one argument")
        guard let header else { return false }
        guard header.next + header.value + 2 <= limits.commandBytes else {
            throw .overLimit("command-bytes", limits.commandBytes, unit: "bytes of one command")
        }
        bodyBytes = header.value
        position = header.next
        return true
    }

    /// Whether CR LF stand at `end`; false when they are not there yet.
    private func isTerminated(_ bytes: Span<UInt8>, at end: Int) throws(ProtocolError) -> Bool {
        if end < bytes.count, bytes[end] != Byte.carriageReturn {
            throw .malformed(
                .missingTerminator, "an argument is longer than announced: expected CR LF after it")
        }
        guard end + 1 < bytes.count else { return false }
        guard bytes[end + 1] == Byte.lineFeed else {
            throw .malformed(.missingTerminator, "expected CR LF after an argument")
        }
        return true
    }

    /// Reads decimal digits, CR, LF; nil when they are not all there yet.
    ///
    /// Judges byte by byte, so that an error depends on the bytes up to it and not on how they were
    /// split. A length is short, so looking at it again when more bytes come costs nothing.
    private func length(
        in bytes: Span<UInt8>, from start: Int, limit: Int, named name: String, unit: String
    ) throws(ProtocolError) -> (value: Int, next: Int)? {
        var value = 0
        var index = start
        while index < bytes.count {
            let byte = bytes[index]
            if Byte.isDigit(byte) {
                guard index == start || bytes[start] != Byte.zero else {
                    throw .malformed(.invalidLength, "a length has no leading zeros")
                }
                value = value * 10 + Int(byte &- Byte.zero)
                guard value <= limit else { throw .overLimit(name, limit, unit: unit) }
                index += 1
                continue
            }
            guard byte == Byte.carriageReturn, index > start else {
                throw .malformed(
                    .invalidLength,
                    "a length is decimal digits and CR LF, got \(Byte.describe(byte))")
            }
            guard index + 1 < bytes.count else { return nil }
            guard bytes[index + 1] == Byte.lineFeed else {
                throw .malformed(.missingTerminator, "expected LF after the CR of a length")
            }
            return (value, index + 2)
        }
        return nil
    }

    /// Where the line feed of an inline command is; nil when it is not there yet.
    private mutating func lineEnd(_ bytes: Span<UInt8>) throws(ProtocolError) -> Int? {
        var index = position
        let end = min(bytes.count, limits.inlineBytes + 1)
        while index < end {
            if bytes[index] == Byte.lineFeed { return index }
            index += 1
        }
        guard index <= limits.inlineBytes else {
            throw .overLimit("inline-bytes", limits.inlineBytes, unit: "bytes of one line")
        }
        position = index
        return nil
    }
}

// MARK: - Inline commands

extension RequestParser {
    /// Splits a line into words, unquoting them in place: unquoted they are never longer.
    private mutating func splitWords(_ line: inout MutableSpan<UInt8>) throws(ProtocolError) {
        var index = 0
        while true {
            while index < line.count, Byte.isSpace(line[index]) { index += 1 }
            guard index < line.count else { return }
            guard arguments.count < limits.arguments else {
                throw .overLimit("arguments", limits.arguments, unit: "arguments")
            }
            let start = index
            let end = try unquoteWord(&line, &index)
            guard end - start <= limits.argumentBytes else {
                throw .overLimit(
                    "argument-bytes", limits.argumentBytes, unit: "bytes of one argument")
            }
            arguments.append(start..<end)
        }
    }

    /// Unquotes the word at `index`, moves `index` behind it and returns the end of what it says.
    private func unquoteWord(
        _ line: inout MutableSpan<UInt8>, _ index: inout Int
    ) throws(ProtocolError) -> Int {
        var write = index
        while index < line.count {
            let byte = line[index]
            if Byte.isSpace(byte) { break }
            index += 1
            if byte == Byte.doubleQuote || byte == Byte.singleQuote {
                try unquote(&line, &index, &write, quote: byte)
                break
            }
            line[write] = byte
            write += 1
        }
        return write
    }

    /// Unquotes up to the closing quote, which must end the word.
    private func unquote(
        _ line: inout MutableSpan<UInt8>, _ index: inout Int, _ write: inout Int, quote: UInt8
    ) throws(ProtocolError) {
        while index < line.count {
            var byte = line[index]
            index += 1
            if byte == quote {
                guard index == line.count || Byte.isSpace(line[index]) else { break }
                return
            }
            if byte == Byte.backslash, index < line.count {
                if quote == Byte.doubleQuote {
                    byte = unescape(line, &index)
                } else if line[index] == Byte.singleQuote {
                    byte = Byte.singleQuote
                    index += 1
                }
            }
            line[write] = byte
            write += 1
        }
        throw .malformed(
            .unbalancedQuotes, "unbalanced quotes in request: a quoted word ends with its quote")
    }

    /// The byte that an escape stands for; `index` is behind its backslash.
    private func unescape(_ line: borrowing MutableSpan<UInt8>, _ index: inout Int) -> UInt8 {
        let byte = line[index]
        if byte == UInt8(ascii: "x"), index + 2 < line.count,
            let high = Byte.hexDigit(line[index + 1]), let low = Byte.hexDigit(line[index + 2])
        {
            index += 3
            return high << 4 | low
        }
        index += 1
        switch byte {
        case UInt8(ascii: "n"): return 0x0A
        case UInt8(ascii: "r"): return 0x0D
        case UInt8(ascii: "t"): return 0x09
        case UInt8(ascii: "b"): return 0x08
        case UInt8(ascii: "a"): return 0x07
        default: return byte
        }
    }
}
