"""Engines under random events: whatever happens, no wrong byte, no leak, and an end."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
from connector_double import PHYSICAL, Engine, Request, Shape, check_store
from connector_fakes import FakeDevice, FakeStore

from kvasir.errors import ServerError, Timeout
from kvasir.vllm.config import ConnectorOptions
from kvasir.vllm.device import CpuDevice

ROUNDS = int(os.environ.get("KVASIR_TEST_ROUNDS", "12"))


@pytest.mark.parametrize("number", range(ROUNDS))
def test_engines_under_random_events(
    make_engine: Any, store: FakeStore, seed: int, number: int
) -> None:
    rng = random.Random(seed + number)
    store.arena_bytes = rng.choice([1 << 17, 1 << 19, 1 << 22])
    store.start()
    shape = make_shape(rng)
    delayed = rng.random() < 0.5
    options = ConnectorOptions(
        chunk_tokens=shape.chunk_tokens,
        min_load_tokens=rng.choice([0, 5]),
        retry_miss_ms=0,
        idle_wait_ms=rng.choice([0, 1, 5]),
        load_timeout_ms=200,
        match_timeout_ms=2,
        match_patience_ms=rng.choice([5, 20, 1000]),
    )

    def device(tensors: Any) -> Any:
        return FakeDevice(tensors, rng, 0.001) if delayed else CpuDevice(tensors)

    slow = rng.random() < 0.4
    if slow:
        # Not the test's own numbers: the matchers' threads ask in whatever order.
        takes = random.Random(seed)
        store.match_takes_s = lambda: takes.choice([0.0, 0.0, 0.001, 0.004, 0.03])
    engines = [
        make_engine(
            shape,
            rng=rng,
            options=options,
            make_device=device,
            local_cache=rng.random() < 0.7,
            inline=not slow,
        )
        for _ in range(2)
    ]
    documents = [rng.choices(range(900), k=90) for _ in range(3)]
    serial = 0
    faulty = rng.random() < 0.6
    killed = False
    for _ in range(120):
        engine = rng.choice(engines)
        event = rng.random()
        if event < 0.25 and len(engine.requests) < 6:
            document = rng.choice(documents)
            prompt = document[: rng.randint(1, 80)] + rng.choices(range(900), k=rng.randint(0, 9))
            salt = rng.choice([None, None, "tenant"])
            limit = rng.randint(1, 25)
            engine.add(Request(f"r{serial}", prompt, limit, cache_salt=salt))
            serial += 1
        elif event < 0.30 and engine.requests:
            engine.abort(rng.choice(list(engine.requests.values())))
        elif event < 0.33:
            store.drop_all()
        elif event < 0.34:
            store.some_to_disk(rng)
        elif event < 0.37 and faulty:
            killed |= inject(rng, store)
        elif event < 0.38 and not any(r.blocks for r in engine.requests.values()):
            engine.scheduler.reset_cache()
            engine.reset_prefix_cache()
        else:
            engine.step()
    store.lose_at, store.expire_reads, store.pending_waits = None, False, 0
    store.refuse_saves = ""
    store.match_fails.clear()
    store.prefetch_fails.clear()
    store.room_to_promote, store.has_arrived = None, lambda chunk: True
    if not store.up:
        store.start()
    for engine in engines:
        engine.run()
        engine.check_nothing_leaks()
        check_all(engine, store)
    if not killed:
        assert store.idle()


def make_shape(rng: random.Random) -> Shape:
    stages, ranks, replicas, heads = rng.choice(
        [(1, 1, 1, 2), (1, 2, 1, 2), (1, 2, 2, 1), (2, 1, 1, 1), (2, 2, 1, 2)]
    )
    block = rng.choice([2, 4])
    return Shape(
        layout=rng.choice(list(PHYSICAL)),
        layers=rng.randint(1, 3),
        heads=heads,
        content=rng.randint(1, 3),
        block_tokens=block,
        chunk_tokens=block * rng.randint(1, 3),
        blocks=rng.choice([160 // block, 400 // block]),
        stages=stages,
        tensor_ranks=ranks,
        replicas=replicas,
        step_tokens=rng.choice([8, 24, 64]),
        asynchronous_scheduling=rng.random() < 0.5,
        drafts=rng.choice([0, 0, 1, 3]),
    )


def inject(rng: random.Random, store: FakeStore) -> bool:
    """One fault; true if it ends the daemon's life."""
    fault = rng.randrange(10)
    if fault == 0:
        store.lose_at = rng.choice([None, 0, 1, 3])
    elif fault == 1:
        store.expire_reads = not store.expire_reads
    elif fault == 2:
        store.pending_waits = rng.choice([0, 1, 3])
    elif fault == 3:
        store.refuse_saves = rng.choice(["", "KVFULL no room"])
    elif fault == 4:
        store.match_fails.append(Timeout("slow"))
    elif fault == 7:
        store.room_to_promote = rng.choice([None, 0, 2])
    elif fault == 8:
        store.prefetch_fails.append(rng.choice([Timeout("slow"), ServerError("no", code="ERR")]))
    elif fault == 9:
        late = rng.choice([0.0, 0.002, 0.3])
        until = time.monotonic() + late
        store.has_arrived = lambda chunk: time.monotonic() > until
    elif fault == 5:
        store.restart()
        return True
    elif store.up:
        store.kill()
        return True
    else:
        store.start()
    return False


def check_all(engine: Engine, store: FakeStore) -> None:
    """Also in the spaces of earlier generations the bytes are what their keys say."""
    check_store(engine, store)
    for request in engine.history:
        if request.request_id in engine.outputs:
            assert len(engine.outputs[request.request_id]) == request.max_tokens
