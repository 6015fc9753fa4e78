"""What a client holds at the daemon: holds, read leases and write leases.

All are context managers that give back what they hold. They belong to one connection: after a
reconnect the daemon has ended them, and they say so themselves instead of asking a daemon that may
be another one.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import (
    ConnectionLost,
    KvasirError,
    LeaseExpired,
    NotConnected,
    Timeout,
    UnknownLease,
)
from .hints import NO_HINT, Hint
from .identity import Space

if TYPE_CHECKING:
    from typing_extensions import Self

    from .client import Client

__all__ = [
    "ABSENT",
    "BEING_WRITTEN",
    "DISK",
    "GONE_OFFSET",
    "GRANTED",
    "MEMORY",
    "PEER",
    "PENDING_OFFSET",
    "PRESENT",
    "REFUSED",
    "REMOTE",
    "Explanation",
    "Hold",
    "Location",
    "Match",
    "OpenSpace",
    "ReadLease",
    "ReserveRequest",
    "WriteLease",
]

#: Offsets in an extent that are no offsets.
PENDING_OFFSET: Final = 2**64 - 1
GONE_OFFSET: Final = 2**64 - 2

#: Tiers, as in ``Match.tiers``. The disk's chunks may be on their way to memory.
MEMORY: Final = 1
DISK: Final = 2
REMOTE: Final = 3
PEER: Final = 4


class Location(enum.IntEnum):
    """Where a chunk is: the bytes that ``Client.locate`` gives."""

    ABSENT = 0
    #: In memory only: it is lost with the daemon.
    MEMORY = 1
    #: On disk only.
    DISK = 2
    MEMORY_AND_DISK = 3
    #: On disk, and on its way to memory.
    ON_ITS_WAY = 4
    #: Reserved and not sealed yet: it can't be matched.
    BEING_WRITTEN = 255


ABSENT: Final = Location.ABSENT
BEING_WRITTEN: Final = Location.BEING_WRITTEN

#: States of the keys of a reserve, as in ``WriteLease.states`` (the third is being written).
GRANTED: Final = 0
PRESENT: Final = 1
WRITING: Final = 2
REFUSED: Final = 3

Extents = npt.NDArray[np.uint64]


class OpenSpace(NamedTuple):
    """A space as the daemon knows it, until the next reconnect."""

    handle: int
    id: bytes
    #: Bytes of an extent of each shard.
    shard_bytes: list[int]


class Explanation(NamedTuple):
    """Why the first key that does not match does not."""

    matched: int
    code: str
    sentence: str


class ReserveRequest(NamedTuple):
    """One of several reserves in a round trip; the arguments of ``Client.reserve``."""

    space: Space
    root: bytes
    keys: bytes
    parent: bytes | None = None
    ttl_ms: int = 60_000
    hint: Hint = NO_HINT


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a prompt is stored."""

    #: Leading keys that are sealed.
    count: int
    #: The tier of each of them, one byte each.
    tiers: bytes
    #: Keeps them until read; None unless asked for and something matched.
    hold: Hold | None


class _Held:
    """What holds, read leases and write leases share."""

    __slots__ = ("__weakref__", "_client", "_incarnation", "_result", "id")

    def __init__(self, client: Client, incarnation: int, id: int) -> None:
        self._client = client
        self._incarnation = incarnation
        self._result: bool | None = None
        #: The daemon's number for it; 0 means nothing.
        self.id = id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{'' if self._result is None else ', released'}>"

    @property
    def incarnation(self) -> int:
        """The ``Client.incarnation`` that it belongs to."""
        return self._incarnation

    @property
    def released(self) -> bool:
        """True once given back."""
        return self._result is not None

    def release(self) -> bool:
        """Gives it back; False if its deadline had passed or its connection ended.

        Asks the daemon once; later calls give the first answer again.
        """
        if self._result is None:
            self._result = self._release()
        return self._result

    def _release(self) -> bool:
        if self.id == 0:
            return True
        if self._client.incarnation != self._incarnation:
            return False
        try:
            return self._client.release(self.id, incarnation=self._incarnation)
        except (ConnectionLost, NotConnected, Timeout, UnknownLease):
            # It ended with the connection, which is as final as an expiry.
            return False

    def __enter__(self) -> Self:
        return self


class Hold(_Held):
    """Matched chunks that stay until read, the deadline, or the release."""

    __slots__ = ("count", "deadline")

    def __init__(
        self, client: Client, incarnation: int, id: int, count: int, deadline: float
    ) -> None:
        super().__init__(client, incarnation, id)
        #: How many chunks it holds.
        self.count = count
        #: When it ends, in ``time.monotonic()`` seconds; a little early rather than late.
        self.deadline = deadline

    @property
    def expired(self) -> bool:
        """True once the deadline has passed."""
        return time.monotonic() >= self.deadline

    def acquire(self, shard: int, *, first: int = 0, count: int | None = None) -> ReadLease:
        """A read lease on this shard of the held chunks."""
        return self._client.acquire(self, shard, first=first, count=count)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Nothing depends on the answer, and what went wrong inside matters more.
        with contextlib.suppress(KvasirError):
            self.release()


