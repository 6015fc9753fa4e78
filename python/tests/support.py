"""Helpers of the tests; no fixtures."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import kvasir


@functools.cache
def serve_help(binary: str) -> str:
    """What `kvasir serve` says of its options."""
    return subprocess.run(
        [binary, "serve", "--help"], capture_output=True, text=True, timeout=30, check=False
    ).stdout


def without_disk(binary: str) -> list[str]:
    """Keeps a daemon off the user's own disk directory."""
    return ["--memory-only"] if "--memory-only" in serve_help(binary) else []


def own_threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("kvasir-"))


def open_descriptors() -> dict[int, str]:
    result = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            result[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return result


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    """Awaits a condition that nobody signals."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)


def make_space(
    shard_bytes: tuple[int, ...] = (8192,), *, name: str = "a model", chunk_tokens: int = 16
) -> kvasir.Space:
    return kvasir.Space(
        model=hashlib.sha256(name.encode()).hexdigest(),
        model_name=name,
        dtype="bfloat16",
        kind="attention",
        layers=2,
        heads=2,
        head_size=64,
        order="planes/LBHNC",
        byte_order="little",
        block_tokens=chunk_tokens,
        chunk_tokens=chunk_tokens,
        stages=1,
        ranks=len(shard_bytes),
        shard_bytes=shard_bytes,
    )


def make_keys(space: kvasir.Space, count: int, *, salt: str = "") -> tuple[bytes, bytes]:
    """A root, and the packed keys of ``count`` chunks under it."""
    root = kvasir.root(space.id, salt=salt)
    chain = kvasir.KeyChain(root, space.chunk_tokens)
    chain.extend(list(range(count * space.chunk_tokens)))
    return root, chain.keys


def store(
    client: kvasir.Client, space: kvasir.Space, root: bytes, keys: bytes, data: bytes = b"x"
) -> int:
    """Saves the chunks, each filled with ``data`` and its position; how many were sealed."""
    sealed = 0
    with client.reserve(space, root, keys) as lease:
        for shard, length in enumerate(space.shard_bytes):
            for position in lease.granted:
                lease.view(position, shard)[:] = chunk_content(data, position, shard, length)
            if lease.granted:
                sealed += lease.commit(shard)
    return sealed


def read_back(
    client: kvasir.Client, space: kvasir.Space, root: bytes, keys: bytes, data: bytes
) -> int:
    """How many leading chunks can be read; each must have what :func:`store` wrote."""
    match = client.match(space, root, keys, hold_ms=60_000, readers=space.shards)
    usable = match.count
    if match.hold is None:
        return 0
    with match.hold as hold:
        for shard, length in enumerate(space.shard_bytes):
            with hold.acquire(shard).wait(10) as lease:
                usable = min(usable, lease.usable)
                for position in range(lease.usable):
                    expected = chunk_content(data, position, shard, length)
                    assert bytes(lease.view(position))[:length] == expected, "wrong bytes"
    return usable


def chunk_content(data: bytes, position: int, shard: int, length: int) -> bytes:
    unit = data + position.to_bytes(4, "little") + bytes([shard])
    return (unit * (length // len(unit) + 1))[:length]
