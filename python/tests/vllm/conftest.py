"""Fixtures of the connector's tests. They need torch, and none needs vLLM unless it says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))

from connector_double import Engine, Shape
from connector_fakes import FakeClient, FakeStore


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def make_engine(store: FakeStore) -> Iterator[Any]:
    """Makes engines on the store in memory, and ends them."""
    engines: list[Engine] = []

    def make(shape: Shape | None = None, **more: Any) -> Engine:
        def client(session: str) -> FakeClient:
            return FakeClient(store, session)

        engine = Engine(shape or Shape(), more.pop("make_client", client), **more)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
