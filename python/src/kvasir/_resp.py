"""RESP2 and RESP3, the Redis serialization protocol: a pure encoder and an incremental parser.

Knows nothing of KV, sockets or time. The parser takes bytes in any split and yields whole values;
it is one flat loop over a stack, so neither depth nor a slow sender makes it recurse or re-read.

=====================  =====================================================================
on the wire            in Python
=====================  =====================================================================
simple, verbatim       :class:`str`
bulk string            :class:`bytes`
integer, big number    :class:`int`
double, boolean, null  :class:`float`, :class:`bool`, ``None``
array, set             :class:`list`
map                    :class:`dict` (keys are text where they are UTF-8)
push                   :class:`Push`
error, bulk error      :class:`ErrorReply`: a value, so that one inside an array loses nothing
attribute              parsed and dropped: it is about the value, not part of it
=====================  =====================================================================

Streamed strings and aggregates (``$?``) are refused: no server we talk to sends them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .errors import ProtocolError

__all__ = ["INCOMPLETE", "Argument", "ErrorReply", "Parser", "Push", "encode_command"]

Argument = bytes | bytearray | memoryview | str | int

#: Limits of one reply. The daemon's own are in docs/protocol.md; these protect the client.
BULK_BYTES_MAX: Final = 64 << 20
REPLY_BYTES_MAX: Final = 128 << 20
LINE_BYTES_MAX: Final = 64 << 10
ELEMENTS_MAX: Final = 1 << 20
DEPTH_MAX: Final = 32
DIGITS_MAX: Final = 20
BIG_NUMBER_DIGITS_MAX: Final = 4096

#: What :meth:`Parser.next` returns when it needs more bytes (``None`` is a value).
INCOMPLETE: Final = object()


class ErrorReply:
    """An error as the server sent it: a code word and a sentence."""

    __slots__ = ("line",)

    def __init__(self, line: str) -> None:
        self.line = line

    def __repr__(self) -> str:
        return f"ErrorReply({self.line!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorReply) and other.line == self.line

    def __hash__(self) -> int:
        return hash(self.line)


class Push(list[Any]):
    """An out-of-band message; never the reply to a command."""

    __slots__ = ()


def encode_command(*arguments: Argument) -> bytes:
    """A command as an array of bulk strings."""
    parts: list[bytes | bytearray | memoryview] = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data: bytes | bytearray | memoryview
        if isinstance(argument, str):
            data = argument.encode("utf-8")
        elif isinstance(argument, int):
            data = b"%d" % argument
        else:
            data = argument
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        parts += (b"$%d\r\n" % length, data, b"\r\n")
    return b"".join(parts)


def encode_commands(commands: Iterable[Iterable[Argument]]) -> bytes:
    """Several commands for one write."""
    return b"".join(encode_command(*command) for command in commands)


class _Frame:
    """An aggregate that waits for its elements."""

    __slots__ = ("items", "kind", "left")

    def __init__(self, kind: int, left: int) -> None:
        self.kind = kind
        self.left = left
        self.items: list[Any] = []


_SIMPLE, _ERROR, _INTEGER, _BULK, _ARRAY = b"+-:$*"
_NULL, _BOOLEAN, _DOUBLE, _BIG, _BULK_ERROR, _VERBATIM = b"_#,(!="
_MAP, _SET, _PUSH, _ATTRIBUTE = b"%~>|"
_AGGREGATES = frozenset((_ARRAY, _MAP, _SET, _PUSH, _ATTRIBUTE))
_BULKS = frozenset((_BULK, _BULK_ERROR, _VERBATIM))
_DIGITS = frozenset(b"0123456789")


class Parser:
    """Turns bytes into values. After a :class:`ProtocolError` it is of no further use."""

    __slots__ = ("_buffer", "_bulk", "_position", "_reply_bytes", "_scanned", "_stack")

    def __init__(self) -> None:
        self._buffer = bytearray()
        # The next byte to read, and how far the search for the end of its line has come.
        self._position = 0
        self._scanned = 0
        # Bytes that the value under construction has taken so far.
        self._reply_bytes = 0
        # The kind and length of a bulk string whose header was read, or None.
        self._bulk: tuple[int, int] | None = None
        self._stack: list[_Frame] = []

    @property
    def idle(self) -> bool:
        """True between two values: nothing is buffered or half read."""
        return self._position == len(self._buffer) and not self._stack and self._bulk is None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Takes more bytes."""
        if self._position:
            del self._buffer[: self._position]
            self._scanned -= self._position
            self._position = 0
        self._buffer += data

    def next(self) -> Any:
        """The next whole value, or :data:`INCOMPLETE`."""
        while True:
            value = self._element()
            if value is INCOMPLETE:
                return INCOMPLETE
            # A value completes the innermost aggregate, which may complete the one around it.
            while value is not _OPENED:
                if not self._stack:
                    self._reply_bytes = 0
                    return value
                frame = self._stack[-1]
                frame.items.append(value)
                frame.left -= 1
                if frame.left:
                    break
                self._stack.pop()
                value = _finish(frame)

    def _element(self) -> Any:
        """One scalar, :data:`_OPENED` for a header of an aggregate, or :data:`INCOMPLETE`."""
        if self._bulk is not None:
            return self._bulk_body()
        line = self._line()
        if line is None:
            return INCOMPLETE
        if not line:
            raise ProtocolError("the server sent an empty line where a reply was due")
        kind = line[0]
        if kind in _BULKS:
            length = _length(line, BULK_BYTES_MAX, nullable=kind == _BULK)
            if length < 0:
                return None
            self._count(length + 2)
            self._bulk = (kind, length)
            return self._bulk_body()
        if kind in _AGGREGATES:
            return self._open(kind, line)
        return _scalar(kind, line)

    def _open(self, kind: int, line: bytes) -> Any:
        length = _length(line, ELEMENTS_MAX, nullable=kind == _ARRAY)
        if length < 0:
            return None
        if len(self._stack) >= DEPTH_MAX:
            raise ProtocolError(f"the server nested a reply deeper than {DEPTH_MAX} levels")
        left = length * 2 if kind in (_MAP, _ATTRIBUTE) else length
        frame = _Frame(kind, left)
        if left == 0:
            return _finish(frame)
        self._stack.append(frame)
        return _OPENED

    def _line(self) -> bytes | None:
        """A line without its end, or None if it is not all there."""
        buffer = self._buffer
        end = buffer.find(b"\r\n", max(self._scanned, self._position))
        # Without an end in sight, the last byte may be the first half of it.
        taken = (len(buffer) - 1 if end < 0 else end) - self._position
        if taken > LINE_BYTES_MAX:
            raise ProtocolError(f"the server sent a line longer than {LINE_BYTES_MAX} bytes")
        if end < 0:
            self._scanned = max(self._position, len(buffer) - 1)
            return None
        line = bytes(buffer[self._position : end])
        self._count(end + 2 - self._position)
        self._position = self._scanned = end + 2
        return line

    def _bulk_body(self) -> Any:
        assert self._bulk is not None
        kind, length = self._bulk
        start = self._position
        end = start + length
        if len(self._buffer) < end + 2:
            return INCOMPLETE
        if self._buffer[end : end + 2] != b"\r\n":
            raise ProtocolError("the server sent a bulk string that does not end where it says")
        data = bytes(memoryview(self._buffer)[start:end])
        self._position = self._scanned = end + 2
        self._bulk = None
        if kind == _BULK:
            return data
        text = data.decode("utf-8", "replace")
        if kind == _BULK_ERROR:
            return ErrorReply(text)
        if length < 4 or data[3:4] != b":":
            raise ProtocolError("the server sent a verbatim string without its format")
        return text[4:]

    def _count(self, length: int) -> None:
        self._reply_bytes += length
        if self._reply_bytes > REPLY_BYTES_MAX:
            raise ProtocolError(f"the server sent a reply of more than {REPLY_BYTES_MAX} bytes")


