"""The request log: what it has, that it can be replayed, and what it never has."""

from __future__ import annotations

import json
import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kvasir
from kvasir import Hint
from support import make_keys, make_space, store, wait_until
from system.daemon import Daemon, RawConnection, run

SPACE = make_space((4 << 10,), name="requests")
LARGE = make_space((4 << 10,), name="requests", chunk_tokens=64)
MIB = 1 << 20


@pytest.fixture
def log(socket_directory: Path) -> Path:
    return socket_directory / "requests"


def keys(count: int, salt: str = "", space: kvasir.Space = SPACE) -> tuple[bytes, bytes]:
    return make_keys(space, count, salt=salt)


def files(log: Path) -> list[Path]:
    return sorted(log.iterdir())


def lines(file: Path) -> list[dict[str, Any]]:
    """The requests of a file, whose header is checked."""
    text = file.read_text(encoding="ascii")
    assert text.endswith("\n")
    header, *requests = [json.loads(line) for line in text.splitlines()]
    assert len(header.pop("log")) == 16
    assert header == {
        "kvasir_trace": 1,
        "chunk_tokens": int(file.stem.split("Z-")[1].split("-")[0]),
    }
    return requests


def simulate(daemon: Daemon, file: Path, *capacities: int) -> dict[str, Any]:
    sizes = ",".join(map(str, capacities))
    command = ["simulate", str(file), "--format", "kvasir", "--policy", "lru"]
    result = run([daemon.binary, *command, "--capacity-chunks", sizes, "--json", "-"], seconds=30)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def logged(daemon: Daemon, written: int, dropped: int = 0) -> None:
    """Awaits so many requests in the log."""

    def is_so() -> bool:
        with kvasir.Client(daemon.path) as client:
            stats = client.stats()
        return (stats["request_log_written"], stats["request_log_dropped"]) == (written, dropped)

    wait_until(is_so, f"{written} requests are written and {dropped} left out")


# What it has


