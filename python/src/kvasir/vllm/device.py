# ruff: noqa: ARG002 - one signature for all devices
"""Copies between paged blocks and extents of the arena, behind one small interface.

`CpuDevice` copies at once, with numpy (measured on 67 MB, 16 layers, extents in the arena: fancy
assignment reaches memcpy's speed for runs of 16 KiB and more; `torch.index_copy_` is ten times
slower, one `memcpy` call for each run 1.1 to 2 times slower).

`CudaDevice` copies on a stream of its own: planes are gathered into a staging buffer that has the
extent's arrangement, so that one transfer moves a whole chunk. It never synchronises the device.
**Unverified: it has not run on a GPU yet.** Its order of events is what the tests check with a
fake device.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from kvasir.vllm.layout import ExtentLayout

    Bytes = npt.NDArray[np.uint8]


log = logging.getLogger("vllm.kvasir")


class MappedArena(Protocol):
    """What a device needs of `kvasir.arena.Arena`."""

    @property
    def id(self) -> bytes: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview: ...


@dataclass(frozen=True, slots=True)
class ChunkCopy:
    """Blocks of one chunk and the extent that has, or gets, their bytes."""

    extent: int
    """Offset of the extent in the arena."""
    blocks: Sequence[int]
    first: int = 0
    """Position in the chunk of the first of `blocks`."""


class Copy(Protocol):
    """A copy that has been started."""

    def done(self) -> bool: ...
    def wait(self) -> None: ...


class Mark(Protocol):
    """A point in what the engine has given its device to do."""


class Device(Protocol):
    """Where the paged blocks are."""

    asynchronous: bool
    """Whether a copy may still be under way when the call that started it returns."""

    def bind(self, layout: ExtentLayout) -> None:
        """Sets the arrangement of extents; before any copy."""

    def attach(self, arena: MappedArena) -> None:
        """Prepares an arena for copies; may take long, and not on the engine's thread then."""

    def mark(self) -> Mark | None:
        """Now, in the engine's order of work. Called on the engine's thread."""

    def gather(self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None) -> Copy:
        """Starts to copy blocks into extents, once the engine's work before `after` is done."""

    def scatter(self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None) -> Copy:
        """Starts to copy extents into blocks, once the engine's work before `after` is done."""

    def fence(self, copies: Iterable[Copy]) -> None:
        """Makes what the engine does next wait for `copies`. Called on the engine's thread."""

    def close(self) -> None:
        """Waits for its copies and lets go of the arena."""


class DoneCopy:
    """A copy that was over before its call returned."""

    __slots__ = ()

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return


DONE = DoneCopy()


def check_bounds(layout: ExtentLayout, arena: MappedArena, chunks: Sequence[ChunkCopy]) -> None:
    """Refuses a copy that would leave the arena, the chunk or the KV cache."""
    blocks = layout.geometry.blocks
    for chunk in chunks:
        if chunk.extent < 0 or chunk.extent + layout.chunk_bytes > arena.size:
            raise ValueError(f"extent at {chunk.extent} is not inside the arena")
        if chunk.first < 0 or chunk.first + len(chunk.blocks) > layout.chunk_blocks:
            raise ValueError(f"{len(chunk.blocks)} blocks from {chunk.first} on leave the chunk")
        if chunk.blocks and not 0 <= min(chunk.blocks) <= max(chunk.blocks) < blocks:
            raise ValueError(f"block {min(chunk.blocks)} or {max(chunk.blocks)} does not exist")


def plane_tensors(tensors: Sequence[torch.Tensor], layout: ExtentLayout) -> list[torch.Tensor]:
    """Each plane as a uint8 tensor `[blocks, run]` that shares the layers' memory.

    `tensors` are the layers in the order of `layout.geometry`.
    """
    import torch

    planes = []
    for plane in layout.geometry.planes:
        storage = tensors[plane.pieces[0].layer].untyped_storage()
        offset = plane.address - storage.data_ptr()
        end = offset + (layout.geometry.blocks - 1) * plane.stride_bytes + plane.run_bytes
        if offset < 0 or end > storage.nbytes():
            raise ValueError("a plane of the KV cache leaves its allocation")
        empty = torch.empty(0, dtype=torch.uint8, device=tensors[0].device)
        planes.append(
            empty.set_(
                storage,
                offset,
                (layout.geometry.blocks, plane.run_bytes),
                (plane.stride_bytes, 1),
            )
        )
    return planes


