import Testing

@testable import ReferenceLM

@Suite("JSON")
struct JSONTests {
    private static func read(_ text: String) throws(JSON.Problem) -> JSON {
        try JSON(parsing: Array(text.utf8))
    }

    @Test("values of all kinds are read")
    func values() throws {
        let root = try Self.read(
            #" {"a": [1, -2, 0.5, 1e3, true, false, null, "x", {}, [ ]], "b" :{"c": "d"}} "#)
        let list = try #require(root.object?["a"]?.array)
        #expect(
            list == [
                .number("1"), .number("-2"), .number("0.5"), .number("1e3"), .boolean(true),
                .boolean(false), .null, .string(ByteString("x")),
                .object(try JSONObject([])), .array([]),
            ])
        #expect(list.map(\.integer) == [1, -2] + Array(repeating: nil, count: 8))
        #expect(list.prefix(5).map(\.double) == [1, -2, 0.5, 1000, nil])
        #expect(root.object?["b"]?.object?["c"]?.string == "d")
        #expect(root.object?["z"] == nil)
    }

    @Test("numbers are only what they are written as")
    func numbers() throws {
        #expect(try Self.read("9223372036854775807").integer == .max)
        #expect(try Self.read("9223372036854775808").integer == nil)
        #expect(try Self.read("9223372036854775808").double == 0x1p63)
        #expect(try Self.read("1.0").integer == nil)
        #expect(try Self.read("1e0").integer == nil)
        #expect(try Self.read("1e999").double == nil)
        #expect(try Self.read("1.0") != Self.read("1"))
        let long = "0." + String(repeating: "1", count: 100_000)
        #expect(try Self.read(long) == .number(long))
    }

    @Test("escapes, surrogate pairs and bare characters are read byte for byte")
    func strings() throws {
        let value = try Self.read(#""\"\\\/\b\f\n\r\t\u0000\u00e9\uD83D\uDE42é🙂""#)
        #expect(value.bytes?.bytes == Array("\"\\/\u{8}\u{C}\n\r\t\0\u{E9}🙂é🙂".utf8))
        #expect(try Self.read(#""""#) == .string(ByteString("")))
    }

    @Test("two names that Swift's strings take for equal are two members, in their order")
    func names() throws {
        let object = try #require(try Self.read(#"{"e\u0301": 2, "\u00e9": 1}"#).object)
        #expect(object.members.map(\.value) == [.number("2"), .number("1")])
        #expect(object["\u{E9}"] == .number("1"))
        #expect(object["e\u{301}"] == .number("2"))
    }

    @Test("objects of any size find their members and refuse a name that comes again")
    func sizes() throws {
        for count in [1, 2, 7, 8, 9, 10, 1000] {
            let members = (0..<count).map { "\"n\($0)\": \($0)" }
            let text = members.joined(separator: ", ")
            let object = try #require(try Self.read("{\(text)}").object)
            #expect(object.members.map(\.value.integer) == Array(0..<count))
            for number in 0..<count { #expect(object["n\(number)"]?.integer == number) }
            #expect(object["n\(count)"] == nil)
            let backwards = members.reversed().joined(separator: ", ")
            #expect(try Self.read("{\(backwards)}").object == object)
            for number in [0, count - 1] {
                #expect {
                    try Self.read("{\(text), \"n\(number)\": 0}")
                } throws: { error in
                    "\(error)".contains(#"n\#(number)\" appears twice"#)
                }
            }
        }
    }

    @Test(
        "what is not JSON is refused, and where it isn't is said",
        arguments: [
            "", "{", "[", "[1", "[1,", "[1,]", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,}",
            "{a:1}", "{1:1}", "tru", "nulL", "+", "-", "1.2.3", "abc", "[1 2]", "{} {}", "01",
            "+1", "1.", ".5", "-a", "1e", "1e+", "NaN", "\"", "\"\\", "\"\\x\"", "\"\\u12\"",
            "\"\\u12g4\"", "\"\\u+123\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\udc00\"",
            "\"a\nb\"", "\u{B}1", "'a'",
        ])
    func refusals(text: String) {
        let error = #expect(throws: JSON.Problem.self) { try Self.read(text) }
        #expect(error?.message.contains(" at byte ") == true)
    }

    @Test("nesting has a limit, and what is not UTF-8 is refused")
    func limits() throws {
        let deep = JSON.depthMaximum
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let opened = String(repeating: open, count: deep)
            let closed = String(repeating: close, count: deep)
            _ = try Self.read(opened + "1" + closed)
            let error = #expect(throws: JSON.Problem.self) {
                try Self.read(open + opened + "1" + closed + close)
            }
            #expect(error?.message.contains("nested more than 32 deep") == true)
        }
        let other = #expect(throws: JSON.Problem.self) {
            try JSON(parsing: [0x22, 0x61, 0xFF, 0x22])
        }
        #expect(other?.message == "it is not UTF-8 at byte 2")
    }

    @Test("values are shown on one line that is not too long")
    func shown() throws {
        let hostile = "\u{1B}[2J\u{0085}\u{2028}\u{202E}\n\"\\é🙂"
        #expect(
            JSON.string(ByteString(hostile)).shown
                == #"the string "\u{1B}[2J\u{0085}\u{2028}\u{202E}\n\"\\é🙂""#)
        let long = String(repeating: "1", count: 100_000)
        for value in [JSON.number(long), .string(ByteString(long))] {
            #expect(value.shown.count < 200)
        }
    }
}
