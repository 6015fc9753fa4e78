internal import KVPolicy
internal import RESP

/// What a request says of the time after it, as `KV.MATCH` and `KV.RESERVE` take it.
struct HintArguments {
    private let words: [String]

    init(_ hint: ReuseHint, pinMs: Int?) {
        var words: [String] = []
        if hint.expectation != .unknown { words += ["HINT", hint.text] }
        if hint.priority != 0 { words += ["PRIORITY", "\(hint.priority)"] }
        if let pinMs { words += ["PIN", "\(pinMs)"] }
        self.words = words
    }

    /// How many arguments that is.
    var count: Int { words.count }

    func write(to writer: inout ReplyWriter) {
        for word in words { writer.bulk(word) }
    }
}
