"""Disks that can't be used, are damaged, full, or taken away: nothing read is wrong."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

import kvasir
from support import make_keys, make_space, read_back, store, wait_until
from system.daemon import Daemon, RawConnection, clean_environment, run

SPACE = make_space((64 << 10, 20_000), name="faults")
COUNT = 24
MIB = 1 << 20
BLOCK = 4096


@pytest.fixture
def disk(socket_directory: Path) -> Path:
    return socket_directory / "disk"


def save(client: kvasir.Client, salt: str, count: int = COUNT) -> int:
    root, keys = make_keys(SPACE, count, salt=salt)
    return store(client, SPACE, root, keys, salt.encode())


def load(client: kvasir.Client, salt: str, count: int = COUNT) -> int:
    """How many leading chunks can be read; each has the right bytes."""
    root, keys = make_keys(SPACE, count, salt=salt)
    return read_back(client, SPACE, root, keys, salt.encode())


def works(daemon: Daemon) -> None:
    """The daemon saves and loads, whatever happens to its disk."""
    salt = f"works-{time.monotonic_ns()}"
    with kvasir.Client(daemon.path) as client:
        assert save(client, salt, 4) == 4
        assert load(client, salt, 4) == 4


def sync_fails(client: kvasir.Client) -> str:
    """What KV.SYNC says, in time, of a disk that fails; empty if it succeeds."""
    began = time.monotonic()
    try:
        client.sync(timeout=20)
    except kvasir.DiskFailed as error:
        return str(error)
    finally:
        assert time.monotonic() - began < 10, "it does not wait for the device to get better"
    return ""


def fill(daemon: Daemon, disk: Path, *salts: str) -> None:
    """Leaves a directory behind with these prompts in it, in segments of 4 MiB."""
    daemon.start(disk=disk, disk_size="32MiB")
    with kvasir.Client(daemon.path) as client:
        for salt in salts:
            assert save(client, salt) == COUNT
            client.sync(timeout=10)
    daemon.kill()


def refused(daemon: Daemon, disk: Path, *flags: str, size: str = "64MiB") -> str:
    """What a start says that must fail, soon and orderly."""
    command = [daemon.binary, "serve", "--socket", daemon.path, "--memory", "2MiB"]
    command += ["--disk", str(disk), "--disk-size", size, *flags]
    result = run(command, seconds=20)
    assert result.returncode > 0, f"it started or crashed: {result}"
    assert "Fatal error" not in result.stderr
    assert not os.path.exists(daemon.path), "nothing was served"
    return result.stderr.strip()


def segments(disk: Path) -> list[Path]:
    return sorted(disk.glob("segment-*.kvseg"))


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    """Changes one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def make_newer(path: Path) -> None:
    """Has a header of 4,096 bytes say version 2, with the checksum that belongs to it."""
    header = bytearray(path.read_bytes()[:BLOCK])
    header[8:12] = struct.pack("<I", 2)
    header[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(header[:-8])))
    patch(path, 0, bytes(header))


# Directories that can't be used


def test_a_second_server_on_the_same_directory_is_refused(
    idle_daemon: Daemon, disk: Path, socket_directory: Path
) -> None:
    idle_daemon.start(disk=disk, disk_size="32MiB")
    second = socket_directory / "second"
    second.mkdir()
    message = refused(Daemon(second, idle_daemon.binary), disk)
    assert str(disk) in message
    assert "another process uses it" in message
    works(idle_daemon)


def test_a_second_server_on_the_default_directory_goes_on_without_a_disk(
    idle_daemon: Daemon, socket_directory: Path
) -> None:
    """The default directory is one of this test's: XDG_CACHE_HOME says where."""
    variables = {"XDG_CACHE_HOME": str(socket_directory), "KVASIR_MEMORY_ONLY": "0"}
    first, second = (socket_directory / name for name in ("first.sock", "second.sock"))
    command = [idle_daemon.binary, "serve", "--memory", "2MiB", "--socket"]
    logs = [socket_directory / "first.log", socket_directory / "second.log"]
    processes = []
    try:
        for path, log in zip((first, second), logs, strict=True):
            with log.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        [*command, str(path)], stderr=file, env=clean_environment(variables)
                    )
                )
            wait_until(lambda path=path: answers(path), f"{path} answers")
        assert disks(first) == 1
        assert disks(second) == 0
        assert (socket_directory / "kvasir" / "disk" / "kvasir-disk").exists()
        text = logs[1].read_text()
        assert "no disk tier: can't use the disk directory" in text
        assert "another process uses it" in text
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def answers(path: Path) -> bool:
    try:
        with RawConnection(str(path)) as connection:
            return bool(connection.ask("PING") == "PONG")
    except OSError:
        return False


