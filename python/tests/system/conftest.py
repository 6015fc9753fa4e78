"""Fixtures of the system tests: real daemons, real client processes, faults.

``KVASIR_BIN`` names the daemon. Without it the tests are skipped, except under CI, where they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

import kvasir
from system.daemon import Daemon, Puppet


@pytest.fixture(scope="session")
def binary() -> str:
    path = os.environ.get("KVASIR_BIN", "")
    if not path:
        if os.environ.get("CI") == "true":
            pytest.fail("KVASIR_BIN names no daemon, and nothing may be skipped under CI")
        pytest.skip("KVASIR_BIN names no daemon: KVASIR_BIN=.build/release/kvasir pytest …")
    assert os.access(path, os.X_OK), f"KVASIR_BIN names {path}, which can't be run"
    return path


@pytest.fixture
def idle_daemon(socket_directory: Path, binary: str) -> Iterator[Daemon]:
    """A daemon that is not started."""
    with Daemon(socket_directory, binary) as daemon:
        yield daemon


@pytest.fixture
def daemon(idle_daemon: Daemon) -> Daemon:
    """A daemon with 16 MiB.

    Without sampled checks: one that is under way keeps its chunk and the ancestors for a moment,
    and these tests count exactly.
    """
    idle_daemon.start("--verify", "off")
    return idle_daemon


@pytest.fixture
def observer(daemon: Daemon) -> Iterator[kvasir.Client]:
    """A client in this process, which looks at what the others do."""
    with kvasir.Client(daemon.path, session="observer") as client:
        yield client


class MakePuppet(Protocol):
    def __call__(self, **options: Any) -> Puppet: ...


@pytest.fixture
def puppet(idle_daemon: Daemon) -> Iterator[MakePuppet]:
    """Makes client processes; those left are killed at the end."""
    with ExitStack() as stack:

        def make(**options: Any) -> Puppet:
            return stack.enter_context(Puppet(idle_daemon.path, **options))

        yield make
