"""The daemon's shared memory, mapped here: views without a copy, and a clean end with the daemon.

A mapping keeps the daemon's memory alive. So once the daemon is gone the pages must go too, even if
somebody still has a view: :meth:`Arena._detach` puts anonymous memory in the place of the arena, at
the same addresses. Views then read zeros instead of crashing the process, and the kernel frees the
arena.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from .errors import ConnectionLost, KvasirError, ProtocolError

__all__ = ["Arena"]

_LOG: Final = logging.getLogger("kvasir")

_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_MADV_DONTFORK: Final = 10
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
_F_GET_SEALS: Final = 1034
_F_SEAL_SHRINK: Final = 2
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_POPULATE_STEP_BYTES: Final = 64 << 20


@functools.cache
def _libc() -> Any:
    # CDLL, not PyDLL: it lets other threads run while the kernel works.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    result = _libc().mmap(address, size, protection, flags, fd, 0)
    if result is None or result == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _unmap(address: int, size: int) -> None:
    _libc().munmap(address, size)


class Arena:
    """A mapping of the daemon's arena. Made by :attr:`kvasir.Client.arena`.

    ``address`` is where it begins. The addresses stay reserved as long as this object or a view of
    it lives, so whoever works with raw addresses keeps the arena object. Once :attr:`alive` is
    false the daemon is gone, and what is there reads as zeros.
    """

    def __init__(self, fd: int, size: int, id: bytes, *, faulted: int, read_only: bool) -> None:
        """Maps ``fd``, which stays the caller's to close."""
        _check_descriptor(fd, size)
        protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
        try:
            address = _map(None, size, protection, mmap.MAP_SHARED, fd)
        except OSError as error:
            raise KvasirError(
                f"can't map the arena of {size} bytes: {error.strerror}. Raise the limit on "
                "virtual memory (ulimit -v), or start the daemon with less --memory",
                code="MAP",
            ) from error
        self.size = size
        self.id = id
        self.address = address
        #: Bytes from the start that the daemon had faulted in when this was mapped.
        self.faulted = faulted
        self.read_only = read_only
        self._alive = True
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Arena], object]] = []
        # Views refer to this buffer; when it and they are gone, so is the need for the addresses.
        self._buffer = (ctypes.c_ubyte * size).from_address(address)
        weakref.finalize(self._buffer, _unmap, address, size).atexit = False
        # A fork would double page tables for nothing; see `_after_fork` for the child.
        _libc().madvise(address, size, _MADV_DONTFORK)
        self._memory = memoryview(self._buffer).cast("B")

    def __repr__(self) -> str:
        state = "alive" if self._alive else "gone"
        return f"<Arena {self.id.hex()[:8]} {self.size} bytes at {self.address:#x}, {state}>"

    @property
    def alive(self) -> bool:
        """False once the daemon is gone or the client closed."""
        return self._alive

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview:
        """The bytes of an extent, without a copy. Touch them only while you hold their lease."""
        self._check(offset, length)
        view = self._memory[offset : offset + length]
        if not writable:
            return view.toreadonly()
        if self.read_only:
            raise KvasirError(
                "this client maps the arena for reading only: make it without read_only=True",
                code="READONLY",
            )
        return view

    def on_unmap(self, callback: Callable[[Arena], object]) -> None:
        """Calls ``callback`` before the pages go: whoever registered them with a device undoes it.

        It runs in the watcher's thread, while the pages are still mapped, and must not wait for the
        client. If the arena is gone already, it is called now.
        """
        with self._lock:
            if self._alive:
                self._callbacks.append(callback)
                return
        callback(self)

    def populate(
        self, up_to: int | None = None, *, write: bool = True, background: bool = True
    ) -> threading.Thread | None:
        """Makes the page tables now, so that the first copy does not pay a fault for each page.

        By default what the daemon had faulted in when this was mapped: more would allocate memory
        in the daemon's place. Returns the thread that does it, or None if done here. Stops
        silently where the kernel can't (before Linux 5.14): then pages are faulted in by use.
        """
        end = min(self.size, self.faulted if up_to is None else up_to)
        advice = _MADV_POPULATE_WRITE if write and not self.read_only else _MADV_POPULATE_READ
        if not background:
            self._populate(end, advice)
            return None
        thread = threading.Thread(
            target=self._populate, args=(end, advice), name="kvasir-populate", daemon=True
        )
        thread.start()
        return thread

    def _populate(self, end: int, advice: int) -> None:
        for start in range(0, end, _POPULATE_STEP_BYTES):
            length = min(_POPULATE_STEP_BYTES, end - start)
            with self._lock:
                if not self._alive:
                    return
                if _libc().madvise(self.address + start, length, advice) != 0:
                    _LOG.debug("madvise: %s", os.strerror(ctypes.get_errno()))
                    return

    def _check(self, offset: int, length: int) -> None:
        if not self._alive:
            raise ConnectionLost(
                "the daemon that this arena belonged to is gone: discard what was copied from it "
                "and ask again; client.arena is the new one"
            )
        if offset < 0 or length < 0 or length > self.size or offset > self.size - length:
            raise IndexError(
                f"offset {offset}, length {length} is outside the arena of {self.size} bytes: "
                "is the extent pending or gone, or of another daemon?"
            )

    def _detach(self) -> None:
        """Gives the daemon's memory back; views read zeros from now on. Safe to repeat."""
        with self._lock:
            if not self._alive:
                return
            self._alive = False
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # noqa: BLE001  (a callback is somebody else's)
                _LOG.exception("kvasir: an on_unmap callback failed; its device may be confused")
        self._replace()

    def _after_fork(self) -> None:
        """In a forked child the addresses are a hole: a view that came along would crash it."""
        self._lock = threading.Lock()
        self._callbacks = []
        if self._alive:
            self._alive = False
            self._replace()

    def _replace(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        # Where overcommit is forbidden, writable memory may not be had for free, but readable is.
        for protection in (mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ):
            with contextlib.suppress(OSError):
                _map(self.address, self.size, protection, flags, -1)
                return
        _LOG.error("kvasir: can't unmap the arena of a daemon that is gone; its memory stays")


def _check_descriptor(fd: int, size: int) -> None:
    """An arena that could shrink would kill this process with SIGBUS, whatever its owner says."""
    if size <= 0:
        raise ProtocolError(f"the server announced an arena of {size} bytes")
    found = os.fstat(fd).st_size
    if found < size:
        raise ProtocolError(f"the server announced an arena of {size} bytes and sent {found}")
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & _F_SEAL_SHRINK:
        raise ProtocolError(
            "the arena that the server sent is not sealed against shrinking, so it isn't safe to "
            "map: is it a Kvasir server of another version?"
        )
