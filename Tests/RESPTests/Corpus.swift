/// Streams that tests split, mutate and feed to the parsers.
enum Corpus {
    static let requests: [[UInt8]] = [
        utf8("*1\r\n$4\r\nPING\r\n"),
        utf8("*2\r\n$4\r\nECHO\r\n$0\r\n\r\n"),
        utf8("*3\r\n$8\r\nKV.MATCH\r\n$1\r\n1\r\n$12\r\n\r\n$5\r\n*3\r\n*\u{0}\r\n"),
        utf8("*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*1\r\n$4\r\nPING\r\n"),
        utf8("*0\r\n\r\n\nPING\r\n  \r\nECHO hello\n"),
        utf8("SET \"a\\x00\\n\\\"b\" 'it\\'s' plain\"joined\"\r\nQUIT\r\n"),
        utf8("*1\r\n$+4\r\nPING\r\n"),
        utf8("*1\r\n$3\r\nPING\r\n"),
        utf8("*65\r\n"),
        utf8("*-1\r\n$-1\r\n"),
        utf8("ECHO \"open\r\n"),
        utf8("*2\r\n$11\r\nKV.COMMIT x\r\n$10\r\n0123456789\r\n*1\r\n$7\r\nKV.SYNC\r\n"),
    ]

    static let replies: [[UInt8]] = [
        utf8("+OK\r\n-ERR no\r\n:42\r\n:-1\r\n$5\r\nhello\r\n$-1\r\n*-1\r\n$0\r\n\r\n"),
        utf8("*3\r\n:1\r\n*2\r\n+a\r\n$1\r\nb\r\n_\r\n"),
        utf8("%2\r\n+first\r\n:1\r\n+second\r\n*0\r\n"),
        utf8("~2\r\n#t\r\n#f\r\n>2\r\n+message\r\n,1.5\r\n"),
        utf8(",inf\r\n,-inf\r\n,1e5\r\n,0\r\n(3492890328409238509324850943850943825024385\r\n"),
        utf8("=15\r\ntxt:Some string\r\n!21\r\nSYNTAX invalid syntax\r\n"),
        utf8("|1\r\n+ttl\r\n:3600\r\n*2\r\n:1\r\n|1\r\n+k\r\n+v\r\n:2\r\n"),
        utf8("%0\r\n~0\r\n|0\r\n:1\r\n*1\r\n*1\r\n*1\r\n*0\r\n"),
        utf8("$?\r\n"),
        utf8(":12a\r\n"),
        utf8("*2\r\n$3\r\nabcd\r\n"),
        utf8("+a\nb\r\n"),
    ]
}
