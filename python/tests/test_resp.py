"""The parser gives the same values for any split of the same bytes, and refuses what is none."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from kvasir import ProtocolError
from kvasir import _resp as resp
from kvasir._resp import INCOMPLETE, ErrorReply, Parser, Push, encode_command


def parse_all(data: bytes, cuts: list[int]) -> list[Any]:
    parser, values, start = Parser(), [], 0
    for end in [*sorted(cuts), len(data)]:
        parser.feed(data[start:end])
        start = end
        while (value := parser.next()) is not INCOMPLETE:
            values.append(value)
    assert parser.idle
    return values


CASES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", "OK"),
    (b"+\r\n", ""),
    (b"-KVFULL no room\r\n", ErrorReply("KVFULL no room")),
    (b":0\r\n", 0),
    (b":-9223372036854775808\r\n", -(2**63)),
    (b":+7\r\n", 7),
    (b"$0\r\n\r\n", b""),
    (b"$5\r\na\r\nb\r\r\n", b"a\r\nb\r"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"_\r\n", None),
    (b"#t\r\n", True),
    (b"#f\r\n", False),
    (b",1.5\r\n", 1.5),
    (b",-inf\r\n", -math.inf),
    (b",1e3\r\n", 1000.0),
    (b"(34928903284092385093248509438509438\r\n", 34928903284092385093248509438509438),
    (b"!8\r\nERR a\r\nb\r\n", ErrorReply("ERR a\r\nb")),
    (b"=7\r\ntxt:abc\r\n", "abc"),
    (b"*0\r\n", []),
    (b"*3\r\n:1\r\n$1\r\nx\r\n*1\r\n_\r\n", [1, b"x", [None]]),
    (b"*2\r\n*0\r\n%0\r\n", [[], {}]),
    (b"%2\r\n$1\r\na\r\n:1\r\n+b\r\n*1\r\n:2\r\n", {"a": 1, "b": [2]}),
    (b"~2\r\n:1\r\n:2\r\n", [1, 2]),
    (b">2\r\n+m\r\n:1\r\n", Push(["m", 1])),
    (b"|1\r\n+ttl\r\n:3\r\n:5\r\n", 5),
    (b"*2\r\n|1\r\n+ttl\r\n:3\r\n:5\r\n:6\r\n", [5, 6]),
    (b"*2\r\n-ERR x\r\n:6\r\n", [ErrorReply("ERR x"), 6]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), CASES, ids=lambda case: repr(case)[:30])
def test_each_type_is_read_whole_and_byte_by_byte(data: bytes, expected: Any) -> None:
    for cuts in ([], list(range(1, len(data)))):
        (value,) = parse_all(data, cuts)
        assert value == expected
        assert type(value) is type(expected)


def random_value(rng: random.Random, depth: int) -> tuple[bytes, Any]:
    kind = rng.choice(["simple", "integer", "bulk", "null", "error", "array", "map"])
    if kind == "simple":
        text = "".join(rng.choice("abc :*$-") for _ in range(rng.randrange(8)))
        return f"+{text}\r\n".encode(), text
    if kind == "error":
        return b"-ERR x\r\n", ErrorReply("ERR x")
    if kind == "integer":
        number = rng.randrange(-(2**63), 2**63)
        return b":%d\r\n" % number, number
    if kind == "bulk":
        data = bytes(rng.choice(b"\r\n$*:x\0\xff") for _ in range(rng.randrange(40)))
        return b"$%d\r\n%s\r\n" % (len(data), data), data
    if kind == "null" or depth == 0:
        return b"_\r\n", None
    count = rng.randrange(4)
    if kind == "array":
        parts = [random_value(rng, depth - 1) for _ in range(count)]
        return b"*%d\r\n" % count + b"".join(p[0] for p in parts), [p[1] for p in parts]
    encoded, expected = b"%%%d\r\n" % count, {}
    for i in range(count):
        body, value = random_value(rng, depth - 1)
        encoded += b"+k%d\r\n" % i + body
        expected[f"k{i}"] = value
    return encoded, expected


def test_any_split_of_random_replies_gives_the_same_values(rng: random.Random) -> None:
    for _ in range(400):
        made = [random_value(rng, 4) for _ in range(rng.randrange(1, 5))]
        data = b"".join(encoded for encoded, _ in made)
        cuts = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(12))]
        assert parse_all(data, cuts) == [value for _, value in made]


def test_random_bytes_are_read_or_refused_and_never_crash(rng: random.Random) -> None:
    kinds = [bytes([kind]) for kind in b"+-:$*_#,(!=%~>|"]
    bodies = [b"", b"0", b"1", b"2", b"3", b"-1", b"t", b"abc", b"1.5", b"9" * 25, b"\xff\0"]
    ends = [b"\r\n"] * 6 + [b"", b"\r", b"\n"]
    refused = read = 0
    for _ in range(3000):
        data = b"".join(
            rng.choice(kinds) + rng.choice(bodies) + rng.choice(ends)
            for _ in range(rng.randrange(1, 12))
        )
        outcomes = []
        for split in (len(data), 1):
            parser, seen = Parser(), []
            try:
                for start in range(0, len(data), split):
                    parser.feed(data[start : start + split])
                    while (value := parser.next()) is not INCOMPLETE:
                        seen.append(repr(value))
                        read += 1
            except ProtocolError:
                refused += 1
                seen.append("refused")
            outcomes.append(seen)
        assert outcomes[0] == outcomes[1], data
    assert refused > 600
    assert read > 600


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b":\r\n",
        b":1x\r\n",
        b":9223372036854775808\r\n",
        b":--1\r\n",
        b": 1\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"$+3\r\nabc\r\n",
        b"$?\r\n",
        b"*-2\r\n",
        b"%-1\r\n",
        b"$3\r\nabcdef",
        b"$1048576000\r\n",
        b"*99999999\r\n",
        b"$99999999999999999999999\r\n",
        b"#x\r\n",
        b"_x\r\n",
        b",1_0\r\n",
        b",\r\n",
        b"=2\r\nab\r\n",
        b"%1\r\n*0\r\n:1\r\n",
        b"*1\r\n" * 40,
        b"+" + b"x" * 70_000,
        b"+" + b"x" * 70_000 + b"\r\n",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_the_protocol_does_not_allow_is_refused(data: bytes) -> None:
    parser = Parser()
    parser.feed(data)
    with pytest.raises(ProtocolError, match="the server"):
        list(iter(parser.next, INCOMPLETE))


def test_a_reply_has_a_limit_though_each_part_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resp, "REPLY_BYTES_MAX", 1000)
    parser = Parser()
    parser.feed(b"*200\r\n" + b"$5\r\nabcde\r\n" * 150)
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        parser.next()
    # Many replies are not one reply.
    parser = Parser()
    for _ in range(200):
        parser.feed(b"$5\r\nabcde\r\n")
        assert parser.next() == b"abcde"


def test_a_command_is_an_array_of_bulk_strings() -> None:
    command = encode_command("KV.X", 12, b"\r\n", memoryview(b"abc"), bytearray(b""), "ö")
    assert command == (
        b"*6\r\n$4\r\nKV.X\r\n$2\r\n12\r\n$2\r\n\r\n\r\n$3\r\nabc\r\n$0\r\n\r\n$2\r\n\xc3\xb6\r\n"
    )
    assert parse_all(command, [])[0] == [b"KV.X", b"12", b"\r\n", b"abc", b"", "ö".encode()]


def test_a_long_line_in_small_pieces_is_searched_once() -> None:
    parser = Parser()
    for _ in range(6000):
        parser.feed(b"+abcdefghi"[:10])
        assert parser.next() is INCOMPLETE
        assert parser._scanned >= len(parser._buffer) - 1
    parser.feed(b"\r\n")
    assert len(parser.next()) == 59_999
