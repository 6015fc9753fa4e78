"""Kills the server again and again under load, and compares what is there with what it promised.

``torture.py --kills 200 [--seed N]``, or ``make torture N=200 SEED=N``. KVASIR_BIN is the daemon.

A *life* is one server process. Each ends with kill -9 (now and then with SIGTERM) after a random
number of operations, or before it has even started. What must be there afterwards follows from
what clients were told: chunks that were sealed before a KV.SYNC that succeeded are there, what was
dropped before one is not, and every byte read is the one that was written. The seed gives all
choices; how threads and the kernel interleave them is not in its power.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import kvasir
from support import make_keys, make_space, wait_until
from system.daemon import Daemon, arenas_mapped, users_of_arena

KIB, MIB = 1 << 10, 1 << 20
NEVER = sys.maxsize
#: What one request may take, and a whole start. Only a server that hangs needs as much.
PATIENCE = 30.0
#: Ends of connections: the server was killed.
ENDED = (kvasir.ConnectionLost, kvasir.NotConnected)
#: Answers that a crowded store may give.
CROWDED = (kvasir.StoreFull, kvasir.KeyGap, kvasir.LeaseExpired, kvasir.UnknownLease)


#: What the server says when it has to give up what was durable, with little on the disk.
CORNERED = "although the disk is not full"


class TortureError(AssertionError):
    """The server broke a promise."""


@dataclass(frozen=True)
class Mode:
    """How much there is to keep, and room for it."""

    name: str
    memory: str
    disk_mib: int
    #: Whether all that is stored fits the disk, so that nothing may be missing.
    is_roomy: bool


#: At least a quarter of some segment is always unused, so nothing is evicted from the disk; but
#: memory holds less than all.
ROOMY = Mode("roomy", "16MiB", 256, is_roomy=True)
#: The disk holds less than all: only bytes and drops can be checked.
TIGHT = Mode("tight", "8MiB", 16, is_roomy=False)

#: Shard lengths, prompts, and chunks of a prompt in each space: 18 MiB in all.
SPACES = (((64 * KIB,), 10, 16), ((48 * KIB, 20_000), 8, 12), ((5_000,), 6, 24))


@dataclass(frozen=True)
class Prompt:
    """One prompt at its longest. A chunk is named by a number: ``first`` plus its position."""

    space: kvasir.Space
    root: bytes
    keys: bytes
    first: int

    def __len__(self) -> int:
        return len(self.keys) // 32

    def leading(self, count: int) -> bytes:
        return self.keys[: count * 32]

    def chunks(self, start: int = 0) -> range:
        return range(self.first + start, self.first + len(self))


@functools.cache
def prompts() -> tuple[Prompt, ...]:
    """All that the load ever stores."""
    result: list[Prompt] = []
    first = 0
    for number, (shard_bytes, count, length) in enumerate(SPACES):
        space = make_space(shard_bytes, name=f"torture-{number}")
        for salt in range(count):
            root, keys = make_keys(space, length, salt=str(salt))
            result.append(Prompt(space, root, keys, first))
            first += length
    return tuple(result)


@functools.cache
def content(prompt: Prompt, position: int, shard: int) -> bytes:
    """What is in a shard: it follows from key and shard, so every byte can be checked."""
    key = prompt.keys[position * 32 : (position + 1) * 32]
    length = prompt.space.shard_bytes[shard]
    return hashlib.shake_128(key + shard.to_bytes(4, "little")).digest(length)


# What was promised


@dataclass
class Event:
    """Something that was asked for between two ticks; ``end`` is NEVER without a good answer."""

    begin: int
    chunks: Iterable[int] = ()
    end: int = NEVER


@dataclass
class Sync:
    """A KV.SYNC that succeeded. What was sealed before ``since`` may have been evicted earlier."""

    begin: int
    since: int


class Ledger:
    """What clients did in one life, and what follows from it for the next."""

    def __init__(self) -> None:
        #: Chunks that must be there, and why.
        self.durable: dict[int, str] = {}
        #: Chunks that must not be there.
        self.gone: set[int] = set()
        #: Lives so far, and the last one in which a drop of a chunk was asked for.
        self.life = 0
        self.dropped_in: dict[int, int] = {}
        self._ticks = itertools.count(1)
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.life += 1
        self.saves: list[Event] = []
        #: Leases given up: with their chunks go those that others have stored behind meanwhile.
        self.abandoned: list[Event] = []
        self.drops: list[Event] = []
        self.syncs: list[Sync] = []
        self._clean_since = 0
        self._evicted = 0

    def tick(self) -> int:
        return next(self._ticks)

    @contextlib.contextmanager
    def doing(self, events: list[Event], chunks: Iterable[int]) -> Iterator[Event]:
        """Notes what is about to be asked, and that it was answered unless that raises."""
        event = Event(self.tick(), chunks)
        events.append(event)
        yield event
        event.end = self.tick()

    def synced(self, begin: int, evicted: int = 0) -> None:
        """A KV.SYNC begun at a tick has succeeded.

        ``evicted``: chunks that memory gave up before a disk had them, asked for after the sync.
        What was sealed before that number last changed may be among them.
        """
        with self._lock:
            if evicted != self._evicted:
                self._evicted, self._clean_since = evicted, self.tick()
            self.syncs.append(Sync(begin, self._clean_since))

    def settle(self) -> None:
        """The server is dead: what must be there from now on, and what must not."""
        touched = {chunk for drop in self.drops for chunk in drop.chunks}
        saved = {chunk for save in self.saves for chunk in save.chunks}
        last_drop: dict[int, int] = {}
        for drop in self.drops:
            for chunk in drop.chunks:
                last_drop[chunk] = max(last_drop.get(chunk, 0), drop.end)
        self.dropped_in.update(dict.fromkeys(touched, self.life))
        durable = {c: why for c, why in self.durable.items() if c not in touched}
        for save in self.saves:
            if any(save.end < s.begin and save.begin > s.since for s in self.syncs):
                kept = {c for c in save.chunks if last_drop.get(c, 0) < save.begin}
                for other in self.abandoned:
                    if other.begin < save.end and save.begin < other.end:
                        kept.difference_update(other.chunks)
                durable |= dict.fromkeys(kept, f"saved before a KV.SYNC of life {self.life}")
        last_save: dict[int, int] = {}
        for save in self.saves:
            for chunk in save.chunks:
                last_save[chunk] = max(last_save.get(chunk, 0), save.end)
        gone = self.gone - saved
        for drop in self.drops:
            if any(drop.end < s.begin for s in self.syncs):
                gone |= {c for c in drop.chunks if last_save.get(c, 0) < drop.begin}
        self.durable, self.gone = durable, gone
        self._begin()

    def found(self, chunks: Iterable[int]) -> None:
        """Seen after a start, so the disk has them: a kill can't take them away again."""
        self.durable |= dict.fromkeys(chunks, f"found at the start of life {self.life}")

    def story(self, chunk: int) -> str:
        """Why a chunk must be there now, and what came before."""
        dropped = self.dropped_in.get(chunk)
        before = "never dropped" if dropped is None else f"last dropped in life {dropped}"
        return f"{self.durable[chunk]}, {before}; this is life {self.life}"


