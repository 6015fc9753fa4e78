"""A store in memory that behaves as docs/protocol.md says, and clients of it.

It has what tests need and a real daemon can't give on demand: extents that go to others at once
when nothing protects them, expiry, loss of chunks, slow tiers, a full store, and sudden death.
"""

from __future__ import annotations

import itertools
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvasir.errors import (
    ConnectionLost,
    KeyGap,
    KvasirError,
    LeaseExpired,
    NotConnected,
    Timeout,
    UnknownLease,
)
from kvasir.hints import NO_HINT, Hint
from kvasir.leases import GONE_OFFSET, PENDING_OFFSET
from kvasir.vllm.device import CpuDevice

PAGE = 4096


class FakeArena:
    def __init__(self, size: int) -> None:
        self.id = os.urandom(16)
        self.size = size
        self.bytes = np.zeros(size, dtype=np.uint8)
        self.address = self.bytes.ctypes.data
        self.alive = True

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview:
        assert 0 <= offset <= offset + length <= self.size
        return memoryview(self.bytes)[offset : offset + length]


@dataclass
class Chunk:
    key: bytes
    parent: bytes
    extents: list[tuple[int, int]]
    committed: set[int] = field(default_factory=set)
    sealed: bool = False
    pins: int = 0
    used: int = 0
    tier: int = 1
    """2: it is on disk only, and what a reader would find in its extents is nonsense."""
    moving: bool = False
    """It is on its way from disk to memory."""
    gone: bool = False


@dataclass
class Hold:
    id: int
    session: str
    chunks: list[Chunk]
    readers: int
    expired: bool = False


@dataclass
class Lease:
    id: int
    session: str
    space: bytes
    chunks: list[Chunk]
    hold: Hold | None = None
    shard: int = -1
    expired: bool = False
    pending: int = 0
    gone: list[bool] = field(default_factory=list)
    left: set[int] = field(default_factory=set)


