"""A client process for the system tests: ``puppet.py SOCKET OPTIONS``, driven by lines of JSON.

A line in is a method of :class:`Actor` and its arguments, a line out what it returned. The process
ends with its standard input, so none outlives its test.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

import kvasir
from support import chunk_content, make_keys, make_space, store


class Actor:
    """What a puppet can be told to do. Leases stay until it is told to release them."""

    def __init__(self, path: str, *, shard_bytes: list[int], **options: Any) -> None:
        self.space = make_space(tuple(shard_bytes))
        self.client = kvasir.Client(path, **options)
        self.lease: kvasir.WriteLease | None = None
        self.hold: kvasir.Hold | None = None
        self.reading: kvasir.ReadLease | None = None

    # Saving

    def save(self, salt: str, count: int, data: str) -> int:
        root, keys = make_keys(self.space, count, salt=salt)
        return store(self.client, self.space, root, keys, data.encode())

    def reserve(self, salt: str, count: int, ttl_ms: int = 60_000) -> dict[str, Any]:
        root, keys = make_keys(self.space, count, salt=salt)
        self.lease = self.client.reserve(self.space, root, keys, ttl_ms=ttl_ms)
        return {
            "id": self.lease.id,
            "granted": self.lease.granted,
            "states": list(self.lease.states),
            "reason": self.lease.reason,
        }

    def write(self, byte: int, *, stop_half_way: bool = False) -> int:
        """Fills every extent page by page; stops itself in the middle. How many bytes."""
        assert self.lease is not None
        views = [
            self.lease.view(position, shard)
            for position in self.lease.granted
            for shard in range(self.space.shards)
        ]
        pages = [(view, start) for view in views for start in range(0, len(view), 4096)]
        written = 0
        for number, (view, start) in enumerate(pages):
            if stop_half_way and number == len(pages) // 2:
                os.kill(os.getpid(), signal.SIGSTOP)
            page = view[start : start + 4096]
            page[:] = bytes([byte]) * len(page)
            written += len(page)
        return written

    def commit(self) -> int:
        assert self.lease is not None
        return sum(self.lease.commit(shard) for shard in range(self.space.shards))

    def release(self) -> bool:
        assert self.lease is not None
        return self.lease.release()

    # Loading

    def match(self, salt: str, count: int, hold_ms: int) -> int:
        root, keys = make_keys(self.space, count, salt=salt)
        match = self.client.match(self.space, root, keys, hold_ms=hold_ms, readers=16)
        self.hold = match.hold
        return match.count

    def acquire(self, shard: int = 0) -> int:
        assert self.hold is not None
        self.reading = self.hold.acquire(shard).wait()
        return len(self.reading)

    def copy(self, *, stop_first: bool = False) -> list[str]:
        """What is in each chunk: its first bytes, as long as no other unit is in it."""
        assert self.reading is not None
        views = [self.reading.view(index) for index in range(len(self.reading))]
        if stop_first:
            os.kill(os.getpid(), signal.SIGSTOP)
        return [bytes(view[:16]).hex() for view in views]

    def release_reading(self) -> bool:
        assert self.reading is not None
        return self.reading.release()

    def read_within_lease(self, salt: str, count: int, hold_ms: int, *, stop: bool) -> int:
        """Reads in a ``with`` block, whose end tells of an expiry."""
        self.match(salt, count, hold_ms)
        assert self.hold is not None
        with self.hold.acquire(0).wait() as reading:
            if stop:
                os.kill(os.getpid(), signal.SIGSTOP)
            return sum(len(reading.view(index)) for index in range(len(reading)))

    # Connecting

    def map_arena(self) -> str:
        """Maps the arena and faults it in, as an engine does at its start."""
        self.client.arena.populate(background=False)
        return self.client.arena.id.hex()

    def arena_is_alive(self) -> bool:
        return self.client.arena.alive

    def close(self) -> None:
        self.client.close()

    def reconnect(self) -> None:
        self.client.connect()

    def release_remains(self, id: int) -> bool:
        return self.client.release(id)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def ping(self) -> bool:
        return self.client.ping() > 0

    # Load under faults

    def load(self, seed: int, salts: int, stop: str, timeout: float) -> dict[str, Any]:
        """Saves and loads at random until there is a file ``stop``; what came of it.

        ``wrong`` counts chunks whose bytes were not those saved though the release said that the
        lease had held; ``slowest`` is the longest call in seconds.
        """
        rng = random.Random(seed)
        totals = {"saved": 0, "loaded": 0, "discarded": 0, "failed": 0, "wrong": 0}
        unforeseen: list[str] = []
        slowest = 0.0
        while not os.path.exists(stop):
            salt = f"prompt-{rng.randrange(salts)}"
            count = rng.randint(1, 12)
            begin = time.monotonic()
            try:
                action = rng.choice((self._save_once, self._load_once))
                for name, number in action(salt, count, timeout).items():
                    totals[name] += number
            except kvasir.KvasirError as error:
                totals["failed"] += 1
                if isinstance(error, kvasir.Timeout | kvasir.ProtocolError):
                    unforeseen.append(f"{type(error).__name__}: {error}")
                if isinstance(error, kvasir.NotConnected):
                    # Nothing can be awaited: the client itself says when it tries again.
                    time.sleep(0.005)
            slowest = max(slowest, time.monotonic() - begin)
        return {**totals, "slowest": slowest, "unforeseen": unforeseen[:5]}

    def _save_once(self, salt: str, count: int, timeout: float) -> dict[str, int]:
        root, keys = make_keys(self.space, count, salt=salt)
        sealed = 0
        with self.client.reserve(self.space, root, keys, timeout=timeout) as lease:
            if lease.granted:
                for shard, length in enumerate(self.space.shard_bytes):
                    for position in lease.granted:
                        content = chunk_content(salt.encode(), position, shard, length)
                        lease.view(position, shard)[:] = content
                    sealed += self.client.commit(lease, shard, timeout=timeout)
        return {"saved": sealed}

    def _load_once(self, salt: str, count: int, timeout: float) -> dict[str, int]:
        root, keys = make_keys(self.space, count, salt=salt)
        match = self.client.match(
            self.space, root, keys, hold_ms=10_000, readers=self.space.shards, timeout=timeout
        )
        loaded = discarded = wrong = 0
        if match.hold is None:
            return {}
        with match.hold as hold:
            for shard, length in enumerate(self.space.shard_bytes):
                reading = self.client.acquire(hold, shard, timeout=timeout)
                reading.wait(timeout)
                copies = []
                for index in range(len(reading)):
                    if int(reading.extents[index][0]) == 2**64 - 2:
                        break
                    copies.append(bytes(reading.view(index)))
                if not reading.release():
                    discarded += len(copies)
                    continue
                loaded += len(copies)
                for index, copied in enumerate(copies):
                    wrong += copied != chunk_content(salt.encode(), index, shard, length)
        return {"loaded": loaded, "discarded": discarded, "wrong": wrong}

    # A race for the same chunks

    def race(self, mark: int, rounds: int, count: int, begin: float) -> dict[str, list[int]]:
        """In each round: reserves the same chunks as everybody, and fills what it was granted.

        Rounds begin at the same moments in all processes, 20 ms apart.
        """
        outcome: dict[str, list[int]] = {"granted": [], "present": [], "busy": []}
        for number in range(rounds):
            moment = begin + number * 0.02
            time.sleep(max(0.0, moment - time.monotonic() - 0.001))
            while time.monotonic() < moment:
                pass
            root, keys = make_keys(self.space, count, salt=f"race-{number}")
            with self.client.reserve(self.space, root, keys) as lease:
                for state, key in ((0, "granted"), (1, "present"), (2, "busy")):
                    outcome[key].append(lease.states.count(state))
                for position in lease.granted:
                    view = lease.view(position, 0)
                    for start in range(0, len(view), 4096):
                        page = view[start : start + 4096]
                        page[:] = bytes([mark]) * len(page)
                if lease.granted:
                    lease.commit(0)
        return outcome

    def watch_race(self, rounds: int, count: int, marks: list[int]) -> dict[str, int]:
        """Reads each round's chunks as soon as they can be matched, until all are whole."""
        looks = torn = read = 0
        for number in range(rounds):
            root, keys = make_keys(self.space, count, salt=f"race-{number}")
            seen = 0
            while seen < count:
                looks += 1
                match = self.client.match(self.space, root, keys, hold_ms=10_000)
                if match.hold is None:
                    continue
                with match.hold as hold, hold.acquire(0).wait() as reading:
                    copies = [bytes(reading.view(index)) for index in range(len(reading))]
                seen = len(copies)
                read += seen
                torn += sum(c[0] not in marks or c != c[:1] * len(c) for c in copies)
        return {"looks": looks, "read": read, "torn": torn}


def main() -> None:
    actor = Actor(sys.argv[1], **json.loads(sys.argv[2]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer: list[Any] = [False, getattr(actor, name)(**arguments)]
        except kvasir.KvasirError as error:
            answer = [True, [error.code, error.message]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
