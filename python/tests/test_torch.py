"""Tensors lie in the arena itself."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import kvasir
from support import make_keys, make_space

torch = pytest.importorskip("torch", reason="torch is not installed")


def test_tensors_are_the_arena_without_a_copy(kvasir_server: Any) -> None:
    from kvasir.torch import read_tensor, write_tensor

    space = make_space((8192,))
    root, keys = make_keys(space, 2)
    with kvasir.Client(kvasir_server.path) as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        values = torch.arange(4096).to(torch.bfloat16).reshape(64, 64)
        with client.reserve(space, root, keys) as lease:
            for position in lease.granted:
                tensor = write_tensor(lease, position, 0, torch.bfloat16, (64, 64))
                assert tensor.data_ptr() == client.arena.address + lease.extent(position, 0)[0]
                tensor.copy_(values + position)
            lease.commit(0)
        hold = client.match(space, root, keys, hold_ms=10_000).hold
        assert hold is not None
        with hold.acquire(0).wait() as read:
            loaded = read_tensor(read, 1, torch.bfloat16, (64, 64))
            assert loaded.data_ptr() == client.arena.address + int(read.extents[1, 0])
            assert torch.equal(loaded, values + 1)
            assert read_tensor(read, 0, torch.uint8).shape == (8192,)