class FakeStore:
    """One daemon process after another, at the same socket."""

    def __init__(self, arena_bytes: int = 8 << 20) -> None:
        self.arena_bytes = arena_bytes
        self.lock = threading.RLock()
        self.up = True
        self.refuse_saves = ""
        self.expire_reads = False
        self.hints: list[tuple[str, Hint]] = []
        """What matches and reserves said of the time after them."""
        self.logs_requests = False
        """Whether it keeps a log of requests."""
        self.requests: list[tuple[bytes, int, Hint]] = []
        """What that log has: keys, tokens, hint."""
        self.request_log_error: BaseException | None = None
        self.lose_at: int | None = None
        """Chunks of an acquire from this one on are gone."""
        self.pending_waits = 0
        """Every acquire has its chunks pending for this many waits."""
        self.room_to_promote: int | None = None
        """So many chunks more can come from disk to memory; None: all."""
        self.has_arrived: Callable[[Chunk], bool] = lambda chunk: True
        """Whether a chunk that is on its way from disk is there."""
        self.prefetched: list[int] = []
        """How many keys each prefetch had."""
        self.prefetch_fails: list[BaseException] = []
        self.match_fails: list[BaseException] = []
        self.answers = threading.Event()
        """While it is not set, matches have been carried out and are not answered."""
        self.answers.set()
        self.match_takes_s: Callable[[], float] = lambda: 0.0
        self.calls: dict[str, int] = {}
        self.start()

    # -- life

    def start(self) -> None:
        with self.lock:
            self.arena = FakeArena(self.arena_bytes)
            self.free: dict[int, list[int]] = {}
            self.next_offset = 0
            self.chunks: dict[tuple[bytes, bytes], Chunk] = {}
            self.holds: dict[int, Hold] = {}
            self.leases: dict[int, Lease] = {}
            # From one again, as in a new process: an old id must not be mistaken for a new one.
            self.ids = itertools.count(1)
            self.clock = itertools.count(1)
            self.boot = os.urandom(8)
            self.up = True

    def kill(self) -> None:
        with self.lock:
            self.up = False
            self.arena.alive = False
            # What the client's watcher does: the views read zeros.
            self.arena.bytes[:] = 0

    def restart(self) -> None:
        self.kill()
        self.start()

    def call(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    # -- memory

    def _take(self, length: int, protected: set[int]) -> int | None:
        size = -(-length // PAGE) * PAGE
        while True:
            stack = self.free.setdefault(size, [])
            if stack:
                return stack.pop()
            if self.next_offset + size <= self.arena.size:
                self.next_offset += size
                return self.next_offset - size
            victims = [
                (chunk.used, name)
                for name, chunk in self.chunks.items()
                if chunk.sealed
                and not chunk.pins
                and id(chunk) not in protected
                and not any(
                    other.parent == name[1]
                    for (space, _), other in self.chunks.items()
                    if space == name[0]
                )
            ]
            if not victims:
                return None
            self._drop(min(victims)[1])

    def _drop(self, name: tuple[bytes, bytes]) -> None:
        chunk = self.chunks.pop(name)
        for offset, length in chunk.extents:
            size = -(-length // PAGE) * PAGE
            self.arena.bytes[offset : offset + size] = 0xEE
            self.free.setdefault(size, []).append(offset)

    def drop_all(self) -> None:
        """Evicts whatever nothing protects."""
        with self.lock:
            for name, chunk in list(self.chunks.items()):
                if chunk.sealed and not chunk.pins:
                    self._drop(name)

    # -- reading

    def match(self, session: str, space: Any, keys: bytes, readers: int) -> tuple[int, bytes, int]:
        with self.lock:
            found = []
            for i in range(0, len(keys), 32):
                chunk = self.chunks.get((space.id, keys[i : i + 32]))
                if chunk is None or not chunk.sealed:
                    break
                chunk.used = next(self.clock)
                found.append(chunk)
            if not found:
                return 0, b"", 0
            hold = Hold(next(self.ids), session, found, readers)
            for chunk in found:
                chunk.pins += 1
            self.holds[hold.id] = hold
            return len(found), bytes(chunk.tier for chunk in found), hold.id

    def to_disk(self, *, but_first: int = 0) -> None:
        """Chunks are on disk only from now on, but for the first ones that were saved."""
        with self.lock:
            for chunk in list(self.chunks.values())[but_first:]:
                assert chunk.sealed
                chunk.tier, chunk.moving = 2, False

    def some_to_disk(self, rng: random.Random) -> None:
        """As when memory evicts what the disk has: nobody holds it, and it may be anywhere."""
        with self.lock:
            for chunk in self.chunks.values():
                if chunk.sealed and not chunk.pins and rng.random() < 0.5:
                    chunk.tier, chunk.moving = 2, False

    def _promote(self, chunk: Chunk) -> bool:
        """Starts moving a chunk to memory; whether it is there or on its way."""
        if chunk.tier == 1 or chunk.moving:
            return True
        if self.room_to_promote == 0:
            return False
        if self.room_to_promote is not None:
            self.room_to_promote -= 1
        chunk.moving = True
        return True

    def prefetch(self, space: Any, keys: bytes) -> int:
        with self.lock:
            self.prefetched.append(len(keys) // 32)
            for i in range(0, len(keys), 32):
                chunk = self.chunks.get((space.id, keys[i : i + 32]))
                if chunk is None or not chunk.sealed or not self._promote(chunk):
                    return i // 32
            return len(keys) // 32

    def acquire(self, session: str, hold_id: int, shard: int, first: int, count: int) -> Lease:
        with self.lock:
            hold = self.holds.get(hold_id)
            if hold is None or hold.session != session:
                raise UnknownLease("no such hold")
            chunks = hold.chunks[first : first + count]
            lease = Lease(next(self.ids), session, b"", chunks, hold, shard)
            lease.pending = self.pending_waits
            lease.gone = [not self._promote(chunk) for chunk in chunks]
            self.leases[lease.id] = lease
            return lease

    def extents_of(self, lease: Lease) -> np.ndarray:
        rows = []
        with self.lock:
            for i, chunk in enumerate(lease.chunks):
                if chunk.moving and self.has_arrived(chunk):
                    chunk.tier, chunk.moving = 1, False
                if lease.gone[i] or (self.lose_at is not None and i >= self.lose_at):
                    rows.append((GONE_OFFSET, 0))
                elif lease.pending or chunk.tier != 1:
                    rows.append((PENDING_OFFSET, 0))
                else:
                    rows.append(chunk.extents[lease.shard])
        return np.array(rows, dtype=np.uint64).reshape(-1, 2)

    def end_hold(self, hold: Hold) -> None:
        if self.holds.pop(hold.id, None) is not None:
            for chunk in hold.chunks:
                chunk.pins -= 1

    def release(self, session: str, number: int, shard: int | None) -> bool:
        with self.lock:
            if number in self.holds:
                self.end_hold(self.holds[number])
                return True
            lease = self.leases.get(number)
            if lease is None or lease.session != session:
                raise UnknownLease("no such lease")
            if lease.hold is not None:
                del self.leases[number]
                lease.hold.readers -= 1
                if lease.hold.readers <= 0:
                    self.end_hold(lease.hold)
                return not (self.expire_reads or lease.expired)
            self._end_write(lease, shard)
            return True

    # -- writing

    def reserve(self, session: str, request: Any) -> tuple[int, bytes, np.ndarray, str]:
        with self.lock:
            space = request.space
            keys = [request.keys[i : i + 32] for i in range(0, len(request.keys), 32)]
            previous = request.parent if request.parent is not None else request.root
            if request.parent is not None and (space.id, request.parent) not in self.chunks:
                raise KeyGap("the parent is not held here", code="KVGAP")
            states = bytearray()
            granted: list[Chunk] = []
            reason = ""
            protected = {
                id(self.chunks[space.id, key]) for key in keys if (space.id, key) in self.chunks
            }
            for key in keys:
                name = (space.id, key)
                chunk = self.chunks.get(name)
                if reason:
                    states.append(3)
                elif chunk is not None:
                    states.append(1 if chunk.sealed else 2)
                elif self.refuse_saves:
                    reason = self.refuse_saves
                    states.append(3)
                else:
                    extents = []
                    for length in space.shard_bytes:
                        offset = self._take(length, protected)
                        if offset is None:
                            break
                        extents.append((offset, length))
                    if len(extents) < len(space.shard_bytes):
                        for offset, length in extents:
                            size = -(-length // PAGE) * PAGE
                            self.free.setdefault(size, []).append(offset)
                        reason = "KVFULL no room"
                        states.append(3)
                    else:
                        chunk = Chunk(key, previous, extents, pins=1, used=next(self.clock))
                        self.chunks[name] = chunk
                        protected.add(id(chunk))
                        granted.append(chunk)
                        states.append(0)
                previous = key
            extents_array = np.array([chunk.extents for chunk in granted], dtype=np.uint64).reshape(
                len(granted), len(space.shard_bytes), 2
            )
            if not granted:
                return 0, bytes(states), extents_array, reason
            lease = Lease(next(self.ids), session, space.id, granted)
            lease.left = set(range(len(space.shard_bytes)))
            self.leases[lease.id] = lease
            return lease.id, bytes(states), extents_array, reason

    def commit(self, session: str, number: int, shard: int) -> int:
        with self.lock:
            lease = self.leases.get(number)
            if lease is None or lease.session != session or lease.hold is not None:
                raise UnknownLease("no such lease")
            if lease.expired:
                raise LeaseExpired("too late")
            sealed = 0
            for chunk in lease.chunks:
                chunk.committed.add(shard)
                if len(chunk.committed) == len(chunk.extents) and not chunk.sealed:
                    chunk.sealed = True
                    sealed += 1
            self._end_write(lease, shard)
            return sealed

    def _end_write(self, lease: Lease, shard: int | None) -> None:
        lease.left = set() if shard is None else lease.left - {shard}
        if lease.left or lease.id not in self.leases:
            return
        del self.leases[lease.id]
        for chunk in lease.chunks:
            chunk.pins -= 1
            if not chunk.sealed and self.chunks.get((lease.space, chunk.key)) is chunk:
                self._drop((lease.space, chunk.key))

    def idle(self) -> bool:
        """Nothing is held, leased or half written."""
        with self.lock:
            return not self.holds and not self.leases


class _Held:
    def __init__(self, client: FakeClient, number: int) -> None:
        self.id = number
        self.client = client
        self.incarnation = client.incarnation


class FakeReadLease(_Held):
    def __init__(self, client: FakeClient, lease: Lease) -> None:
        super().__init__(client, lease.id)
        self.lease = lease
        self.extents = client.store.extents_of(lease)

    @property
    def pending(self) -> bool:
        return bool((self.extents[:, 0] == PENDING_OFFSET).any())

    @property
    def usable(self) -> int:
        bad = np.flatnonzero(self.extents[:, 0] >= GONE_OFFSET)
        return int(bad[0]) if len(bad) else len(self.extents)

    def wait(self, timeout: float = 5.0) -> FakeReadLease:
        self.client.check(self.incarnation)
        if self.lease.pending:
            self.lease.pending -= 1
            time.sleep(0.001)
            if self.lease.pending:
                raise Timeout("not yet")
        self.client.store.call("wait")
        until = time.monotonic() + timeout
        while True:
            self.extents = self.client.store.extents_of(self.lease)
            if not self.pending:
                return self
            if time.monotonic() > until:
                raise Timeout("not yet")
            time.sleep(0.001)


class FakeWriteLease(_Held):
    def __init__(self, client: FakeClient, answer: tuple[int, bytes, np.ndarray, str]) -> None:
        super().__init__(client, answer[0])
        self.states = answer[1]
        self.extents = answer[2]
        self.reason = answer[3]
        self.granted = [i for i, state in enumerate(self.states) if state == 0]


@dataclass
class FakeMatch:
    count: int
    tiers: bytes
    hold: _Held | None


class FakeClient:
    """The part of `kvasir.Client` that the connector uses."""

    def __init__(self, store: FakeStore, session: str) -> None:
        self.store = store
        self.session = session
        self.incarnation = 0
        self.boot = b""
        self.closed = False
        self.connect()

    def connect(self) -> None:
        if self.store.up and self.boot != self.store.boot:
            self.boot = self.store.boot
            self.incarnation += 1

    @property
    def connected(self) -> bool:
        if self.closed or not self.store.up:
            return False
        self.connect()  # The real one has a thread that does it.
        return True

    @property
    def arena(self) -> FakeArena:
        self.check(None)
        return self.store.arena

    @property
    def arena_id(self) -> bytes:
        return self.arena.id

    def check(self, incarnation: int | None) -> None:
        if not self.connected:
            raise NotConnected("the daemon is away")
        if incarnation is not None and incarnation != self.incarnation:
            raise ConnectionLost("it belongs to another connection")

    def match(self, space, root, keys, *, hold_ms=0, readers=1, hint=NO_HINT, timeout=None):
        assert timeout is not None
        self.store.hints.append(("match", hint))
        self.check(None)
        self.store.call("match")
        if self.store.match_fails:
            raise self.store.match_fails.pop(0)
        count, tiers, hold = self.store.match(self.session, space, keys, readers)
        held = _Held(self, hold) if hold else None
        time.sleep(self.store.match_takes_s())
        assert self.store.answers.wait(20), "the test never lets the store answer"
        self.check(held.incarnation if held is not None else None)
        return FakeMatch(count, tiers, held)

    def log_requests(self, *, timeout=None):
        assert timeout is not None
        self.check(None)
        self.store.call("log_requests")
        if self.store.request_log_error is not None:
            raise self.store.request_log_error
        return self.store.logs_requests

    def log_request(self, space, root, keys, tokens, *, hint=NO_HINT, timeout=None):
        assert timeout is not None
        self.check(None)
        self.store.call("log_request")
        if self.store.request_log_error is not None:
            raise self.store.request_log_error
        self.store.requests.append((bytes(keys), tokens, hint))
        return self.store.logs_requests

    def acquire(self, hold, shard, *, first=0, count=None, incarnation=None, timeout=None):
        self.check(incarnation)
        self.store.call("acquire")
        lease = self.store.acquire(self.session, hold, shard, first, count)
        return FakeReadLease(self, lease)

    def prefetch(self, space, root, keys, *, timeout=None):
        assert timeout is not None
        self.check(None)
        self.store.call("prefetch")
        if self.store.prefetch_fails:
            raise self.store.prefetch_fails.pop(0)
        return self.store.prefetch(space, keys)

    def pipeline_reserve(self, requests, *, timeout=None):
        assert timeout is not None
        assert timeout < 1, "the scheduler must not wait long"
        self.check(None)
        self.store.call("reserve")
        answers = []
        for request in requests:
            self.store.hints.append(("reserve", request.hint))
            try:
                answers.append(FakeWriteLease(self, self.store.reserve(self.session, request)))
            except KvasirError as error:
                answers.append(error)
        return answers

    def commit(self, lease, shard, positions=None, *, incarnation=None, timeout=None):
        assert positions is None
        self.check(incarnation)
        self.store.call("commit")
        return self.store.commit(self.session, lease, shard)

    def release(self, number, shard=None, *, incarnation=None, timeout=None):
        self.check(incarnation)
        self.store.call("release")
        return self.store.release(self.session, number, shard)

    def close(self) -> None:
        self.closed = True


class FakeStream:
    """What an engine gives its device to do, done in order, as late as somebody waits for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.work: list[Any] = []
        self.done = 0

    def enqueue(self, work: Any) -> None:
        with self.lock:
            self.work.append(work)

    def position(self) -> int:
        with self.lock:
            return len(self.work)

    def run(self, until: int | None = None) -> None:
        with self.lock:
            end = len(self.work) if until is None else until
            while self.done < end:
                work, self.work[self.done] = self.work[self.done], None
                self.done += 1
                work()


class FakeCopy:
    def __init__(self, engine: FakeStream, after: int | None, act: Any) -> None:
        self.engine = engine
        self.after = after
        self.act = act
        self.event = threading.Event()

    def execute(self) -> None:
        with self.engine.lock:
            if self.event.is_set():
                return
            # Without a mark nothing orders it after the engine's work: it runs too early.
            if self.after is not None:
                self.engine.run(self.after)
            try:
                self.act()
            finally:
                self.event.set()

    def done(self) -> bool:
        return self.event.is_set()

    def wait(self) -> None:
        assert self.event.wait(10), "a copy never ends"


class FakeDevice:
    """A device with streams over CPU tensors: a copy happens later than it is started."""

    asynchronous = True

    def __init__(self, tensors: Any, rng: random.Random, delay_s: float = 0.003) -> None:
        self.inner = CpuDevice(tensors)
        self.engine = FakeStream()
        self.rng = rng
        self.delay_s = delay_s
        self.hold_copies = threading.Event()
        """While set, no copy happens unless something waits for it."""
        self.queues: list[queue.SimpleQueue[FakeCopy | None]] = []
        self.threads = []
        for _ in range(2):
            inbox: queue.SimpleQueue[FakeCopy | None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._run, args=(inbox,), daemon=True)
            self.queues.append(inbox)
            self.threads.append(thread)
            thread.start()

    def bind(self, layout: Any) -> None:
        self.inner.bind(layout)

    def attach(self, arena: Any) -> None:
        self.inner.attach(arena)

    def mark(self) -> int:
        return self.engine.position()

    def gather(self, arena: Any, chunks: Any, after: Any) -> FakeCopy:
        return self._start(0, after, lambda: self.inner.gather(arena, chunks, None))

    def scatter(self, arena: Any, chunks: Any, after: Any) -> FakeCopy:
        return self._start(1, after, lambda: self.inner.scatter(arena, chunks, None))

    def fence(self, copies: Any) -> None:
        waited = list(copies)
        self.engine.enqueue(lambda: [copy.execute() for copy in waited])

    def close(self) -> None:
        for inbox in self.queues:
            inbox.put(None)
        for thread in self.threads:
            thread.join(10)
        self.inner.close()

    def _start(self, stream: int, after: Any, act: Any) -> FakeCopy:
        copy = FakeCopy(self.engine, after, act)
        self.queues[stream].put(copy)
        return copy

    def _run(self, inbox: Any) -> None:
        while (copy := inbox.get()) is not None:
            time.sleep(self.rng.random() * self.delay_s)
            while self.hold_copies.is_set():
                time.sleep(0.001)
            copy.execute()
