"""What keeps an arena mapped exactly as long as its daemon lives.

A connection of its own, on which nothing is ever asked again, and a thread that waits for its end.
Its own, because the client closes its request connection after a timeout while the daemon lives; a
thread, because an idle engine calls nobody. The thread knows the arena and the socket and nothing
of the client, so a forgotten client can be collected.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import Final

from . import _resp
from ._socket import Connection, close_all
from .arena import Arena
from .errors import ProtocolError, server_error

__all__ = ["ArenaLink", "Wake"]

_JOIN_SECONDS: Final = 5.0


class Wake:
    """An eventfd to wake a thread that polls; closed with its last user."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._fd

    def set(self) -> None:
        """Wakes the thread. Takes no lock: safe in a finalizer."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Until the next :meth:`set`."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Closes the descriptor; only for one that nobody uses any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class ArenaLink:
    """An arena, the connection that proves its daemon alive, and the thread that watches it."""

    def __init__(self, path: str, name: str, *, deadline: float, timeout: float, read_only: bool):
        self._connection = Connection(path, timeout=timeout)
        try:
            self.arena = self._fetch(name, deadline, read_only)
            self._wake = Wake()
            self._thread = threading.Thread(
                target=_watch,
                args=(self._connection, self._wake, self.arena),
                name="kvasir-watcher",
                daemon=True,
            )
            self._thread.start()
        except BaseException:
            self._connection.close()
            if hasattr(self, "arena"):
                self.arena._detach()
            raise

    def _fetch(self, name: str, deadline: float, read_only: bool) -> Arena:
        hello = _resp.encode_command("HELLO", 3, "SETNAME", f"{name}:arena")
        (greeting,) = self._connection.exchange(hello, 1, deadline)
        if isinstance(greeting, _resp.ErrorReply):
            raise server_error(greeting.line)
        descriptors: list[int] = []
        size, arena_id, faulted = fetch_arena(self._connection, deadline, descriptors, read_only)
        try:
            return Arena(descriptors[0], size, arena_id, faulted=faulted, read_only=read_only)
        finally:
            close_all(descriptors)

    def signal(self) -> None:
        """Asks the thread to unmap and end; does not wait. Safe in a finalizer."""
        self._wake.set()

    def stop(self) -> None:
        """The same, and waits until it is done."""
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def abandon(self) -> None:
        """In a forked child, where the thread does not exist: lets go without using anything."""
        self._connection.close()
        self._wake.close()
        self.arena._after_fork()


def fetch_arena(
    connection: Connection, deadline: float, descriptors: list[int], read_only: bool = False
) -> tuple[int, bytes, int]:
    """Asks for the arena: size, id, bytes faulted in. ``descriptors`` gets its one descriptor."""
    command = ("KV.ARENA", "READONLY") if read_only else ("KV.ARENA",)
    (reply,) = connection.exchange(_resp.encode_command(*command), 1, deadline, descriptors)
    try:
        if isinstance(reply, _resp.ErrorReply):
            raise server_error(reply.line)
        match reply:
            case [int(size), bytes(arena_id), int(faulted)] if len(arena_id) == 16:
                pass
            case _:
                raise ProtocolError("KV.ARENA was not answered with size, id and bytes faulted in")
        if len(descriptors) != 1:
            raise ProtocolError(
                f"KV.ARENA brought {len(descriptors)} descriptors instead of one: connect to the "
                "daemon's Unix socket directly, not through a proxy"
            )
    except BaseException:
        close_all(descriptors)
        connection.close()
        raise
    return size, arena_id, faulted


def _watch(connection: Connection, wake: Wake, arena: Arena) -> None:
    """The watcher thread: returns, with everything let go, when either side has ended."""
    try:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)
        poller.register(wake.fileno(), select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if wake.fileno() in ready or connection.stale():
                return
    finally:
        connection.close()
        # A callback that fails is logged, and a log may keep this frame: not the descriptor too.
        del wake
        arena._detach()
