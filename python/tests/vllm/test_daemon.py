"""The same double against every daemon there is, through the real client."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_double import Engine, Request, Shape

import kvasir
from kvasir.vllm.config import ConnectorOptions
from kvasir.vllm.device import CpuDevice
from support import wait_until

PROMPT = random.Random(3).choices(range(900), k=400)


@pytest.fixture
def engines(kvasir_server: Any) -> Iterator[Any]:
    yield from engines_of(kvasir_server)


@pytest.fixture
def disk_engines(disk_server: Any) -> Iterator[Any]:
    yield from engines_of(disk_server)


def engines_of(server: Any) -> Iterator[Any]:
    made: list[Engine] = []

    def client(session: str) -> kvasir.Client:
        one = kvasir.Client(server.path, session=session, timeout=5.0, reconnect_in_background=True)
        deadline = time.monotonic() + 5
        while not one.connected and time.monotonic() < deadline:
            time.sleep(0.001)
        return one

    def make(shape: Shape | None = None) -> Engine:
        # A busy machine may keep a daemon waiting longer than an engine should.
        options = ConnectorOptions(
            chunk_tokens=8,
            min_load_tokens=0,
            retry_miss_ms=0,
            match_timeout_ms=900,
            save_timeout_ms=900,
        )
        made.append(Engine(shape or Shape(), client, options=options))
        for link in made[-1].scheduler.links:
            link.ready(5, dial=True)
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_new_engine_loads_what_another_saved(engines: Any, ranks: int) -> None:
    first = engines(Shape(tensor_ranks=ranks))
    first.generate("a", PROMPT[:80], max_tokens=9)
    second = engines(Shape(tensor_ranks=ranks))
    assert second.generate("b", PROMPT[:80]) == 80
    assert second.scheduler.counters.data["hit_tokens"] == 80
    for engine in (first, second):
        engine.check_nothing_leaks()


def test_a_chat_saves_and_loads_its_turns(engines: Any) -> None:
    chat = PROMPT[:30]
    held = 0
    for turn in range(4):
        engine = engines()
        assert engine.generate(f"turn{turn}", chat, max_tokens=12) == held
        chat = list(engine.history[-1].all_token_ids)
        held = (len(chat) - 1) // 8 * 8
        chat += PROMPT[100 + turn : 103 + turn]


def test_prefills_in_pieces_follow_their_parent(engines: Any) -> None:
    """The next piece is reserved while the one before is still being committed."""
    engine = engines(Shape(step_tokens=16, blocks=256))
    for i in range(6):
        engine.add(Request(f"r{i}", PROMPT[i * 10 : i * 10 + 200], 2))
    engine.run()
    data = engine.scheduler.counters.data
    assert "reasons" not in data, data
    fresh = engines(Shape(blocks=256))
    for i in range(6):
        assert fresh.generate(f"s{i}", PROMPT[i * 10 : i * 10 + 200]) == 200


def test_a_daemon_killed_in_the_middle_and_started_again(
    engines: Any, kvasir_server: Any, rng: random.Random
) -> None:
    engine = engines(Shape(blocks=200))
    for round_number in range(4):
        requests = [
            engine.add(Request(f"r{round_number}.{i}", PROMPT[i * 9 : i * 9 + 120], 12))
            for i in range(3)
        ]
        killer = threading.Timer(rng.random() * 0.05, kvasir_server.restart)
        killer.start()
        engine.run()
        killer.join()
        assert all(len(engine.outputs[one.request_id]) == 12 for one in requests)
        engine.reset_prefix_cache()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        engine.reset_prefix_cache()
        if engine.generate(f"again{time.monotonic()}", PROMPT[:120]):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"caching did not resume: {engine.scheduler.counters.data}")
    engine.check_nothing_leaks()


@pytest.mark.parametrize("ranks", [1, 2])
def test_after_engine_and_daemon_were_killed_everything_comes_from_disk(
    disk_engines: Any, disk_server: Any, ranks: int
) -> None:
    prompts = [[number, *PROMPT[:159]] for number in range(20)]
    first = disk_engines(Shape(tensor_ranks=ranks, blocks=1024))
    for number, prompt in enumerate(prompts):
        first.generate(f"a{number}", prompt, max_tokens=5)
    with kvasir.Client(disk_server.path) as client:
        client.sync(timeout=30)
    disk_server.restart()

    second = disk_engines(Shape(tensor_ranks=ranks, blocks=2048, step_tokens=512))
    for number, prompt in enumerate(prompts):
        second.add(Request(f"b{number}", prompt, 2))
    # The double compares every byte that was loaded with what would have been computed.
    second.run()
    assert second.external == {f"b{number}": 160 for number in range(20)}
    data = second.scheduler.counters.data
    assert data["hit_tokens_disk"] == data["hit_tokens"] == 3200
    assert data["prefetches"] == 20
    assert "reasons" not in data
    second.reset_prefix_cache()
    assert second.generate("again", prompts[0]) == 160
    assert second.scheduler.counters.data["hit_tokens_memory"] == 160
    second.check_nothing_leaks()


def test_the_device_reads_and_writes_the_arena_in_place(engines: Any) -> None:
    engine = engines()
    engine.generate("a", PROMPT[:40])
    worker = engine.workers[0]
    assert isinstance(worker.device, CpuDevice)
    arena = worker.side._link.current().arena
    assert worker.device._bytes_of(arena).ctypes.data == arena.address


def test_a_request_log_has_each_request_once_and_whole(
    logging_server: Any, socket_directory: Path
) -> None:
    """Two engines, of which one has prompts in its own cache, too."""
    for engines in engines_of(logging_server):
        first, second = engines(Shape(tensor_ranks=2)), engines(Shape(tensor_ranks=2))
        for name, length in (("a", 80), ("b", 80), ("c", 117), ("d", 5)):
            first.generate(name, PROMPT[:length])
        assert second.generate("e", PROMPT[:80]) == 80
        with kvasir.Client(logging_server.path) as client:
            wait_until(lambda: client.stats()["request_log_written"] == 5, "they are written")
    (file,) = (socket_directory / "requests").iterdir()
    requests = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert [request["tokens"] for request in requests] == [80, 80, 117, 5, 80]
    chunks = [request["chunks"] for request in requests]
    assert [len(names) for names in chunks] == [10, 10, 14, 0, 10]
    assert chunks[0] == chunks[1] == chunks[2][:10] == chunks[4]
