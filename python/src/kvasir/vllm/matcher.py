"""Matches asked by a thread, so that a slow daemon keeps nobody's step waiting.

The thread has a client of its own, of the same session: a match that takes long stands in nobody's
way. The scheduler hands a match over, waits as long as it likes, and looks again later. How much of
a match is taken is decided right behind its answer, and what of that isn't in memory starts to move
there: it is read while its request waits for blocks and for its turn. Whatever the answer of a
match that nobody wants any more holds is given back here. Releases go the same way, and nobody
waits for them.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable

from kvasir.errors import KvasirError, ServerError
from kvasir.hints import Hint
from kvasir.identity import KEY_BYTES, Space
from kvasir.leases import MEMORY, Match
from kvasir.vllm.cost import Decision
from kvasir.vllm.link import Connection, Link

log = logging.getLogger("vllm.kvasir")

JOIN_S = 2.0
"""The thread is given this long to end."""
UNRELEASED_MAX = 4096
"""So many releases are remembered while there is no connection."""
TELLS_MAX = 1024
"""So many requests wait to be told for the daemon's log; of more the oldest are left out of it."""
TELL_IDLE_S = 0.002
"""They are told when nothing else came for so long: who waits for a match doesn't wait for them."""


def _nothing() -> None:
    pass


class Ticket:
    """A match that was handed over, and its answer once there is one."""

    __slots__ = (
        "_arrived",
        "answer",
        "asked_at",
        "connection",
        "decide",
        "done",
        "error",
        "first",
        "hint",
        "keys",
        "known",
        "prefetched_at",
        "refused",
        "root",
        "since",
        "space",
        "taken",
        "unwanted",
    )

    def __init__(
        self,
        space: Space,
        root: bytes,
        keys: bytes,
        *,
        first: int,
        known: int,
        asked_at: float,
        since: float,
        hint: Hint,
        decide: Callable[[bytes], Decision],
    ) -> None:
        self.space = space
        self.root = root
        self.keys = keys
        self.first = first
        """Chunk at which the match begins."""
        self.known = known
        """Chunks that the request had keys for."""
        self.asked_at = asked_at
        self.since = since
        """When its request began to wait, perhaps for an answer that was of no use."""
        self.hint = hint
        self.decide = decide
        """How many leading chunks are worth taking, given the tier of each. On the thread."""
        self.taken = 0
        """So many leading chunks of the answer are taken."""
        self.refused = ""
        """Why not all of them."""
        self.prefetched_at = 0.0
        """When those not in memory began to move there, in monotonic seconds."""
        self.connection: Connection | None = None
        """The connection that it was sent on."""
        self.answer: Match | None = None
        self.error: BaseException | None = None
        self.done = False
        self.unwanted = False
        # A bare lock: it costs a fraction of an event. Free once the answer is there.
        self._arrived = threading.Lock()
        self._arrived.acquire()

    def wait(self, timeout_s: float) -> bool:
        """Waits for the answer; whether it is there."""
        if not self.done and timeout_s > 0 and self._arrived.acquire(timeout=timeout_s):
            self._arrived.release()
        return self.done

    def arrive(self) -> None:
        self.done = True
        self._arrived.release()


