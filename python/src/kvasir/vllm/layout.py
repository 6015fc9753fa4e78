"""How the paged blocks of one rank lie in memory, and how their bytes are arranged in an extent.

vLLM gives each layer as a logical 4D view `[B blocks, H heads, N tokens, C content]` over one of
six physical orders. This module takes such views apart into **planes**: matrices of `B` rows of
one contiguous run of bytes each. Copying a block is then one run for each plane, whatever the
order was:

========  ==============================================================
LBHNC     a plane for each layer, its run the layer's whole block
LBNHC     the same
LHBNC     a plane for each layer and head
BLHNC     one plane: the blocks of all layers lie together
BLNHC     the same
BHLNC     the same (heads outermost inside the block)
========  ==============================================================

Inside an extent the planes follow one another, each with the chunk's blocks in order
("plane-major"). Blocks that are neighbours in the engine are then neighbours in the extent, and
the runs of a plane are as long as they can be.

Pure arithmetic: no torch, no numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

KNOWN_LAYOUTS: dict[str, tuple[str, ...]] = {
    # Physical order of the axes of one layer's view, outermost first; L is left out.
    "LBHNC": ("B", "H", "N", "C"),
    "LBNHC": ("B", "N", "H", "C"),
    "LHBNC": ("H", "B", "N", "C"),
    "BLHNC": ("B", "H", "N", "C"),
    "BLNHC": ("B", "N", "H", "C"),
    "BHLNC": ("B", "H", "N", "C"),
}

MAX_PLANES = 65_536
"""More pieces than this for one block is no layout that we know."""


class UnknownLayout(ValueError):
    """The KV cache lies in memory in a way that this module does not know."""


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer's 4D view, in bytes."""

    name: str
    address: int
    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    element_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A contiguous run of one block of one layer: head `outer` of it, or all of it."""

    layer: int
    outer: tuple[int, ...]
    run_bytes: int


@dataclass(frozen=True, slots=True)
class Plane:
    """`blocks` rows of `run_bytes` bytes; row b starts at `address + b * stride_bytes`."""

    address: int
    stride_bytes: int
    run_bytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The planes of one rank."""

    layout: str
    blocks: int
    block_tokens: int
    planes: tuple[Plane, ...]
    digest: str

    @property
    def block_bytes(self) -> int:
        """Bytes of one engine block over all layers of the rank."""
        return sum(plane.run_bytes for plane in self.planes)


def describe(
    views: Sequence[LayerView], *, layout: str, block_tokens: int, blocks: int
) -> Geometry:
    """The geometry of a rank whose layers are `views`, in the engine's order.

    `blocks` counts the engine's blocks: where the attention kernel splits a block, the views have
    a multiple of them. Raises UnknownLayout for anything that isn't understood completely.
    """
    if layout not in KNOWN_LAYOUTS:
        raise UnknownLayout(
            f"KV cache layout {layout!r} is not known to this connector (it knows "
            f"{', '.join(KNOWN_LAYOUTS)}); choose one with VLLM_KV_CACHE_LAYOUT"
        )
    if not views:
        raise UnknownLayout("this rank has no layer with a KV cache")
    planes: list[Plane] = []
    for index, view in enumerate(views):
        planes.extend(_planes_of(index, view, layout, block_tokens, blocks))
        if len(planes) > MAX_PLANES:
            raise UnknownLayout(f"a block would be more than {MAX_PLANES} pieces")
    merged = _merge(planes)
    digest = hashlib.sha256()
    digest.update(f"{layout};{block_tokens};".encode())
    for view in views:
        # Kernel splitting changes B and N together; the bytes of a block are what they were.
        heads, content = view.shape[1], view.shape[3]
        digest.update(f"{view.name}:{heads}:{content}:{view.element_bytes};".encode())
    for plane in merged:
        digest.update(f"[{plane.run_bytes}".encode())
        for piece in plane.pieces:
            digest.update(f"/{piece.layer}:{piece.outer}:{piece.run_bytes}".encode())
        digest.update(b"]")
    return Geometry(
        layout=layout,
        blocks=blocks,
        block_tokens=block_tokens,
        planes=tuple(merged),
        digest=digest.hexdigest(),
    )


