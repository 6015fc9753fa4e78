"""Ranks and replicas: who writes, who reads, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from connector_double import PHYSICAL, Shape, check_store
from connector_fakes import FakeDevice, FakeStore

from kvasir.vllm.grid import Grid, build_space, replica_count
from kvasir.vllm.metadata import RankHandshake

PROMPT = random.Random(2).choices(range(900), k=200)

GRIDS = {
    "one": Shape(),
    "tp2": Shape(tensor_ranks=2),
    "tp2 replicated": Shape(tensor_ranks=2, replicas=2, heads=1),
    "tp4 in pairs": Shape(tensor_ranks=4, replicas=2, heads=2),
    "pp2": Shape(stages=2),
    "pp2 tp2": Shape(stages=2, tensor_ranks=2),
    "pp2 tp2 replicated": Shape(stages=2, tensor_ranks=2, replicas=2, heads=1),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_grid_saves_and_loads(
    make_engine: Any, store: FakeStore, name: str, asynchronous: bool, seed: int
) -> None:
    more: dict[str, Any] = {}
    if asynchronous:
        more["make_device"] = lambda tensors: FakeDevice(tensors, random.Random(seed))
    shape = GRIDS[name]
    first = make_engine(shape, **more)
    first.generate("a", PROMPT[:40], max_tokens=9)
    assert check_store(first, store) == 6
    writers = shape.stages * shape.tensor_ranks // shape.replicas
    # The first save of the prompt's 24 tokens, that of the rest, and the generated chunk.
    assert store.calls["commit"] == 3 * writers
    second = make_engine(shape, **more)
    assert second.generate("b", PROMPT[:40]) == 40
    assert second.scheduler.counters.data["hit_tokens"] == 40, "the hold lasts for all readers"
    assert store.calls["acquire"] == shape.stages * shape.tensor_ranks, "all ranks read"
    for engine in (first, second):
        engine.check_nothing_leaks()
    assert store.idle()


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "one"])
@pytest.mark.parametrize("lost", [0, 2])
def test_one_rank_that_fails_fails_the_load_of_all(
    make_engine: Any, store: FakeStore, name: str, lost: int
) -> None:
    make_engine(GRIDS[name]).generate("a", PROMPT[:40])
    engine = make_engine(GRIDS[name])
    acquire = store.acquire
    calls = iter(range(100))

    def flaky(*arguments: Any) -> Any:
        lease = acquire(*arguments)
        if next(calls) == 1:
            lease.chunks[lost].gone = True
        return lease

    extents_of = store.extents_of

    def extents(lease: Any) -> Any:
        rows = extents_of(lease)
        for i, chunk in enumerate(lease.chunks):
            if chunk.gone:
                rows[i] = (2**64 - 2, 0)
                chunk.gone = False
        return rows

    store.acquire, store.extents_of = flaky, extents  # type: ignore[method-assign]
    engine.generate("b", PROMPT[:40], max_tokens=3)
    engine.check_nothing_leaks()
    assert store.idle()


@pytest.mark.parametrize("layout", PHYSICAL)
@pytest.mark.parametrize("split", [1, 2])
def test_every_layout_saves_and_loads(
    make_engine: Any, store: FakeStore, layout: str, split: int
) -> None:
    shape = Shape(layout=layout, tensor_ranks=2, heads=4, split=split)
    make_engine(shape).generate("a", PROMPT[:40])
    engine = make_engine(shape)
    assert engine.generate("b", PROMPT[:40]) == 40
    assert check_store(engine, store) == 5


def test_layouts_do_not_share_chunks(make_engine: Any) -> None:
    make_engine(Shape(layout="LBHNC")).generate("a", PROMPT[:40])
    assert make_engine(Shape(layout="LBNHC")).generate("b", PROMPT[:40]) == 0


@pytest.mark.parametrize(
    ("ranks", "declared", "heads", "here", "expected"),
    [
        (1, 1, 8, 8, 1),
        (2, 1, 8, 4, 1),
        (2, 1, 1, 1, 2),
        (8, 1, 2, 1, 4),
        (4, 1, 4, 1, 1),
        (4, 4, None, 1, 4),  # Latent attention, as vLLM says.
        (2, 1, None, 1, 1),  # Not known: stored twice rather than wrong.
        (2, 1, 1, 0, 1),  # Layers differ.
        (6, 1, 4, 1, 1),
    ],
)
def test_replicas_are_counted_only_where_they_are_sure(
    ranks: int, declared: int, heads: int | None, here: int, expected: int
) -> None:
    assert replica_count(ranks, declared, heads, here) == expected


def handshake(stage: int, rank: int, **more: Any) -> RankHandshake:
    values: dict[str, Any] = {
        "stage": stage,
        "rank": rank,
        "replicas": 1,
        "host": "here",
        "layers": (f"layer{stage}",),
        "layout": "LBHNC",
        "geometry": "g",
        "block_bytes": 64,
        "heads": 1,
        "head_elements": 8,
        "kernels": ("k",),
        "asynchronous": False,
    }
    return RankHandshake(**{**values, **more})


def space_of(shakes: dict[tuple[int, int], RankHandshake], grid: Grid, **more: Any) -> Any:
    values: dict[str, Any] = {
        "model": b"m" * 32,
        "model_name": "m" * 300,
        "dtype": "bfloat16",
        "kind": "attention",
        "block_tokens": 16,
        "chunk_tokens": 32,
        "host": "here",
    }
    return build_space(shakes, grid, **{**values, **more})


def test_the_space_follows_the_grid() -> None:
    grid = Grid(2, 2, 1)
    shakes = {(s, r): handshake(s, r) for s in range(2) for r in range(2)}
    shakes[1, 0] = replace(shakes[1, 0], block_bytes=32)
    shakes[1, 1] = replace(shakes[1, 1], block_bytes=32)
    space = space_of(shakes, grid)
    assert space.shard_bytes == (128, 128, 64, 64)
    assert (space.stages, space.ranks, space.layers, space.heads) == (2, 2, 2, 2)
    assert space.order == "planes/LBHNC"
    assert len(space.model_name) == 200


@pytest.mark.parametrize(
    "change",
    [
        {"geometry": "h"},
        {"layers": ("other",)},
        {"kernels": ("l",)},
        {"layout": "LBNHC"},
        {"block_bytes": 32},
    ],
)
def test_what_changes_the_bytes_changes_the_space(change: dict[str, Any]) -> None:
    grid = Grid(1, 1, 1)
    one = space_of({(0, 0): handshake(0, 0)}, grid)
    other = space_of({(0, 0): handshake(0, 0, **change)}, grid)
    if change != {"layers": ("other",)}:  # Names are part of the geometry's digest.
        assert one.id != other.id
    assert space_of({(0, 0): handshake(0, 0)}, grid, generation="1").id != one.id
    assert space_of({(0, 0): handshake(0, 0)}, grid, model=b"n" * 32).id != one.id
    assert space_of({(0, 0): handshake(0, 0)}, grid, model_name="other").id == one.id


@pytest.mark.parametrize(
    ("shakes", "why"),
    [
        ({(0, 0): handshake(0, 0)}, "expected one worker"),
        ({(0, 0): handshake(0, 0), (0, 1): handshake(0, 1, host="there")}, "another host"),
        ({(0, 0): handshake(0, 0), (0, 1): handshake(0, 1, replicas=2)}, "same KV"),
        ({(0, 0): handshake(0, 0), (0, 1): handshake(0, 1, geometry="h")}, "not laid out like"),
    ],
)
def test_ranks_that_do_not_fit_together_are_refused(shakes: Any, why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        space_of(shakes, Grid(1, 2, 1))


def test_a_layer_in_two_stages_is_refused() -> None:
    shakes = {(0, 0): handshake(0, 0), (1, 0): handshake(1, 0, layers=("layer0",))}
    with pytest.raises(RuntimeError, match="more than one pipeline stage"):
        space_of(shakes, Grid(2, 1, 1))
