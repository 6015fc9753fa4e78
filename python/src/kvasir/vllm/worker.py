"""The worker's side: copies between paged blocks and the arena.

Saves are copied on the engine's thread after the forward pass, loads by a thread of their own.
Loads whose chunks are on their way to memory are waited for beside each other, by other threads.
What has to be said to the daemon afterwards (commit, release) is said by the finisher thread, once
the copy is over. On an asynchronous device both start on side streams and the finisher waits for
them; until then the engine keeps the blocks.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from kvasir.errors import KvasirError, ServerError, Timeout
from kvasir.leases import MEMORY
from kvasir.vllm.config import ConnectorOptions
from kvasir.vllm.device import ChunkCopy, Copy, Device, Mark
from kvasir.vllm.grid import Grid
from kvasir.vllm.layout import ExtentLayout
from kvasir.vllm.link import Connection, Link
from kvasir.vllm.metadata import LoadSpec, LoadTimes, SaveSpec, StepMetadata, WorkerReport
from kvasir.vllm.stats import Counters

log = logging.getLogger("vllm.kvasir")

WAIT_SLICE_S = 0.5
"""A load that waits for its tier looks this often whether it is still wanted."""
SHORT_SLICE_S = 0.05
"""The same where more loads wait than there are threads to wait: they take turns."""
WAITERS = 8
"""So many loads are waited for at the same time."""
JOIN_WAIT_S = 0.25
"""The first step waits this long for the connection."""
REFRESH_WAIT_S = 0.02
"""A step with something to save waits this long for a connection that was just made again."""
JOIN_S = 5.0
"""Threads are given this long to end."""

UNRELEASED_MAX = 1024
"""So many write leases are remembered that could not be given back."""

NULL_BLOCK = 0


class LoadFailed(Exception):
    """A load, or the rest of it, can't be had; the message says why."""


@dataclass(slots=True)
class _Load:
    """One request's load on this worker."""

    spec: LoadSpec
    mark: Mark | None
    started: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    dead: bool = False
    """Its request has ended: nobody reads the blocks."""
    unwanted: bool = False
    """The weights have changed: whatever arrives is wrong."""
    connection: Connection | None = None
    lease: Any = None
    chunks: list[ChunkCopy] = field(default_factory=list)
    copied_blocks: int = 0
    begun: float = 0.0
    """When the loader took it up, and later when its copy began."""
    own_s: float = 0.0
    """What it kept the loader and the daemon busy with, apart from waiting."""
    waited: bool = False
    arrived_at: float = 0.0
    """When all of its chunks were in memory, in monotonic seconds of the host."""
    failed: set[int] = field(default_factory=set)
    """Blocks that it did not fill, once it is over."""

    def fail(self) -> None:
        """None of its blocks counts."""
        self.failed = {block for block in self.spec.blocks if block != NULL_BLOCK}


@dataclass(slots=True)
class _Save:
    """One request's save on this worker."""

    spec: SaveSpec
    copy: Copy
    connection: Connection
    chunks: int
    started: float