def disks(path: Path) -> int:
    with kvasir.Client(path) as client:
        return int(client.stats()["disks"])


def test_a_file_in_the_place_of_the_directory_is_refused(idle_daemon: Daemon, disk: Path) -> None:
    disk.write_text("precious")
    message = refused(idle_daemon, disk)
    assert str(disk) in message
    assert "irectory" in message
    assert disk.read_text() == "precious"


def test_a_directory_that_can_not_be_made_is_refused(idle_daemon: Daemon, disk: Path) -> None:
    disk.write_text("precious")
    message = refused(idle_daemon, disk / "below")
    assert "can't make the disk directory" in message
    assert "--memory-only" in message, "it says what to do"
    assert "can't make the disk directory" in refused(idle_daemon, Path("/proc/kvasir"))


def test_a_disk_of_a_newer_version_is_refused_and_left_alone(
    idle_daemon: Daemon, disk: Path
) -> None:
    fill(idle_daemon, disk, "a")
    os.unlink(idle_daemon.path)
    make_newer(disk / "kvasir-disk")
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    message = refused(idle_daemon, disk)
    assert "kvasir-disk" in message
    assert "version 2" in message
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == before


def test_a_foreign_file_named_kvasir_disk_is_refused_and_left_alone(
    idle_daemon: Daemon, disk: Path
) -> None:
    disk.mkdir()
    for content in (b"precious", b"precious" * 512, b"precious" * 2000):
        (disk / "kvasir-disk").write_bytes(content)
        assert "kvasir-disk" in refused(idle_daemon, disk)
        assert [path.read_bytes() for path in disk.iterdir()] == [content]


def test_a_damaged_kvasir_disk_beside_segments_is_refused_with_what_to_do(
    idle_daemon: Daemon, disk: Path
) -> None:
    fill(idle_daemon, disk, "a")
    os.unlink(idle_daemon.path)
    flip(disk / "kvasir-disk", 20)
    assert "put the file back, or move the segments away" in refused(idle_daemon, disk)
    (disk / "kvasir-disk").unlink()
    assert "put the file back, or move the segments away" in refused(idle_daemon, disk)


def test_an_arena_above_the_limit_on_file_lengths_is_refused(
    idle_daemon: Daemon, disk: Path
) -> None:
    command = ["bash", "-c", 'ulimit -f 1024; exec "$0" "$@"', idle_daemon.binary, "serve"]
    result = run([*command, "--socket", idle_daemon.path, "--memory", "2MiB", "--memory-only"])
    assert result.returncode == 1, f"it started or was killed: {result}"
    assert "File too large" in result.stderr


def test_options_that_can_not_be_are_refused(idle_daemon: Daemon, disk: Path) -> None:
    assert "give at least" in refused(idle_daemon, disk, size="15MiB")
    assert "exclude each other" in refused(idle_daemon, disk, "--memory-only")
    assert "second-use" in refused(idle_daemon, disk, "--disk-admission", "none")


def test_without_a_disk_nothing_can_be_made_durable(daemon: Daemon) -> None:
    with kvasir.Client(daemon.path) as client, pytest.raises(kvasir.NoTier):
        client.sync()


# Damage


def zero(path: Path) -> None:
    path.write_bytes(b"")


def trailer(path: Path) -> int:
    return path.stat().st_size - BLOCK


