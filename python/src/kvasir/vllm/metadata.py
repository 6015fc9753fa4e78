"""What the scheduler side and the worker side tell each other. Plain data: it is pickled."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class LoadSpec:
    """Chunks of a hold, and the blocks that they go to."""

    request_id: str
    arena: bytes
    """Id of the arena of the daemon process that gave the hold: its id means nothing to another."""
    hold: int
    first: int
    """Position of the first wanted chunk among those held."""
    count: int
    skip_blocks: int
    """Blocks at the start of the first chunk that the engine has already."""
    blocks: list[int]
    """Blocks to fill, in order, from block `skip_blocks` of the first chunk on."""
    tiers: bytes = b""
    """Where each chunk was when it was matched, one byte each."""
    prefetched_at: float = 0.0
    """When the chunks that are not in memory began to move there, in monotonic seconds of the
    host, or 0."""


@dataclass(slots=True)
class SaveSpec:
    """Granted extents, and the blocks whose bytes go there."""

    request_id: str
    save: int
    """Number of this save; workers report it back when an asynchronous copy is done."""
    arena: bytes
    """Id of the arena that the extents belong to: nothing is written into another."""
    lease: int
    blocks: list[int]
    """Blocks of the granted chunks, one chunk after the other."""
    extents: bytes
    """Packed u64 pairs (offset, length): for each granted chunk, one for each shard."""


@dataclass(slots=True)
class StepMetadata:
    """What workers have to do in one step."""

    session: str = ""
    """The engine's session, which all of its processes join."""
    idle: bool = False
    """The step computes nothing: a worker may wait a moment for its loads."""
    loads: list[LoadSpec] = field(default_factory=list)
    saves: list[SaveSpec] = field(default_factory=list)
    delayed: list[str] = field(default_factory=list)
    """Finished requests whose blocks vLLM keeps until every worker reports them as sent."""
    preempted: list[str] = field(default_factory=list)
    """Requests whose blocks the engine has taken back."""
    discard_loads: list[str] = field(default_factory=list)
    """Loads under way whose bytes are not wanted any more; they end as failed."""


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """How long a load that succeeded took, in seconds."""

    copied: float
    """From memory to the blocks, and what was said to the daemon about it."""
    arrived: float = 0.0
    """From the prefetch until all chunks were in memory; 0 if they all had been there."""
    waited: bool = False
    """They were not there yet when the load began."""

    def slower(self, other: LoadTimes) -> LoadTimes:
        """Both together, for ranks that load side by side."""
        return LoadTimes(
            max(self.copied, other.copied),
            max(self.arrived, other.arrived),
            self.waited or other.waited,
        )


@dataclass(slots=True)
class WorkerReport:
    """What one worker, or all of them aggregated, has to say after a step."""

    failed_loads: set[str] = field(default_factory=set)
    finished_saves: dict[int, int] = field(default_factory=dict)
    """For asynchronous devices: how many workers have finished each save."""
    outage: str = ""
    """Why a worker can't reach the daemon, empty when it can."""
    load_times: dict[str, LoadTimes] = field(default_factory=dict)

    def aggregate(self, other: WorkerReport) -> WorkerReport:
        """Both together; vLLM calls it over the ranks."""
        finished = dict(self.finished_saves)
        for save, count in other.finished_saves.items():
            finished[save] = finished.get(save, 0) + count
        times = dict(self.load_times)
        for request_id, one in other.load_times.items():
            times[request_id] = times[request_id].slower(one) if request_id in times else one
        return WorkerReport(
            failed_loads=self.failed_loads | other.failed_loads,
            finished_saves=finished,
            outage=self.outage or other.outage,
            load_times=times,
        )

    def is_empty(self) -> bool:
        return not (self.failed_loads or self.finished_saves or self.outage or self.load_times)


@dataclass(frozen=True, slots=True)
class RankHandshake:
    """What a worker tells the scheduler once, when its KV cache exists."""

    stage: int
    rank: int
    replicas: int
    """Consecutive tensor-parallel ranks that hold the same bytes."""
    host: str
    """Identity of the running host; the arena can't be shared with another."""
    layers: tuple[str, ...]
    layout: str
    geometry: str
    """Digest of how the bytes of a block are arranged in an extent."""
    block_bytes: int
    """Bytes of one engine block over this rank's layers."""
    heads: int
    """KV heads of one layer on this rank."""
    head_elements: int
    """Elements of one token in one head of one layer."""
    kernels: tuple[str, ...]
    """Attention kernels that define what the bytes mean."""
    asynchronous: bool
    """Copies go on after the call that started them."""
