"""One process's connection to the daemon: lost and found without the engine waiting for it.

The client reconnects by itself, from a thread of its own. Ids of holds and leases are unique inside
one daemon process only, and so are offsets; both travel between processes together with the id of
the arena that they belong to, and nobody uses them with another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvasir.errors import KvasirError

if TYPE_CHECKING:
    from kvasir.client import Client

log = logging.getLogger("vllm.kvasir")


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """One incarnation of a client's connection, and the daemon's arena at its other end."""

    client: Client
    incarnation: int
    arena_id: bytes
    arena: Any = None
    """The mapping, for those who copy."""


class Link:
    """The connection as it is now. Asking for it never waits: what a new connection needs is done
    by a thread, and until then there is none.

    With `prepare`, the arena is mapped and handed to it before the connection is used. `inline`
    does the thread's work on the caller's, for tests that need one order of events.
    """

    def __init__(
        self,
        client: Client,
        *,
        prepare: Callable[[Any], None] | None = None,
        inline: bool = False,
    ) -> None:
        self._client = client
        self._prepare = prepare
        self._inline = inline
        self._lock = threading.Lock()
        self._current: Connection | None = None
        self._preparing = False
        self._closed = False
        self.last_error = "not connected yet"

    @property
    def client(self) -> Client:
        return self._client

    def current(self) -> Connection | None:
        """The connection, or None while there is none."""
        current = self._current
        if not self._client.connected:
            if current is not None:
                self._current = None
                self.last_error = "the connection was closed"
            return None
        if current is not None and current.incarnation == self._client.incarnation:
            if current.arena is None or current.arena.alive:
                return current
            self._current = None
        with self._lock:
            if self._preparing or self._closed:
                return None
            self._preparing = True
        if self._inline:
            return self._refresh()
        threading.Thread(target=self._refresh, name="kvasir-prepare", daemon=True).start()
        return None

    def ready(self, timeout_s: float, *, dial: bool = False) -> Connection | None:
        """The connection, waiting at most this long for what a new one needs.

        Without `dial` it waits only if the client has connected already: a daemon that is away
        costs no time.
        """
        connection = self.current()
        if connection is not None:
            return connection
        deadline = time.monotonic() + timeout_s
        while dial or self._client.connected:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(0.001, left))
            connection = self.current()
            if connection is not None:
                return connection
        return None

    def failed(self, error: BaseException) -> None:
        """Remembers why a request failed; the client has closed the connection if it had to."""
        self.last_error = str(error) or type(error).__name__

    def close(self) -> None:
        """Ends the connection, and with it this process's part of the session."""
        self._closed = True
        self._current = None
        try:
            self._client.close()
        except (KvasirError, OSError) as error:
            log.debug("closing a client of Kvasir: %s", error)

    def _refresh(self) -> Connection | None:
        try:
            incarnation = self._client.incarnation
            if self._prepare is None:
                connection = Connection(self._client, incarnation, self._client.arena_id)
            else:
                arena = self._client.arena
                self._prepare(arena)
                connection = Connection(self._client, incarnation, bytes(arena.id), arena)
            if self._client.incarnation != incarnation:
                return None
            self._current = connection
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            self.failed(error)
            log.debug("Kvasir's arena can't be used yet: %s", error)
            return None
        finally:
            with self._lock:
                self._preparing = False
        return connection


class Outage:
    """Says once that caching is suspended, and once that it goes on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, quiet_s: float = 60.0) -> None:
        self._clock = clock
        self._quiet_s = quiet_s
        self._down = False
        self._announced = False
        self._last_warning = float("-inf")

    def down(self, reason: str) -> None:
        """The daemon can't be used now."""
        if self._down:
            return
        self._down = True
        now = self._clock()
        self._announced = now - self._last_warning >= self._quiet_s
        level = logging.WARNING if self._announced else logging.DEBUG
        if self._announced:
            self._last_warning = now
        log.log(
            level,
            "Kvasir can't be used (%s): requests are computed without it, and caching resumes by "
            "itself once the daemon answers",
            reason,
        )

    def up(self) -> None:
        """The daemon answers."""
        if not self._down:
            return
        self._down = False
        log.log(
            logging.INFO if self._announced else logging.DEBUG,
            "Kvasir answers again: caching goes on",
        )