def _planes_of(
    index: int, view: LayerView, layout: str, block_tokens: int, blocks: int
) -> list[Plane]:
    kernel_blocks, heads, states, content = view.shape
    where = f"layer {view.name} (shape {view.shape}, strides {view.strides} bytes)"
    if kernel_blocks % blocks or min(view.shape) < 1:
        raise UnknownLayout(f"{where} does not have a multiple of {blocks} blocks")
    split = kernel_blocks // blocks
    if states * split != block_tokens:
        raise UnknownLayout(f"{where} does not keep {block_tokens} tokens in a block")
    _check_order(view, layout, where)
    block_stride = view.strides[0] * split
    # What one engine block consists of: kernel blocks, heads, tokens, content.
    axes = [
        (view.strides[0], split),
        (view.strides[1], heads),
        (view.strides[2], states),
        (view.strides[3], content),
    ]
    axes = sorted((stride, size) for stride, size in axes if size > 1)
    run = view.element_bytes
    while axes and axes[0][0] == run:
        run *= axes.pop(0)[1]
    if any(stride < run for stride, _ in axes) or block_stride < run:
        raise UnknownLayout(f"{where} overlaps itself")
    outer = list(reversed(axes))
    if any(stride == 0 for stride, _ in outer):
        raise UnknownLayout(f"{where} overlaps itself")
    found = []
    for position in product(*(range(size) for _, size in outer)):
        offset = sum(i * stride for i, (stride, _) in zip(position, outer, strict=True))
        found.append(
            Plane(view.address + offset, block_stride, run, (Piece(index, position, run),))
        )
        if len(found) > MAX_PLANES:
            raise UnknownLayout(f"{where} falls into more than {MAX_PLANES} pieces")
    return found


def _check_order(view: LayerView, layout: str, where: str) -> None:
    """The strides must descend in the order that the layout's name says."""
    by_name = dict(zip("BHNC", zip(view.strides, view.shape, strict=True), strict=True))
    previous = None
    for axis in KNOWN_LAYOUTS[layout]:
        stride, size = by_name[axis]
        if size == 1:
            continue
        if stride <= 0 or (previous is not None and stride > previous):
            raise UnknownLayout(f"{where} is not laid out as {layout}")
        previous = stride
    stride, size = by_name["C"]
    if size > 1 and stride != view.element_bytes:
        raise UnknownLayout(f"{where} has gaps between the elements of a token")


def _merge(planes: list[Plane]) -> list[Plane]:
    """Joins planes whose runs touch inside the same block, then orders them by first piece.

    Only runs that lie in one block stride are joined, so that planes of separate layers, which
    may touch by accident of allocation, stay apart: what goes into an extent depends on the
    layout alone.
    """
    merged: list[Plane] = []
    for plane in sorted(planes, key=lambda plane: (plane.stride_bytes, plane.address)):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.stride_bytes == plane.stride_bytes
            and last.address + last.run_bytes == plane.address
            and last.run_bytes + plane.run_bytes <= plane.stride_bytes
        ):
            merged[-1] = Plane(
                last.address,
                last.stride_bytes,
                last.run_bytes + plane.run_bytes,
                last.pieces + plane.pieces,
            )
        elif (
            last is not None
            and last.stride_bytes == plane.stride_bytes
            and plane.address < last.address + last.run_bytes
        ):
            raise UnknownLayout("layers of the KV cache overlap each other")
        else:
            merged.append(plane)
    return sorted(merged, key=lambda plane: (plane.pieces[0].layer, plane.pieces[0].outer))


@dataclass(frozen=True, slots=True)
class ExtentLayout:
    """Where the runs of a chunk are in its extent."""

    geometry: Geometry
    chunk_blocks: int
    offsets: tuple[int, ...]
    """Where each plane starts in the extent."""
    chunk_bytes: int

    @staticmethod
    def of(geometry: Geometry, chunk_tokens: int) -> ExtentLayout:
        if chunk_tokens % geometry.block_tokens:
            raise ValueError(
                f"chunks of {chunk_tokens} tokens do not consist of whole blocks of "
                f"{geometry.block_tokens}"
            )
        chunk_blocks = chunk_tokens // geometry.block_tokens
        offsets = []
        offset = 0
        for plane in geometry.planes:
            offsets.append(offset)
            offset += plane.run_bytes * chunk_blocks
        return ExtentLayout(geometry, chunk_blocks, tuple(offsets), offset)