class WorkerSide:
    """One rank's half of the connector."""

    def __init__(
        self,
        options: ConnectorOptions,
        grid: Grid,
        *,
        stage: int,
        rank: int,
        device: Device,
        layout: ExtentLayout,
        make_link: Callable[[str], Link],
        sliding: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._grid = grid
        self._shard = grid.shard(stage, rank)
        self._writes = grid.writes(rank)
        self._device = device
        self._layout = layout
        self._make_link = make_link
        self._sliding = sliding
        self._clock = clock
        self._link: Link | None = None
        self._mark: Mark | None = None
        self._session = ""
        device.bind(layout)

        self._lock = threading.Condition()
        # All below is guarded by the lock.
        self._loading: dict[str, _Load] = {}
        self._received: dict[str, _Load] = {}
        """Loads that are over and not reported yet."""
        self._failed: set[str] = set()
        self._saving: dict[str, dict[int, Copy]] = {}
        """Asynchronous saves under way, by request."""
        self._load_times: dict[str, LoadTimes] = {}
        self._saved: dict[int, int] = {}
        self._counters = Counters()
        self._outage = ""
        self._unreleased: list[tuple[bytes, int]] = []
        """Write leases to be given back, each with its arena, once there is a connection."""
        self._unfinished = 0
        """Tasks of the finisher that are queued or running."""

        # Touched by the engine's thread only.
        self._metadata: StepMetadata | None = None
        self._delayed: set[str] = set()
        self._unstarted: list[SaveSpec] = []
        """Saves of the bound step whose copy has not been started."""

        self._load_queue: queue.SimpleQueue[_Load | None] = queue.SimpleQueue()
        self._wait_queue: queue.SimpleQueue[_Load | None] = queue.SimpleQueue()
        self._finish_queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiters: list[threading.Thread] = []
        self._idle_waiters = 0
        """Waiters that nobody needs just now. Under the lock."""
        self._closing = threading.Event()

    # -- steps, on the engine's thread ----------------------------------------------------------

    def handle_preemptions(self, metadata: StepMetadata) -> None:
        """Blocks that the engine has taken back may be overwritten from now on: not before the
        copies that read them are over. Those that slid out of an attention window are taken back
        at any step, without a word."""
        with self._lock:
            requests = list(self._saving) if self._sliding else metadata.preempted
            copies = [
                copy
                for request_id in requests
                for copy in self._saving.get(request_id, {}).values()
            ]
        if copies:
            self._device.fence(copies)

    def bind(self, metadata: StepMetadata) -> None:
        """A step begins."""
        self._metadata = metadata
        self._delayed.update(metadata.delayed)
        if metadata.session and metadata.session != self._session:
            self._join(metadata.session)
        if self._unreleased:
            self._release_left()
        # Said here and not when the copy starts: vLLM may ask for finished requests before it
        # lets the step's saves start.
        for spec in self._unstarted:
            self._save_failed(spec, "never started", None)
        self._unstarted = list(metadata.saves) if self._writes else []
        with self._lock:
            if not self._writes and self._device.asynchronous:
                for spec in metadata.saves:
                    self._saved[spec.save] = self._saved.get(spec.save, 0) + 1
            for request_id in metadata.discard_loads:
                if load := self._loading.get(request_id):
                    load.unwanted = True
                    load.cancelled.set()
                elif load := self._received.get(request_id):
                    load.fail()
                    self._failed.add(request_id)
        self._mark = self._device.mark() if metadata.loads else None

    def start_loads(self) -> None:
        """Hands the step's loads to the loader."""
        metadata = self._metadata
        if metadata is None or not metadata.loads:
            return
        specs, metadata.loads = metadata.loads, []
        self._start_threads()
        for spec in specs:
            load = _Load(spec, self._mark, self._clock())
            with self._lock:
                self._loading[spec.request_id] = load
            self._load_queue.put(load)

    def start_saves(self) -> None:
        """Copies what the step's forward pass has completed into the store's extents."""
        specs, self._unstarted = self._unstarted, []
        if not specs:
            return
        mark = self._device.mark()
        link = self._link
        connection = link.ready(REFRESH_WAIT_S) if link is not None else None
        for spec in specs:
            try:
                self._start_save(spec, connection, mark)
            except Exception as error:
                log.exception("Kvasir: a save could not be copied")
                self._save_failed(spec, type(error).__name__, connection)

    def finished(self, finished_ids: set[str]) -> tuple[set[str], set[str], set[int]]:
        """Requests whose blocks are not read any more, whose load is over, and blocks that a load
        did not fill. Each request is named once."""
        for request_id in finished_ids:
            with self._lock:
                load = self._loading.get(request_id)
                if load is not None:
                    load.dead = True
                    load.cancelled.set()
        metadata = self._metadata
        with self._lock:
            idle = metadata is not None and metadata.idle
            if idle and (self._loading or self._saving) and not self._has_news():
                # Nothing to compute: without this the engine would spin through empty steps, and
                # take the processor from the loader.
                self._lock.wait(self._options.idle_wait_ms / 1000)
            received, self._received = self._received, {}
            unstarted = {spec.request_id for spec in self._unstarted}
            sent = {
                request_id
                for request_id in self._delayed
                if request_id not in self._saving and request_id not in unstarted
            }
        self._delayed -= sent
        invalid = {block for load in received.values() for block in load.failed}
        return sent, set(received), invalid

    def _has_news(self) -> bool:
        """Whether something can be reported now. Under the lock."""
        return bool(self._received or any(one not in self._saving for one in self._delayed))

    def report(self) -> WorkerReport | None:
        """What the scheduler's side has to know."""
        with self._lock:
            report = WorkerReport(self._failed, self._saved, self._outage, self._load_times)
            self._failed, self._saved, self._outage, self._load_times = set(), {}, "", {}
        return None if report.is_empty() else report

    def take_stats(self) -> dict[str, Any]:
        with self._lock:
            return self._counters.take()

    def quiet(self) -> bool:
        """Whether nothing is under way behind the engine's steps."""
        with self._lock:
            return not (self._loading or self._saving or self._unfinished)

    def unbind(self) -> None:
        """The step ends."""
        self._metadata = None

    def shutdown(self) -> None:
        """Finishes what is under way, within a bound, and ends the connection."""
        self._closing.set()
        with self._lock:
            for load in self._loading.values():
                load.cancelled.set()
        self._load_queue.put(None)
        for thread in self._threads[:1]:
            thread.join(JOIN_S)
        for _ in self._waiters:
            self._wait_queue.put(None)
        for thread in self._waiters:
            thread.join(JOIN_S)
        self._finish_queue.put(None)
        for thread in self._threads[1:]:
            thread.join(JOIN_S)
        self._device.close()
        if self._link is not None:
            self._link.close()

    # -- saves ---------------------------------------------------------------------------------

    def _start_save(self, spec: SaveSpec, connection: Connection | None, mark: Mark | None) -> None:
        if connection is None:
            self._save_failed(spec, "not connected", None)
            return
        if connection.arena_id != spec.arena:
            self._save_failed(spec, "the daemon was restarted", None)
            return
        started = self._clock()
        extents = np.frombuffer(spec.extents, dtype="<u8").reshape(-1, self._grid.shards, 2)
        here = extents[:, self._shard]
        if (here[:, 1] < self._layout.chunk_bytes).any():
            self._save_failed(spec, "an extent is too short", connection)
            return
        count = self._layout.chunk_blocks
        chunks = [
            ChunkCopy(int(offset), spec.blocks[i * count : (i + 1) * count])
            for i, offset in enumerate(here[:, 0])
        ]
        copy = self._device.gather(connection.arena, chunks, mark)
        save = _Save(spec, copy, connection, len(chunks), started)
        if self._device.asynchronous:
            with self._lock:
                self._saving.setdefault(spec.request_id, {})[spec.save] = copy
        self._finish_later(lambda: self._finish_save(save))

    def _finish_save(self, save: _Save) -> None:
        """On the finisher: the copy is over, the daemon is told."""
        spec = save.spec
        problem = ""
        try:
            save.copy.wait()
            took = self._clock() - save.started
        except Exception as error:
            log.exception("Kvasir: the copy of a save failed")
            problem, took = type(error).__name__, 0.0
        # From here on the blocks are not read any more, whatever the daemon says.
        self._save_over(spec)
        if not problem and not save.connection.arena.alive:
            # The copy may have gone into what stands where the arena was mapped.
            problem = "the arena is gone"
        if not problem:
            try:
                save.connection.client.commit(
                    spec.lease, self._shard, incarnation=save.connection.incarnation
                )
            except KvasirError as error:
                problem = getattr(error, "code", "") or type(error).__name__
        if problem:
            self._save_failed(spec, problem, save.connection, over=True)
            return
        with self._lock:
            self._counters.add("saves")
            self._counters.add("saved_chunks", save.chunks)
            self._counters.add("saved_bytes", save.chunks * self._layout.chunk_bytes)
            self._counters.add("save_ms", took * 1000)

    def _save_over(self, spec: SaveSpec) -> None:
        if not self._device.asynchronous:
            return
        with self._lock:
            running = self._saving.get(spec.request_id)
            if running is not None:
                running.pop(spec.save, None)
                if not running:
                    del self._saving[spec.request_id]
            self._saved[spec.save] = self._saved.get(spec.save, 0) + 1
            self._lock.notify_all()

    def _save_failed(
        self, spec: SaveSpec, reason: str, connection: Connection | None, *, over: bool = False
    ) -> None:
        """Counts it, and gives the extents back where the daemon that lent them is there."""
        if not over:
            self._save_over(spec)
        with self._lock:
            self._counters.fail("failed_saves", reason)
            if connection is None:
                self._outage = reason
                self._leave(spec.arena, spec.lease)
        if connection is None:
            return
        if over:
            self._release_write(connection, spec.lease)
        else:
            self._finish_later(lambda: self._release_write(connection, spec.lease))

    def _release_write(self, connection: Connection, lease: int) -> None:
        """On the finisher: this rank is done with a write lease. Its chunks can't be saved by
        anybody else before all ranks are."""
        try:
            connection.client.release(lease, self._shard, incarnation=connection.incarnation)
        except ServerError as error:
            log.debug("giving back a write lease: %s", error)
        except KvasirError as error:
            # The session lives as long as one of its connections, and its leases with it.
            log.debug("giving back a write lease: %s", error)
            with self._lock:
                self._leave(connection.arena_id, lease)

    def _leave(self, arena_id: bytes, lease: int) -> None:
        """For later. Under the lock."""
        self._unreleased.append((arena_id, lease))
        del self._unreleased[:-UNRELEASED_MAX]

    def _release_left(self) -> None:
        """Write leases that could not be given back, now that their daemon may be there."""
        connection = self._link.current() if self._link is not None else None
        if connection is None:
            return
        with self._lock:
            left, self._unreleased = self._unreleased, []
            for arena_id, lease in left:
                if arena_id != connection.arena_id:
                    self._leave(arena_id, lease)
        for arena_id, lease in left:
            if arena_id == connection.arena_id:
                self._finish_later(partial(self._release_write, connection, lease))

    # -- loads ---------------------------------------------------------------------------------

    def _run_loader(self) -> None:
        while (load := self._load_queue.get()) is not None:
            self._guard(load, self._begin_load)

    def _run_waiter(self) -> None:
        """Loads whose chunks are on their way to memory wait here, so that others pass them."""
        while (load := self._wait_queue.get()) is not None:
            self._guard(load, self._wait_for_tier)
            with self._lock:
                self._idle_waiters += 1

    def _wait_later(self, load: _Load) -> None:
        """Hands a load to those who wait; one more of them if all are busy."""
        with self._lock:
            self._idle_waiters -= 1
            if self._idle_waiters < 0 and len(self._waiters) < WAITERS:
                self._idle_waiters += 1
                thread = threading.Thread(
                    target=self._run_waiter, name="kvasir-waiter", daemon=True
                )
                self._waiters.append(thread)
                thread.start()
        self._wait_queue.put(load)

    def _guard(self, load: _Load, step: Callable[[_Load], None]) -> None:
        """Whatever goes wrong with a load, the engine is told that it is over."""
        try:
            step(load)
        except LoadFailed as failure:
            self._load_over(load, 0, str(failure))
        except KvasirError as error:
            self._load_over(load, 0, getattr(error, "code", "") or type(error).__name__)
        except Exception as error:
            log.exception("Kvasir: a load failed")
            self._load_over(load, 0, type(error).__name__)

    def _begin_load(self, load: _Load) -> None:
        spec = load.spec
        if load.lease is not None:
            self._copy(load)
            return
        self._check_wanted(load)
        if not spec.hold:
            raise LoadFailed("its hold was gone")
        connection = self._link.ready(JOIN_S) if self._link is not None else None
        if connection is None:
            with self._lock:
                self._outage = self._link.last_error if self._link is not None else "no session"
            raise LoadFailed("not connected")
        if connection.arena_id != spec.arena:
            raise LoadFailed("the daemon was restarted")
        load.connection = connection
        load.begun = self._clock()
        load.lease = connection.client.acquire(
            spec.hold,
            self._shard,
            first=spec.first,
            count=spec.count,
            incarnation=connection.incarnation,
        )
        load.own_s = self._clock() - load.begun
        if load.lease.pending:
            load.waited = True
            self._wait_later(load)
        else:
            load.arrived_at = time.monotonic()
            self._copy(load)

    def _wait_for_tier(self, load: _Load) -> None:
        deadline = load.started + self._options.load_timeout_ms / 1000
        while load.lease.pending:
            self._check_wanted(load)
            left = deadline - self._clock()
            if left <= 0:
                raise LoadFailed("its chunks did not reach memory in time")
            crowded = not self._wait_queue.empty()
            try:
                load.lease.wait(min(left, SHORT_SLICE_S if crowded else WAIT_SLICE_S))
            except Timeout:
                if crowded:
                    # Another's turn: its chunks may have arrived long ago.
                    self._wait_later(load)
                    return
        load.arrived_at = time.monotonic()
        # Back to the loader, which copies one load after the other.
        self._load_queue.put(load)

    def _copy(self, load: _Load) -> None:
        self._check_wanted(load)
        load.begun = self._clock()
        spec, lease, connection = load.spec, load.lease, load.connection
        assert connection is not None
        count = self._layout.chunk_blocks
        extents = lease.extents
        usable = lease.usable
        if len(extents) != spec.count or (
            usable and (extents[:usable, 1] < self._layout.chunk_bytes).any()
        ):
            raise LoadFailed("the extents are not those of its chunks")
        taken = 0
        for i in range(usable):
            first = spec.skip_blocks if i == 0 else 0
            blocks = spec.blocks[taken : taken + count - first]
            taken += len(blocks)
            load.chunks += _without_null(int(extents[i, 0]), first, blocks)
        load.copied_blocks = taken
        copy = self._device.scatter(connection.arena, load.chunks, load.mark)
        if copy.done():
            self._finish_load(load, copy)
        else:
            self._finish_later(lambda: self._guard(load, lambda one: self._finish_load(one, copy)))

    def _finish_load(self, load: _Load, copy: Copy) -> None:
        """The copy is over. Only if the lease was still good, so are the bytes."""
        copy.wait()
        connection = load.connection
        assert connection is not None
        if not connection.arena.alive:
            raise LoadFailed("the arena is gone")
        lease, load.lease = load.lease, None
        good = connection.client.release(lease.id, incarnation=connection.incarnation)
        if not good:
            raise LoadFailed("its lease expired")
        if load.unwanted:
            raise LoadFailed("the weights changed")
        short = load.copied_blocks < len(load.spec.blocks)
        self._load_over(load, load.copied_blocks, "chunks were gone" if short else "")

    def _check_wanted(self, load: _Load) -> None:
        if load.unwanted:
            raise LoadFailed("the weights changed")
        if load.cancelled.is_set():
            raise LoadFailed("cancelled")
        if self._closing.is_set():
            raise LoadFailed("the engine ends")

    def _load_over(self, load: _Load, good_blocks: int, problem: str) -> None:
        """Reported once, with the blocks that it did not fill."""
        lease, load.lease = load.lease, None
        if lease is not None and load.connection is not None:
            # Every reader has to give its lease back, else the hold lasts until its deadline.
            try:
                load.connection.client.release(lease.id, incarnation=load.connection.incarnation)
            except KvasirError as error:
                log.debug("giving back a read lease: %s", error)
        spec = load.spec
        failed = {block for block in spec.blocks[good_blocks:] if block != NULL_BLOCK}
        now = self._clock()
        took = now - load.started
        load.own_s += now - load.begun
        with self._lock:
            if self._loading.pop(spec.request_id, None) is None:
                return
            load.failed = set() if load.dead else failed
            self._received[spec.request_id] = load
            if problem:
                self._failed.add(spec.request_id)
                if not load.dead:
                    self._counters.fail("failed_loads", problem)
                    self._counters.add("failed_load_blocks", len(failed))
            else:
                self._load_times[spec.request_id] = _times(load)
                self._counters.add("loads")
                self._counters.add(
                    "loaded_tokens", len(spec.blocks) * self._layout.geometry.block_tokens
                )
                self._counters.add_tiers("loaded_bytes", self._bytes_by_tier(spec))
                self._counters.add("load_ms", took * 1000)
            self._lock.notify_all()

    def _bytes_by_tier(self, spec: LoadSpec) -> dict[int, int]:
        """Bytes that a load has put into this rank's blocks, by the tier that they came from."""
        sizes: dict[int, int] = {}
        per_chunk = self._layout.chunk_blocks
        for number in range(len(spec.blocks)):
            chunk = (spec.skip_blocks + number) // per_chunk
            tier = spec.tiers[chunk] if chunk < len(spec.tiers) else MEMORY
            sizes[tier] = sizes.get(tier, 0) + self._layout.geometry.block_bytes
        return sizes

    # -- threads -------------------------------------------------------------------------------

    def _run_finisher(self) -> None:
        while (task := self._finish_queue.get()) is not None:
            try:
                task()
            except Exception:
                log.exception("Kvasir: finishing a copy failed")
            finally:
                with self._lock:
                    self._unfinished -= 1

    def _finish_later(self, task: Callable[[], None]) -> None:
        with self._lock:
            self._unfinished += 1
        self._start_threads()
        self._finish_queue.put(task)

    def _start_threads(self) -> None:
        if self._threads:
            return
        for name, run in (
            ("kvasir-loader", self._run_loader),
            ("kvasir-finisher", self._run_finisher),
        ):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _join(self, session: str) -> None:
        """The first step brings the session's name."""
        if self._link is not None:
            self._link.close()
        self._session = session
        try:
            self._link = self._make_link(session)
        except (KvasirError, OSError, ValueError) as error:
            log.warning("Kvasir: this worker can't make a client: %s", error)
            self._link = None
            return
        # Once, so that the first prompt is saved too. Where the arena takes longer to prepare
        # (pinning it for a GPU), saving begins later.
        self._link.ready(JOIN_WAIT_S, dial=True)


def _times(load: _Load) -> LoadTimes:
    """What its load took, for those who learn from it."""
    began = load.spec.prefetched_at
    arrived = max(0.0, load.arrived_at - began) if began else 0.0
    return LoadTimes(load.own_s, arrived, load.waited)


def _without_null(extent: int, first: int, blocks: Sequence[int]) -> list[ChunkCopy]:
    """The copies of one chunk, without blocks that stand for what slid out of a window."""
    if NULL_BLOCK not in blocks:
        return [ChunkCopy(extent, blocks, first)]
    copies = []
    start = 0
    for i in range(len(blocks) + 1):
        if i == len(blocks) or blocks[i] == NULL_BLOCK:
            if i > start:
                copies.append(ChunkCopy(extent, blocks[start:i], first + start))
            start = i + 1
    return copies