class ReadLease(_Held):
    """A claim to read one shard of matched chunks.

    What was copied counts only once :meth:`release` has said True. As a context manager it raises
    :class:`LeaseExpired` at the end if the copies must be discarded.
    """

    __slots__ = ("extents", "shard")

    def __init__(
        self, client: Client, incarnation: int, id: int, shard: int, extents: Extents
    ) -> None:
        super().__init__(client, incarnation, id)
        self.shard = shard
        #: (offset, length) of each chunk, as an array of shape (n, 2).
        self.extents = extents

    def __len__(self) -> int:
        return len(self.extents)

    @property
    def pending(self) -> bool:
        """True while some chunk is on its way to memory: :meth:`wait`."""
        return bool((self.extents[:, 0] == PENDING_OFFSET).any())

    @property
    def gone(self) -> list[int]:
        """Chunks that failed; the first of them and all after it are a miss."""
        return [int(i) for i in np.flatnonzero(self.extents[:, 0] == GONE_OFFSET)]

    @property
    def usable(self) -> int:
        """How many leading chunks can be read now."""
        bad = np.flatnonzero(self.extents[:, 0] >= GONE_OFFSET)
        return int(bad[0]) if len(bad) else len(self.extents)

    def wait(self, timeout: float = 5.0) -> ReadLease:
        """Waits until nothing is pending; blocks no other request. Raises ``Timeout``."""
        if self.pending:
            self.extents = self._client.wait(self, timeout)
        return self

    def view(self, index: int) -> memoryview:
        """The bytes of one chunk in the arena, read-only and without a copy."""
        offset, length = self._extent(index)
        return self._client.arena_of(self).view(offset, length)

    def array(
        self, index: int, dtype: npt.DTypeLike = np.uint8, shape: Sequence[int] | None = None
    ) -> npt.NDArray[Any]:
        """The same as a read-only numpy array."""
        array: npt.NDArray[Any] = np.frombuffer(self.view(index), dtype=dtype)
        return array if shape is None else array.reshape(tuple(shape))

    def _extent(self, index: int) -> tuple[int, int]:
        if self._result is not None:
            raise LeaseExpired(f"read lease {self.id} was released: acquire again")
        offset, length = (int(value) for value in self.extents[index])
        if offset == PENDING_OFFSET:
            raise KvasirError(
                f"chunk {index} is still on its way to memory: call wait()", code="PENDING"
            )
        if offset == GONE_OFFSET:
            raise KvasirError(
                f"chunk {index} failed its check or its tier: treat it and all after it as a miss",
                code="GONE",
            )
        return offset, length

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            with contextlib.suppress(KvasirError):
                self.release()
            return
        if not self.release():
            raise LeaseExpired(
                f"read lease {self.id} ended before its release: discard what was copied"
            )


class WriteLease(_Held):
    """A claim to write the chunks that were granted."""

    __slots__ = ("_done", "_greeting", "extents", "granted", "reason", "shards", "states")

    def __init__(
        self,
        client: Client,
        incarnation: int,
        greeting: Any,
        id: int,
        states: bytes,
        extents: Extents,
        reason: str,
    ) -> None:
        super().__init__(client, incarnation, id)
        self._greeting = greeting
        #: One byte for each key: 0 granted, 1 present, 2 being written by another, 3 refused.
        self.states = states
        #: Positions in the keys that are to be written.
        self.granted = [i for i, state in enumerate(states) if state == GRANTED]
        #: Shape (len(granted), shards, 2): offset and length, in the order of ``granted``.
        self.extents = extents
        self.shards = int(extents.shape[1])
        #: Why chunks were refused, as a code and a sentence; else empty.
        self.reason = reason
        self._done: set[tuple[int, int]] = set()

    def extent(self, position: int, shard: int) -> tuple[int, int]:
        """Offset and length of one granted extent."""
        try:
            offset, length = self.extents[self.granted.index(position), shard]
        except ValueError:
            raise KvasirError(
                f"chunk {position} was not granted: write only what .granted lists", code="KVARG"
            ) from None
        return int(offset), int(length)

    def view(self, position: int, shard: int) -> memoryview:
        """The writable bytes of one extent in the arena."""
        if self._result is not None:
            raise LeaseExpired(f"write lease {self.id} was released: nothing may be written now")
        offset, length = self.extent(position, shard)
        return self._client.arena_of(self).view(offset, length, writable=True)

    def commit(self, shard: int, positions: Sequence[int] | None = None) -> int:
        """Says that a shard of these chunks (by default all) is written; how many it sealed."""
        sealed = self._client.commit(self, shard, positions)
        self._done |= {(p, shard) for p in (self.granted if positions is None else positions)}
        return sealed

    @property
    def committed(self) -> bool:
        """True once every shard of every granted chunk was committed through this object."""
        return len(self._done) == len(self.granted) * self.shards

    def release(self, shard: int | None = None) -> bool:
        """Ends the lease; what is not sealed is freed. With ``shard`` only this shard's part."""
        if shard is None:
            return super().release()
        if self.id == 0 or self._result is not None:
            return True
        if self._client.incarnation != self._incarnation:
            return False
        return self._client.release(self.id, shard, incarnation=self._incarnation)

    def _release(self) -> bool:
        if self.id and self._client.incarnation != self._incarnation:
            # The daemon keeps what we may still have been writing until we say that we are done.
            with contextlib.suppress(KvasirError):
                self._client._release_remains(self.id, self._greeting)
        return super()._release()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.committed:
            self._result = True
            return
        # A release that can't be said needs none: the lease has ended with the connection.
        with contextlib.suppress(KvasirError):
            self.release()


def stale(held: _Held) -> ConnectionLost:
    """The error for something that belongs to a connection that has ended."""
    return ConnectionLost(
        f"{held!r} ended with the connection that it belongs to: discard what was copied and ask "
        "again"
    )
