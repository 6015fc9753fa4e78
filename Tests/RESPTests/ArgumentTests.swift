import RESP
import Testing

@Suite("Arguments")
struct ArgumentTests {
    @Test(
        "numbers have one spelling",
        arguments: [
            ("0", 0), ("1", 1), ("-1", -1), ("10", 10), ("65536", 65_536),
            ("9223372036854775807", Int.max), ("-9223372036854775808", Int.min),
        ])
    func integers(text: String, value: Int) {
        #expect(Argument.integer(utf8(text).span) == value)
        #expect(utf8(text).withUnsafeBytes { Argument.integer($0) } == value)
    }

    @Test(
        "what is no strict number is none",
        arguments: [
            "", "-", "+1", "01", "-0", "00", "-01", " 1", "1 ", "1.0", "1e3", "0x10", "a", "--1",
            "9223372036854775808", "-9223372036854775809", "99999999999999999999",
            "100000000000000000000000",
        ])
    func notIntegers(text: String) {
        #expect(Argument.integer(utf8(text).span) == nil)
    }

    @Test("option words match in any case, and as a whole")
    func words() {
        func matches(_ text: String, _ word: StaticString) -> Bool {
            utf8(text).withUnsafeBytes { Argument.matches($0, word) }
        }
        #expect(matches("KV.MATCH", "KV.MATCH"))
        #expect(matches("kv.Match", "KV.MATCH"))
        #expect(!matches("KV.MATC", "KV.MATCH"))
        #expect(!matches("KV.MATCHX", "KV.MATCH"))
        #expect(!matches("KV.MATC`", "KV.MATC@"))
        #expect(!matches("", "KV.MATCH"))
    }
}
