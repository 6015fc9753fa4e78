"""Torch tensors on the arena, without a copy. Needs torch, which the rest of the package does not.

Torch knows no read-only memory: don't write to what :func:`read_tensor` gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from .leases import ReadLease, WriteLease

__all__ = ["read_tensor", "write_tensor"]


def read_tensor(
    lease: ReadLease, index: int, dtype: torch.dtype, shape: Sequence[int] | None = None
) -> torch.Tensor:
    """One chunk of a read lease. It must not be written to, nor read once the lease is released."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        tensor = torch.frombuffer(lease.view(index), dtype=dtype)
    return tensor if shape is None else tensor.reshape(tuple(shape))


def write_tensor(
    lease: WriteLease,
    position: int,
    shard: int,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """One extent of a write lease, to be filled before its commit."""
    tensor = torch.frombuffer(lease.view(position, shard), dtype=dtype)
    return tensor if shape is None else tensor.reshape(tuple(shape))
