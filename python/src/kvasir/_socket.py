"""Where the daemon's socket is, and one connection to it."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Mapping
from typing import Any, Final

from ._resp import INCOMPLETE, ErrorReply, Parser, Push
from .errors import (
    ConnectionLost,
    KvasirError,
    NotConnected,
    ProtocolError,
    Timeout,
    server_error,
)

__all__ = ["Connection", "socket_path"]

#: The kernel's limit on the path of a Unix socket.
PATH_BYTES_MAX: Final = 107
_RECEIVE_BYTES: Final = 64 << 10
_DESCRIPTORS_MAX: Final = 8


def socket_path(
    named: str | os.PathLike[str] | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """The path of the daemon's socket, by the rule of ``docs/protocol.md``.

    What the caller names, else ``KVASIR_SOCKET``, else the user's runtime directory, else a
    directory in /tmp that must be the user's own. Raises :class:`NotConnected` if the path is
    refused; a daemon that isn't there is found out by connecting.
    """
    env = os.environ if environment is None else environment
    shared: str | None = None
    if named is not None:
        path = os.fspath(named)
    elif env.get("KVASIR_SOCKET"):
        path = env["KVASIR_SOCKET"]
    elif env.get("XDG_RUNTIME_DIR"):
        path = os.path.join(env["XDG_RUNTIME_DIR"], "kvasir", "kvasir.sock")
    else:
        shared = f"/tmp/kvasir-{os.geteuid()}"
        path = os.path.join(shared, "kvasir.sock")
    length = len(os.fsencode(path))
    if length > PATH_BYTES_MAX:
        raise NotConnected(
            f"the socket path has {length} bytes and the kernel takes {PATH_BYTES_MAX}: choose a "
            f"shorter one with KVASIR_SOCKET (now: {path})"
        )
    if length == 0 or "\0" in path:
        raise NotConnected(f"{path!r} is no socket path: name the daemon's socket")
    if shared is not None:
        check_shared_directory(shared, os.geteuid())
    return path


def check_shared_directory(path: str, user: int) -> None:
    """Refuses a directory in which another user could have put a socket of his own.

    One that does not exist is no error here: then there is no daemon either.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotConnected(f"can't look at {path}: {error.strerror}") from error
    remedy = "remove it, or name another socket with KVASIR_SOCKET on both sides"
    if stat.S_ISLNK(status.st_mode):
        raise NotConnected(f"{path} is a symbolic link, which anybody can point anywhere: {remedy}")
    if not stat.S_ISDIR(status.st_mode):
        raise NotConnected(f"{path} is not a directory: {remedy}")
    if status.st_uid != user:
        raise NotConnected(
            f"{path} belongs to user {status.st_uid}, not to you ({user}): somebody else could "
            f"answer there; {remedy}"
        )
    if status.st_mode & 0o022:
        raise NotConnected(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"chmod 700 {path}, once you know that nobody put a socket there"
        )