class CpuDevice:
    """Blocks in host memory: copies are over when their call returns."""

    asynchronous = False

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._layout: ExtentLayout | None = None
        self._planes: list[Bytes] = []
        self._arena: tuple[MappedArena, Bytes] | None = None

    def bind(self, layout: ExtentLayout) -> None:
        self._layout = layout
        self._planes = [plane.numpy() for plane in plane_tensors(self._tensors, layout)]

    def attach(self, arena: MappedArena) -> None:
        self._bytes_of(arena)

    def mark(self) -> Mark | None:
        return None

    def gather(self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None) -> Copy:
        for batch in self._batches(arena, chunks):
            for plane, offset in zip(self._planes, self._offsets(), strict=True):
                extents = batch.extents(offset, plane.shape[1])
                if batch.consecutive is not None:
                    extents[...] = batch.rows(plane)
                    continue
                for extent, blocks in zip(extents, batch.blocks, strict=True):
                    np.take(plane, blocks, axis=0, out=extent, mode="clip")
        return DONE

    def scatter(self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None) -> Copy:
        for batch in self._batches(arena, chunks):
            for plane, offset in zip(self._planes, self._offsets(), strict=True):
                extents = batch.extents(offset, plane.shape[1])
                if batch.consecutive is not None:
                    batch.rows(plane)[...] = extents
                else:
                    plane[batch.blocks] = extents
        return DONE

    def fence(self, copies: Iterable[Copy]) -> None:
        return

    def close(self) -> None:
        self._arena = None

    def _offsets(self) -> tuple[int, ...]:
        assert self._layout is not None
        return self._layout.offsets

    def _bytes_of(self, arena: MappedArena) -> Bytes:
        if self._arena is None or self._arena[0] is not arena:
            view = arena.view(0, arena.size, writable=True)
            self._arena = (arena, np.frombuffer(view, dtype=np.uint8))
        return self._arena[1]

    def _batches(self, arena: MappedArena, chunks: Sequence[ChunkCopy]) -> list[_Batch]:
        """Chunks together whose extents are evenly spaced: one call a plane copies them all."""
        layout = self._layout
        assert layout is not None, "bind() comes first"
        check_bounds(layout, arena, chunks)
        memory = self._bytes_of(arena)
        batches: list[list[ChunkCopy]] = []
        for chunk in chunks:
            if not chunk.blocks:
                continue
            last = batches[-1] if batches else []
            like = last and (last[0].first, len(last[0].blocks)) == (chunk.first, len(chunk.blocks))
            even = len(last) < 2 or (
                chunk.extent - last[-1].extent == last[-1].extent - last[-2].extent
            )
            if like and even:
                last.append(chunk)
            else:
                batches.append([chunk])
        return [_Batch(memory, batch) for batch in batches]


class _Batch:
    """Chunks whose extents are evenly spaced and that copy the same part of the chunk."""

    def __init__(self, memory: Bytes, chunks: list[ChunkCopy]) -> None:
        self._memory = memory
        self._start = chunks[0].extent
        self._step = chunks[1].extent - chunks[0].extent if len(chunks) > 1 else 0
        self._first = chunks[0].first
        self.blocks = np.array([chunk.blocks for chunk in chunks], dtype=np.intp)
        flat = self.blocks.ravel()
        run = int(flat[-1]) - int(flat[0]) + 1 == flat.size and bool((np.diff(flat) == 1).all())
        self.consecutive: int | None = int(flat[0]) if run else None

    def extents(self, offset: int, run_bytes: int) -> Bytes:
        """The plane at `offset` in each extent: `[chunks, blocks, run]`."""
        start = self._start + offset + self._first * run_bytes
        return np.lib.stride_tricks.as_strided(
            self._memory[start:],
            shape=(*self.blocks.shape, run_bytes),
            strides=(self._step, run_bytes, 1),
        )

    def rows(self, plane: Bytes) -> Bytes:
        """The plane's rows of consecutive blocks, in the same shape."""
        assert self.consecutive is not None
        stride = plane.strides[0]
        return np.lib.stride_tricks.as_strided(
            plane[self.consecutive :],
            shape=(*self.blocks.shape, plane.shape[1]),
            strides=(self.blocks.shape[1] * stride, stride, 1),
        )


