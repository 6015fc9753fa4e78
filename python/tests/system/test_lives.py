"""Times to live: of chunks and of spaces, absolute and sliding."""

from __future__ import annotations

import time

import pytest

import kvasir
from support import make_keys, make_space, read_back, store, wait_until
from system.daemon import Daemon

SPACE = make_space((8 << 10,), name="lives")
COUNT = 4


def save(client: kvasir.Client, salt: str) -> tuple[bytes, bytes]:
    root, keys = make_keys(SPACE, COUNT, salt=salt)
    assert store(client, SPACE, root, keys, salt.encode()) == COUNT
    return root, keys


def load(client: kvasir.Client, salt: str) -> int:
    root, keys = make_keys(SPACE, COUNT, salt=salt)
    return read_back(client, SPACE, root, keys, salt.encode())


def test_a_space_gives_its_chunks_a_life_and_a_new_daemon_is_told(idle_daemon: Daemon) -> None:
    idle_daemon.start()
    with kvasir.Client(idle_daemon.path) as client:
        save(client, "before")
        client.set_time_to_live(SPACE, 300)
        for attempt in range(2):
            save(client, f"limited {attempt}")
            assert load(client, f"limited {attempt}") == COUNT
            wait_until(lambda n=attempt: load(client, f"limited {n}") == 0, "the life ends")  # type: ignore[misc]
            if attempt == 0:
                assert load(client, "before") == COUNT
                idle_daemon.kill()
                idle_daemon.start()
        client.set_time_to_live(SPACE, 0)
        save(client, "after")
        time.sleep(0.4)
        assert load(client, "after") == COUNT


def test_a_daemon_that_is_away_is_told_when_it_is_there(idle_daemon: Daemon) -> None:
    with kvasir.Client(idle_daemon.path) as client:
        client.remember_time_to_live(SPACE, 300)
        idle_daemon.start()
        save(client, "limited")
        assert load(client, "limited") == COUNT
        wait_until(lambda: load(client, "limited") == 0, "the life ends")
        for ms, sliding in ((-1, False), (31_536_000_001, False), (1999, True)):
            with pytest.raises(ValueError, match="time to live"):
                client.set_time_to_live(SPACE, ms, sliding=sliding)
        client.set_time_to_live(SPACE, 31_536_000_000)
        client.set_time_to_live(SPACE, 2000, sliding=True)


def test_a_life_that_slides_goes_on_as_long_as_it_is_used(idle_daemon: Daemon) -> None:
    idle_daemon.start()
    with kvasir.Client(idle_daemon.path) as client:
        for salt in ("used", "left", "absolute"):
            root, keys = save(client, salt)
            sliding = salt != "absolute"
            assert client.expire(SPACE, root, keys, 2000, sliding=sliding) == COUNT
        for _ in range(5):
            time.sleep(0.9)
            assert load(client, "used") == COUNT
        assert load(client, "left") == load(client, "absolute") == 0
        time.sleep(2.1)
        assert load(client, "used") == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["SPACE", "1999", "SLIDING"], "KVARG"),
        (["SPACE", "31536000001"], "KVARG"),
        (["SPACE", "-1"], "KVARG"),
        (["SPACE", "soon"], "KVARG"),
        (["SPACE", "5000", "SLIDING", "HEX"], "ERR"),
        (["SPACE", "5000", "SLIDES"], "ERR"),
        (["ab" * 32, "cd" * 32, "5000", "HEX", "SLIDING"], "ERR"),
        (["ab" * 32, "cd" * 32, "5000", "SLIDING", "SLIDING", "HEX"], "ERR"),
    ],
)
def test_what_is_not_understood_is_refused(
    idle_daemon: Daemon, words: list[str], code: str
) -> None:
    idle_daemon.start()
    with kvasir.Client(idle_daemon.path) as client:
        handle = client.open(SPACE).handle
        with pytest.raises(kvasir.ServerError) as caught:
            client.execute("KV.EXPIRE", handle, *words)
        assert caught.value.code == code
        assert (
            client.execute("KV.EXPIRE", handle, "ab" * 32, "cd" * 32, 5000, "SLIDING", "HEX") == 0
        )