# An aggregate's header was read and its elements are to come; or an attribute, which is no value.
_OPENED: Final = object()


def _length(line: bytes, maximum: int, *, nullable: bool) -> int:
    if nullable and line[1:] == b"-1":
        return -1
    value = _integer(line[1:], signed=False)
    if value > maximum:
        raise ProtocolError(
            f"the server announced {value} in {line[:1]!r}; at most {maximum} are accepted"
        )
    return value


def _integer(text: bytes, *, signed: bool = True, digits_max: int = DIGITS_MAX) -> int:
    digits = text[1:] if signed and text[:1] in (b"-", b"+") else text
    if not digits or len(digits) > digits_max or not _DIGITS.issuperset(digits):
        raise ProtocolError(f"the server sent {text[:32]!r} where a number was due")
    return int(text)


def _scalar(kind: int, line: bytes) -> Any:
    if kind == _INTEGER:
        value = _integer(line[1:])
        if not -(2**63) <= value < 2**63:
            raise ProtocolError(f"the server sent an integer beyond 64 bits: {value}")
        return value
    if kind == _SIMPLE:
        return line[1:].decode("utf-8", "replace")
    if kind == _ERROR:
        return ErrorReply(line[1:].decode("utf-8", "replace"))
    if kind == _NULL and len(line) == 1:
        return None
    if kind == _BOOLEAN and line in (b"#t", b"#f"):
        return line == b"#t"
    if kind == _DOUBLE:
        return _double(line[1:])
    if kind == _BIG:
        return _integer(line[1:], digits_max=BIG_NUMBER_DIGITS_MAX)
    raise ProtocolError(
        f"the server sent {line[:32]!r}, which is no reply: is something else listening there?"
    )


_DOUBLE_BYTES = frozenset(b"0123456789+-.eE")


def _double(text: bytes) -> float:
    if text in (b"inf", b"-inf", b"nan", b"+inf", b"-nan"):
        return float(text)
    try:
        if not _DOUBLE_BYTES.issuperset(text):
            raise ValueError
        return float(text)
    except ValueError:
        raise ProtocolError(f"the server sent {text[:32]!r} where a number was due") from None


def _finish(frame: _Frame) -> Any:
    if frame.kind == _MAP:
        return as_map(frame.items)
    if frame.kind == _PUSH:
        return Push(frame.items)
    if frame.kind == _ATTRIBUTE:
        return _OPENED
    return frame.items


def as_map(reply: Any) -> dict[Any, Any]:
    """A map from a RESP3 map, or from the flat array that RESP2 has instead."""
    if isinstance(reply, dict):
        return reply
    if not isinstance(reply, list) or len(reply) % 2:
        raise ProtocolError("the server sent something else where a map was due")
    result: dict[Any, Any] = {}
    for key, value in zip(reply[0::2], reply[1::2], strict=True):
        if isinstance(key, bytes):
            try:
                key = key.decode("utf-8")
            except UnicodeDecodeError:
                pass
        elif isinstance(key, (list, dict)):
            raise ProtocolError("the server sent a map whose key is an aggregate")
        result[key] = value
    return result
