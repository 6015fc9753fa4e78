"""The shard grid of one engine, and the space that its ranks make together."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvasir.identity import Space
from kvasir.vllm.metadata import RankHandshake

CONFIG = "kv_connector_extra_config"


@dataclass(frozen=True, slots=True)
class Grid:
    """Pipeline stages × distinct tensor-parallel ranks."""

    stages: int
    tensor_ranks: int
    replicas: int
    """Consecutive tensor-parallel ranks that hold the same bytes."""

    @property
    def ranks(self) -> int:
        """Distinct tensor-parallel ranks."""
        return self.tensor_ranks // self.replicas

    @property
    def workers(self) -> int:
        """Worker processes: each reads its shard of a load."""
        return self.stages * self.tensor_ranks

    @property
    def shards(self) -> int:
        return self.stages * self.ranks

    def shard(self, stage: int, rank: int) -> int:
        """The shard that a worker reads."""
        return stage * self.ranks + rank // self.replicas

    def writes(self, rank: int) -> bool:
        """Whether this rank is the one of its replicas that writes."""
        return rank % self.replicas == 0


def replica_count(
    tensor_ranks: int, declared: int, total_heads: int | None, heads_here: int
) -> int:
    """How many consecutive tensor-parallel ranks hold the same KV.

    `declared` is vLLM's `kv_tp_replicas`, which speaks of latent attention. `total_heads` is the
    number of KV heads of every layer of the model, or None if layers differ or it isn't known:
    with fewer heads than ranks, vLLM gives each head to consecutive ranks.
    """
    if declared > 1:
        return declared
    if total_heads is None or heads_here != 1 or total_heads >= tensor_ranks:
        return 1
    return tensor_ranks // total_heads if tensor_ranks % total_heads == 0 else 1


def build_space(
    handshakes: Mapping[tuple[int, int], RankHandshake],
    grid: Grid,
    *,
    model: bytes,
    model_name: str,
    dtype: str,
    kind: str,
    block_tokens: int,
    chunk_tokens: int,
    host: str,
    generation: str = "",
) -> Space:
    """The space of an engine whose workers have said what they hold.

    Raises RuntimeError if they don't make a whole: nothing is cached rather than anything wrong.
    """
    expected = {(stage, rank) for stage in range(grid.stages) for rank in range(grid.tensor_ranks)}
    if set(handshakes) != expected:
        raise RuntimeError(
            f"Kvasir expected one worker for each of {sorted(expected)} (pipeline stage, "
            f"tensor-parallel rank) and heard from {sorted(handshakes)}; set "
            "pipeline_parallel_size and tensor_parallel_size to what really runs"
        )
    digest = hashlib.sha256(b"kvasir.vllm.model.1\0" + model)
    shard_bytes: list[int] = []
    layers = 0
    for stage in range(grid.stages):
        first = handshakes[stage, 0]
        for rank in range(grid.tensor_ranks):
            _check_worker(handshakes[stage, rank], first, grid, host)
        layers += len(first.layers)
        for text in (first.geometry, first.layout, *first.kernels):
            digest.update(len(text).to_bytes(4, "little") + text.encode())
        shard_bytes += [first.block_bytes * (chunk_tokens // block_tokens)] * grid.ranks
    names = [name for stage in range(grid.stages) for name in handshakes[stage, 0].layers]
    if len(set(names)) != len(names):
        raise RuntimeError(
            "Kvasir found a layer in more than one pipeline stage; set pipeline_parallel_size to 1"
        )
    one = handshakes[0, 0]
    return Space(
        model=digest.hexdigest(),
        model_name=_shorten(model_name),
        dtype=dtype,
        kind=kind,
        layers=layers,
        heads=one.heads * grid.ranks,
        head_size=one.head_elements,
        order=f"planes/{one.layout}",
        byte_order=sys.byteorder,
        block_tokens=block_tokens,
        chunk_tokens=chunk_tokens,
        stages=grid.stages,
        ranks=grid.ranks,
        shard_bytes=tuple(shard_bytes),
        generation=generation,
    )


def _check_worker(worker: RankHandshake, first: RankHandshake, grid: Grid, host: str) -> None:
    who = f"pipeline stage {worker.stage}, tensor-parallel rank {worker.rank}"
    if worker.host != host:
        raise RuntimeError(
            f"Kvasir shares memory with its engine, but {who} runs on another host; put all ranks "
            "on one host (tensor_parallel_size × pipeline_parallel_size within it, nnodes 1), or "
            "leave out --kv-transfer-config"
        )
    if worker.replicas != grid.replicas:
        raise RuntimeError(
            f"Kvasir: {who} says that {worker.replicas} ranks hold the same KV, the scheduler "
            f"that {grid.replicas} do; please report this model"
        )
    same: tuple[Any, Any] = (
        (worker.layers, worker.layout, worker.geometry, worker.block_bytes, worker.kernels),
        (first.layers, first.layout, first.geometry, first.block_bytes, first.kernels),
    )
    if same[0] != same[1]:
        raise RuntimeError(
            f"Kvasir: the KV cache of {who} is not laid out like that of rank 0 of its stage "
            "(other layers, heads, kernels or memory order), so their chunks can't be kept; run "
            "with tensor_parallel_size 1, or leave out --kv-transfer-config"
        )


def _shorten(name: str) -> str:
    encoded = name.encode("utf-8")
    return encoded[-200:].decode("utf-8", errors="ignore") if len(encoded) > 200 else name
