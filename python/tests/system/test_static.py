"""Static chunks: pinned without end, also over restarts."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import kvasir
from kvasir import Hint
from support import make_keys, make_space, read_back, store, wait_until
from system.daemon import Daemon, run

SPACE = make_space((64 << 10,), name="prompts")
COUNT = 6
SALT = "system prompt"


@pytest.fixture
def disk(socket_directory: Path) -> Path:
    return socket_directory / "disk"


def save(client: kvasir.Client, salt: str) -> tuple[bytes, bytes]:
    root, keys = make_keys(SPACE, COUNT, salt=salt)
    store(client, SPACE, root, keys, salt.encode())
    return root, keys


def crowd(client: kvasir.Client, name: str) -> None:
    """More than memory and disk have room for."""
    for number in range(60):
        save(client, f"{name} {number}")
        client.execute("KV.SYNC", 10_000)


def listed(disk: Path) -> int:
    """How many chunks the list on disk has; -1 without one."""
    try:
        return int(struct.unpack_from("<I", (disk / "kvasir-static").read_bytes(), 48)[0])
    except FileNotFoundError:
        return -1


def is_reached(client: kvasir.Client) -> bool:
    """After a restart the first attempt may come too soon."""
    try:
        client.ping()
    except kvasir.KvasirError:
        return False
    return True


def is_in_memory(client: kvasir.Client, root: bytes, keys: bytes) -> bool:
    try:
        return set(client.locate(SPACE, root, keys)) <= {1, 3}
    except kvasir.KvasirError:
        return False


@pytest.mark.parametrize("way", ["pin", "match", "reserve"])
def test_a_static_prompt_is_in_memory_after_a_crash(
    idle_daemon: Daemon, disk: Path, way: str
) -> None:
    idle_daemon.start(memory="4MiB", disk=disk, disk_size="16MiB")
    forever = Hint(pin_seconds="forever")
    with kvasir.Client(idle_daemon.path) as client:
        root, keys = make_keys(SPACE, COUNT, salt=SALT)
        if way == "reserve":
            with client.reserve(SPACE, root, keys, hint=forever) as lease:
                for position in lease.granted:
                    lease.view(position, 0)[:1] = b"p"
                lease.commit(0)
        else:
            save(client, SALT)
            if way == "pin":
                assert client.pin(SPACE, root, keys, "forever") == COUNT
            else:
                assert client.match(SPACE, root, keys, hint=forever).count == COUNT
        assert client.stats()["chunks_static"] == COUNT
        client.execute("KV.SYNC", 10_000)
        wait_until(lambda: listed(disk) == COUNT, "the list is kept", 10)
        for attempt in range(2):
            crowd(client, f"attempt {attempt}")
            idle_daemon.kill()
            idle_daemon.start(memory="4MiB", disk=disk, disk_size="16MiB")
            wait_until(lambda: is_in_memory(client, root, keys), "static chunks come to memory", 10)
            assert client.stats()["chunks_static"] == COUNT
            assert client.stats()["pinned_bytes"] == COUNT * (64 << 10)
        if way != "reserve":
            assert read_back(client, SPACE, root, keys, SALT.encode()) == COUNT
        assert client.unpin(SPACE, root, keys) == COUNT
        assert idle_daemon.terminate() == 0
        assert listed(disk) == 0
        idle_daemon.start(memory="4MiB", disk=disk, disk_size="16MiB")
        wait_until(lambda: is_reached(client), "the daemon is reached", 10)
        assert client.stats()["chunks_static"] == client.stats()["pinned_bytes"] == 0


def test_the_command_line_pins_and_unpins(idle_daemon: Daemon, disk: Path) -> None:
    idle_daemon.start(memory="4MiB", disk=disk)
    with kvasir.Client(idle_daemon.path) as client:
        root, keys = save(client, SALT)
        save(client, "another")
        last = keys[-32:].hex()[:12]
        result = idle_daemon.call("chunks", "pin", "--key", last, "--forever")
        assert result.returncode == 0, result
        # With all that it follows.
        assert client.stats()["chunks_static"] == COUNT
        shown = idle_daemon.call("chunks", "list", "--root", root.hex())
        assert shown.stdout.count("static") == COUNT, shown
        wait_until(lambda: listed(disk) == COUNT, "the list is kept", 10)
        inspected = run([idle_daemon.binary, "disk", "inspect", str(disk)])
        assert f"{COUNT} static chunks" in inspected.stdout, inspected
        result = idle_daemon.call("chunks", "unpin", "--root", root.hex()[:10])
        assert f"unpinned {COUNT} chunks" in result.stdout, result
        assert client.stats()["chunks_static"] == 0
        result = idle_daemon.call("chunks", "pin", "--root", root.hex()[:10], "--for", "1h")
        assert f"pinned {COUNT} chunks" in result.stdout, result
        assert client.stats()["chunks_static"] == 0
        for words in (
            ["--forever"],
            ["--root", "ab"],
            ["--root", "ab", "--forever", "--for", "1h"],
            ["--root", "ab", "--for", "400d"],
            ["--tier", "writing", "--forever"],
        ):
            assert idle_daemon.call("chunks", "pin", *words).returncode == 64, words


def test_without_a_disk_static_ends_with_the_server(idle_daemon: Daemon) -> None:
    idle_daemon.start("--memory-only", memory="4MiB")
    with kvasir.Client(idle_daemon.path) as client:
        root, keys = save(client, SALT)
        assert client.pin(SPACE, root, keys, "forever") == COUNT
        for number in range(30):
            save(client, f"other {number}")
        assert client.match(SPACE, root, keys).count == COUNT
        idle_daemon.kill()
        idle_daemon.start("--memory-only", memory="4MiB")
        wait_until(lambda: is_reached(client), "the daemon is reached", 10)
        assert client.match(SPACE, root, keys).count == 0
        assert client.stats()["chunks_static"] == 0


@pytest.mark.parametrize("words", [["FOREVER"], ["forever"], ["1"], ["31536000000"]])
def test_what_a_pin_takes(idle_daemon: Daemon, words: list[str]) -> None:
    idle_daemon.start()
    root, keys = make_keys(SPACE, 2)
    with kvasir.Client(idle_daemon.path) as client:
        handle = client.open(SPACE).handle
        assert client.execute("KV.PIN", handle, root, keys, *words) == 0
        assert client.execute("KV.MATCH", handle, root, keys, "PIN", *words)[0] == 0


@pytest.mark.parametrize("word", ["0", "31536000001", "-1", "EVER", "FOREVERS", ""])
def test_what_a_pin_refuses(idle_daemon: Daemon, word: str) -> None:
    idle_daemon.start()
    root, keys = make_keys(SPACE, 2)
    with kvasir.Client(idle_daemon.path) as client:
        handle = client.open(SPACE).handle
        for command in (["KV.PIN"], ["KV.MATCH"], ["KV.RESERVE"]):
            option = [] if command == ["KV.PIN"] else ["PIN"]
            with pytest.raises(kvasir.ServerError) as caught:
                client.execute(*command, handle, root, keys, *option, word)
            assert caught.value.code == "KVARG"