def test_matches_are_logged_and_replayed(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    began = time.monotonic()
    with kvasir.Client(idle_daemon.path) as client:
        for salt, count, hint in [
            ("a", 3, Hint("pending", 2.5, 4)),
            ("b", 2, Hint("closed")),
            ("a", 4, Hint()),
            ("b", 2, Hint("pending")),
        ]:
            client.match(SPACE, *keys(count, salt), hint=hint)
    took_ms = (time.monotonic() - began) * 1000
    assert idle_daemon.terminate() == 0
    (file,) = files(log)
    requests = lines(file)
    assert [request["tokens"] for request in requests] == [48, 32, 64, 32]
    said = [(request.get("hint"), request.get("expected_ms")) for request in requests]
    assert said == [("pending", 2500), ("closed", None), (None, None), ("pending", None)]
    times = [request["ms"] for request in requests]
    assert times == sorted(times)
    assert times[-1] - times[0] <= took_ms
    a, b, longer, again = (request["chunks"] for request in requests)
    assert longer[:3] == a
    assert again == b
    assert not set(a) & set(b)
    assert all(len(name) == 16 for request in requests for name in request["chunks"])
    # Of 11 chunks asked for, 5 were asked for before: 3 of the first prompt, 2 of the second. With
    # room for 2 the first prompt's last two chunks go for the second's, and its first one stays
    # away, too.
    report = simulate(idle_daemon, file, 6, 100, 2)
    assert report["trace"]["requests"] == 4
    assert report["trace"]["distinct_full_chunks"] == 6
    by_size = {each["capacity_chunks"]: each["chunk_hit"] for each in report["results"]}
    assert by_size[6] == pytest.approx(5 / 11)
    assert by_size[100] == pytest.approx(5 / 11)
    assert by_size[2] == 0


def test_what_is_stored_makes_no_difference(idle_daemon: Daemon, log: Path) -> None:
    """It is the requests that are logged, not what was found."""
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        root, packed = keys(4)
        client.match(SPACE, root, packed)
        assert store(client, SPACE, root, packed) == 4
        assert client.match(SPACE, root, packed).count == 4
        # What begins in the middle of a prompt, as it is seen here, is none of its own.
        assert client.match(SPACE, root, packed[64:]).count == 2
        assert client.prefetch(SPACE, root, packed) == 4
    assert idle_daemon.terminate() == 0
    requests = lines(files(log)[0])
    assert [len(request["chunks"]) for request in requests] == [4, 4]
    assert requests[0]["chunks"] == requests[1]["chunks"]


def test_requests_that_are_told_count_instead_of_matches(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    root, packed = keys(5)
    with (
        kvasir.Client(idle_daemon.path, session="engine") as client,
        kvasir.Client(idle_daemon.path, session="engine") as second,
        kvasir.Client(idle_daemon.path) as other,
    ):
        assert client.log_requests()
        # It has two chunks of its own, and asks for the rest, twice.
        second.match(SPACE, root, packed[64:])
        second.match(SPACE, root, packed[64:])
        assert client.log_request(SPACE, root, packed, 85, hint=Hint("pending", 1, 7, 60))
        assert client.log_request(SPACE, root, b"", 9)
        other.match(SPACE, root, packed[:32])
    assert idle_daemon.terminate() == 0
    requests = lines(files(log)[0])
    assert [(request["tokens"], len(request["chunks"])) for request in requests] == [
        (85, 5),
        (9, 0),
        (16, 1),
    ]
    assert requests[0]["hint"] == "pending"
    assert requests[0]["expected_ms"] == 1000
    report = simulate(idle_daemon, files(log)[0], 10)
    # Six chunks of the first (the last one is not full), one of the second, one of the third,
    # which was there before.
    assert report["results"][0]["chunk_hit"] == pytest.approx(1 / 8)
    assert report["results"][0]["token_hit"] == pytest.approx(16 / 110)


def test_each_chunk_size_has_a_file_for_its_owner_only(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start(environment={"KVASIR_REQUEST_LOG": str(log / "below")})
    with kvasir.Client(idle_daemon.path) as client:
        client.match(SPACE, *keys(3))
        client.match(LARGE, *keys(2, space=LARGE))
    assert idle_daemon.terminate() == 0
    found = files(log / "below")
    assert [file.name.split("Z-")[1] for file in found] == ["16.jsonl", "64.jsonl"]
    assert [[request["tokens"] for request in lines(file)] for file in found] == [[48], [128]]
    for path, mode in [(log, 0o700), (log / "below", 0o700), *((file, 0o600) for file in found)]:
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_without_the_option_nothing_is_logged(daemon: Daemon, socket_directory: Path) -> None:
    with kvasir.Client(daemon.path) as client:
        client.match(SPACE, *keys(3))
        assert not client.log_requests()
        assert not client.log_request(SPACE, *keys(3), 50)
        stats = client.stats()
    assert stats["request_log_written"] == stats["request_log_dropped"] == 0
    assert "request" not in daemon.call("stats").stdout.lower()
    assert not list(socket_directory.rglob("requests-*"))


def test_stats_show_it(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        client.match(SPACE, *keys(3))
        logged(idle_daemon, 1)
        assert client.stats()["request_log_bytes"] == files(log)[0].stat().st_size
    assert "request log written" in idle_daemon.call("stats").stdout


def test_it_is_in_the_file_within_a_second_and_survives_a_crash(
    idle_daemon: Daemon, log: Path
) -> None:
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        for number in range(50):
            client.match(SPACE, *keys(2, str(number)))
        logged(idle_daemon, 50)
    idle_daemon.kill()
    assert len(lines(files(log)[0])) == 50


def test_the_tail_is_there_after_a_stop(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        root, packed = keys(1000)
        for _ in range(100):
            client.match(SPACE, root, packed)
        # Not a moment later.
        assert idle_daemon.terminate() == 0
    assert len(lines(files(log)[0])) == 100


# What it never has


def test_no_key_and_no_name_is_in_it_and_starts_can_not_be_joined(
    idle_daemon: Daemon, log: Path
) -> None:
    root, packed = keys(20, "tenant")
    for _ in range(2):
        idle_daemon.start("--request-log", str(log))
        with kvasir.Client(idle_daemon.path, session="a-session") as client:
            client.match(SPACE, root, packed)
            client.log_request(SPACE, root, packed, 330)
        assert idle_daemon.terminate() == 0
    first, second = files(log)
    names = [set(lines(file)[0]["chunks"]) for file in (first, second)]
    assert len(names[0]) == len(names[1]) == 20
    assert not names[0] & names[1]
    secrets = [packed[place : place + 32] for place in range(0, len(packed), 32)]
    secrets += [root, SPACE.id]
    for file in (first, second):
        data = file.read_bytes().lower()
        for secret in secrets:
            for start in range(0, 32, 8):
                part = secret[start : start + 8]
                assert part not in data
                assert part.hex().encode() not in data
                assert part[::-1].hex().encode() not in data
        for word in (b"requests", b"tenant", b"a-session"):
            assert word not in data


def test_whatever_keys_clients_choose_it_can_be_replayed(idle_daemon: Daemon, log: Path) -> None:
    """Also where one of them names the middle of a prompt, and another the whole."""
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        root, packed = keys(4)
        client.match(SPACE, root, packed[32:])
        client.match(SPACE, root, packed)
        client.match(SPACE, root, packed[32:64] * 3)
        client.match(SPACE, os.urandom(32), packed)
    assert idle_daemon.terminate() == 0
    assert simulate(idle_daemon, files(log)[0], 100)["trace"]["requests"] == 4


# What goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/proc/requests"], "can't be kept in /proc/requests"),
        (["{log}/file"], "Not a directory"),
        ([""], "takes the path of a directory"),
        (["{log}", "--request-log-limit", "0"], "at least 1 byte"),
    ],
)
def test_what_can_not_be_had_is_said_at_the_start(
    idle_daemon: Daemon, log: Path, words: list[str], message: str
) -> None:
    log.mkdir()
    (log / "file").touch()
    command = [idle_daemon.binary, "serve", "--socket", idle_daemon.path, "--memory", "2MiB"]
    options = [word.replace("{log}", str(log)) for word in words]
    result = run([*command, "--memory-only", "--request-log", *options], seconds=20)
    assert result.returncode > 0
    assert message in result.stderr
    assert "Fatal error" not in result.stderr
    assert not os.path.exists(idle_daemon.path)


def test_a_limit_without_a_log_is_a_mistake(idle_daemon: Daemon) -> None:
    command = [idle_daemon.binary, "serve", "--socket", idle_daemon.path, "--memory-only"]
    result = run([*command, "--request-log-limit", "1GiB"], seconds=20)
    assert result.returncode > 0
    assert "--request-log" in result.stderr


@pytest.mark.parametrize("limit", [50, 600, 601, 700, 800])
def test_at_the_limit_it_stops_and_says_so_once(idle_daemon: Daemon, log: Path, limit: int) -> None:
    """Not a byte more than that, and no line less than fits. Lines have some 100 bytes."""
    idle_daemon.start("--request-log", str(log), "--request-log-limit", str(limit))
    with (
        kvasir.Client(idle_daemon.path) as client,
        kvasir.Client(idle_daemon.path) as other,
    ):
        assert other.log_requests()
        for _ in range(20):
            client.match(SPACE, *keys(3))
        wait_until(lambda: client.stats()["request_log_dropped"] > 0, "requests are left out")
        assert not other.log_requests(), "nobody needs to tell of requests any more"
        stats = client.stats()
        client.match(SPACE, *keys(3))
        assert client.stats()["request_log_dropped"] == stats["request_log_dropped"] + 1
    assert stats["request_log_written"] + stats["request_log_dropped"] == 20
    assert idle_daemon.terminate() == 0
    assert idle_daemon.text().count("reached its limit") == 1
    size = sum(file.stat().st_size for file in files(log))
    assert size == stats["request_log_bytes"] <= limit
    if limit == 50:
        assert not files(log)
        return
    (file,) = files(log)
    assert len(lines(file)) == stats["request_log_written"]
    assert limit - size < len(file.read_bytes().splitlines(keepends=True)[-1]) + 2


@contextmanager
def longest_file(daemon: Daemon, size: int) -> Iterator[None]:
    """Files of the daemon take no more than this, as on a full disk."""
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, hard))
    yield
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_requests_and_nothing_else(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        root, packed = keys(100)
        client.match(SPACE, root, packed)
        logged(idle_daemon, 1)
        (file,) = files(log)
        size = file.stat().st_size
        with longest_file(idle_daemon, size + 1000):
            for left_out in range(1, 4):
                client.match(SPACE, root, packed)
                logged(idle_daemon, 1, left_out)
                # What could not be written whole was taken back.
                assert file.stat().st_size == size
        client.match(SPACE, root, packed)
        logged(idle_daemon, 2, 3)
        assert client.stats()["request_log_bytes"] == file.stat().st_size
    assert idle_daemon.terminate() == 0
    assert idle_daemon.text().count("can't write") == 1
    assert "written again" in idle_daemon.text()
    assert len(lines(file)) == 2
    assert simulate(idle_daemon, file, 100)["trace"]["requests"] == 2


def test_a_directory_that_goes_away_costs_requests_and_nothing_else(
    idle_daemon: Daemon, log: Path
) -> None:
    idle_daemon.start("--request-log", str(log))
    log.rmdir()
    with kvasir.Client(idle_daemon.path) as client:
        for _ in range(3):
            client.match(SPACE, *keys(3))
        logged(idle_daemon, 0, 3)
        assert client.ping() < 5
    assert idle_daemon.terminate() == 0
    assert idle_daemon.text().count("No such file or directory") == 1


def test_a_line_that_a_crash_has_cut_off_is_left_out(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    with kvasir.Client(idle_daemon.path) as client:
        for _ in range(3):
            client.match(SPACE, *keys(3))
        logged(idle_daemon, 3)
    idle_daemon.kill()
    (file,) = files(log)
    os.truncate(file, file.stat().st_size - 20)
    assert simulate(idle_daemon, file, 100)["trace"]["requests"] == 2


# On the wire


def test_what_the_command_takes(idle_daemon: Daemon, log: Path) -> None:
    idle_daemon.start("--request-log", str(log))
    root, packed = keys(3)
    with kvasir.Client(idle_daemon.path) as client, RawConnection(idle_daemon.path) as raw:
        handle = client.open(SPACE).handle
        assert raw.ask("KV.OPEN", SPACE.to_json())
        for words, code in [
            ((handle,), "ERR"),
            ((handle, root), "ERR"),
            ((handle, root, b""), "KVARG"),
            ((handle, root, b"x"), "KVARG"),
            ((handle, root, packed, "TOKENS"), "ERR"),
            ((handle, root, packed, "TOKENS", 0), "KVARG"),
            ((handle, root, packed, "TOKENS", 32), "KVARG"),
            ((handle, root, packed, "TOKENS", 64), "KVARG"),
            ((handle, root, b"", "TOKENS", 16), "KVARG"),
            ((handle, root, packed, "HINT", "maybe"), "KVARG"),
            ((handle, root, packed, "HOLD", 5), "ERR"),
            ((handle + 1, root, packed), "KVSPACE"),
        ]:
            reply = raw.ask("KV.REQUEST", *words)
            assert str(reply.line).startswith(code), (words, reply)
        for words in [
            (),
            (handle, root, packed),
            (handle, root, packed, "TOKENS", 48),
            # A key of a partial last chunk may be there or not.
            (handle, root, packed, "TOKENS", 63, "HINT", "closed"),
            (handle, root, packed, "TOKENS", 33),
            (handle, root, packed, "TOKENS", 47),
            (handle, root.hex(), packed.hex(), "TOKENS", 63, "HEX"),
            (handle, root, b"", "TOKENS", 15),
        ]:
            assert raw.ask("KV.REQUEST", *words) == 1, words
    assert idle_daemon.terminate() == 0
    tokens = [request["tokens"] for request in lines(files(log)[0])]
    assert tokens == [48, 48, 63, 33, 47, 63, 15]