class Matcher:
    """The thread, and what it was told to do. Called by the scheduler's thread only.

    `hold_ms` and `readers` are those of every match. A match is given up, with its connection,
    after `answer_s`: until then its answer can be taken, and what it holds be given back.
    `inline` does the thread's work on the caller's, for tests that need one order of events.
    """

    def __init__(
        self, link: Link, *, hold_ms: int, readers: int, answer_s: float, inline: bool = False
    ) -> None:
        self._link = link
        self._hold_ms = hold_ms
        self._readers = readers
        self._answer_s = answer_s
        self._inline = inline
        self._lock = threading.Lock()
        """Between an answer that arrives and a request that gives up."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy_since: float | None = None
        self._logs_requests: tuple[Connection, bool] | None = None
        """Whether the daemon at the other end of a connection keeps a log of requests."""
        self._tells: collections.deque[Callable[[], None]] = collections.deque(maxlen=TELLS_MAX)
        # Touched by the thread only.
        self._unreleased: list[tuple[bytes, int]] = []
        self._is_idle = False
        """Nothing but requests to be told of has come for a while."""

    @property
    def link(self) -> Link:
        return self._link

    def busy_s(self) -> float:
        """For how long the daemon has owed an answer."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def ask(self, ticket: Ticket) -> None:
        """Hands a match over."""
        self._do(lambda: self._match(ticket))

    def forget(self, ticket: Ticket) -> None:
        """Nobody wants the answer any more: what it holds, or will hold, is given back."""
        with self._lock:
            ticket.unwanted = True
            answer = ticket.answer if ticket.done else None
        if answer is not None and answer.hold is not None and ticket.connection is not None:
            self.release(ticket.connection.arena_id, answer.hold.id)

    def release(self, arena_id: bytes, number: int) -> None:
        """Gives back a hold or a lease of the daemon that has this arena; nobody waits for it."""
        if number:
            self._do(lambda: self._release(arena_id, number))

    def wants_requests(self, connection: Connection) -> bool:
        """Whether to tell of requests: the daemon logs them, or has not said so far."""
        answer = self._logs_requests
        return answer is None or answer[0] is not connection or answer[1]

    def tell_request(self, space: Space, root: bytes, keys: bytes, tokens: int, hint: Hint) -> None:
        """Tells of a request, for the daemon's request log, when nothing else is to be done."""

        def tell() -> None:
            self._tell_request(space, root, keys, tokens, hint)

        if self._inline:
            self._do(tell)
            return
        if len(self._tells) == TELLS_MAX:
            log.debug("Kvasir: a request is left out of the daemon's log")
        self._tells.append(tell)
        # The thread may wait for tasks without an end.
        self._do(_nothing)

    def close(self) -> None:
        """Ends the thread and the connection; what was not asked yet is not asked."""
        self._closed = True
        self._tasks.put(None)
        # Ends the exchange that the thread may be at.
        self._link.close()
        if self._thread is not None:
            self._thread.join(JOIN_S)

    # -- on the thread --------------------------------------------------------------------------

    def _do(self, task: Callable[[], None]) -> None:
        if self._closed:
            return
        if self._inline:
            task()
            return
        self._tasks.put(task)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvasir-matcher", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (task := self._next()) is not None and not self._closed:
            try:
                task()
            except Exception:
                log.exception("Kvasir: the thread that matches met something unforeseen")

    def _next(self) -> Callable[[], None] | None:
        """What is to be done next; None ends the thread."""
        # An engine that never rests must not keep them for ever.
        if len(self._tells) > TELLS_MAX // 2:
            return self._tells.popleft()
        try:
            if self._is_idle and self._tells:
                task = self._tasks.get_nowait()
            else:
                task = self._tasks.get(timeout=TELL_IDLE_S if self._tells else None)
        except queue.Empty:
            self._is_idle = True
            return self._tells.popleft()
        self._is_idle = False
        return task

    def _match(self, ticket: Ticket) -> None:
        if ticket.unwanted:
            return
        answer: Match | None = None
        self._busy_since = time.monotonic()
        try:
            self._flush()
            connection = self._link.current()
            if connection is None:
                raise KvasirError(self._link.last_error)
            ticket.connection = connection
            self._ask_for_log(connection)
            answer = connection.client.match(
                ticket.space,
                ticket.root,
                ticket.keys,
                hold_ms=self._hold_ms,
                readers=self._readers,
                hint=ticket.hint,
                timeout=self._answer_s,
            )
            hold = answer.hold
            if hold is not None and hold.incarnation != connection.incarnation:
                # It was asked on a connection made since: of which daemon, can't be told here.
                answer = Match(0, b"", None)
                with contextlib.suppress(ServerError):
                    connection.client.release(
                        hold.id, incarnation=hold.incarnation, timeout=self._answer_s
                    )
            elif hold is not None and not ticket.unwanted:
                self._take(ticket, answer, connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scheduler must learn of it
            ticket.error = error
        finally:
            self._busy_since = None
            with self._lock:
                ticket.answer = answer
                unwanted = ticket.unwanted
                ticket.arrive()
        if unwanted and answer is not None and answer.hold is not None:
            assert ticket.connection is not None
            self._release(ticket.connection.arena_id, answer.hold.id)

    def _ask_for_log(self, connection: Connection) -> bool:
        """Whether the daemon logs requests.

        Asking says that this session tells of them itself: a match has only what the engine's own
        cache had not, and may be said again.
        """
        answer = self._logs_requests
        if answer is None or answer[0] is not connection:
            try:
                logs = connection.client.log_requests(timeout=self._answer_s)
            except ServerError:
                logs = False  # An older daemon.
            answer = self._logs_requests = (connection, logs)
        return answer[1]

    def _tell_request(
        self, space: Space, root: bytes, keys: bytes, tokens: int, hint: Hint
    ) -> None:
        connection = self._link.current()
        if connection is None:
            return
        self._busy_since = time.monotonic()
        try:
            if self._ask_for_log(connection):
                logs = connection.client.log_request(
                    space, root, keys, tokens, hint=hint, timeout=self._answer_s
                )
                self._logs_requests = (connection, logs)
        except ServerError as error:
            log.debug("Kvasir did not log a request: %s", error)
        except (KvasirError, OSError) as error:
            self._link.failed(error)
        finally:
            self._busy_since = None

    def _take(self, ticket: Ticket, answer: Match, connection: Connection) -> None:
        """Decides how much of the match is taken, and starts moving it to memory."""
        decision = ticket.decide(answer.tiers)
        ticket.taken, ticket.refused = decision.chunks, decision.reason
        tiers = bytes(answer.tiers[: ticket.taken])
        in_memory = len(tiers) - len(tiers.lstrip(bytes([MEMORY])))
        if in_memory == len(tiers):
            return
        ticket.prefetched_at = time.monotonic()
        covered = in_memory
        try:
            covered = connection.client.prefetch(
                ticket.space,
                ticket.root,
                ticket.keys[: len(tiers) * KEY_BYTES],
                timeout=self._answer_s,
            )
            problem = "no memory to bring it to"
        except ServerError as error:
            problem = error.code
        except (KvasirError, OSError) as error:
            # The hold is not lost with this connection; whether it can be read, its reader learns.
            self._link.failed(error)
            problem = type(error).__name__
        if covered < len(tiers):
            ticket.taken, ticket.refused = covered, problem

    def _release(self, arena_id: bytes, number: int) -> None:
        self._unreleased.append((arena_id, number))
        del self._unreleased[:-UNRELEASED_MAX]
        self._flush()

    def _flush(self) -> None:
        """Gives back what is to be given back, or leaves it until there is a connection.

        The session lives as long as one of its connections, and so does what it holds: losing this
        one has ended nothing.
        """
        while self._unreleased:
            connection = self._link.current()
            if connection is None:
                return
            arena_id, number = self._unreleased[0]
            if connection.arena_id == arena_id:
                try:
                    connection.client.release(
                        number, incarnation=connection.incarnation, timeout=self._answer_s
                    )
                except ServerError:
                    pass  # It ended by itself: at its deadline, or with its last reader.
                except (KvasirError, OSError) as error:
                    self._link.failed(error)
                    return
            # Else its daemon is gone, and it with it.
            del self._unreleased[0]
