internal import KVPolicy
internal import RESP

/// What a request says of the time after it, as `KV.MATCH` and `KV.RESERVE` take it.
struct HintArguments {
    private let words: [String]

    init(_ hint: ReuseHint, pin: PinDuration?) {
        var words: [String] = []
        if hint.expectation != .unknown { words += ["HINT", hint.text] }
        if hint.priority != 0 { words += ["PRIORITY", "\(hint.priority)"] }
        if let pin { words += ["PIN", pin.text] }
        self.words = words
    }

    /// How many arguments that is.
    var count: Int { words.count }

    func write(to writer: inout ReplyWriter) {
        for word in words { writer.bulk(word) }
    }
}

extension PinDuration {
    /// As commands take it.
    var text: String {
        switch self {
        case .milliseconds(let ms): "\(ms)"
        case .forever: "FOREVER"
        }
    }
}
