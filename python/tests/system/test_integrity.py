"""Damage is found and named; of two writers one writes, and nobody reads the half of it."""

from __future__ import annotations

import pytest

import kvasir
from kvasir.leases import GONE_OFFSET
from support import make_keys, make_space, store, wait_until
from system.conftest import MakePuppet
from system.daemon import Daemon, now

SPACE = make_space((64 << 10, 32 << 10))


def test_a_changed_byte_makes_a_miss_and_names_the_engine(
    idle_daemon: Daemon, puppet: MakePuppet
) -> None:
    idle_daemon.start("--verify", "all")
    writer = puppet(shard_bytes=list(SPACE.shard_bytes), session="the-careless-engine")
    assert writer.do("save", salt="", count=6, data="good") == 6
    root, keys = make_keys(SPACE, 6)
    with kvasir.Client(idle_daemon.path, session="reader") as client:
        wait_until(lambda: client.stats()["checksums_made"] == 12, "all shards have checksums")
        with client.match(SPACE, root, keys, hold_ms=60_000).hold or pytest.fail("no hold") as hold:
            lease = hold.acquire(1).wait()
            assert not (lease.extents[:, 0] == GONE_OFFSET).any(), "intact chunks pass the check"
            offset, length = (int(value) for value in lease.extents[3])
            assert lease.release()
        # As a client would that writes after its commit.
        view = client.arena.view(offset, length, writable=True)
        view[length - 1] ^= 1

        match = client.match(SPACE, root, keys, hold_ms=60_000, readers=2)
        assert match.count == 6
        assert match.hold is not None
        with match.hold as hold:
            lease = hold.acquire(1).wait()
            gone = [int(value) == GONE_OFFSET for value in lease.extents[:, 0]]
            assert gone[:4] == [False, False, False, True], "the changed chunk and no earlier one"
            with pytest.raises(kvasir.KvasirError, match="treat it and all after it as a miss"):
                lease.view(3)
            lease.release()
        assert client.match(SPACE, root, keys).count == 3, "it was dropped with all that follow it"
        assert client.stats()["chunks_damaged"] >= 1
        explanation = client.explain(SPACE, root, keys)
        assert (explanation.matched, explanation.code) == (3, "damaged")
        assert store(client, SPACE, root, keys, b"again") == 3, "it can be stored anew"
    warning = next(line for line in idle_daemon.text().splitlines() if " warning " in line)
    assert "'the-careless-engine'" in warning, warning
    assert keys[3 * 32 : 4 * 32].hex() in warning, "the log names the chunk"


def test_without_verification_nothing_is_checked(idle_daemon: Daemon) -> None:
    idle_daemon.start("--verify", "off")
    root, keys = make_keys(SPACE, 6)
    with kvasir.Client(idle_daemon.path) as client:
        store(client, SPACE, root, keys)
        with client.match(SPACE, root, keys, hold_ms=60_000).hold or pytest.fail("no hold") as hold:
            hold.acquire(0)
        stats = client.stats()
    assert (stats["checksums_made"], stats["checksums_compared"]) == (0, 0)


def test_of_writers_of_the_same_chunks_one_is_granted_and_no_reader_sees_a_half(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    rounds, count, shard_bytes = 25, 6, 64 << 10
    marks = [1, 2]
    writers = [puppet(shard_bytes=[shard_bytes]) for _ in marks]
    watcher = puppet(shard_bytes=[shard_bytes])
    for process in (*writers, watcher):
        process.do("map_arena")
    begin = now() + 0.05
    watcher.tell("watch_race", rounds=rounds, count=count, marks=marks)
    for mark, writer in zip(marks, writers, strict=True):
        writer.tell("race", mark=mark, rounds=rounds, count=count, begin=begin)
    outcomes = [writer.answer() for writer in writers]
    watched = watcher.answer()
    print(watched, outcomes)
    granted = [sum(both) for both in zip(*(o["granted"] for o in outcomes), strict=True)]
    assert granted == [count] * rounds, "each chunk was granted exactly once"
    for outcome in outcomes:
        kinds = zip(outcome["granted"], outcome["busy"], outcome["present"], strict=True)
        assert all(sum(states) == count for states in kinds), "and to the other busy or present"
    assert watched["read"] >= rounds * count
    assert watched["torn"] == 0


def test_a_chunk_being_written_is_busy_for_others_and_invisible_until_it_is_sealed(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    writer = puppet(shard_bytes=list(SPACE.shard_bytes))
    assert writer.do("reserve", salt="", count=3)["states"] == [0, 0, 0]
    writer.tell("write", byte=7, stop_half_way=True)
    writer.await_stopped()
    root, keys = make_keys(SPACE, 3)
    with observer.reserve(SPACE, root, keys) as lease:
        assert (lease.id, list(lease.states)) == (0, [2, 2, 2])
    assert observer.match(SPACE, root, keys).count == 0
    assert observer.locate(SPACE, root, keys) == bytes([255] * 3)
    writer.resume()
    writer.answer()
    assert writer.do("commit") == 3
    with observer.reserve(SPACE, root, keys) as lease:
        assert list(lease.states) == [1, 1, 1]
    assert observer.match(SPACE, root, keys).count == 3