# The load


class Load:
    """Clients of one life: threads that save, load and drop until the server is dead."""

    SAVERS = 2

    def __init__(
        self,
        path: str,
        mode: Mode,
        ledger: Ledger,
        totals: Counter[str],
        seed: int,
        is_cornered: Callable[[], bool],
    ) -> None:
        self._path = path
        self._is_cornered = is_cornered
        self._mode = mode
        self._ledger = ledger
        self._totals = totals
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._target = 0
        self._is_stopping = False
        self._reached = threading.Event()
        #: Promises broken under the load.
        self.problems: list[str] = []
        names = [f"saver-{i}" for i in range(self.SAVERS)] + ["reader"]
        self._threads = [
            threading.Thread(target=self._work, args=(name, f"{seed}-{name}"), name=name)
            for name in names
        ]

    def run(self, operations: int) -> None:
        """Returns once so many operations have ended; the load goes on."""
        self._target = operations
        for thread in self._threads:
            thread.start()
        if not self._reached.wait(PATIENCE):
            self.problems.append(f"the load made no {operations} operations in {PATIENCE:.0f} s")

    def stop(self) -> None:
        """No further operations."""
        self._is_stopping = True

    def join(self) -> None:
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                self.problems.append(f"{thread.name} hangs though the server is dead")

    def _work(self, name: str, seed: str) -> None:
        rng = random.Random(seed)
        try:
            with kvasir.Client(self._path, timeout=PATIENCE) as client:
                while not self.problems and not self._is_stopping:
                    self._step(client, rng, is_reader=name == "reader")
                    if next(self._count) >= self._target:
                        self._reached.set()
        except ENDED:
            pass
        except Exception as error:  # noqa: BLE001  (whatever it is, it was not foreseen)
            self.problems.append(f"{name}: {type(error).__name__}: {error}")
        finally:
            if self.problems:
                self._reached.set()

    def _step(self, client: kvasir.Client, rng: random.Random, *, is_reader: bool) -> None:
        prompt = rng.choice(prompts())
        choices = ("load",) if is_reader else ACTIONS
        action = rng.choices(choices, [WEIGHTS[name] for name in choices])[0]
        try:
            getattr(self, f"_{action}")(client, rng, prompt)
        except CROWDED:
            self._note("crowded", 1)

    def _note(self, what: str, number: int) -> None:
        with self._lock:
            self._totals[what] += number

    def _save(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        known = client.match(prompt.space, prompt.root, prompt.keys).count
        count = min(len(prompt), known + rng.randint(1, 6))
        if known == count:
            return
        keys, start, parent = prompt.leading(count), 0, None
        if known and rng.random() < 0.5:
            start, parent = known, keys[(known - 1) * 32 : known * 32]
        begin = self._ledger.tick()
        with client.reserve(prompt.space, prompt.root, keys[start * 32 :], parent=parent) as lease:
            if not lease.granted:
                return
            chunks = [prompt.first + start + position for position in lease.granted]
            is_whole = rng.random() > 0.05
            events = self._ledger.saves if is_whole else self._ledger.abandoned
            with self._ledger.doing(events, chunks if is_whole else prompt.chunks(known)) as event:
                event.begin = begin
                self._fill(lease, prompt, start, is_whole=is_whole)
                if not is_whole:
                    lease.release()
                    return
        self._note("chunks saved", len(chunks))

    def _fill(
        self, lease: kvasir.WriteLease, prompt: Prompt, start: int, *, is_whole: bool
    ) -> None:
        """Writes and commits all shards, or gives up before the last one."""
        for shard in range(prompt.space.shards):
            for position in lease.granted:
                data = content(prompt, start + position, shard)
                lease.view(position, shard)[: len(data)] = data
            if is_whole or shard + 1 < prompt.space.shards:
                lease.commit(shard)

    def _load(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        count = rng.randint(1, len(prompt))
        read = read_back(client, prompt, count)
        self._note("chunks loaded", read.count)
        if read.wrong:
            self.problems.append(f"wrong bytes under load in {read.wrong}")

    def _prefetch(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        client.prefetch(prompt.space, prompt.root, prompt.keys)

    def _drop_key(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        position = rng.randrange(len(prompt))
        key = prompt.keys[position * 32 : (position + 1) * 32]
        with self._ledger.doing(self._ledger.drops, prompt.chunks(position)):
            self._note("chunks dropped", client.drop_keys(prompt.space, prompt.root, key))

    def _drop_root(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        with self._ledger.doing(self._ledger.drops, prompt.chunks()):
            self._note("chunks dropped", client.drop_root(prompt.space, prompt.root))

    def _drop_space(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        with self._ledger.doing(self._ledger.drops, chunks_of(prompt.space)):
            self._note("chunks dropped", client.drop_space(prompt.space))

    def _sync(self, client: kvasir.Client, rng: random.Random, prompt: Prompt) -> None:
        begin = self._ledger.tick()
        try:
            client.sync(timeout=PATIENCE)
        except kvasir.DiskFailed:
            # It promises nothing. With little room it may be: memory gave up what had to wait.
            if self._mode.is_roomy:
                raise
            self._note("syncs that failed", 1)
            return
        stats = client.stats()
        self._ledger.synced(begin, stats["chunks_evicted_unwritten"])
        self._note("syncs", 1)
        if self._mode.is_roomy and stats["chunks_evicted_from_disk"] and not self._is_cornered():
            self.problems.append(
                f"{stats['chunks_evicted_from_disk']} chunks were evicted from a disk that is not "
                f"full: {stats['disk_live_bytes'] / MIB:.0f} MiB are in use"
            )


#: How often a saver does what.
WEIGHTS = {
    "save": 56,
    "load": 20,
    "sync": 10,
    "drop_key": 6,
    "prefetch": 4,
    "drop_root": 3,
    "drop_space": 1,
}
ACTIONS = tuple(WEIGHTS)


def chunks_of(space: kvasir.Space) -> list[int]:
    return [chunk for p in prompts() if p.space is space for chunk in p.chunks()]


# Reading back


@dataclass
class Read:
    """What could be read of a prompt: so many leading chunks, and where bytes were wrong."""

    matched: int = 0
    count: int = 0
    wrong: list[str] = field(default_factory=list)


def read_back(client: kvasir.Client, prompt: Prompt, count: int) -> Read:
    match = client.match(
        prompt.space,
        prompt.root,
        prompt.leading(count),
        hold_ms=60_000,
        readers=prompt.space.shards,
    )
    read = Read(match.count, match.count)
    if match.hold is None:
        return read
    with match.hold as hold:
        for shard in range(prompt.space.shards):
            lease = hold.acquire(shard).wait(PATIENCE)
            copies = [bytes(lease.view(position)) for position in range(lease.usable)]
            if not lease.release():
                return Read()
            read.count = min(read.count, len(copies))
            for position, copied in enumerate(copies):
                if copied[: prompt.space.shard_bytes[shard]] != content(prompt, position, shard):
                    read.wrong.append(f"{name_of(prompt, position)}, shard {shard}")
    return read


def name_of(prompt: Prompt, position: int) -> str:
    key = prompt.keys[position * 32 : (position + 1) * 32]
    return f"chunk {position} of chunk numbers {prompt.first}… (key {key.hex()[:12]})"


# Lives


class Torture:
    """A directory and the lives of the servers on it."""

    def __init__(self, directory: Path, binary: str, mode: Mode, seed: int) -> None:
        self.mode = mode
        self.totals: Counter[str] = Counter()
        self._rng = random.Random(f"{seed}-{mode.name}")
        self._disk = directory / f"disk-{mode.name}"
        self._daemon = Daemon(directory, binary)
        self._ledger = Ledger()
        self._log_before = 0

    def run(self, kills: int) -> Iterator[int]:
        """Yields the number of kills so far; raises :class:`TortureError`."""
        try:
            while self.totals["kills"] < kills:
                self._life()
                yield self.totals["kills"]
            self._end()
        finally:
            if self._daemon.process is not None:
                self._daemon.kill()

    def _life(self) -> None:
        """One server, from its start to its end."""
        rng = self._rng
        self._launch()
        kind = rng.choices(("checked", "unchecked", "stillborn"), (70, 15, 15))[0]
        if kind == "stillborn":
            # While it starts, or reads the disk.
            time.sleep(rng.uniform(0, 0.06))
            self._stop(signal.SIGKILL)
            self._forgive()
            self.totals["killed while starting"] += 1
            return
        with self._connected() as client:
            if kind == "checked":
                self._check(client)
        load = Load(
            self._daemon.path,
            self.mode,
            self._ledger,
            self.totals,
            rng.getrandbits(32),
            self._is_cornered,
        )
        # From a few operations to some megabytes.
        load.run(rng.choice((4, 16, 64, 160)) + rng.randrange(32))
        time.sleep(rng.uniform(0, 0.002))
        end = rng.choices((self._kill, self._terminate, self._rest), (90, 5, 5))[0]
        end(load)
        self._require(not load.problems, "; ".join(load.problems))
        self._ledger.settle()
        self._forgive()

    def _is_cornered(self) -> bool:
        return CORNERED in self._daemon.text()[self._log_before :]

    def _forgive(self) -> None:
        """A server killed too often in a row to have room left says so; then it owes nothing."""
        if self._is_cornered():
            self._ledger.durable.clear()
            self.totals["times cornered"] += 1

    def _kill(self, load: Load) -> None:
        self._stop(signal.SIGKILL)
        load.join()

    def _terminate(self, load: Load) -> None:
        """SIGTERM under load."""
        self._stop(signal.SIGTERM)
        load.join()

    def _rest(self, load: Load) -> None:
        """SIGTERM once the load has ended: as good as a KV.SYNC."""
        load.stop()
        load.join()
        with kvasir.Client(self._daemon.path, timeout=PATIENCE) as client:
            evicted = client.stats()["chunks_evicted_unwritten"]
        begin, told = self._ledger.tick(), len(self._daemon.text())
        self._stop(signal.SIGTERM)
        if "not all of the memory is on disk" not in self._daemon.text()[told:]:
            self._ledger.synced(begin, evicted)
        elif self.mode.is_roomy:
            self._require(False, "SIGTERM left things that were not on disk")

    def _launch(self) -> None:
        rng = self._rng
        self._log_before = len(self._daemon.text())
        flags = ["--disk-admission", rng.choice(("all", "all", "second-use", "eviction"))]
        flags += ["--verify", rng.choice(("64", "all", "off"))]
        self._daemon.launch(
            *flags,
            memory=self.mode.memory,
            disk=self._disk,
            disk_size=f"{self.mode.disk_mib}MiB",
        )

    def _stop(self, number: signal.Signals) -> None:
        status = self._daemon.end(number)
        if number == signal.SIGTERM:
            self.totals["stopped by SIGTERM"] += 1
            self._require(status == 0, f"SIGTERM ended it with status {status}")
        else:
            self._require(status == -number, f"the server had ended with status {status}")
            self.totals["kills"] += 1
        if self._disk.exists():
            used = sum(path.stat().st_blocks * 512 for path in self._disk.iterdir())
            limit = self.mode.disk_mib * MIB
            self._require(used <= limit, f"files take {used} bytes of at most {limit}")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[kvasir.Client]:
        with kvasir.Client(self._daemon.path, timeout=PATIENCE) as client:
            wait_until(lambda: self._connects(client), "the server answers", PATIENCE)
            yield client

    def _connects(self, client: kvasir.Client) -> bool:
        process = self._daemon.process
        self._require(process is not None and process.poll() is None, "the server has ended")
        try:
            client.connect()
        except kvasir.KvasirError:
            return False
        return True

    def _check(self, client: kvasir.Client) -> None:
        """Reads everything back, once the server knows what the disk has."""
        wait_until(lambda: client.stats()["disks_recovering"] == 0, "the disk was read", PATIENCE)
        for prompt in prompts():
            read = read_back(client, prompt, len(prompt))
            self._require(not read.wrong, f"wrong bytes in {', '.join(read.wrong)}")
            self.totals["chunks read back"] += read.count
            self._compare(client, prompt, read)
            if self.mode.is_roomy:
                self._ledger.found(range(prompt.first, prompt.first + read.count))
        stats = client.stats()
        bad = ["chunks_damaged", "chunks_unreadable", "chunk_writes_failed", "disks_suspended"]
        if self.mode.is_roomy and not self._is_cornered():
            bad.append("chunks_evicted_from_disk")
        for name in bad:
            self._require(stats[name] == 0, f"{name} is {stats[name]}")

    def _compare(self, client: kvasir.Client, prompt: Prompt, read: Read) -> None:
        back = [i for i in range(read.matched) if prompt.first + i in self._ledger.gone]
        self._require(not back, f"dropped, and back: {name_of(prompt, back[0] if back else 0)}")
        if not self.mode.is_roomy:
            return
        promised = 0
        while promised < len(prompt) and prompt.first + promised in self._ledger.durable:
            promised += 1
        self.totals["chunks promised"] += promised
        if read.count < promised and not self._is_cornered():
            missing = name_of(prompt, read.count)
            story = self._ledger.story(prompt.first + read.count)
            why = client.explain(prompt.space, prompt.root, prompt.keys)
            self._require(
                False,
                f"lost, though promised: {missing}; {story}; {why.code}: {why.sentence}",
            )

    def _end(self) -> None:
        """Nothing may be left of what was dropped: no bytes, no process, no memory."""
        self._launch()
        with self._connected() as client:
            self._check(client)
            for space in {p.space.id: p.space for p in prompts()}.values():
                client.drop_space(space)
            client.sync(timeout=PATIENCE)

            def left() -> dict[str, int]:
                names = ("disk_live_bytes", "used_bytes", "chunks", "chunks_on_disk")
                stats = client.stats()
                return {name: stats[name] for name in names if stats[name]}

            wait_until(lambda: not left(), f"nothing is left after all was dropped: {left()}")
        (inode,) = arenas_mapped(self._daemon.pid)
        self._stop(signal.SIGKILL)
        self._require(not users_of_arena(inode), "somebody still has the dead server's memory")
        self._launch()
        with self._connected() as client:
            wait_until(lambda: client.stats()["disks_recovering"] == 0, "the disk was read")
            self._require(client.stats()["chunks"] == 0, "what was dropped is back")
        self._stop(signal.SIGTERM)

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise TortureError(f"{problem}\n(the server's log ends so)\n{self._log_end()}")

    def _log_end(self) -> str:
        return "\n".join(self._daemon.text().splitlines()[-12:])


def torture(directory: Path, binary: str, mode: Mode, kills: int, seed: int) -> Counter[str]:
    """The whole run in one mode, without progress."""
    run = Torture(directory, binary, mode, seed)
    for _ in run.run(kills):
        pass
    return run.totals


# The script


class Progress:
    """One line that is written again and again on a terminal; elsewhere one in every 50 kills."""

    def __init__(self, mode: Mode, kills: int) -> None:
        self._label = f"{mode.name} disk"
        self._kills = kills
        self._began = time.monotonic()
        self._is_terminal = sys.stdout.isatty()

    def tell(self, done: int, totals: Counter[str]) -> None:
        seconds = time.monotonic() - self._began
        line = (
            f"{self._label}: {done} of {self._kills} kills, "
            f"{totals['chunks read back']} chunks read back, {seconds:.0f} s"
        )
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", flush=True)
        elif done % 50 == 0:
            print(line, flush=True)

    def end(self, totals: Counter[str]) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="")
        seconds = time.monotonic() - self._began
        parts = ", ".join(f"{number} {name}" for name, number in totals.most_common())
        print(f"{self._label}, {seconds:.0f} s: {parts}; nothing lost, back or wrong", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in all (default: 200)")
    parser.add_argument("--seed", type=int, help="repeats the choices of a run")
    parser.add_argument("--directory", type=Path, help="of the device to use (default: of $TMPDIR)")
    options = parser.parse_args()
    binary = os.environ.get("KVASIR_BIN", "")
    if not os.access(binary, os.X_OK):
        print(
            "error: KVASIR_BIN names no daemon: KVASIR_BIN=.build/release/kvasir", file=sys.stderr
        )
        return 2
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    directory = Path(tempfile.mkdtemp(prefix="kvasir-torture-", dir=options.directory))
    print(f"torture: {options.kills} kills, seed {seed}")
    try:
        few = options.kills // 4
        for mode, kills in ((ROOMY, options.kills - few), (TIGHT, few)):
            run = Torture(directory, binary, mode, seed)
            progress = Progress(mode, kills)
            for done in run.run(kills):
                progress.tell(done, run.totals)
            progress.end(run.totals)
    except AssertionError as error:
        print(f"\nFAILED in the {mode.name} mode after {run.totals['kills']} kills: {error}")
        print(f"seed {seed}; files and log are left in {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
