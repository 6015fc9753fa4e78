"""What can go wrong between a client and the daemon.

Every exception is a :class:`KvasirError` with a ``code`` for programs and a message for people that
says what to do. An engine connector catches :class:`KvasirError` and computes instead: a cache
failure only makes the engine slower.
"""

from __future__ import annotations

__all__ = [
    "ConnectionLost",
    "DiskFailed",
    "KeyGap",
    "KvasirError",
    "LeaseExpired",
    "LimitReached",
    "NoTier",
    "NotConnected",
    "ProtocolError",
    "ServerError",
    "StoreFull",
    "Timeout",
    "UnknownLease",
    "UnknownSpace",
    "server_error",
]


class KvasirError(Exception):
    """The base of all errors of this package."""

    #: A short word for programs and metrics. Errors from the daemon carry the daemon's code.
    code: str = "KVASIR"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        """The sentence without the code."""
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.code))


def _rebuild(kind: type[KvasirError], message: str, code: str) -> KvasirError:
    return kind(message, code=code)


class NotConnected(KvasirError):
    """There is no connection, and none could be made now."""

    code = "NOTCONNECTED"


class ConnectionLost(KvasirError):
    """The connection ended under a request; whether the daemon carried it out is not known."""

    code = "CONNECTIONLOST"


class Timeout(KvasirError):
    """No answer in time."""

    code = "TIMEOUT"


class ProtocolError(KvasirError):
    """The other side sent what the protocol does not allow; the connection is closed."""

    code = "PROTOCOL"


class ServerError(KvasirError):
    """The daemon answered with an error. ``code`` is its code word, such as ``KVGAP``."""

    code = "ERR"

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class LeaseExpired(ServerError):
    """The deadline had passed: what was copied under this lease must be discarded."""

    code = "KVEXPIRED"


class StoreFull(ServerError):
    """Everything is held, pinned or being written: nothing can be evicted now."""

    code = "KVFULL"


class UnknownLease(ServerError):
    """No such hold or lease: it ended, belongs to another session, or to an earlier daemon."""

    code = "KVLEASE"


class UnknownSpace(ServerError):
    """No such space handle. The client opens its spaces again by itself."""

    code = "KVSPACE"


class KeyGap(ServerError):
    """The keys neither start at chunk 0 nor follow a chunk that the daemon holds."""

    code = "KVGAP"


class LimitReached(ServerError):
    """One of the daemon's limits; the message names it."""

    code = "KVLIMIT"


class DiskFailed(ServerError):
    """The disk could not keep all that it was given: it is in memory only, as long as that lasts.

    The message has the reason and what to do; later saves may fare better.
    """

    code = "KVDISK"


class NoTier(ServerError):
    """The command needs a tier that the daemon was started without."""

    code = "KVNOTIER"


_BY_CODE: dict[str, type[KvasirError]] = {
    "KVEXPIRED": LeaseExpired,
    "KVFULL": StoreFull,
    "KVLEASE": UnknownLease,
    "KVSPACE": UnknownSpace,
    "KVGAP": KeyGap,
    "KVLIMIT": LimitReached,
    "KVDISK": DiskFailed,
    "KVNOTIER": NoTier,
    "KVTIMEOUT": Timeout,
}


def server_error(line: str) -> KvasirError:
    """The exception for an error reply, which is a code word and a sentence."""
    code, _, message = line.partition(" ")
    if not code.isupper():
        code, message = "ERR", line
    return _BY_CODE.get(code, ServerError)(message or code, code=code)
