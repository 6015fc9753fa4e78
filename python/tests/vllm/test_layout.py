"""Blocks to extents and back, for every physical order that vLLM has."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from connector_double import PHYSICAL, geometry_of, make_layers
from connector_fakes import FakeArena

from kvasir.vllm.device import ChunkCopy, CpuDevice, check_bounds, device_for
from kvasir.vllm.layout import ExtentLayout, LayerView, UnknownLayout, describe

BLOCKS = 12
TOKENS = 4
PLANES = {"LBHNC": 3, "LBNHC": 3, "LHBNC": 6, "BLHNC": 1, "BLNHC": 1, "BHLNC": 1}


def names(count: int) -> list[str]:
    return [f"layer{i}" for i in range(count)]


def make(layout: str, *, split: int = 1, heads: int = 2) -> tuple[list[torch.Tensor], ExtentLayout]:
    tensors = make_layers(layout, 3, BLOCKS, heads, TOKENS, 5, split=split)
    geometry = geometry_of(tensors, layout, TOKENS, BLOCKS, names(3))
    return tensors, ExtentLayout.of(geometry, 2 * TOKENS)


def fill(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.copy_(torch.randint(-(1 << 30), 1 << 30, tensor.shape, dtype=torch.int32))


def block_of(tensors: list[torch.Tensor], block: int, split: int) -> list[torch.Tensor]:
    return [tensor[block * split : (block + 1) * split].clone() for tensor in tensors]


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("layout", PHYSICAL)
def test_every_layout_comes_back_bit_equal(layout: str, split: int, rng: random.Random) -> None:
    source, extent = make(layout, split=split)
    target, same = make(layout, split=split)
    assert extent.geometry.digest == same.geometry.digest
    fill(source)
    fill(target)
    before = [tensor.clone() for tensor in target]
    reader, writer = CpuDevice(source), CpuDevice(target)
    reader.bind(extent)
    writer.bind(same)
    arena = FakeArena(1 << 16)
    for _ in range(20):
        taken = rng.sample(range(BLOCKS), 6)
        given = rng.sample(range(BLOCKS), 6)
        offsets = [4096 * i for i in rng.sample(range(12), 3)]
        reader.gather(
            arena,
            [ChunkCopy(offsets[i], taken[2 * i : 2 * i + 2]) for i in range(3)],
            None,
        )
        # The first chunk is loaded from its second block on.
        plan = [
            ChunkCopy(offsets[0], given[1:2], 1),
            ChunkCopy(offsets[1], given[2:4]),
            ChunkCopy(offsets[2], given[4:6]),
        ]
        writer.scatter(arena, plan, None)
        for old, new in list(zip(taken, given, strict=True))[1:]:
            for tensor, copy in zip(target, block_of(source, old, split), strict=True):
                assert torch.equal(tensor[new * split : (new + 1) * split], copy)
        for block in set(range(BLOCKS)) - set(given[1:]):
            for tensor, old_tensor in zip(target, before, strict=True):
                span = slice(block * split, (block + 1) * split)
                assert torch.equal(tensor[span], old_tensor[span]), "another block changed"
        before = [tensor.clone() for tensor in target]


@pytest.mark.parametrize("layout", PHYSICAL)
def test_planes_are_as_few_as_the_layout_allows(layout: str) -> None:
    _, extent = make(layout)
    assert len(extent.geometry.planes) == PLANES[layout]
    assert extent.geometry.block_bytes == 3 * 2 * TOKENS * 5 * 4
    assert extent.chunk_bytes == 2 * extent.geometry.block_bytes
    ends = [
        offset + 2 * plane.run_bytes
        for offset, plane in zip(extent.offsets, extent.geometry.planes, strict=True)
    ]
    assert [0, *ends[:-1]] == list(extent.offsets)
    assert ends[-1] == extent.chunk_bytes


@pytest.mark.parametrize("consecutive", [True, False])
@pytest.mark.parametrize("layout", PHYSICAL)
def test_neighbouring_blocks_are_copied_alike(
    layout: str, consecutive: bool, rng: random.Random
) -> None:
    """Runs of neighbours take a shorter way through the copy than scattered blocks."""
    source, extent = make(layout)
    fill(source)
    device = CpuDevice(source)
    device.bind(extent)
    arena = FakeArena(1 << 16)
    blocks = list(range(2, 8)) if consecutive else [7, 2, 4, 3, 11, 5]
    chunks = [ChunkCopy(8192 * i, blocks[2 * i : 2 * i + 2]) for i in range(3)]
    device.gather(arena, chunks, None)
    kept = [tensor.clone() for tensor in source]
    fill(source)
    device.scatter(arena, chunks, None)
    for block in blocks:
        for tensor, old in zip(source, kept, strict=True):
            assert torch.equal(tensor[block], old[block])


def test_layouts_do_not_share_a_digest() -> None:
    digests = [make(layout)[1].geometry.digest for layout in PHYSICAL]
    assert len(set(digests)) == len(digests)


def test_a_kernel_that_splits_blocks_does_not_change_the_bytes() -> None:
    for layout in ("LBNHC", "LHBNC"):
        whole, split = make(layout), make(layout, split=2)
        assert whole[1].geometry.digest == split[1].geometry.digest
        assert whole[1].geometry.planes[0].run_bytes == split[1].geometry.planes[0].run_bytes


def view(shape: tuple[int, ...], strides: tuple[int, ...], address: int = 1 << 20) -> LayerView:
    return LayerView("layer", address, shape, strides, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strides", "layout", "why"),
    [
        ((64, 32, 8, 2), "XYZ", "not known"),
        ((64, 32, 8, 4), "LBHNC", "gaps"),
        ((64, 8, 16, 2), "LBHNC", "not laid out"),
        ((64, 32, 8, 2), "LBNHC", "not laid out"),
        ((16, 32, 8, 2), "LBHNC", "not laid out"),
        ((32, 32, 8, 2), "LBHNC", "overlaps"),
        ((0, 32, 8, 2), "LBHNC", "not laid out"),
    ],
)
def test_unknown_strides_are_refused(strides: tuple[int, ...], layout: str, why: str) -> None:
    with pytest.raises(UnknownLayout, match=why):
        describe([view((8, 2, 4, 4), strides)], layout=layout, block_tokens=4, blocks=8)


def test_padded_pages_are_understood() -> None:
    geometry = describe(
        [view((8, 2, 4, 4), (96, 32, 8, 2))], layout="LBHNC", block_tokens=4, blocks=8
    )
    (plane,) = geometry.planes
    assert (plane.stride_bytes, plane.run_bytes) == (96, 64)


def test_overlapping_layers_are_refused() -> None:
    one = view((8, 2, 4, 4), (64, 32, 8, 2))
    two = view((8, 2, 4, 4), (64, 32, 8, 2), (1 << 20) + 32)
    with pytest.raises(UnknownLayout, match="overlap"):
        describe([one, two], layout="LBHNC", block_tokens=4, blocks=8)


def test_another_number_of_blocks_or_tokens_is_refused() -> None:
    one = view((8, 2, 4, 4), (64, 32, 8, 2))
    with pytest.raises(UnknownLayout, match="multiple of 3 blocks"):
        describe([one], layout="LBHNC", block_tokens=4, blocks=3)
    with pytest.raises(UnknownLayout, match="keep 16 tokens"):
        describe([one], layout="LBHNC", block_tokens=16, blocks=8)
    with pytest.raises(UnknownLayout, match="no layer"):
        describe([], layout="LBHNC", block_tokens=4, blocks=8)


def test_layers_that_touch_by_accident_stay_apart() -> None:
    one = view((8, 2, 4, 4), (64, 32, 8, 2))
    two = view((8, 2, 4, 4), (64, 32, 8, 2), (1 << 20) + 512)
    apart = view((8, 2, 4, 4), (64, 32, 8, 2), (1 << 20) + 4096)
    near = describe([one, two], layout="LBHNC", block_tokens=4, blocks=8)
    far = describe([one, apart], layout="LBHNC", block_tokens=4, blocks=8)
    assert len(near.planes) == 2
    assert near.digest == far.digest


def test_copies_never_leave_arena_chunk_or_cache() -> None:
    _, extent = make("LBHNC")
    arena = FakeArena(8192)
    for chunk in (
        ChunkCopy(8192, [1, 2]),
        ChunkCopy(-4096, [1, 2]),
        ChunkCopy(8192 - 16, [1, 2]),
        ChunkCopy(0, [1, 2], 1),
        ChunkCopy(0, [1], -1),
        ChunkCopy(0, [1, BLOCKS]),
        ChunkCopy(0, [-1, 2]),
    ):
        with pytest.raises(ValueError, match=r"extent|chunk|block"):
            check_bounds(extent, arena, [chunk])


def test_the_device_is_known_or_refused() -> None:
    assert isinstance(device_for([torch.zeros(1)]), CpuDevice)
    with pytest.raises(ValueError, match="meta"):
        device_for([torch.zeros(1, device="meta")])


def test_extents_are_batched_where_they_are_evenly_spaced() -> None:
    tensors, extent = make("LBHNC")
    device = CpuDevice(tensors)
    device.bind(extent)
    arena = FakeArena(1 << 16)
    chunks = [ChunkCopy(offset, [1, 2]) for offset in (0, 4096, 8192, 20480, 28672, 36864)]
    batches = device._batches(arena, chunks)
    assert [len(batch.blocks) for batch in batches] == [3, 3]
    assert all(a is not b for a, b in pairwise(batches))
    assert isinstance(batches[0].blocks, np.ndarray)