class _CudaCopy:
    """A copy on a side stream, over when its event has happened."""

    __slots__ = ("event", "keep")

    def __init__(self, event: Any, keep: Any) -> None:
        self.event = event
        self.keep = keep

    def done(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class CudaDevice:
    """Blocks in GPU memory. Unverified: has not run on a GPU yet.

    Saves and loads have a stream each, so that a long load does not delay a save whose blocks the
    engine waits to have back. Each has its staging buffer, used by one copy after the other in
    the order of the stream. The arena is registered as pinned memory once for each mapping and
    unregistered before the mapping goes (`Arena.on_unmap`).
    """

    asynchronous = True

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        import torch

        self._torch = torch
        self._tensors = list(tensors)
        self._device = tensors[0].device
        self._layout: ExtentLayout | None = None
        self._groups: list[_PlaneGroup] = []
        self._save_stream = torch.cuda.Stream(self._device)
        self._load_stream = torch.cuda.Stream(self._device)
        self._save_staging: torch.Tensor | None = None
        self._load_staging: torch.Tensor | None = None
        self._lock = threading.Lock()
        self._arena: tuple[MappedArena, torch.Tensor, bool] | None = None

    def bind(self, layout: ExtentLayout) -> None:
        torch = self._torch
        self._layout = layout
        self._groups = _plane_groups(self._tensors, layout)
        size = layout.chunk_bytes
        self._save_staging = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._load_staging = torch.empty(size, dtype=torch.uint8, device=self._device)

    def attach(self, arena: MappedArena) -> None:
        self._host_tensor(arena)

    def mark(self) -> Mark | None:
        event = self._torch.cuda.Event()
        event.record(self._torch.cuda.current_stream(self._device))
        return event  # type: ignore[no-any-return]

    def gather(self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None) -> Copy:
        return self._copy(arena, chunks, after, save=True)

    def scatter(self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None) -> Copy:
        return self._copy(arena, chunks, after, save=False)

    def fence(self, copies: Iterable[Copy]) -> None:
        stream = self._torch.cuda.current_stream(self._device)
        for copy in copies:
            if isinstance(copy, _CudaCopy):
                stream.wait_event(copy.event)
            else:
                copy.wait()

    def close(self) -> None:
        self._save_stream.synchronize()
        self._load_stream.synchronize()
        with self._lock:
            if self._arena is not None:
                arena, _, pinned = self._arena
                self._arena = None
                if pinned:
                    self._torch.cuda.cudart().cudaHostUnregister(arena.address)

    def _copy(
        self, arena: MappedArena, chunks: Sequence[ChunkCopy], after: Mark | None, *, save: bool
    ) -> Copy:
        torch = self._torch
        layout = self._layout
        assert layout is not None, "bind() comes first"
        check_bounds(layout, arena, chunks)
        stream = self._save_stream if save else self._load_stream
        staging = self._save_staging if save else self._load_staging
        assert staging is not None
        with torch.cuda.device(self._device):
            memory = self._host_tensor(arena)
            with torch.cuda.stream(stream), contextlib.ExitStack() as undo:
                if after is not None:
                    stream.wait_event(after)
                blocks = [block for chunk in chunks for block in chunk.blocks]
                # What has been queued must be over before anybody hears that it failed.
                undo.callback(stream.synchronize)
                host_index = torch.tensor(blocks, dtype=torch.int64).pin_memory()
                index = host_index.to(self._device, non_blocking=True)
                keep = [host_index, index]
                at = 0
                for chunk in chunks:
                    part = index[at : at + len(chunk.blocks)]
                    at += len(chunk.blocks)
                    if chunk.blocks:
                        self._copy_chunk(memory, staging, chunk, part, layout, save=save)
                undo.pop_all()
            event = torch.cuda.Event(blocking=True)
            event.record(stream)
        # The staging buffers and index tensors are used on this stream only, in its order; the
        # host side of an index tensor is kept until the event.
        return _CudaCopy(event, keep)

    def _copy_chunk(
        self,
        memory: torch.Tensor,
        staging: torch.Tensor,
        chunk: ChunkCopy,
        index: torch.Tensor,
        layout: ExtentLayout,
        *,
        save: bool,
    ) -> None:
        extent = memory[chunk.extent : chunk.extent + layout.chunk_bytes]
        whole = len(chunk.blocks) == layout.chunk_blocks
        last = chunk.first + len(chunk.blocks)
        if save and not whole:
            raise ValueError("only whole chunks are saved")
        if not save:
            if whole:
                staging.copy_(extent, non_blocking=True)
            else:
                for group in self._groups:
                    group.staged(staging, layout)[:, chunk.first : last].copy_(
                        group.staged(extent, layout)[:, chunk.first : last], non_blocking=True
                    )
        for group in self._groups:
            staged = group.staged(staging, layout)[:, chunk.first : last]
            if save:
                self._torch.index_select(group.rows, 1, index, out=staged)
            else:
                group.rows.index_copy_(1, index, staged)
        if save:
            extent.copy_(staging, non_blocking=True)

    def _host_tensor(self, arena: MappedArena) -> torch.Tensor:
        torch = self._torch
        with self._lock:
            if self._arena is not None and self._arena[0] is arena:
                return self._arena[1]
            host = torch.frombuffer(arena.view(0, arena.size, writable=True), dtype=torch.uint8)
            # On this rank's device: elsewhere it would make a context that takes its memory.
            with torch.cuda.device(self._device):
                status = torch.cuda.cudart().cudaHostRegister(arena.address, arena.size, 0)
            pinned = int(status) == 0
            if not pinned:
                log.warning("Kvasir: CUDA does not pin the arena (%s): copies are slow", status)
            self._arena = (arena, host, pinned)
        on_unmap = getattr(arena, "on_unmap", None)
        if pinned and on_unmap is not None:
            on_unmap(self._unregister)
        return host

    def _unregister(self, arena: Any) -> None:
        """Before the arena's mapping goes: no copy may use it any more, then it is unpinned."""
        with self._lock:
            if self._arena is None or self._arena[0] is not arena:
                return
            self._arena = None
        self._save_stream.synchronize()
        self._load_stream.synchronize()
        with self._torch.cuda.device(self._device):
            self._torch.cuda.cudart().cudaHostUnregister(arena.address)


@dataclass(slots=True)
class _PlaneGroup:
    """Planes with equal runs at equal distances, as one tensor `[planes, blocks, words]`."""

    rows: torch.Tensor
    first: int
    """Number of the group's first plane."""
    word_bytes: int

    def staged(self, buffer: torch.Tensor, layout: ExtentLayout) -> torch.Tensor:
        """The group's part of a buffer in extent order: `[planes, chunk blocks, words]`."""
        planes, _, words = self.rows.shape
        start = layout.offsets[self.first]
        end = start + planes * layout.chunk_blocks * words * self.word_bytes
        part = buffer[start:end].view(self.rows.dtype)
        return part.view(planes, layout.chunk_blocks, words)


def _plane_groups(tensors: Sequence[torch.Tensor], layout: ExtentLayout) -> list[_PlaneGroup]:
    import torch

    planes = layout.geometry.planes
    groups: list[_PlaneGroup] = []
    index = 0
    while index < len(planes):
        first = planes[index]
        storage = tensors[first.pieces[0].layer].untyped_storage()
        count = 1
        distance = 0
        while index + count < len(planes):
            plane = planes[index + count]
            step = plane.address - planes[index + count - 1].address
            same = (plane.stride_bytes, plane.run_bytes) == (first.stride_bytes, first.run_bytes)
            inside = (
                tensors[plane.pieces[0].layer].untyped_storage().data_ptr() == storage.data_ptr()
            )
            if not (same and inside and step > 0 and distance in (0, step)):
                break
            distance = step
            count += 1
        sizes = (first.address, first.stride_bytes, first.run_bytes, distance)
        word = 8 if all(size % 8 == 0 for size in (*sizes, layout.offsets[index])) else 1
        dtype = torch.int64 if word == 8 else torch.uint8
        rows = torch.empty(0, dtype=dtype, device=tensors[0].device).set_(
            storage,
            (first.address - storage.data_ptr()) // word,
            (count, layout.geometry.blocks, first.run_bytes // word),
            (max(distance, first.run_bytes) // word, first.stride_bytes // word, 1),
        )
        groups.append(_PlaneGroup(rows, index, word))
        index += count
    return groups


def device_for(tensors: Sequence[torch.Tensor]) -> Device:
    """The device on which the layers are; ValueError for one that isn't known."""
    kinds = {tensor.device.type for tensor in tensors}
    if kinds == {"cpu"}:
        return CpuDevice(tensors)
    if kinds == {"cuda"}:
        return CudaDevice(tensors)
    raise ValueError(
        f"Kvasir's connector copies from CPU and CUDA memory, not from {sorted(kinds)}"
    )
