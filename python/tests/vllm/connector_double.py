"""A double of vLLM's scheduler, block pool and workers, small enough to be read.

It follows vllm/v1/core/sched/scheduler.py where that meets a connector, with the same order of
calls and the same assertions: local prefix hits, block-aligned; asynchronous loads and what
happens when they fail or their request is aborted; preemption; asynchronous scheduling with
placeholders; drafts that are rejected; delayed frees.

The **model** is a function: what belongs into a slot follows from the tokens up to it. So each
block can be checked at any time, and every block that is given back is spoilt at once.
"""

from __future__ import annotations

import itertools
import pickle
import random
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kvasir.identity import KeyChain, root
from kvasir.vllm.config import ConnectorOptions
from kvasir.vllm.cost import CostModel
from kvasir.vllm.device import CpuDevice, Device
from kvasir.vllm.grid import Grid, build_space
from kvasir.vllm.identity import AdapterIdentities
from kvasir.vllm.layout import ExtentLayout, Geometry, LayerView, describe
from kvasir.vllm.link import Link
from kvasir.vllm.matcher import Matcher
from kvasir.vllm.metadata import RankHandshake, StepMetadata
from kvasir.vllm.scheduler import SchedulerSide
from kvasir.vllm.worker import WorkerSide

PHYSICAL = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}

WAITING, LOADING, RUNNING, PREEMPTED, FINISHED = range(5)


