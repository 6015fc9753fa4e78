"""``kvasir chunks``: what is stored, where, whether it is whole, and how to get rid of it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvasir
from support import make_keys, make_space, store, wait_until
from system.daemon import Daemon, run

SPACE = make_space((64 << 10, 32 << 10), name="a-model")
OTHER = make_space((8192,), name="b-model")
COUNT = 8


@pytest.fixture
def disk(socket_directory: Path) -> Path:
    return socket_directory / "disk"


@pytest.fixture
def tiered(idle_daemon: Daemon, disk: Path) -> Daemon:
    """A daemon with 4 MiB of memory, from which the oldest goes first, and a disk."""
    idle_daemon.start("--verify", "off", "--policy", "lru", memory="4MiB", disk=disk)
    return idle_daemon


@pytest.fixture
def saver(tiered: Daemon) -> Iterator[kvasir.Client]:
    with kvasir.Client(tiered.path, session="saver") as client:
        yield client


def save(client: kvasir.Client, *salts: str, space: kvasir.Space = SPACE) -> list[str]:
    """Stores a prompt of 8 chunks for each salt, durably; their keys in hex."""
    keys: list[str] = []
    for salt in salts:
        root, packed = make_keys(space, COUNT, salt=salt)
        assert store(client, space, root, packed, salt.encode()) == COUNT
        client.execute("KV.SYNC", 10_000)
        keys += [packed[start : start + 32].hex() for start in range(0, len(packed), 32)]
    return keys


def root_of(salt: str, space: kvasir.Space = SPACE) -> str:
    return make_keys(space, 1, salt=salt)[0].hex()


def listed(daemon: Daemon, *words: str) -> list[dict[str, Any]]:
    result = daemon.call("chunks", "list", "--json", *words)
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


def keys_of(daemon: Daemon, *words: str) -> list[str]:
    return [chunk["key"] for chunk in listed(daemon, *words)]


def flip(disk: Path, wanted: bytes) -> None:
    """Changes one byte where a file of the disk has these bytes."""
    for path in disk.iterdir():
        place = path.read_bytes().find(wanted)
        if place < 0:
            continue
        with path.open("r+b") as file:
            file.seek(place + len(wanted) // 2)
            file.write(b"\xff")
            file.flush()
            os.fsync(file.fileno())
        return
    raise AssertionError(f"no file in {disk} has it")


# list


def test_a_listing_has_every_chunk_once_prompt_by_prompt(
    tiered: Daemon, saver: kvasir.Client
) -> None:
    keys = save(saver, "a", "b")
    chunks = listed(tiered)
    assert sorted(c["key"] for c in chunks) == sorted(keys)
    assert [c["number"] for c in chunks] == 2 * list(range(COUNT))
    for before, chunk in itertools.pairwise(chunks):
        if chunk["number"] > 0:
            assert chunk["parent"] == before["key"]
            assert chunk["root"] == before["root"]
    assert {c["model_name"] for c in chunks} == {"a-model"}
    assert {c["space"] for c in chunks} == {SPACE.id.hex()}
    assert {c["bytes"] for c in chunks} == {96 << 10}
    assert {c["where"] for c in chunks} == {"both"}


def test_filters_take_spaces_roots_keys_tiers_and_ages(
    tiered: Daemon, saver: kvasir.Client
) -> None:
    first = save(saver, "a")
    second = save(saver, "b")
    other = save(saver, "c", space=OTHER)
    assert sorted(keys_of(tiered)) == sorted(first + second + other)
    handle = listed(tiered, "--key", other[0])[0]["space_handle"]
    for name in ("b-model", "B-MO", OTHER.id.hex()[:12], str(handle)):
        assert keys_of(tiered, "--space", name) == other
    assert keys_of(tiered, "--root", root_of("a")) == first
    assert keys_of(tiered, "--root", root_of("b")[:10].upper()) == second
    assert keys_of(tiered, "--key", first[3][:12]) == [first[3]]
    assert keys_of(tiered, "--root", root_of("a"), "--space", "b-model") == []
    assert keys_of(tiered, "--idle", "1h") == []
    wait_until(lambda: set(first) <= set(keys_of(tiered, "--idle", "1s")), "they are a second old")
    assert set(keys_of(tiered, "--tier", "disk")) == set(first + second + other)
    assert keys_of(tiered, "--tier", "writing") == []


def test_tiers_tell_what_memory_has_given_up(tiered: Daemon, saver: kvasir.Client) -> None:
    keys = save(saver, *"abcdefgh")
    places = {chunk["key"]: chunk["where"] for chunk in listed(tiered)}
    assert set(places) == set(keys)
    assert set(places.values()) == {"both", "disk"}, "4 MiB hold less than half of it"
    assert places[keys[0]] == "disk", "the oldest went first"
    in_memory = keys_of(tiered, "--tier", "memory")
    assert sorted(in_memory) == sorted(key for key in keys if places[key] == "both")
    table = tiered.call("chunks", "list", "--limit", "3").stdout
    assert "64 chunks, 6 MiB" in table
    assert f"in memory {len(in_memory)} chunks" in table
    assert "3 of them are shown" in table
    assert table.count("a-model") == 3


def test_what_is_being_written_is_listed_apart(tiered: Daemon, saver: kvasir.Client) -> None:
    root, keys = make_keys(SPACE, 2, salt="unfinished")
    with saver.reserve(SPACE, root, keys):
        assert keys_of(tiered) == []
        assert keys_of(tiered, "--tier", "writing") == [keys[:32].hex(), keys[32:].hex()]
        found = tiered.call("chunks", "locate", keys[:32].hex())
        assert found.returncode == 0
        assert "being written" in found.stdout


# locate


def test_locate_tells_where_a_chunk_is_or_why_not(tiered: Daemon, saver: kvasir.Client) -> None:
    keys = save(saver, *"abcdefgh")
    assert "disk: chunk 0" in tiered.call("chunks", "locate", keys[0]).stdout
    assert "both: chunk 7" in tiered.call("chunks", "locate", keys[-1][:10]).stdout
    root, packed = make_keys(SPACE, COUNT, salt="h")
    assert saver.drop_keys(SPACE, root, packed[-32:]) == 1
    gone = tiered.call("chunks", "locate", keys[-1], "--json")
    assert gone.returncode == 1
    line = json.loads(gone.stdout)
    assert (line["where"], line["code"]) == ("absent", "dropped")
    never = tiered.call("chunks", "locate", "ab" * 32)
    assert never.returncode == 1
    assert "never stored here" in never.stdout
    part = tiered.call("chunks", "locate", "abababab")
    assert "give the whole key" in part.stdout


# verify


def test_verify_reads_what_is_on_disk_and_finds_the_bad_one(
    tiered: Daemon, saver: kvasir.Client, disk: Path
) -> None:
    keys = save(saver, *"abcdefgh")
    good = tiered.call("chunks", "verify")
    assert good.returncode == 0, good
    assert "64 chunks verified, 6 MiB: all good" in good.stdout
    assert "kvasir disk verify" in good.stderr
    assert "\r" not in good.stderr, "no bar where there is no terminal"

    # The first prompt is the oldest again after the others were looked at.
    others = [root_of(salt) for salt in "bcdefgh"]
    for root in others:
        assert tiered.call("chunks", "verify", "--root", root).returncode == 0
    assert tiered.call("chunks", "list", "--key", keys[5]).stdout.count("disk") >= 1
    flip(disk, (b"a" + (5).to_bytes(4, "little") + b"\x00") * 2000)
    bad = tiered.call("chunks", "verify", "--json")
    assert bad.returncode == 1, bad
    report = json.loads(bad.stdout)
    assert report["bad"] == 1
    assert report["bad_keys"] == [keys[5]]
    assert report["gone"] == 2, "those that followed it"
    assert report["good"] == 61
    located = tiered.call("chunks", "locate", keys[5])
    assert located.returncode == 1
    assert "could not be read from disk" in located.stdout
    assert tiered.call("chunks", "verify").returncode == 0, "what is left is good"


# drop


def test_drop_needs_to_be_told_what(tiered: Daemon, saver: kvasir.Client) -> None:
    keys = save(saver, "a")
    assert tiered.call("chunks", "drop").returncode != 0
    assert tiered.call("chunks", "drop", "--all", "--space", "a-model").returncode != 0
    refused = tiered.call("chunks", "drop", "--all")
    assert refused.returncode != 0, "there is nobody to ask"
    assert "--yes" in refused.stderr
    assert keys_of(tiered) == keys


def test_a_dry_run_says_what_would_go_and_drops_nothing(
    tiered: Daemon, saver: kvasir.Client
) -> None:
    keys = save(saver, "a", "b")
    result = tiered.call("chunks", "drop", "--key", keys[2], "--dry-run")
    assert result.returncode == 0
    assert "would go: 6 chunks" in result.stdout
    assert "5 of them only because they follow" in result.stdout
    assert len(keys_of(tiered)) == 2 * COUNT


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--key", "KEY"], 10),
        (["--root", "ROOT"], 8),
        (["--space", "a-model", "--root", "ROOT"], 8),
        (["--tier", "disk"], 0),
        (["--space", "a-model"], 0),
        (["--all"], 0),
        (["--idle", "1h"], 16),
    ],
)
def test_what_was_dropped_is_gone_also_after_a_restart(
    tiered: Daemon, saver: kvasir.Client, disk: Path, words: list[str], left: int
) -> None:
    keys = save(saver, "a", "b")
    values = {"KEY": keys[2], "ROOT": root_of("a")}
    result = tiered.call("chunks", "drop", *(values.get(word, word) for word in words), "--yes")
    assert result.returncode == 0, result
    assert (f"dropped {16 - left} chunk" in result.stdout) == (left < 16)
    kept = keys_of(tiered)
    assert len(kept) == left
    assert tiered.terminate() == 0
    tiered.start(memory="4MiB", disk=disk)
    assert sorted(keys_of(tiered)) == sorted(kept)


# Without a disk, and without a server


def test_without_a_disk_all_is_in_memory(daemon: Daemon) -> None:
    with kvasir.Client(daemon.path) as client:
        root, keys = make_keys(SPACE, COUNT)
        store(client, SPACE, root, keys)
        assert {chunk["where"] for chunk in listed(daemon)} == {"memory"}
        assert keys_of(daemon, "--tier", "disk") == []
        verified = daemon.call("chunks", "verify")
        assert verified.returncode == 0
        assert f"{COUNT} chunks verified" in verified.stdout
        assert daemon.call("chunks", "drop", "--all", "--yes").returncode == 0
        assert keys_of(daemon) == []


@pytest.mark.parametrize(
    "words",
    [
        ["list", "--idle", "1"],
        ["list", "--idle", "0.5y"],
        ["list", "--root", "xyz"],
        ["list", "--key", "ab" * 33],
        ["list", "--tier", "tape"],
        ["list", "--limit", "-1"],
        ["list", "--space", "no such model"],
        ["locate"],
        ["locate", "no key"],
        ["verify", "--tier", "writing"],
        ["drop", "--tier", "writing", "--yes"],
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(daemon: Daemon, words: list[str]) -> None:
    result = daemon.call("chunks", *words)
    assert result.returncode > 0
    assert "Error" in result.stderr
    assert "Fatal" not in result.stderr


def test_without_a_server_it_says_so(binary: str, socket_directory: Path) -> None:
    result = run([binary, "chunks", "list", "--socket", str(socket_directory / "none")])
    assert result.returncode == 1
    assert "kvasir serve" in result.stderr


# The other commands


def test_doctor_says_what_the_disk_tier_would_use_and_leaves_nothing(
    daemon: Daemon, socket_directory: Path, disk: Path
) -> None:
    def findings(*words: str) -> dict[str, dict[str, str]]:
        result = daemon.call("doctor", "--json", *words)
        return {found["name"]: found for found in json.loads(result.stdout)["findings"]}

    before = sorted(os.listdir(socket_directory))
    tier = findings("--disk", str(disk), "--disk-size", "1GiB")["disk tier"]
    assert tier["level"] in ("ok", "warning")
    assert f"{disk} (to be made); would use 1 GiB" in tier["found"]
    assert "reads and writes by" in tier["found"]
    assert sorted(os.listdir(socket_directory)) == before
    assert "memory only" in findings()["disk tier"]["found"]
    assert "memory only" in findings()["server's disks"]["found"]

    file = socket_directory / "file"
    file.write_text("")
    assert findings("--disk", str(file))["disk tier"]["level"] == "problem"

    disk.mkdir()
    findings("--disk", str(disk))
    assert os.listdir(disk) == []


def test_doctor_sees_a_directory_in_use(tiered: Daemon, disk: Path) -> None:
    result = tiered.call("doctor", "--disk", str(disk), "--disk-size", "64MiB")
    assert "in use by a server" in result.stdout
    assert sorted(os.listdir(disk))[0] == "kvasir-disk", "nothing was left there"


def test_stats_show_the_disk_where_there_is_one(tiered: Daemon, saver: kvasir.Client) -> None:
    save(saver, "a")
    text = tiered.call("stats").stdout
    assert "From disk" in text
    assert "chunks on disk" in text
    known = json.loads(tiered.call("stats", "--json").stdout)
    assert known["disks"] == 1
    assert known["chunks_on_disk"] == COUNT
    assert known["disk_limit_bytes"] == 64 << 20


def test_stats_leave_the_disk_out_where_there_is_none(daemon: Daemon) -> None:
    text = daemon.call("stats").stdout
    assert "disk live" not in text
    assert "From disk" not in text