#: What happens to the first segment, and what the log says of it, if anything.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "header": (lambda path: flip(path, 30), "segment-0000000001.kvseg"),
    "newer version": (make_newer, "version 2"),
    "first group": (lambda path: flip(path, BLOCK + 20), ""),
    "first entry": (lambda path: flip(path, BLOCK + 64 + 300), ""),
    "a body": (lambda path: flip(path, 100 * BLOCK), ""),
    "trailer": (lambda path: flip(path, trailer(path) + 20), ""),
    "footer": (lambda path: flip(path, trailer(path) - BLOCK + 300), ""),
    "all zeros": (lambda path: patch(path, 0, bytes(path.stat().st_size)), ""),
    "noise": (
        lambda path: patch(path, 0, random.Random(1).randbytes(path.stat().st_size)),
        "segment-0000000001.kvseg",
    ),
    "cut to nothing": (zero, ""),
    "cut inside the header": (lambda path: os.truncate(path, 1000), "segment-0000000001.kvseg"),
    "cut in half": (lambda path: os.truncate(path, 2 * MIB), "segment-0000000001.kvseg"),
    "cut unevenly": (lambda path: os.truncate(path, 3 * MIB + 77), "segment-0000000001.kvseg"),
    "removed": (lambda path: path.unlink(), ""),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_segment_costs_what_is_in_it_and_no_byte_is_wrong(
    idle_daemon: Daemon, disk: Path, kind: str
) -> None:
    salts = ["a", "b", "c", "d", "e"]
    fill(idle_daemon, disk, *salts)
    damage, said = DAMAGES[kind]
    assert len(segments(disk)) > 2
    damage(segments(disk)[0])
    assert_serves_the_rest(idle_daemon, disk, salts, said)
    # And a start after that, with what was written since.
    assert_serves_the_rest(idle_daemon, disk, [*salts, "new"], "")


def assert_serves_the_rest(daemon: Daemon, disk: Path, salts: list[str], said: str) -> None:
    told = len(daemon.text())
    daemon.start(disk=disk, disk_size="32MiB")
    with kvasir.Client(daemon.path) as client:
        found = {salt: load(client, salt) for salt in salts}
        if "new" in found:
            assert found["new"] == COUNT, "what was saved after the damage is there"
        assert found["e"] == COUNT, "what is in other segments is there"
        assert save(client, "new") in (0, COUNT)
        client.sync(timeout=20)
        # What was lost can be stored anew.
        for salt in salts:
            save(client, salt)
            assert load(client, salt) == COUNT
    text = daemon.text()[told:]
    assert said in text
    assert "Fatal error" not in text
    daemon.kill()


def test_a_foreign_file_named_like_a_segment_is_left_alone(idle_daemon: Daemon, disk: Path) -> None:
    fill(idle_daemon, disk, "a")
    foreign = disk / "segment-0000000009.kvseg"
    foreign.write_bytes(b"precious" * 8192)
    other = disk / "segment-9.kvseg"
    other.write_bytes(b"precious")
    idle_daemon.start(disk=disk, disk_size="32MiB")
    with kvasir.Client(idle_daemon.path) as client:
        assert load(client, "a") == COUNT
        for number in range(40):
            save(client, f"more-{number}")
        client.sync(timeout=20)
    assert foreign.name in idle_daemon.text()
    assert foreign.read_bytes() == b"precious" * 8192
    assert other.read_bytes() == b"precious"


def test_damage_anywhere_makes_no_byte_wrong(
    idle_daemon: Daemon, disk: Path, rng: random.Random
) -> None:
    salts = [f"s{number}" for number in range(8)]
    fill(idle_daemon, disk, *salts)
    for _ in range(10):
        for path in segments(disk):
            for _ in range(rng.randrange(3)):
                flip(path, rng.randrange(path.stat().st_size))
        idle_daemon.start(disk=disk, disk_size="32MiB")
        with kvasir.Client(idle_daemon.path) as client:
            for salt in salts:
                load(client, salt)
                save(client, salt)
                load(client, salt)
            # With so many starts in a row there may be no room at first, which it says.
            sync_fails(client)
        idle_daemon.kill()


def test_bytes_that_change_under_the_running_server_are_a_miss(
    idle_daemon: Daemon, disk: Path
) -> None:
    """Memory holds little, so chunks come from disk."""
    salts = [f"s{number}" for number in range(8)]
    idle_daemon.start(disk=disk, disk_size="32MiB", memory="4MiB")
    with kvasir.Client(idle_daemon.path) as client:
        for salt in salts:
            save(client, salt)
            client.sync(timeout=20)
        for path in segments(disk):
            with path.open("r+b") as file:
                for offset in range(MIB, 3 * MIB, 32 << 10):
                    file.seek(offset)
                    file.write(b"\xa5" * 64)
                os.fsync(file.fileno())
        found = [load(client, salt) for salt in salts]
        assert min(found) < COUNT
        assert client.stats()["chunks_unreadable"] > 0
    works(idle_daemon)


# Room


