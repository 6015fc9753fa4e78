"""The clock on the wall jumps, while the daemon runs and between two starts: nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kvasir
from support import make_keys, make_space, read_back, store, wait_until
from system.daemon import Daemon

SPACE = make_space((64 << 10,), name="clock")
COUNT = 8
HOUR = 3600
YEARS = 10 * 365 * 24 * HOUR


class Clock:
    """What a daemon takes for the time: wrong by some seconds."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "clock"
        self.library = directory / "clock.so"
        compiler = shutil.which("cc") or shutil.which("clang")
        assert compiler, "no C compiler; the Swift toolchain brings clang"
        source = Path(__file__).with_name("clock.c")
        command = [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(self.library)]
        subprocess.run(command, check=True)
        self.jump(0)

    def jump(self, seconds: int) -> None:
        # Renamed, so that nobody reads half of it.
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "TEST_CLOCK": str(self.file)}


@pytest.fixture
def clock(socket_directory: Path) -> Clock:
    return Clock(socket_directory)


@pytest.fixture
def start(idle_daemon: Daemon, socket_directory: Path, clock: Clock) -> Any:
    """Starts the daemon, or starts it again after kill -9."""

    def start() -> kvasir.Client:
        if idle_daemon.process is not None:
            idle_daemon.kill()
        idle_daemon.start(disk=socket_directory / "disk", environment=clock.environment)
        return kvasir.Client(idle_daemon.path)

    return start


def save(client: kvasir.Client, salt: str) -> None:
    root, keys = make_keys(SPACE, COUNT, salt=salt)
    assert store(client, SPACE, root, keys, salt.encode()) == COUNT


def load(client: kvasir.Client, salt: str) -> int:
    root, keys = make_keys(SPACE, COUNT, salt=salt)
    return read_back(client, SPACE, root, keys, salt.encode())


def expire(client: kvasir.Client, salt: str, seconds: float) -> None:
    root, keys = make_keys(SPACE, COUNT, salt=salt)
    assert client.expire(SPACE, root, keys, round(1000 * seconds)) == COUNT


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_a_jump_while_it_runs_changes_nothing(clock: Clock, start: Any, jump: int) -> None:
    with start() as client:
        for salt in ("short", "long", "never"):
            save(client, salt)
        client.sync(timeout=10)
        clock.jump(jump)
        # Times to live go on by the other clock.
        expire(client, "short", 0.3)
        expire(client, "long", HOUR)
        wait_until(lambda: load(client, "short") == 0, "what has expired is gone")
        assert load(client, "long") == load(client, "never") == COUNT
        save(client, "later")
        client.sync(timeout=10)
        assert client.stats()["chunks_on_disk"] == 3 * COUNT
    with start() as client:
        assert [load(client, salt) for salt in ("short", "never", "later")] == [0, COUNT, COUNT]


def test_a_start_in_the_future_takes_what_has_expired_for_expired_and_nothing_else(
    clock: Clock, start: Any
) -> None:
    with start() as client:
        for salt in ("long", "never"):
            save(client, salt)
        expire(client, "long", HOUR)
        client.sync(timeout=10)
    clock.jump(2 * HOUR)
    with start() as client:
        assert load(client, "long") == 0
        assert load(client, "never") == COUNT


def test_a_start_in_the_past_keeps_all_and_what_is_newer_stays_newer(
    clock: Clock, start: Any
) -> None:
    clock.jump(YEARS)
    with start() as client:
        for salt in ("long", "never", "dropped", "again"):
            save(client, salt)
        expire(client, "long", HOUR)
        client.sync(timeout=10)
    clock.jump(0)
    with start() as client:
        assert load(client, "long") == load(client, "never") == COUNT
        for salt in ("dropped", "again"):
            root, keys = make_keys(SPACE, COUNT, salt=salt)
            assert client.drop_keys(SPACE, root, keys[:32]) == COUNT
        save(client, "again")
        client.sync(timeout=10)
    for jump in (-YEARS, 0, YEARS):
        clock.jump(jump)
        with start() as client:
            found = [load(client, salt) for salt in ("never", "dropped", "again")]
            assert found == [COUNT, 0, COUNT], f"{jump} s"
