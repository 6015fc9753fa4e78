"""The client of a Kvasir daemon on this host."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import select
import threading
import time
import uuid
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from . import _resp
from ._link import ArenaLink, Wake
from ._resp import Argument, ErrorReply
from ._socket import Connection, close_all, socket_path
from .arena import Arena
from .errors import (
    ConnectionLost,
    KvasirError,
    NotConnected,
    ProtocolError,
    Timeout,
    server_error,
)
from .hints import FOREVER, NO_HINT, Hint
from .identity import KEY_BYTES, Space
from .leases import (
    Explanation,
    Extents,
    Hold,
    Match,
    OpenSpace,
    ReadLease,
    ReserveRequest,
    WriteLease,
    stale,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Client"]

_LOG: Final = logging.getLogger("kvasir")

KEYS_MAX: Final = 65_536
SESSION_BYTES_MAX: Final = 128
#: Connections for requests that may take long, at one time.
SIDE_CONNECTIONS_MAX: Final = 16
CONNECT_SECONDS_MAX: Final = 1.0
BACKOFF_SECONDS_MIN: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 2.0
#: Reserves get a random number by which they can be taken back if their reply is lost.
TAG_BITS: Final = 62
#: So many of them are remembered while there is no connection.
ORPHANS_MAX: Final = 1024
#: How much longer than the daemon we wait for a reply that it promised in time.
GRACE_SECONDS: Final = 1.0
#: The longest time that the daemon can be asked to wait.
#: The longest time to live, and the shortest that slides.
LIFETIME_MS_MAX: Final = 31_536_000_000
SLIDING_MS_LEAST: Final = 2000
SERVER_WAIT_MS_MAX: Final = 600_000


class _Resources:
    """What must be let go when a client ends, kept apart from it so that a finalizer can."""

    __slots__ = ("background", "connection", "link", "side_busy", "side_idle")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.side_idle: list[Connection] = []
        self.side_busy: set[Connection] = set()
        self.link: ArenaLink | None = None
        self.background: Wake | None = None

    def dispose(self) -> None:
        """Lets everything go without waiting and without locks: nobody uses the client any more."""
        if self.link is not None:
            self.link.signal()
        if self.background is not None:
            self.background.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Closes the sockets of requests."""
        for connection in (self.connection, *self.side_idle, *self.side_busy):
            if connection is not None:
                connection.close()