def test_a_limit_on_file_lengths_leaves_a_server_with_memory(
    idle_daemon: Daemon, disk: Path
) -> None:
    """As `ulimit -f` sets it: no segment of 4 MiB can be made. It holds for the arena, too."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB))

    idle_daemon.start(memory="3MiB", disk=disk, disk_size="32MiB", preexec_fn=limit)
    assert_memory_goes_on(idle_daemon)
    assert "File too large" in idle_daemon.text()
    assert "tries again" in idle_daemon.text()
    assert segments(disk) == [], "nothing half made is left"


def assert_memory_goes_on(daemon: Daemon) -> None:
    """The disk takes nothing: KV.SYNC says so in time, and all else works."""
    works(daemon)
    with kvasir.Client(daemon.path) as client:
        for _ in range(3):
            message = sync_fails(client)
            assert str(daemon.directory) in message, "it says what failed"
        assert client.stats()["disks_suspended"] == 1
        for number in range(20):
            save(client, f"more-{number}")
            assert load(client, f"more-{number}") == COUNT
    works(daemon)


@pytest.fixture
def full_device(socket_directory: Path) -> Iterator[Path]:
    """A device of 12 MiB: room for two segments of 4 MiB, where --disk-size asks for 8."""
    place = socket_directory / "device"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place)]
    mounted = shutil.which("mount") and run(command).returncode == 0
    if not mounted:
        if os.geteuid() == 0 and os.environ.get("CI") == "true":
            pytest.fail("root can't mount a tmpfs here, and nothing may be skipped under CI")
        pytest.skip("this user can't mount a tmpfs, which is the full device of this test")
    yield place
    assert run(["umount", "--lazy", str(place)]).returncode == 0


def test_a_device_that_gets_full_is_made_do_with(idle_daemon: Daemon, full_device: Path) -> None:
    disk = full_device / "disk"
    idle_daemon.start(disk=disk, disk_size="32MiB", memory="4MiB")
    with kvasir.Client(idle_daemon.path) as client:
        for number in range(30):
            assert save(client, f"s{number}") == COUNT
            assert load(client, f"s{number}") == COUNT
            message = sync_fails(client)
            assert number > 1 or not message, "there was room"
        stats = client.stats()
    assert "No space left" in idle_daemon.text()
    assert "makes do with what it has" in idle_daemon.text()
    assert stats["chunks_written"] > 4 * COUNT, "it goes on with the files that it has"
    assert stats["chunks_unreadable"] == 0
    works(idle_daemon)


def test_a_device_without_any_room_leaves_memory(idle_daemon: Daemon, full_device: Path) -> None:
    (full_device / "ballast").write_bytes(bytes(11 * MIB))
    idle_daemon.start(disk=full_device / "disk", disk_size="32MiB")
    assert_memory_goes_on(idle_daemon)
    assert "No space left" in idle_daemon.text()


def test_a_directory_removed_under_the_server_costs_no_more_than_the_disk(
    idle_daemon: Daemon, disk: Path
) -> None:
    idle_daemon.start(disk=disk, disk_size="32MiB")
    with kvasir.Client(idle_daemon.path) as client:
        assert save(client, "a") == COUNT
        client.sync(timeout=20)
        shutil.rmtree(disk)
        assert load(client, "a") == COUNT
        for number in range(5):
            assert save(client, f"more-{number}") == COUNT
            assert load(client, f"more-{number}") == COUNT
            # Files that are open go on; no new one can be made, and few leave little room.
            message = sync_fails(client)
            assert not message or "No such file" in message or "segments are full" in message
    works(idle_daemon)
    assert idle_daemon.terminate() == 0
    idle_daemon.start(disk=disk, disk_size="32MiB")
    works(idle_daemon)


def test_a_socket_and_a_link_in_the_directory_are_nobody_s_business(
    idle_daemon: Daemon, disk: Path, socket_directory: Path
) -> None:
    fill(idle_daemon, disk, "a")
    precious = socket_directory / "precious"
    precious.write_bytes(b"precious" * 8192)
    (disk / "segment-0000000007.kvseg").symlink_to(precious)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(disk / "socket"))
    idle_daemon.start(disk=disk, disk_size="32MiB")
    with kvasir.Client(idle_daemon.path) as client:
        assert load(client, "a") == COUNT
        for number in range(40):
            save(client, f"more-{number}")
            # No file of that name can be made: a second later it tries the next one.
            message = sync_fails(client)
            assert not message or "segment-0000000007.kvseg" in message
        wait_until(lambda: not sync_fails(client), "the next file was made")
    assert precious.read_bytes() == b"precious" * 8192
    assert idle_daemon.end(signal.SIGTERM) == 0