class Connection:
    """One socket to the daemon. It has one user at a time; its owner serialises.

    Every failure closes it: after a lost byte or an unread reply, nothing on it can be told apart.
    """

    def __init__(self, path: str, *, timeout: float) -> None:
        self.path = path
        self._parser = Parser()
        # SOCK_CLOEXEC is Python's default.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(path)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise NotConnected(_connect_message(path, error)) from error
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        self._readable = select.poll()
        self._readable.register(sock.fileno(), select.POLLIN)
        self._both = select.poll()
        self._both.register(sock.fileno(), select.POLLIN | select.POLLOUT)

    @property
    def closed(self) -> bool:
        """True once the descriptor is gone."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket. Safe to repeat."""
        self._socket.close()

    def shut(self) -> None:
        """Ends the connection under whoever uses it now; the user closes the descriptor."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def hung_up(self) -> bool:
        """True if the daemon has hung up. Reads nothing: safe beside another thread's exchange."""
        descriptor = self._socket.fileno()
        if descriptor < 0:
            return True
        poller = select.poll()
        poller.register(descriptor, select.POLLRDHUP)
        return bool(poller.poll(0))

    def stale(self) -> bool:
        """True if it can't be used: the daemon hung up, or said something that nobody asked for.

        Only for the connection's user: it reads.
        """
        if self.closed:
            return True
        if not self._readable.poll(0):
            return False
        # An idle connection that has something to read was closed, or brings a push message.
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
            if data:
                self._parser.feed(data)
                while (value := self._parser.next()) is not INCOMPLETE:
                    if not isinstance(value, Push):
                        return True
                return False
        except BlockingIOError:
            return False
        except (OSError, ProtocolError):
            return True
        return True

    def exchange(
        self, payload: bytes, replies: int, deadline: float, descriptors: list[int] | None = None
    ) -> list[Any]:
        """Sends ``payload`` and returns the next ``replies`` values.

        ``deadline`` is in ``time.monotonic()`` seconds. With ``descriptors``, those received are
        appended there, close-on-exec; on an error those already received are closed.
        """
        try:
            return self._exchange(payload, replies, deadline, descriptors)
        except BaseException:
            if descriptors is not None:
                close_all(descriptors)
            self.close()
            raise

    def _exchange(
        self, payload: bytes, replies: int, deadline: float, descriptors: list[int] | None
    ) -> list[Any]:
        values: list[Any] = []
        try:
            unsent = self._send(memoryview(payload))
            while True:
                while (value := self._parser.next()) is not INCOMPLETE:
                    if not isinstance(value, Push):
                        values.append(value)
                if len(values) > replies:
                    raise ProtocolError(
                        "the server sent more than was asked for: is it a Kvasir server?"
                    )
                if len(values) == replies and not unsent:
                    return values
                self._await(deadline, writing=bool(unsent))
                if unsent:
                    unsent = self._send(unsent)
                data = self._receive(descriptors)
                if data is not None:
                    self._parser.feed(data)
        except ConnectionLost as error:
            raise self._farewell(values) or error from error

    def _farewell(self, values: list[Any]) -> KvasirError | None:
        """What the daemon said before it hung up: a command too large gets its reason there."""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_RECEIVE_BYTES):
                self._parser.feed(data)
        with contextlib.suppress(ProtocolError):
            while (value := self._parser.next()) is not INCOMPLETE:
                values.append(value)
        if values and isinstance(values[-1], ErrorReply):
            return server_error(values[-1].line)
        return None

    def _await(self, deadline: float, *, writing: bool) -> None:
        poller = self._both if writing else self._readable
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(
                    f"no answer from {self.path} in time; the connection was closed. Look at the "
                    "daemon's log, or allow more with timeout="
                )
            if poller.poll(left * 1000 + 1):
                return

    def _send(self, data: memoryview) -> memoryview:
        try:
            return data[self._socket.send(data, socket.MSG_NOSIGNAL) :]
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, descriptors: list[int] | None) -> bytes | None:
        try:
            if descriptors is None:
                data = self._socket.recv(_RECEIVE_BYTES)
            else:
                data = self._receive_with_descriptors(descriptors)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(None)
        return data

    def _receive_with_descriptors(self, descriptors: list[int]) -> bytes:
        item = array.array("i")
        room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * item.itemsize)
        data, ancillary, _, _ = self._socket.recvmsg(_RECEIVE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % item.itemsize])
                descriptors.extend(received)
        return data

    def _lost(self, error: OSError | None) -> KvasirError:
        why = error.strerror if error is not None else "the daemon closed it"
        return ConnectionLost(
            f"the connection to {self.path} was lost ({why}); the next request connects again. If "
            "this repeats, look at the daemon's log"
        )


def close_all(descriptors: list[int]) -> None:
    """Closes and forgets descriptors."""
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())


def _connect_message(path: str, error: OSError) -> str:
    start = f"kvasir serve --socket {path}"
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"no daemon at {path}: start one with `{start}`, or set KVASIR_SOCKET to its socket"
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {path}: the daemon was stopped; start it with `{start}`"
    if isinstance(error, PermissionError):
        return (
            f"no permission for {path}: run as the daemon's user, or start the daemon with "
            "--socket-group and join that group"
        )
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return f"{path} accepts no connection: the daemon hangs or has too many; look at its log"
    return f"can't connect to {path}: {error.strerror or error}"