class Client:
    """A connection to the daemon, its arena, and everything that can be asked of it.

    Safe in threads: one lock goes around each request and its reply, and what may take long uses a
    connection of its own. Safe after fork: the child starts anew on its first request and leaves
    the parent's connections alone.

    A request that finds no connection tries once to make one, if the last attempt is old enough
    (0.1 s, doubling to 2 s), and else raises :class:`NotConnected` at once. With
    ``reconnect_in_background`` requests never connect; a thread does. Holds and leases end with
    the connection; ``incarnation`` tells one from the next.

    Parameters
    ----------
    socket: the daemon's socket; by default found by the rule in ``docs/protocol.md``.
    session: the engine that this client belongs to, the same in all of its processes; by default
        one of its own.
    timeout: seconds for a request, unless the call says otherwise.
    name: what the daemon's list of clients shows.
    auto_connect: requests connect by themselves; else only :meth:`connect` does.
    reconnect_in_background: a thread connects, requests never do.
    read_only: the arena is mapped for reading only.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        session: str | None = None,
        timeout: float = 5.0,
        name: str = "python",
        auto_connect: bool = True,
        reconnect_in_background: bool = False,
        read_only: bool = False,
    ) -> None:
        _check_word("session", session if session is not None else "default")
        _check_word("name", name)
        self._named_socket = socket
        self._named_session = session
        self._timeout = timeout
        self._name = name
        self._auto_connect = auto_connect
        self._in_background = reconnect_in_background
        self._read_only = read_only
        self._incarnation = 0
        self._closed = False
        self._begin()
        _remember(self)
        if reconnect_in_background:
            self._ensure_background()

    def _begin(self) -> None:
        """The state of a process that has not connected yet, such as a forked child."""
        self._lock = threading.Lock()
        self._side_lock = threading.Lock()
        self._side_room = threading.BoundedSemaphore(SIDE_CONNECTIONS_MAX)
        self._arena_lock = threading.Lock()
        self._session = self._named_session or f"python-{uuid.uuid4().hex}"
        self._path = ""
        self._handles: dict[bytes, OpenSpace] = {}
        self._lives: dict[bytes, tuple[Argument, ...]] = {}
        # What the daemon said of its arena when we connected: size, id, bytes faulted in.
        self._greeting: Any = None
        # Tags of reserves whose reply was lost, each with the greeting of its daemon.
        self._orphans: list[tuple[Any, int]] = []
        self._arena_checked = 0
        self._last_attempt = -BACKOFF_SECONDS_MAX
        self._backoff = BACKOFF_SECONDS_MIN
        self._last_error = ""
        self._resources = _Resources()
        self._finalizer = weakref.finalize(self, self._resources.dispose)
        # The kernel cleans up after a process; threads and devices are past talking to by then.
        self._finalizer.atexit = False

    # Connecting

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<kvasir.Client {self._path or self._named_socket or ''} {state}>"

    @property
    def connected(self) -> bool:
        """True if there is a connection, as far as can be known without asking."""
        connection = self._resources.connection
        return connection is not None and not connection.hung_up()

    @property
    def incarnation(self) -> int:
        """Raised by one at each connect. Holds, leases and handles belong to one."""
        return self._incarnation

    @property
    def session(self) -> str:
        """The session's id at the daemon."""
        return self._session

    @property
    def socket(self) -> str:
        """The path that was connected to last, or would be now."""
        return self._path or socket_path(self._named_socket)

    def connect(self, timeout: float | None = None) -> None:
        """Connects now, whatever the backoff says. Does nothing if connected."""
        deadline = self._deadline(timeout)
        with self._locked(deadline):
            self._closed = False
            self._drop_if_stale()
            if self._resources.connection is None:
                self._connect(deadline)
            if self._in_background:
                self._ensure_background()

    def close(self) -> None:
        """Ends connections and threads and unmaps the arena; :meth:`connect` opens again."""
        self._closed = True
        connection = self._resources.connection
        if connection is not None:
            connection.shut()
        with self._lock:
            self._lose()
            background, self._resources.background = self._resources.background, None
            thread, self._background_thread = self._background_thread, None
        with self._arena_lock:
            link, self._resources.link = self._resources.link, None
            self._arena_checked = 0
            if link is not None:
                link.stop()
        if background is not None:
            background.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CONNECT_SECONDS_MAX + GRACE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Spaces

    def open(self, space: Space, *, timeout: float | None = None) -> OpenSpace:
        """Makes a space known to the daemon. The other calls do this by themselves."""
        deadline = self._deadline(timeout)
        with self._locked(deadline):
            return self._open(self._connection(deadline), space, deadline)

    def spaces(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """What the daemon knows of each space."""
        reply = self._ask("KV.SPACES", timeout=timeout)
        if not isinstance(reply, list):
            raise _unexpected("KV.SPACES")
        return [_readable_map(entry) for entry in reply]

    # Loading

    def match(
        self,
        space: Space,
        root: bytes,
        keys: bytes,
        *,
        hold_ms: int = 0,
        readers: int = 1,
        hint: Hint = NO_HINT,
        timeout: float | None = None,
    ) -> Match:
        """How many of the leading ``keys`` (packed) are stored, and a hold on them if asked for.

        ``hint``: what is known of the time after this request.
        """
        _check_keys(keys)
        arguments: list[Argument] = [root, keys, *hint.arguments]
        if hold_ms:
            arguments += ["HOLD", hold_ms, "READERS", readers]
        deadline = time.monotonic() + hold_ms / 1000
        reply, incarnation = self._ask_space("KV.MATCH", space, arguments, timeout)
        match reply:
            case [int(count), bytes(tiers), int(hold)] if len(tiers) == count:
                pass
            case _:
                raise _unexpected("KV.MATCH")
        held = Hold(self, incarnation, hold, count, deadline) if hold else None
        return Match(count, tiers, held)

    def acquire(
        self,
        hold: int | Hold,
        shard: int,
        *,
        first: int = 0,
        count: int | None = None,
        incarnation: int | None = None,
        timeout: float | None = None,
    ) -> ReadLease:
        """A read lease on one shard of held chunks: at once, some perhaps still pending.

        Another process's hold is given by its id. Then ``incarnation`` says which connection of
        this client it was meant for, so that a daemon started since is not asked.
        """
        if isinstance(hold, Hold):
            number, incarnation = hold.id, hold.incarnation
        else:
            number = hold
        arguments: list[Argument] = ["KV.ACQUIRE", number, shard]
        if first:
            arguments += ["FROM", first]
        if count is not None:
            arguments += ["COUNT", count]
        (reply,), incarnation = self._request(
            _resp.encode_command(*arguments), 1, timeout, incarnation
        )
        match _checked(reply):
            case [int(lease), bytes(packed)] if len(packed) % 16 == 0:
                return ReadLease(self, incarnation, lease, shard, _extents(packed))
            case _:
                raise _unexpected("KV.ACQUIRE")

    def wait(self, lease: ReadLease, timeout: float = 5.0) -> Extents:
        """The extents of a read lease once nothing is pending. Blocks no other request."""
        command = _resp.encode_command("KV.WAIT", lease.id, max(1, round(timeout * 1000)))
        reply = self._ask_aside(command, timeout + GRACE_SECONDS, lease.incarnation)
        if not isinstance(reply, bytes) or len(reply) != lease.extents.nbytes:
            raise _unexpected("KV.WAIT")
        return _extents(reply)

    # The request log

    def log_requests(self, *, timeout: float | None = None) -> bool:
        """Says that this session tells of its requests itself, by :meth:`log_request`.

        Else each of its matches counts as a request in the daemon's request log. Whether the
        daemon keeps one.
        """
        return _integer("KV.REQUEST", self._ask("KV.REQUEST", timeout=timeout)) != 0

    def log_request(
        self,
        space: Space,
        root: bytes,
        keys: bytes,
        tokens: int,
        *,
        hint: Hint = NO_HINT,
        timeout: float | None = None,
    ) -> bool:
        """Tells of a request, for the daemon's request log; whether the daemon keeps one.

        ``keys``: those of all full chunks of the prompt, from the first one on (none, if it is
        shorter than a chunk). ``tokens``: its whole length.
        """
        if keys:
            _check_keys(keys)
        said = Hint(hint.expectation, hint.seconds).arguments
        arguments: list[Argument] = [root, keys, "TOKENS", tokens, *said]
        reply, _ = self._ask_space("KV.REQUEST", space, arguments, timeout)
        return _integer("KV.REQUEST", reply) != 0

    # Saving

    def reserve(
        self,
        space: Space,
        root: bytes,
        keys: bytes,
        *,
        parent: bytes | None = None,
        ttl_ms: int = 60_000,
        hint: Hint = NO_HINT,
        timeout: float | None = None,
    ) -> WriteLease:
        """Room for those of ``keys`` (consecutive chunks, packed) that are not stored.

        They start at chunk 0, or the first of them follows ``parent``.
        """
        request = ReserveRequest(space, root, keys, parent, ttl_ms, hint)
        (result,) = self.pipeline_reserve([request], timeout=timeout)
        if isinstance(result, KvasirError):
            raise result
        return result

    def pipeline_reserve(
        self, requests: Sequence[ReserveRequest], *, timeout: float | None = None
    ) -> list[WriteLease | KvasirError]:
        """Several reserves in one round trip. What the daemon refuses is an error in its place."""
        if not requests:
            return []
        for request in requests:
            _check_keys(request.keys)
        deadline = self._deadline(timeout)
        tags = [secrets.randbits(TAG_BITS) for _ in requests]
        for attempt in (1, 2):
            with self._locked(deadline):
                connection = self._connection(deadline)
                opened = [self._open(connection, r.space, deadline) for r in requests]
                payload = b"".join(map(_encode_reserve, requests, opened, tags))
                try:
                    replies = self._exchange(connection, payload, len(requests), deadline)
                except BaseException:
                    # What was granted is not known, and nobody writes there: it is given back as
                    # soon as there is a connection again.
                    self._orphans = (self._orphans + [(self._greeting, tag) for tag in tags])[
                        -ORPHANS_MAX:
                    ]
                    raise
                incarnation, greeting = self._incarnation, self._greeting
                unknown = [
                    request.space
                    for request, reply in zip(requests, replies, strict=True)
                    if _is_unknown_space(reply)
                ]
                for space in unknown:
                    self._handles.pop(space.id, None)
            # Only when none was carried out can all be said again.
            if len(unknown) < len(requests) or attempt == 2:
                break
        return [
            self._write_lease(request, reply, incarnation, greeting)
            for request, reply in zip(requests, replies, strict=True)
        ]

    def _write_lease(
        self, request: ReserveRequest, reply: Any, incarnation: int, greeting: Any
    ) -> WriteLease | KvasirError:
        if isinstance(reply, ErrorReply):
            return server_error(reply.line)
        match reply:
            case [int(lease), bytes(states), bytes(packed), bytes() | str() | None as reason]:
                pass
            case _:
                raise _unexpected("KV.RESERVE")
        granted = states.count(0)
        shards = request.space.shards
        if (
            len(states) * KEY_BYTES != len(request.keys)
            or len(packed) != granted * shards * 16
            or (lease == 0 and granted)
        ):
            raise _unexpected("KV.RESERVE")
        extents = _extents(packed).reshape(granted, shards, 2)
        text = _text(reason or b"")
        return WriteLease(self, incarnation, greeting, lease, states, extents, text)

    def commit(
        self,
        lease: int | WriteLease,
        shard: int,
        positions: Sequence[int] | None = None,
        *,
        incarnation: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Says that a shard of chunks (by default all granted) is written; how many are now sealed.

        Another process's lease is given by its id; see :meth:`acquire` about ``incarnation``.
        """
        if isinstance(lease, WriteLease):
            number, incarnation = lease.id, lease.incarnation
        else:
            number = lease
        chunks: Argument = "ALL"
        if positions is not None:
            chunks = np.asarray(positions, dtype="<u4").tobytes()
        command = _resp.encode_command("KV.COMMIT", number, shard, chunks)
        (reply,), _ = self._request(command, 1, timeout, incarnation)
        return _integer("KV.COMMIT", _checked(reply))

    def release(
        self,
        id: int,
        shard: int | None = None,
        *,
        incarnation: int | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Gives back a hold or a lease. False: it had expired, so discard what was copied."""
        arguments: list[Argument] = ["KV.RELEASE", id]
        if shard is not None:
            arguments += ["SHARD", shard]
        (reply,), _ = self._request(_resp.encode_command(*arguments), 1, timeout, incarnation)
        text = _text(_checked(reply))
        if text not in ("OK", "EXPIRED"):
            raise _unexpected("KV.RELEASE")
        return text == "OK"

    def _release_remains(self, id: int, greeting: Any) -> None:
        """Gives back what a write lease of an ended connection left in quarantine.

        Only the daemon that gave the lease is asked: to another its id means something else.
        """
        deadline = self._deadline(None)
        command = _resp.encode_command("KV.RELEASE", id)
        with self._locked(deadline):
            connection = self._connection(deadline)
            if self._same_daemon(greeting):
                self._exchange(connection, command, 1, deadline)

    # Housekeeping

    def locate(
        self, space: Space, root: bytes, keys: bytes, *, timeout: float | None = None
    ) -> bytes:
        """Where each key is: one byte each, as :class:`Location` names them. Touches nothing."""
        _check_keys(keys)
        reply, _ = self._ask_space("KV.LOCATE", space, [root, keys], timeout)
        if not isinstance(reply, bytes) or len(reply) * KEY_BYTES != len(keys):
            raise _unexpected("KV.LOCATE")
        return reply

    def explain(
        self, space: Space, root: bytes, keys: bytes, *, timeout: float | None = None
    ) -> Explanation:
        """Why the first key that does not match does not."""
        _check_keys(keys)
        reply, _ = self._ask_space("KV.EXPLAIN", space, [root, keys], timeout)
        match reply:
            case [int(matched), bytes() | str() as code, bytes() | str() as sentence]:
                return Explanation(matched, _text(code), _text(sentence))
            case _:
                raise _unexpected("KV.EXPLAIN")

    def prefetch(
        self, space: Space, root: bytes, keys: bytes, *, timeout: float | None = None
    ) -> int:
        """Starts moving keys to memory; how many leading ones are there or on their way.

        Waits for nothing: a lease on them says which are still :attr:`ReadLease.pending`. Where
        memory has no room for all, the number is smaller.
        """
        return self._count("KV.PREFETCH", space, root, keys, (), timeout)

    def pin(
        self,
        space: Space,
        root: bytes,
        keys: bytes,
        ms: int | Literal["forever"],
        *,
        timeout: float | None = None,
    ) -> int:
        """Keeps keys from eviction for ``ms``; how many leading ones.

        ``"forever"``: with all that they follow, until they are unpinned or dropped. On a daemon
        with a disk they outlive restarts, and come to memory by themselves then.
        """
        duration: Argument = "FOREVER" if ms == FOREVER else ms
        return self._count("KV.PIN", space, root, keys, (duration,), timeout)

    def unpin(self, space: Space, root: bytes, keys: bytes, *, timeout: float | None = None) -> int:
        """Ends what :meth:`pin` began; of how many.

        What something follows that stays pinned forever stays so too.
        """
        return self._count("KV.UNPIN", space, root, keys, (), timeout)

    def expire(
        self,
        space: Space,
        root: bytes,
        keys: bytes,
        ms: int,
        *,
        sliding: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Drops keys after ``ms`` (0 takes the limit away); how many leading ones.

        ``sliding``: the time begins anew with each match that finds the key; from 2,000 ms on, by
        the second.
        """
        more = (ms, "SLIDING") if sliding else (ms,)
        return self._count("KV.EXPIRE", space, root, keys, more, timeout)

    def set_time_to_live(
        self, space: Space, ms: int, *, sliding: bool = False, timeout: float | None = None
    ) -> None:
        """Drops what is saved into the space from now on after ``ms`` (0: never).

        ``sliding``: as of :meth:`expire`. As :meth:`remember_time_to_live`, and tells it now.
        """
        self.remember_time_to_live(space, ms, sliding=sliding)
        self._ask_space("KV.EXPIRE", space, self._lives[space.id], timeout)

    def remember_time_to_live(self, space: Space, ms: int, *, sliding: bool = False) -> None:
        """Has every daemon told, when this client opens the space there; asks none now.

        Raises ValueError for a time that no daemon would take.
        """
        least = SLIDING_MS_LEAST if sliding and ms else 0
        if not least <= ms <= LIFETIME_MS_MAX:
            raise ValueError(f"a time to live has {least} to {LIFETIME_MS_MAX} ms, not {ms}")
        self._lives[space.id] = ("SPACE", ms, "SLIDING") if sliding else ("SPACE", ms)

    def drop_keys(
        self, space: Space, root: bytes, keys: bytes, *, timeout: float | None = None
    ) -> int:
        """Drops keys and all that follow them; how many chunks."""
        return self._count("KV.DROP", space, root, keys, (), timeout, word="KEYS")

    def drop_root(self, space: Space, root: bytes, *, timeout: float | None = None) -> int:
        """Drops everything under a root; how many chunks."""
        reply, _ = self._ask_space("KV.DROP", space, [root], timeout, word="ROOT")
        return _integer("KV.DROP", reply)

    def drop_space(self, space: Space, *, timeout: float | None = None) -> int:
        """Drops everything in a space; how many chunks."""
        reply, _ = self._ask_space("KV.DROP", space, [], timeout, word="SPACE")
        return _integer("KV.DROP", reply)

    def sync(self, *, timeout: float = 60.0) -> None:
        """Returns once all that was sealed or dropped before is durable. Blocks no other request.

        Raises :class:`DiskFailed` if the disk did not keep it, :class:`NoTier` if the daemon has
        no disk, :class:`Timeout` if it takes longer. The daemon waits ten minutes at most.
        """
        ms = min(max(0, round(timeout * 1000)), SERVER_WAIT_MS_MAX)
        self._ask_aside(_resp.encode_command("KV.SYNC", ms), timeout + GRACE_SECONDS, None)

    def stats(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's counters and gauges."""
        return _readable_map(self._ask("KV.STATS", timeout=timeout))

    def version(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's version, protocol, process id and time since its start."""
        return _readable_map(self._ask("KV.VERSION", timeout=timeout))

    def ping(self, *, timeout: float | None = None) -> float:
        """Asks for a sign of life; the round trip in seconds."""
        begin = time.perf_counter()
        if _text(self._ask("PING", timeout=timeout)) != "PONG":
            raise _unexpected("PING")
        return time.perf_counter() - begin

    def execute(self, *arguments: Argument, timeout: float | None = None) -> Any:
        """Any command, as ``redis-cli`` would send it, and its reply. For tools and tests."""
        return self._ask(*arguments, timeout=timeout)

    # The arena

    @property
    def arena(self) -> Arena:
        """The daemon's arena, mapped on first use. After a restart of the daemon it is another."""
        link = self._resources.link
        if link is not None and self._arena_checked == self._incarnation and link.arena.alive:
            return link.arena
        with self._arena_lock:
            return self._map_arena()

    @property
    def arena_id(self) -> bytes:
        """The id of the daemon's arena, without mapping it.

        Offsets that travel to another process travel with it: the other process compares it with
        its own ``client.arena.id`` before it touches anything.
        """
        deadline = self._deadline(None)
        with self._locked(deadline):
            self._connection(deadline)
            return self._current_arena_id()

    def arena_of(self, held: Hold | ReadLease | WriteLease) -> Arena:
        """The arena that a lease's extents are in, unless the daemon has changed since."""
        if held.incarnation != self._incarnation:
            raise stale(held)
        arena = self.arena
        if held.incarnation != self._incarnation:
            raise stale(held)
        return arena

    def _map_arena(self) -> Arena:
        deadline = self._deadline(None)
        with self._locked(deadline):
            self._connection(deadline)
            expected = self._current_arena_id()
            incarnation, path = self._incarnation, self._path
        link = self._resources.link
        if link is None or not link.arena.alive or link.arena.id != expected:
            if link is not None:
                self._resources.link = None
                link.stop()
            link = ArenaLink(
                path,
                self._name,
                deadline=deadline,
                timeout=self._connect_seconds(deadline),
                read_only=self._read_only,
            )
            if link.arena.id != expected:
                link.stop()
                raise ConnectionLost("the daemon was restarted just now: ask again")
            self._resources.link = link
            if self._closed:
                self._resources.link = None
                link.stop()
                raise NotConnected("this client was closed: call connect() to use it again")
        self._arena_checked = incarnation
        return link.arena

    def _current_arena_id(self) -> bytes:
        match self._greeting:
            case [int(), bytes(arena_id), int()]:
                return arena_id
            case reply:
                _checked(reply)
                raise _unexpected("KV.ARENA")

    def _same_daemon(self, greeting: Any) -> bool:
        """Whether two greetings come from one daemon: an arena is made once in a daemon's life."""
        match greeting, self._greeting:
            case [_, bytes(one), _], [_, bytes(other), _]:
                return one == other
            case _:
                return False

    # Requests

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    @contextlib.contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Timeout(
                "other threads kept the connection busy: allow more with timeout=, or use a client "
                "for each thread"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _ask(self, *arguments: Argument, timeout: float | None) -> Any:
        (reply,), _ = self._request(_resp.encode_command(*arguments), 1, timeout, None)
        return _checked(reply)

    def _request(
        self, payload: bytes, replies: int, timeout: float | None, incarnation: int | None
    ) -> tuple[list[Any], int]:
        """One exchange, and the incarnation that it belongs to."""
        deadline = self._deadline(timeout)
        with self._locked(deadline):
            connection = self._connection(deadline)
            self._require(incarnation)
            values = self._exchange(connection, payload, replies, deadline)
            return values, self._incarnation

    def _ask_space(
        self,
        command: str,
        space: Space,
        arguments: Sequence[Argument],
        timeout: float | None,
        *,
        word: str | None = None,
    ) -> tuple[Any, int]:
        """A request about a space, which is opened where the daemon does not know it."""
        deadline = self._deadline(timeout)
        words = (command,) if word is None else (command, word)
        with self._locked(deadline):
            connection = self._connection(deadline)
            reply = None
            for _ in range(2):
                opened = self._open(connection, space, deadline)
                payload = _resp.encode_command(*words, opened.handle, *arguments)
                (reply,) = self._exchange(connection, payload, 1, deadline)
                if not _is_unknown_space(reply):
                    break
                self._handles.pop(space.id, None)
            return _checked(reply), self._incarnation

    def _count(
        self,
        command: str,
        space: Space,
        root: bytes,
        keys: bytes,
        more: Sequence[Argument],
        timeout: float | None,
        *,
        word: str | None = None,
    ) -> int:
        _check_keys(keys)
        reply, _ = self._ask_space(command, space, [root, keys, *more], timeout, word=word)
        return _integer(command, reply)

    def _require(self, incarnation: int | None) -> None:
        if incarnation is not None and incarnation != self._incarnation:
            raise ConnectionLost(
                "this hold or lease ended with the connection that it belongs to: discard what was "
                "copied and ask again"
            )

    def _exchange(
        self, connection: Connection, payload: bytes, replies: int, deadline: float
    ) -> list[Any]:
        try:
            return connection.exchange(payload, replies, deadline)
        except BaseException:
            self._lose()
            raise

    def _open(self, connection: Connection, space: Space, deadline: float) -> OpenSpace:
        opened = self._handles.get(space.id)
        if opened is not None:
            return opened
        payload = _resp.encode_command("KV.OPEN", space.to_json())
        (reply,) = self._exchange(connection, payload, 1, deadline)
        match _checked(reply):
            case [int(handle), bytes(id), bytes(packed)] if len(packed) % 8 == 0:
                opened = OpenSpace(handle, id, np.frombuffer(packed, dtype="<u8").tolist())
            case _:
                raise _unexpected("KV.OPEN")
        if opened.id != space.id or tuple(opened.shard_bytes) != space.shard_bytes:
            raise ProtocolError(
                "the daemon computes another id for this space: client and daemon are of versions "
                "that don't agree; install the client that came with the daemon"
            )
        life = self._lives.get(space.id)
        if life is not None:
            told = _resp.encode_command("KV.EXPIRE", opened.handle, *life)
            _checked(self._exchange(connection, told, 1, deadline)[0])
        self._handles[space.id] = opened
        return opened

    # The connection (all under the lock)

    def _connection(self, deadline: float) -> Connection:
        self._drop_if_stale()
        connection = self._resources.connection
        if connection is not None:
            return connection
        if self._closed:
            raise NotConnected("this client was closed: call connect() to use it again")
        if self._in_background:
            self._ensure_background()
            raise NotConnected(f"not connected; a thread tries to. {self._last_error}".rstrip())
        if not self._auto_connect:
            raise NotConnected("not connected: call connect(), or make it with auto_connect=True")
        wait = self._last_attempt + self._backoff - time.monotonic()
        if wait > 0:
            raise NotConnected(
                f"not connected; the next attempt is made in {wait:.1f} s. {self._last_error}"
            )
        return self._connect(deadline)

    def _connect_seconds(self, deadline: float) -> float:
        return max(0.001, min(CONNECT_SECONDS_MAX, deadline - time.monotonic()))

    def _connect(self, deadline: float) -> Connection:
        try:
            path = socket_path(self._named_socket)
            connection, greeting = self._dial(path, deadline)
        except KvasirError as error:
            self._last_attempt = time.monotonic()
            self._backoff = min(BACKOFF_SECONDS_MAX, self._backoff * 2)
            self._last_error = f"The last attempt failed: {error}"
            if isinstance(error, (ConnectionLost, Timeout)):
                raise NotConnected(f"{path} does not greet back: {error}") from error
            raise
        self._last_attempt = time.monotonic()
        self._backoff = BACKOFF_SECONDS_MIN
        self._last_error = ""
        self._path = path
        self._handles.clear()
        self._greeting = greeting
        self._incarnation += 1
        self._resources.connection = connection
        self._release_orphans(connection, deadline)
        return connection

    def _release_orphans(self, connection: Connection, deadline: float) -> None:
        """Gives back the write leases whose reserve was answered too late, to their daemon only."""
        tags = [tag for greeting, tag in self._orphans if self._same_daemon(greeting)]
        if tags:
            commands = [("KV.RELEASE", "TAG", tag) for tag in tags]
            self._exchange(connection, _resp.encode_commands(commands), len(tags), deadline)
        self._orphans = []

    def _dial(self, path: str, deadline: float) -> tuple[Connection, Any]:
        """A new connection of this session, and what the daemon says of its arena.

        The arena's id tells this daemon from the one before: ids of leases start again with each.
        """
        seconds = self._connect_seconds(deadline)
        connection = Connection(path, timeout=seconds)
        commands = (
            ("HELLO", 3, "SETNAME", self._name),
            ("KV.SESSION", self._session),
            ("KV.ARENA", "READONLY"),
        )
        limit = time.monotonic() + seconds
        descriptors: list[int] = []
        try:
            replies = connection.exchange(_resp.encode_commands(commands), 3, limit, descriptors)
        finally:
            close_all(descriptors)
        for reply in replies[:2]:
            if isinstance(reply, ErrorReply):
                connection.close()
                raise server_error(reply.line)
        return connection, replies[2]

    def _drop_if_stale(self) -> None:
        connection = self._resources.connection
        if connection is not None and connection.stale():
            self._lose()

    def _lose(self) -> None:
        """The connection is of no more use, and with it whatever belongs to its incarnation."""
        connection, self._resources.connection = self._resources.connection, None
        if connection is not None:
            connection.close()
        with self._side_lock:
            for idle in self._resources.side_idle:
                idle.close()
            self._resources.side_idle.clear()
            for busy in self._resources.side_busy:
                busy.shut()
        if self._resources.background is not None:
            self._resources.background.set()

    # Requests that may take long, each on a connection of its own

    def _ask_aside(self, payload: bytes, timeout: float, incarnation: int | None) -> Any:
        deadline = time.monotonic() + timeout
        if not self._side_room.acquire(timeout=timeout):
            raise Timeout(f"{SIDE_CONNECTIONS_MAX} requests wait already: allow more with timeout=")
        try:
            connection, incarnation = self._take_side(deadline, incarnation)
            try:
                (reply,) = connection.exchange(payload, 1, deadline)
            finally:
                self._give_side(connection, incarnation)
        finally:
            self._side_room.release()
        return _checked(reply)

    def _take_side(self, deadline: float, incarnation: int | None) -> tuple[Connection, int]:
        with self._locked(deadline):
            self._connection(deadline)
            self._require(incarnation)
            incarnation, path = self._incarnation, self._path
        connection = None
        greeting = self._greeting
        with self._side_lock:
            while self._resources.side_idle and connection is None:
                candidate = self._resources.side_idle.pop()
                if candidate.stale():
                    candidate.close()
                else:
                    connection = candidate
        if connection is None:
            connection, greeting = self._dial(path, deadline)
        with self._side_lock:
            self._resources.side_busy.add(connection)
        if (
            incarnation != self._incarnation
            or self._resources.connection is None
            or not self._same_daemon(greeting)
        ):
            self._give_side(connection, -1)
            self._require(-1)
        return connection, incarnation

    def _give_side(self, connection: Connection, incarnation: int) -> None:
        with self._side_lock:
            self._resources.side_busy.discard(connection)
            current = self._resources.connection is not None and incarnation == self._incarnation
            if current and not connection.closed:
                self._resources.side_idle.append(connection)
                return
        connection.close()

    # The thread that connects

    _background_thread: threading.Thread | None = None

    def _ensure_background(self) -> None:
        if self._resources.background is not None:
            return
        wake = Wake()
        self._resources.background = wake
        self._background_thread = threading.Thread(
            target=_keep_connected,
            args=(weakref.ref(self), wake),
            name="kvasir-connector",
            daemon=True,
        )
        self._background_thread.start()

    def _step_background(self, wake: Wake) -> tuple[int, float | None] | None:
        """One attempt if needed: the descriptor to watch or -1, and when to come again.

        None ends the thread.
        """
        if self._closed or self._resources.background is not wake:
            return None
        deadline = time.monotonic() + CONNECT_SECONDS_MAX
        try:
            with self._locked(deadline):
                self._drop_if_stale()
                if self._closed:
                    return None
                connection = self._resources.connection
                if connection is None:
                    wait = self._last_attempt + self._backoff - time.monotonic()
                    if wait > 0:
                        return -1, wait
                    connection = self._connect(deadline)
                return connection.fileno(), None
        except KvasirError as error:
            _LOG.debug("kvasir: %s", error)
            return -1, self._backoff
        except Exception:  # noqa: BLE001  (the thread must outlive surprises)
            _LOG.exception("kvasir: connecting failed in a way that was not foreseen")
            return -1, BACKOFF_SECONDS_MAX

    # Fork

    def _after_fork_in_child(self) -> None:
        """Closes the inherited sockets without a word on them, and begins anew."""
        resources = self._resources
        self._finalizer.detach()
        for connection in (resources.connection, *resources.side_idle, *resources.side_busy):
            if connection is not None:
                connection.close()
        if resources.link is not None:
            resources.link.abandon()
        if resources.background is not None:
            resources.background.close()
        self._background_thread = None
        # The parent's leases are not the child's.
        self._incarnation += 1
        self._begin()


def _keep_connected(reference: weakref.ref[Client], wake: Wake) -> None:
    """The body of the connecting thread. Between steps it keeps no client alive."""
    poller = select.poll()
    poller.register(wake.fileno(), select.POLLIN)
    while True:
        client = reference()
        step = None if client is None else client._step_background(wake)
        del client
        if step is None:
            return
        descriptor, seconds = step
        if descriptor >= 0:
            poller.register(descriptor, select.POLLRDHUP)
        poller.poll(None if seconds is None else seconds * 1000)
        if descriptor >= 0:
            poller.unregister(descriptor)
        wake.clear()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_fork_hook = threading.Lock()
_fork_hook_set = False


def _remember(client: Client) -> None:
    global _fork_hook_set
    with _fork_hook:
        if not _fork_hook_set:
            os.register_at_fork(after_in_child=_after_fork_in_child)
            atexit.register(_at_exit)
            _fork_hook_set = True
        _clients.add(client)


def _at_exit() -> None:
    """Hangs up. The arena stays until the kernel takes it: devices can't be talked to any more."""
    for client in list(_clients):
        client._resources.hang_up()


def _after_fork_in_child() -> None:
    global _fork_hook
    _fork_hook = threading.Lock()
    for client in list(_clients):
        client._after_fork_in_child()


# Replies


def _checked(reply: Any) -> Any:
    if isinstance(reply, ErrorReply):
        raise server_error(reply.line)
    return reply


def _is_unknown_space(reply: Any) -> bool:
    return isinstance(reply, ErrorReply) and reply.line.startswith("KVSPACE ")


def _unexpected(command: str) -> ProtocolError:
    return ProtocolError(
        f"{command} was answered with something this client does not know: client and daemon are "
        "of versions that don't agree; install the client that came with the daemon"
    )


def _integer(command: str, reply: Any) -> int:
    if not isinstance(reply, int):
        raise _unexpected(command)
    return reply


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, dict):
        return _readable_map(value)
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return value


def _readable_map(reply: Any) -> dict[str, Any]:
    return {_text(key): _readable(value) for key, value in _resp.as_map(reply).items()}


def _extents(packed: bytes) -> Extents:
    # Native byte order, whatever the host's is: callers compute with these.
    array: Extents = np.frombuffer(packed, dtype="<u8").astype(np.uint64, copy=False)
    return array.reshape(-1, 2)


# Arguments


def _check_word(what: str, value: str) -> None:
    if not 1 <= len(value) <= SESSION_BYTES_MAX or not all("!" <= c <= "~" for c in value):
        raise ValueError(
            f"{what} must be 1 to {SESSION_BYTES_MAX} printable ASCII characters without spaces, "
            f"not {value!r}"
        )


def _check_keys(keys: bytes) -> None:
    if len(keys) % KEY_BYTES or not keys:
        raise ValueError(
            f"keys are packed, {KEY_BYTES} bytes each and at least one; these are {len(keys)} bytes"
        )
    if len(keys) > KEYS_MAX * KEY_BYTES:
        raise ValueError(
            f"{len(keys) // KEY_BYTES} keys in one request; at most {KEYS_MAX} are possible: use "
            "larger chunks"
        )


def _encode_reserve(request: ReserveRequest, opened: OpenSpace, tag: int) -> bytes:
    arguments: list[Argument] = ["KV.RESERVE", opened.handle, request.root, request.keys]
    if request.parent is not None:
        arguments += ["PARENT", request.parent]
    arguments += ["TTL", request.ttl_ms, "TAG", tag, *request.hint.arguments]
    return _resp.encode_command(*arguments)
