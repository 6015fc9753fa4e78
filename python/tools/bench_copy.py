"""Measures saving and loading with the Python client beside numpy copies of the same bytes.

``kvasir bench copy --python PATH`` runs it and prints its figures; by itself it prints JSON.
A save is reserve, copy, commit; a load is acquire, copy, release. Times are in nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket as sockets
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

import kvasir
from kvasir import identity

CHUNK_BYTES_MAX = 4 << 20
MIRROR_BYTES = 1 << 30
Bytes = npt.NDArray[np.uint8]


@dataclass
class Figures:
    """One line of the result; the fields' names are those that ``kvasir bench`` reads."""

    what: str
    bytes: int
    round_trip: float
    limits: list[float]
    limits_cpu: list[float]
    times: list[float]
    times_cpu: list[float]


def space_of(chunk_bytes: int) -> identity.Space:
    """A space of one shard, apart from those of other programs."""
    return identity.Space(
        model=os.urandom(32).hex(),
        dtype="bfloat16",
        kind="opaque",
        layers=1,
        heads=1,
        head_size=1,
        order="bytes",
        byte_order="little",
        block_tokens=16,
        chunk_tokens=256,
        stages=1,
        ranks=1,
        shard_bytes=(chunk_bytes,),
    )


def raw_round_trip(count: int = 5_000) -> float:
    """The median of 204 bytes there and 68 back over a Unix socket."""
    here, there = sockets.socketpair()
    child = os.fork()
    if child == 0:
        here.close()
        answer = bytes(68)
        while there.recv(65_536):
            there.send(answer)
        os._exit(0)
    there.close()
    request = bytes(204)
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        here.send(request)
        here.recv(65_536)
        times.append(time.perf_counter_ns() - started)
    here.close()
    os.waitpid(child, 0)
    return statistics.median(times)


def mirror() -> Bytes:
    """Shared memory like the arena's, faulted in."""
    descriptor = os.memfd_create("kvasir-bench")
    os.ftruncate(descriptor, MIRROR_BYTES)
    array = np.frombuffer(mmap.mmap(descriptor, MIRROR_BYTES), dtype=np.uint8)
    os.close(descriptor)
    array[::4096] = 1
    return array


class Worker:
    """Saves, loads, and copies without Kvasir, in turns."""

    def __init__(self, client: kvasir.Client, size: int, memory: Bytes) -> None:
        chunk_bytes = min(size, CHUNK_BYTES_MAX)
        self.client = client
        self.size = size
        self.count = size // chunk_bytes
        self.space = space_of(chunk_bytes)
        self.root = identity.root(self.space.id)
        self.buffer: Bytes = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        self.parts = self.buffer.reshape(self.count, chunk_bytes)
        self.places = self._places(memory)
        self.stored: list[bytes] = []

    def _places(self, memory: Bytes) -> Iterator[Bytes]:
        while True:
            for start in range(0, len(memory) - self.size + 1, self.size):
                yield memory[start : start + self.size]

    def keys(self) -> bytes:
        return os.urandom(32 * self.count)

    def save(self, keys: bytes) -> None:
        lease = self.client.reserve(self.space, self.root, keys)
        if len(lease.granted) != self.count:
            sys.exit(f"the server had no room: {lease.reason}")
        for position in range(self.count):
            view = np.frombuffer(lease.view(position, 0), dtype=np.uint8)
            np.copyto(view, self.parts[position])
        lease.commit(0)

    def load(self, hold: kvasir.Hold) -> None:
        lease = hold.acquire(0)
        late = []
        for position in range(self.count):
            if int(lease.extents[position, 0]) == 2**64 - 1:
                late.append(position)
            else:
                np.copyto(self.parts[position], lease.array(position))
        if late:
            lease.wait()
            for position in late:
                np.copyto(self.parts[position], lease.array(position))
        if not lease.release():
            sys.exit("a lease expired; the machine is too slow or busy")

    def hold(self, index: int) -> kvasir.Hold:
        keys = self.stored[index % len(self.stored)]
        match = self.client.match(self.space, self.root, keys, hold_ms=60_000)
        if match.hold is None or match.count != self.count:
            sys.exit("a stored prompt was evicted; give the server more memory")
        return match.hold

    def copy_in(self) -> None:
        np.copyto(next(self.places), self.buffer)

    def copy_out(self) -> None:
        np.copyto(self.buffer, next(self.places))


def timed(actions: list[Callable[[], None]]) -> tuple[float, float]:
    """The median wall time of the actions, and their mean CPU time in this process."""
    times = []
    processor = time.process_time_ns()
    for action in actions:
        started = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times), (time.process_time_ns() - processor) / len(actions)


def measure(worker: Worker, rounds: int, round_trip: float) -> list[Figures]:
    repeats = min(400, max(2, (256 << 20) // worker.size))
    for _ in range(repeats):
        keys = worker.keys()
        worker.save(keys)
        worker.stored.append(keys)
    found: dict[str, list[tuple[float, float]]] = {n: [] for n in ("in", "save", "out", "load")}
    for number in range(rounds + 1):
        fresh = [worker.keys() for _ in range(repeats)]
        first = timed([worker.copy_in] * repeats)
        save = timed([lambda keys=keys: worker.save(keys) for keys in fresh])  # type: ignore[misc]
        holds = [worker.hold(index) for index in range(repeats)]
        out = timed([worker.copy_out] * repeats)
        load = timed([lambda hold=hold: worker.load(hold) for hold in holds])  # type: ignore[misc]
        if number:
            for name, value in (("in", first), ("save", save), ("out", out), ("load", load)):
                found[name].append(value)
    worker.client.drop_space(worker.space)
    return [
        Figures(
            what,
            worker.size,
            round_trip,
            [wall for wall, _ in found[limit]],
            [cpu for _, cpu in found[limit]],
            [wall for wall, _ in found[what]],
            [cpu for _, cpu in found[what]],
        )
        for what, limit in (("save", "in"), ("load", "out"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True, help="the server's socket")
    parser.add_argument("--sizes", required=True, help="bytes of a request, with commas between")
    parser.add_argument("--rounds", type=int, default=5, help="alternated runs")
    options = parser.parse_args()
    # Before there are threads: it forks.
    assert threading.active_count() == 1
    round_trip = raw_round_trip()
    memory = mirror()
    figures: list[Figures] = []
    with kvasir.Client(options.socket) as client:
        # As an engine does before its first request.
        client.arena.populate()
        for size in (int(text) for text in options.sizes.split(",")):
            figures += measure(Worker(client, size, memory), options.rounds, round_trip)
    sys.stdout.write(json.dumps([asdict(line) for line in figures]) + "\n")


if __name__ == "__main__":
    main()