def make_layers(
    layout: str, layers: int, blocks: int, heads: int, tokens: int, content: int, *, split: int = 1
) -> list[torch.Tensor]:
    """The layers of a KV cache as vLLM allocates them: views of one buffer, in a physical order.

    `split` kernel blocks make one block.
    """
    shape = (layers, blocks * split, heads, tokens // split, content)
    order = PHYSICAL[layout]
    strides = [0] * 5
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    raw = torch.zeros(step, dtype=torch.int32)
    return list(torch.as_strided(raw, shape, strides))


def geometry_of(
    tensors: list[torch.Tensor], layout: str, tokens: int, blocks: int, names: list[str]
) -> Geometry:
    views = [
        LayerView(
            name,
            tensor.data_ptr(),
            tuple(tensor.shape),
            tuple(stride * tensor.element_size() for stride in tensor.stride()),
            tensor.element_size(),
        )
        for name, tensor in zip(names, tensors, strict=True)
    ]
    return describe(views, layout=layout, block_tokens=tokens, blocks=blocks)


@dataclass
class Shape:
    """The engine that is doubled."""

    layout: str = "LBHNC"
    layers: int = 2
    heads: int = 2
    content: int = 2
    block_tokens: int = 4
    chunk_tokens: int = 8
    blocks: int = 64
    stages: int = 1
    tensor_ranks: int = 1
    replicas: int = 1
    step_tokens: int = 24
    asynchronous_scheduling: bool = False
    drafts: int = 0
    split: int = 1

    @property
    def grid(self) -> Grid:
        return Grid(self.stages, self.tensor_ranks, self.replicas)


def prefix_hashes(tokens: list[int]) -> list[int]:
    hashes = []
    value = 17
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % (1 << 61)
        hashes.append(value)
    return hashes


class Request:
    """vLLM's `Request`, as far as the connector looks at it."""

    def __init__(self, request_id: str, prompt: list[int], max_tokens: int, **more: Any) -> None:
        self.request_id = request_id
        self.prompt_token_ids = list(prompt)
        self.num_prompt_tokens = len(prompt)
        self.all_token_ids = list(prompt)
        self.max_tokens = max_tokens
        self.prompt_embeds = None
        self.prompt_is_token_ids = None
        self.resumable = False
        self.mm_features: list[Any] = []
        self.lora_request = None
        self.cache_salt = None
        self.kv_transfer_params: dict[str, Any] | None = None
        self.skip_reading_prefix_cache = False
        self.num_computed_tokens = 0
        self.num_in_flight_tokens = 0
        self.num_output_placeholders = 0
        self.num_stale_output_tokens = 0
        self.drafts: list[int] = []
        self.status = WAITING
        self.blocks: list[int] = []
        for name, value in more.items():
            setattr(self, name, value)

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


@dataclass
class Step:
    metadata: StepMetadata
    scheduled: dict[str, int]
    rows: list[tuple[Request, int, list[int], list[int]]]
    """Request, first position, input tokens (drafts included), block table."""
    finished: set[str]
    sampled: dict[str, list[int]] = field(default_factory=dict)
    drafted: dict[str, list[int]] = field(default_factory=dict)
    reports: list[Any] = field(default_factory=list)


class Worker:
    """One rank: its layers, its device and its half of the connector."""

    def __init__(
        self,
        shape: Shape,
        stage: int,
        rank: int,
        options: ConnectorOptions,
        make_client: Any,
        make_device: Any,
    ) -> None:
        self.shape = shape
        self.stage = stage
        self.rank = rank
        distinct = shape.tensor_ranks // shape.replicas
        self.heads_here = shape.heads // distinct
        self.first_head = rank // shape.replicas * self.heads_here
        self.names = [f"stage{stage}.layer{i}" for i in range(shape.layers)]
        self.tensors = make_layers(
            shape.layout,
            shape.layers,
            shape.blocks,
            self.heads_here,
            shape.block_tokens,
            shape.content,
            split=shape.split,
        )
        self.geometry = geometry_of(
            self.tensors, shape.layout, shape.block_tokens, shape.blocks, self.names
        )
        self.device: Device = make_device(self.tensors)
        self.side = WorkerSide(
            options,
            shape.grid,
            stage=stage,
            rank=rank,
            device=self.device,
            layout=ExtentLayout.of(self.geometry, shape.chunk_tokens),
            make_link=lambda session: Link(
                make_client(session), prepare=self.device.attach, inline=True
            ),
        )

    def handshake(self) -> RankHandshake:
        return RankHandshake(
            stage=self.stage,
            rank=self.rank,
            replicas=self.shape.replicas,
            host="here",
            layers=tuple(self.names),
            layout=self.geometry.layout,
            geometry=self.geometry.digest,
            block_bytes=self.geometry.block_bytes,
            heads=self.heads_here,
            head_elements=self.shape.content,
            kernels=("double",),
            asynchronous=self.device.asynchronous,
        )

    def enqueue(self, work: Any) -> None:
        """Gives the rank's device something to do, in the engine's order."""
        engine = getattr(self.device, "engine", None)
        if engine is None:
            work()
        else:
            engine.enqueue(work)

    def synchronise(self) -> None:
        """The engine waits for its own work, as for a step's output; not for copies."""
        engine = getattr(self.device, "engine", None)
        if engine is not None:
            engine.run()

    def slot(self, layer: int, block: int, offset: int) -> torch.Tensor:
        """The `[heads, content]` of one token."""
        states = self.shape.block_tokens // self.shape.split
        kernel_block = block * self.shape.split + offset // states
        return self.tensors[layer][kernel_block, :, offset % states]

    def expected(self, layer: int, value: int) -> torch.Tensor:
        number = self.stage * self.shape.layers + layer
        heads = torch.arange(self.first_head, self.first_head + self.heads_here)
        content = torch.arange(self.shape.content)
        wide = value % 1_000_000_007 + number * 7919 + heads[:, None] * 104_729 + content * 1299
        return (wide % (1 << 31)).to(torch.int32)

    def write(self, first: int, values: list[int], table: list[int]) -> None:
        tokens = self.shape.block_tokens
        for i, value in enumerate(values):
            position = first + i
            for layer in range(self.shape.layers):
                slot = self.slot(layer, table[position // tokens], position % tokens)
                slot[...] = self.expected(layer, value)

    def check(self, values: list[int], table: list[int]) -> None:
        tokens = self.shape.block_tokens
        for position, value in enumerate(values):
            for layer in range(self.shape.layers):
                slot = self.slot(layer, table[position // tokens], position % tokens)
                assert torch.equal(slot, self.expected(layer, value)), (
                    f"wrong KV at position {position} (block {table[position // tokens]}), layer "
                    f"{layer}, stage {self.stage}, rank {self.rank}"
                )

    def spoil(self, blocks: list[int]) -> None:
        for tensor in self.tensors:
            for block in blocks:
                start = block * self.shape.split
                tensor[start : start + self.shape.split] = -7


class Engine:
    """The engine: scheduler and workers, stepped by hand."""

    def __init__(
        self,
        shape: Shape,
        make_client: Any,
        *,
        options: ConnectorOptions | None = None,
        make_device: Any = CpuDevice,
        rng: random.Random | None = None,
        local_cache: bool = True,
        clock: Any = time.monotonic,
        model: bytes = b"m" * 32,
        inline: bool = True,
        cost: CostModel | None = None,
    ) -> None:
        self.shape = shape
        self.rng = rng or random.Random(0)
        self.options = options or ConnectorOptions(
            chunk_tokens=shape.chunk_tokens, min_load_tokens=0, retry_miss_ms=0, idle_wait_ms=20
        )
        if cost is None:
            # Its computing is so quick that real loads would hardly ever be worth it.
            self.options = replace(self.options, load_if_slower=True)
        self.local_cache = local_cache
        self.spoils: list[list[int]] = []
        session = f"engine-{id(self)}"
        generations = itertools.count(1)
        self.scheduler = SchedulerSide(
            self.options,
            shape.grid,
            Link(make_client(session), inline=True),
            Matcher(
                Link(make_client(session), inline=True),
                hold_ms=self.options.hold_ms,
                readers=shape.grid.workers,
                answer_s=max(1.0, 2 * self.options.match_patience_ms / 1000),
                inline=inline,
            ),
            adapters=AdapterIdentities({}, run=lambda task: task()),
            session=session,
            new_generation=lambda: f"{id(self)}-{next(generations)}",
            cost=cost,
            clock=clock,
        )
        self.workers = [
            Worker(shape, stage, rank, self.options, make_client, make_device)
            for stage in range(shape.stages)
            for rank in range(shape.tensor_ranks)
        ]
        space = build_space(
            {(w.stage, w.rank): w.handshake() for w in self.workers},
            shape.grid,
            model=model,
            model_name="double",
            dtype="int32",
            kind="attention",
            block_tokens=shape.block_tokens,
            chunk_tokens=shape.chunk_tokens,
            host="here",
        )
        asynchronous = any(w.device.asynchronous for w in self.workers)
        self.scheduler.start(space, asynchronous=asynchronous)
        self.free = deque(range(1, shape.blocks))  # Block 0 is vLLM's null block.
        self.references: dict[int, int] = {}
        self.cached: dict[int, int] = {}
        """Local prefix cache: hash of a prefix → block."""
        self.hash_of: dict[int, int] = {}
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.finished_ids: set[str] = set()
        self.preempted_ids: set[str] = set()
        self.received: set[str] = set()
        self.failed_loads: set[str] = set()
        self.receive_counts: dict[str, int] = {}
        self.send_counts: dict[str, int] = {}
        self.in_flight: deque[Step] = deque()
        self.deferred: list[tuple[int, list[int]]] = []
        self.sequence = 0
        self.processed = 0
        self.outputs: dict[str, list[int]] = {}
        self.history: list[Request] = []
        self.external: dict[str, int] = {}
        self.passed_over: dict[str, int] = {}
        """How often a request was told to ask again."""
        self.asking_s: list[float] = []
        """How long the matches of each step kept the scheduler, in seconds."""

    # -- blocks

    def take_blocks(self, count: int) -> list[int] | None:
        if len(self.free) < count:
            return None
        taken = [self.free.popleft() for _ in range(count)]
        for block in taken:
            self.references[block] = 1
            value = self.hash_of.pop(block, None)
            if value is not None:
                if self.cached.get(value) == block:
                    del self.cached[value]
                self.spoils.append([block])
        return taken

    def give_back(self, blocks: list[int]) -> None:
        gone = []
        for block in reversed(blocks):
            self.references[block] -= 1
            if self.references[block] == 0:
                self.free.append(block)
                if block not in self.hash_of:
                    gone.append(block)
        if gone:
            # The next step overwrites them: whatever reads them from then on reads nonsense.
            self.spoils.append(gone)

    def free_blocks_of(self, request: Request) -> None:
        blocks, request.blocks = request.blocks, []
        if request.num_in_flight_tokens and self.shape.asynchronous_scheduling:
            self.deferred.append((self.sequence, blocks))
        else:
            self.give_back(blocks)

    def local_hit(self, request: Request) -> list[int]:
        if not self.local_cache or request.skip_reading_prefix_cache:
            return []
        hashes = prefix_hashes(request.all_token_ids)
        tokens = self.shape.block_tokens
        found = []
        # The last token is always computed.
        for end in range(tokens, request.num_tokens, tokens):
            block = self.cached.get(hashes[end - 1])
            if block is None:
                break
            found.append(block)
        return found

    def cache_blocks(self, request: Request, computed: int) -> None:
        if not self.local_cache:
            return
        hashes = prefix_hashes(request.all_token_ids)
        tokens = self.shape.block_tokens
        for index in range(min(computed, request.num_tokens) // tokens):
            value = hashes[(index + 1) * tokens - 1]
            block = request.blocks[index]
            if value not in self.cached and block not in self.hash_of:
                self.cached[value] = block
                self.hash_of[block] = value

    def reset_prefix_cache(self) -> None:
        self.cached.clear()
        self.hash_of.clear()

    # -- requests

    def add(self, request: Request) -> Request:
        self.requests[request.request_id] = request
        self.history.append(request)
        self.waiting.append(request)
        self.scheduler.on_new_request(request)
        return request

    def abort(self, request: Request) -> None:
        if request.status == FINISHED:
            return
        delay = request.status == LOADING and request.request_id not in self.received
        self.received.discard(request.request_id)
        self.failed_loads.discard(request.request_id)
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)
        self.finish(request, delay)

    def finish(self, request: Request, delay: bool = False) -> None:
        request.status = FINISHED
        tokens = self.shape.block_tokens
        computed = -(-request.num_computed_tokens // tokens)
        keep = self.scheduler.request_finished(request, list(request.blocks[:computed]))
        self.finished_ids.add(request.request_id)
        if not (keep or delay):
            self.remove(request)

    def remove(self, request: Request) -> None:
        assert request.status == FINISHED
        self.free_blocks_of(request)
        del self.requests[request.request_id]

    def has_requests(self) -> bool:
        """Whether vLLM's engine loop makes another step."""
        return bool(self.requests or self.finished_ids or self.scheduler.has_pending_work())

    def has_work(self) -> bool:
        return self.has_requests() or bool(self.in_flight)

    # -- a step

    def schedule(self) -> Step:
        budget = self.shape.step_tokens
        asking_s = 0.0
        scheduled: dict[str, int] = {}
        drafted: dict[str, list[int]] = {}
        preempted = False
        for request in list(self.running):
            if request not in self.running:
                continue
            count = (
                request.num_tokens
                + len(request.drafts)
                + request.num_output_placeholders
                - request.num_computed_tokens
            )
            if (
                request.num_output_placeholders > 0
                and request.num_computed_tokens + 2 - request.num_output_placeholders
                >= request.num_prompt_tokens + request.max_tokens
            ):
                continue
            count = min(count, budget)
            if count <= 0:
                continue
            while not self.grow(request, request.num_computed_tokens + count):
                victim = self.running.pop()
                if victim.request_id in scheduled:
                    budget += scheduled.pop(victim.request_id)
                    drafted.pop(victim.request_id, None)
                self.preempt(victim)
                preempted = True
                if victim is request:
                    break
            if request not in self.running:
                break
            scheduled[request.request_id] = count
            used = (
                count
                + request.num_computed_tokens
                - request.num_tokens
                - request.num_output_placeholders
            )
            if used > 0:
                drafted[request.request_id] = request.drafts[:used]
            request.drafts = []
            budget -= count
        skipped: list[Request] = []
        # Those that have blocks already come first.
        self.waiting.sort(key=lambda one: not one.blocks)
        while self.waiting and budget > 0 and not preempted:
            request = self.waiting.pop(0)
            if request.status == LOADING:
                if request.request_id not in self.received:
                    skipped.append(request)
                    continue
                self.load_done(request)
            if request.num_stale_output_tokens:
                skipped.append(request)
                continue
            external, asynchronous = 0, False
            local: list[int] = []
            if request.num_computed_tokens == 0:
                local = self.local_hit(request)
                start = len(local) * self.shape.block_tokens
                begun = time.perf_counter()
                answer, asynchronous = self.scheduler.get_num_new_matched_tokens(request, start)
                asking_s += time.perf_counter() - begun
                if answer is None:
                    assert not asynchronous
                    name = request.request_id
                    self.passed_over[name] = self.passed_over.get(name, 0) + 1
                    skipped.append(request)
                    continue
                external = answer
                assert external >= 0
                assert start + external <= request.num_tokens
                assert bool(external) == asynchronous
                computed = start + external
            else:
                computed = request.num_computed_tokens
            count = 0 if asynchronous else min(request.num_tokens - computed, budget)
            assert asynchronous or count > 0
            for block in local:
                if self.references.get(block, 0) == 0:
                    self.free.remove(block)
                    self.references[block] = 0
                self.references[block] += 1
            if local:
                assert not request.blocks
                request.blocks = list(local)
            fits = not asynchronous or self.load_fits(request)
            if not fits or not self.grow(request, computed + count):
                if local:
                    blocks, request.blocks = request.blocks, []
                    self.give_back(blocks)
                skipped.append(request)
                break
            self.scheduler.update_state_after_alloc(request, list(request.blocks), external)
            if asynchronous:
                self.external[request.request_id] = external
                sources = self.scheduler.loaded_from(request, external)
                assert sum(sources.values()) == external
                request.status = LOADING
                request.num_computed_tokens = computed
                skipped.append(request)
                continue
            self.running.append(request)
            request.status = RUNNING
            request.num_computed_tokens = computed
            scheduled[request.request_id] = count
            budget -= count
        self.waiting[:0] = skipped
        self.asking_s.append(asking_s)
        return self.emit(scheduled, drafted)

    def load_fits(self, request: Request) -> bool:
        """A load holds its blocks and can't be preempted: vLLM admits it only if everything that
        is being loaded or prefilled can be completed beside it."""

        def lacks(one: Request) -> int:
            return -(-(one.num_tokens + 1) // self.shape.block_tokens) - len(one.blocks)

        holding = [one for one in self.waiting if one.blocks and one is not request]
        prefilling = [one for one in self.running if one.num_computed_tokens < one.num_tokens]
        return len(self.free) >= sum(max(0, lacks(o)) for o in (request, *holding, *prefilling))

    def grow(self, request: Request, tokens: int) -> bool:
        needed = -(-tokens // self.shape.block_tokens) - len(request.blocks)
        if needed > 0:
            taken = self.take_blocks(needed)
            if taken is None:
                return False
            request.blocks += taken
        return True

    def emit(self, scheduled: dict[str, int], drafted: dict[str, list[int]]) -> Step:
        output = SimpleNamespace(
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            preempted_req_ids=self.preempted_ids,
            kv_connector_block_state=SimpleNamespace(
                get_block_ids=lambda one: (
                    (list(self.requests[one].blocks),) if one in scheduled else None
                )
            ),
        )
        metadata = self.scheduler.build_step(output)
        rows = []
        for request_id, count in scheduled.items():
            request = self.requests[request_id]
            rows.append((request, request.num_computed_tokens, [count], list(request.blocks)))
        step = Step(metadata, dict(scheduled), rows, self.finished_ids, drafted=drafted)
        self.finished_ids = set()
        self.preempted_ids = set()
        if scheduled:
            self.sequence += 1
        for request_id, count in scheduled.items():
            request = self.requests[request_id]
            request.num_computed_tokens += count
            request.num_in_flight_tokens += count
            prefill = request.num_computed_tokens < (
                request.num_tokens + request.num_output_placeholders
            )
            if self.shape.asynchronous_scheduling and not prefill:
                request.num_output_placeholders += 1 + len(drafted.get(request_id, ()))
                request.drafts = [-1] * self.shape.drafts
        return step

    def preempt(self, request: Request) -> None:
        self.free_blocks_of(request)
        request.status = PREEMPTED
        request.num_computed_tokens = 0
        request.drafts = []
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        self.waiting.insert(0, request)
        self.preempted_ids.add(request.request_id)

    def load_done(self, request: Request) -> None:
        if request.request_id in self.failed_loads:
            self.failed_loads.remove(request.request_id)
            if request.num_computed_tokens:
                self.cache_blocks(request, request.num_computed_tokens)
            else:
                self.free_blocks_of(request)
        else:
            # The heart of it: what was loaded is what would have been computed.
            hashes = prefix_hashes(request.all_token_ids)[: request.num_computed_tokens]
            for worker in self.workers:
                worker.synchronise()
                worker.check(hashes, request.blocks)
            self.cache_blocks(request, request.num_computed_tokens)
        if request.num_computed_tokens == request.num_tokens:
            request.num_computed_tokens -= 1
        self.received.remove(request.request_id)
        request.status = WAITING

    # -- execution

    def next_token(self, request: Request, position: int) -> int:
        """What the model says after `position`: a function of the tokens before."""
        return 1000 + zlib.crc32(f"{request.request_id}/{position}".encode()) % 50

    def execute(self, step: Step) -> None:
        """What the workers do in a step, in vLLM's order of calls."""
        work = []
        for request, first, (count,), table in step.rows:
            first -= self.rejected_in_flight(request)
            real = self.truth(request, first + count)
            drafts = step.drafted.get(request.request_id, [])
            accepted = 0
            values = prefix_hashes(real[: first + count])[first:]
            if drafts:
                # The drafts are the last inputs; a wrong one spoils what follows it.
                accepted = self.rng.randint(0, len(drafts))
                for i in range(accepted, len(drafts)):
                    values[count - len(drafts) + i] = 666_000 + i
            work.append((first, values, table))
            last = first + count - len(drafts) - 1
            prefill = first + count - len(drafts) < self.known(request)
            if not prefill:
                step.sampled[request.request_id] = [
                    self.token_at(request, last + 1 + i) for i in range(accepted + 1)
                ]
        spoils, self.spoils = self.spoils, []
        for worker in self.workers:
            side = worker.side
            # Each rank has its own copy of the metadata, which went through a pickle.
            metadata = pickle.loads(pickle.dumps(step.metadata))
            side.handle_preemptions(metadata)
            for blocks in spoils:
                worker.enqueue(partial(worker.spoil, blocks))
            side.bind(metadata)
            for first, values, table in work:
                worker.enqueue(partial(worker.write, first, values, table))
            side.start_loads()
            side.start_saves()
            sent, received, invalid = side.finished(step.finished)
            step.reports.append((sent, received, invalid, side.report()))
            side.unbind()

    def rejected_in_flight(self, request: Request) -> int:
        """Drafts that vLLM's scheduler still counts and the workers know to be rejected."""
        rejected = 0
        for step in self.in_flight:
            sampled = step.sampled.get(request.request_id)
            if sampled and not request.num_stale_output_tokens:
                rejected += len(step.drafted.get(request.request_id, ())) - (len(sampled) - 1)
        return rejected

    def known(self, request: Request) -> int:
        """Tokens that exist on the workers: accepted ones and those sampled in flight."""
        count = request.num_tokens
        for step in self.in_flight:
            count += len(step.sampled.get(request.request_id, ()))
        return count

    def token_at(self, request: Request, position: int) -> int:
        if position < request.num_tokens:
            return request.all_token_ids[position]
        return self.next_token(request, position)

    def truth(self, request: Request, length: int) -> list[int]:
        return [self.token_at(request, position) for position in range(length)]

    # -- output

    def update(self, step: Step) -> None:
        for worker in self.workers:
            worker.synchronise()
        if step.scheduled:
            self.processed += 1
            while self.deferred and self.deferred[0][0] <= self.processed:
                self.give_back(self.deferred.pop(0)[1])
        invalid = set().union(*(report[2] for report in step.reports))
        if invalid:
            self.invalid_blocks(invalid)
        for request_id, count in step.scheduled.items():
            request = self.requests.get(request_id)
            if request is None:
                continue
            request.num_in_flight_tokens -= count
            stale = False
            if request.num_stale_output_tokens > 0:
                stale = True
                request.num_stale_output_tokens -= count
            if request.status == FINISHED:
                continue
            sampled = step.sampled.get(request_id, [])
            drafts = step.drafted.get(request_id, [])
            if drafts and sampled:
                rejected = len(drafts) - (len(sampled) - 1)
                if not stale:
                    request.num_computed_tokens -= rejected
                    if request.num_output_placeholders > 0:
                        request.num_output_placeholders -= rejected
            stopped = False
            for token in sampled:
                request.all_token_ids.append(token)
                if not stale and self.shape.asynchronous_scheduling:
                    request.num_output_placeholders -= 1
                if request.num_tokens >= request.num_prompt_tokens + request.max_tokens:
                    stopped = True
                    break
            if request.status == RUNNING:
                computed = request.num_computed_tokens - request.num_output_placeholders
                self.cache_blocks(request, max(0, min(computed, request.num_tokens - 1)))
            if stopped:
                if request in self.running:
                    self.running.remove(request)
                if request in self.waiting:
                    self.waiting.remove(request)
                self.outputs[request_id] = request.all_token_ids[request.num_prompt_tokens :]
                self.finish(request)
            elif (
                self.shape.drafts
                and sampled
                and not stale
                and not self.shape.asynchronous_scheduling
            ):
                request.drafts = [-1] * self.shape.drafts
        self.connector_output(step)

    def connector_output(self, step: Step) -> None:
        report = None
        received: set[str] = set()
        sent: set[str] = set()
        for worker_sent, worker_received, _, worker_report in step.reports:
            if worker_report is not None:
                report = worker_report if report is None else report.aggregate(worker_report)
            for ids, counts, done in (
                (worker_sent, self.send_counts, sent),
                (worker_received, self.receive_counts, received),
            ):
                for request_id in ids:
                    left = counts.get(request_id, len(self.workers)) - 1
                    counts[request_id] = left
                    if left == 0:
                        done.add(request_id)
                        del counts[request_id]
        self.scheduler.update_from_workers(report, received, sent)
        for request_id in received:
            assert request_id in self.requests, f"{request_id} received twice, or never loaded"
            request = self.requests[request_id]
            if request.status == LOADING:
                assert request_id not in self.received
                self.received.add(request_id)
            else:
                assert request.status == FINISHED
                self.remove(request)
        for request_id in sent:
            assert request_id in self.requests, f"{request_id} sent twice, or never delayed"
            self.remove(self.requests[request_id])

    def invalid_blocks(self, invalid: set[int]) -> None:
        for request in self.waiting:
            if request.status != LOADING:
                continue
            tokens = self.shape.block_tokens
            for index in range(-(-request.num_computed_tokens // tokens)):
                if request.blocks[index] in invalid:
                    request.num_computed_tokens = index * tokens
                    self.failed_loads.add(request.request_id)
                    break
        for request in self.running:
            assert not invalid & set(request.blocks), "a load failed into blocks of a running one"

    # -- driving

    def step(self) -> None:
        """One step; under asynchronous scheduling the output of the one before is taken in."""
        if self.shape.asynchronous_scheduling:
            stepped = self.has_requests()
            if stepped:
                step = self.schedule()
                self.execute(step)
                self.in_flight.append(step)
            if len(self.in_flight) > 1 or (self.in_flight and not stepped):
                self.update(self.in_flight.popleft())
            return
        step = self.schedule()
        self.execute(step)
        self.update(step)
        if not step.scheduled and self.requests:
            time.sleep(0.001)  # As vLLM does.

    def run(self, limit: int = 5000) -> None:
        """Until nothing is left to do."""
        for _ in range(limit):
            if not self.has_work():
                break
            self.step()
        else:
            raise AssertionError(f"the engine hangs: {self.requests}, {self.waiting}")
        self.settle()

    def settle(self) -> None:
        """Waits for what workers and the matcher do behind the steps."""
        deadline = time.monotonic() + 10
        drained = threading.Event()
        self.scheduler._matcher._do(drained.set)
        assert drained.wait(10), "the matcher does not come to rest"
        for worker in self.workers:
            side = worker.side
            while not side.quiet():
                assert time.monotonic() < deadline, "a worker does not come to rest"
                time.sleep(0.001)

    def generate(self, request_id: str, prompt: list[int], max_tokens: int = 1, **more: Any) -> int:
        """Runs one request alone; how many tokens of it came from the store."""
        request = self.add(Request(request_id, prompt, max_tokens, **more))
        self.run()
        assert len(self.outputs[request.request_id]) == max_tokens
        return self.external.get(request_id, 0)

    def close(self) -> None:
        for worker in self.workers:
            worker.side.shutdown()
        self.scheduler.shutdown()

    def check_nothing_leaks(self) -> None:
        assert not self.requests
        assert not self.receive_counts
        assert not self.send_counts
        assert not self.deferred
        assert all(count == 0 for count in self.references.values()), "blocks are lost"
        assert len(self.free) == self.shape.blocks - 1
        assert not self.scheduler._requests, "the scheduler's side forgets requests"


def check_store(engine: Engine, store: Any, space: Any = None) -> int:
    """Every sealed chunk has exactly the bytes that its tokens mean; returns how many there are."""
    shape = engine.shape
    space = space or engine.scheduler.space
    checked = 0
    seen = set()
    for request in engine.history:
        chain = KeyChain(root(space.id, salt=request.cache_salt or ""), space.chunk_tokens)
        chain.extend(request.all_token_ids)
        hashes = prefix_hashes(request.all_token_ids)
        for index in range(chain.count):
            chunk = store.chunks.get((space.id, chain.key(index)))
            if chunk is None or not chunk.sealed or chunk.key in seen:
                continue
            seen.add(chunk.key)
            start = index * space.chunk_tokens
            for worker in engine.workers:
                offset, length = chunk.extents[shape.grid.shard(worker.stage, worker.rank)]
                check_extent(
                    worker,
                    store.arena.bytes[offset : offset + length],
                    hashes[start : start + space.chunk_tokens],
                )
            checked += 1
    return checked


def check_extent(worker: Worker, data: np.ndarray, values: list[int]) -> None:
    """Copies the extent into blocks of a fresh cache, as a reader would, and checks them."""
    shape = worker.shape
    blocks = shape.chunk_tokens // shape.block_tokens
    room = blocks + 1  # A cache of one block has no order that could be told.
    fresh = Worker.__new__(Worker)
    fresh.__dict__.update(worker.__dict__)
    fresh.tensors = make_layers(
        shape.layout,
        shape.layers,
        room,
        worker.heads_here,
        shape.block_tokens,
        shape.content,
        split=shape.split,
    )
    geometry = geometry_of(fresh.tensors, shape.layout, shape.block_tokens, room, worker.names)
    device = CpuDevice(fresh.tensors)
    device.bind(ExtentLayout.of(geometry, shape.chunk_tokens))
    from connector_fakes import FakeArena

    from kvasir.vllm.device import ChunkCopy

    arena = FakeArena(len(data))
    arena.bytes[:] = data
    device.scatter(arena, [ChunkCopy(0, list(range(blocks)))], None)
    fresh.check(values, list(range(blocks)))
