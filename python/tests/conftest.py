"""Fixtures for everything that talks to a daemon.

``fake_server``: a :class:`fake_server.FakeServer`, running, whose faults a test may switch.
``kvasir_server``: the same tests against every daemon there is: the fake, and where ``KVASIR_BIN``
names the real binary, that one too. Both have ``path``, ``start()``, ``stop()`` (as kill -9) and
``restart()``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import kvasir
from fake_server import FakeServer
from support import open_descriptors, own_threads, serve_help, wait_until, without_disk


class RealServer:
    """The daemon itself, as a process."""

    def __init__(
        self, path: Path, binary: str, log: Path, flags: Sequence[str] | None = None
    ) -> None:
        self.flags = without_disk(binary) if flags is None else flags
        self.path = str(path)
        self.binary = binary
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self.binary, "serve", "--socket", self.path, "--memory", "64MiB", *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"it does not serve: {self.log.read_text()}"
            with contextlib.suppress(kvasir.KvasirError), kvasir.Client(self.path) as client:
                # It serves before its arena is faulted in, and then gives out less.
                size, _, faulted = client.execute("KV.ARENA")
                if faulted == size:
                    return
            time.sleep(0.01)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def restart(self) -> None:
        self.stop()
        self.start()


def pytest_configure() -> None:
    # Whatever a test starts, and however: the user's cache directory is none of its business.
    os.environ["KVASIR_MEMORY_ONLY"] = "1"


def pytest_collection_finish() -> None:
    # What modules have made stays. To look through all of it after each test took half of the time.
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kvasir_server" in metafunc.fixturenames:
        kinds = ["fake"] + (["daemon"] if os.environ.get("KVASIR_BIN") else [])
        metafunc.parametrize("kvasir_server", kinds, indirect=True)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Every test ends without threads, sockets or descriptors of the client."""
    before = set(open_descriptors())
    yield
    gc.collect()
    wait_until(lambda: not own_threads(), f"threads are left: {own_threads()}")

    def leaked() -> dict[int, str]:
        kinds = ("socket:", "anon_inode:[eventfd]", "/memfd:")
        return {
            fd: link
            for fd, link in open_descriptors().items()
            if fd not in before and link.startswith(kinds)
        }

    wait_until(lambda: not leaked(), f"descriptors are left: {leaked()}")


@pytest.fixture
def socket_directory(leaves_nothing_behind: None) -> Iterator[Path]:
    """A private directory whose path is short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="kvasir-test-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def fake_server(socket_directory: Path) -> Iterator[FakeServer]:
    with FakeServer(socket_directory / "kvasir.sock") as server:
        yield server


@pytest.fixture
def kvasir_server(
    request: pytest.FixtureRequest, socket_directory: Path
) -> Iterator[FakeServer | RealServer]:
    path = socket_directory / "kvasir.sock"
    server: FakeServer | RealServer
    if request.param == "fake":
        server = FakeServer(path)
    else:
        server = RealServer(path, os.environ["KVASIR_BIN"], socket_directory / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def disk_server(socket_directory: Path) -> Iterator[RealServer]:
    """The daemon with a disk, where there is one: what it has written outlives `restart()`."""
    binary = os.environ.get("KVASIR_BIN", "")
    if not binary or "--disk " not in serve_help(binary):
        pytest.skip("KVASIR_BIN names no daemon that has a disk tier")
    flags = ["--disk", str(socket_directory / "disk"), "--disk-size", "1GiB"]
    path = socket_directory / "kvasir.sock"
    server = RealServer(path, binary, socket_directory / "log", flags)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def logging_server(socket_directory: Path) -> Iterator[RealServer]:
    """The daemon with a log of requests, in the folder `requests` beside its socket."""
    binary = os.environ.get("KVASIR_BIN", "")
    if not binary:
        pytest.skip("KVASIR_BIN names no daemon")
    flags = [*without_disk(binary), "--request-log", str(socket_directory / "requests")]
    server = RealServer(socket_directory / "kvasir.sock", binary, socket_directory / "log", flags)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(kvasir_server: FakeServer | RealServer) -> Iterator[kvasir.Client]:
    """A client of each daemon there is."""
    with kvasir.Client(kvasir_server.path) as client:
        yield client


@pytest.fixture
def fake_client(fake_server: FakeServer) -> Iterator[kvasir.Client]:
    with kvasir.Client(fake_server.path) as client:
        yield client


@pytest.fixture
def seed() -> int:
    """Printed, so that a failing run can be repeated: KVASIR_TEST_SEED=… pytest …"""
    value = int(os.environ.get("KVASIR_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"KVASIR_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)
