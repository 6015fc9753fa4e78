"""Writers and readers that are stopped, late or dead never harm anybody else's bytes."""

from __future__ import annotations

import itertools

import pytest

import kvasir
from kvasir import _resp
from support import chunk_content, make_keys, make_space, store, wait_until
from system.conftest import MakePuppet
from system.daemon import MIB, Daemon, PuppetError, RawConnection

SHARD_BYTES = 256 << 10
SPACE = make_space((SHARD_BYTES,))
#: What the arena of 16 MiB holds.
CHUNKS = 16 * MIB // SHARD_BYTES
WRONG_BYTE = 0xEE
#: A second, and room for a busy machine.
PROMPT_SECONDS = 3.0


def hold_everything(client: kvasir.Client, salts: list[str], count: int) -> list[kvasir.Hold]:
    """Holds on all chunks under these salts."""
    holds = []
    for salt in salts:
        root, keys = make_keys(SPACE, count, salt=salt)
        match = client.match(SPACE, root, keys, hold_ms=600_000)
        assert match.count == count, f"{match.count} of {count} chunks of {salt} are left"
        assert match.hold is not None
        holds.append(match.hold)
    return holds


def verify(hold: kvasir.Hold, data: bytes) -> None:
    """All bytes of all chunks are those that ``store`` has written."""
    with hold.acquire(0).wait() as lease:
        for index in range(len(lease)):
            expected = chunk_content(data, index, 0, SHARD_BYTES)
            assert lease.view(index) == expected, f"chunk {index} of {data!r} was changed"


def test_a_stopped_writer_changes_no_other_chunk_and_can_not_commit(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    writer = puppet(shard_bytes=[SHARD_BYTES])
    reserved = 8
    assert len(writer.do("reserve", salt="late", count=reserved, ttl_ms=200)["granted"]) == reserved
    writer.tell("write", byte=WRONG_BYTE, stop_half_way=True)
    writer.await_stopped()
    wait_until(lambda: observer.stats()["write_leases_expired"] == 1, "the writer's lease ends")
    quarantined = observer.stats()["quarantined_bytes"]
    assert quarantined == reserved * SHARD_BYTES

    # Others fill all that is left, each with bytes of its own.
    others = [puppet(shard_bytes=[SHARD_BYTES]) for _ in range(2)]
    part = (CHUNKS - reserved) // 2
    for number, other in enumerate(others):
        assert other.do("save", salt=f"other-{number}", count=part, data=f"data-{number}") == part
    holds = hold_everything(observer, ["other-0", "other-1"], part)
    root, keys = make_keys(SPACE, 1, salt="one too many")
    with observer.reserve(SPACE, root, keys) as refused:
        assert refused.granted == [], "an extent in quarantine was given away"
        assert refused.reason.startswith("KVFULL")

    writer.resume()
    assert writer.answer() == reserved * SHARD_BYTES, "the writer wrote on to the end"
    for number, hold in enumerate(holds):
        verify(hold, f"data-{number}".encode())
    with pytest.raises(PuppetError) as refusal:
        writer.do("commit")
    assert refusal.value.code == "KVEXPIRED"
    root, keys = make_keys(SPACE, reserved, salt="late")
    assert observer.match(SPACE, root, keys).count == 0

    # Until it says that it is done, nobody gets its extents; then everybody may.
    assert observer.stats()["quarantined_bytes"] == quarantined
    assert writer.do("release") is False
    assert observer.stats()["quarantined_bytes"] == 0
    assert store(observer, SPACE, root, keys, b"again") == reserved
    verify(hold_everything(observer, ["late"], reserved)[0], b"again")


def test_a_stopped_reader_learns_at_release_that_its_copy_is_worthless(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    reader = puppet(shard_bytes=[SHARD_BYTES])
    root, keys = make_keys(SPACE, 4, salt="read")
    store(observer, SPACE, root, keys, b"old")
    assert reader.do("match", salt="read", count=4, hold_ms=200) == 4
    assert reader.do("acquire") == 4
    reader.tell("copy", stop_first=True)
    reader.await_stopped()
    wait_until(lambda: observer.stats()["read_leases_expired"] == 1, "the reader's lease ends")
    root, keys = make_keys(SPACE, CHUNKS, salt="new")
    assert store(observer, SPACE, root, keys, b"new") == CHUNKS, "the arena was filled anew"

    reader.resume()
    old = [chunk_content(b"old", index, 0, 16).hex() for index in range(4)]
    copied = reader.answer()
    assert all(a != b for a, b in zip(copied, old, strict=True)), "it read other chunks' bytes"
    assert reader.do("release_reading") is False, "and is told so"


def test_a_stopped_readers_with_block_raises(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    reader = puppet(shard_bytes=[SHARD_BYTES])
    root, keys = make_keys(SPACE, 4, salt="read")
    store(observer, SPACE, root, keys)
    expected = 4 * SHARD_BYTES
    read = reader.do("read_within_lease", salt="read", count=4, hold_ms=60_000, stop=False)
    assert read == expected
    reader.tell("read_within_lease", salt="read", count=4, hold_ms=100, stop=True)
    reader.await_stopped()
    wait_until(lambda: observer.stats()["read_leases_expired"] == 1, "the reader's lease ends")
    reader.resume()
    with pytest.raises(PuppetError) as told:
        reader.answer()
    assert told.value.code == "KVEXPIRED"


def is_clean(client: kvasir.Client) -> bool:
    """Nothing is claimed by anybody, and no session is left without a connection."""
    stats = client.stats()
    gauges = ("holds", "read_leases", "write_leases", "quarantined_bytes", "chunks_writing")
    return all(stats[name] == 0 for name in gauges) and stats["sessions"] <= stats["connections"]


def test_a_killed_writer_leaves_nothing_locked(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    writer = puppet(shard_bytes=[SHARD_BYTES])
    assert len(writer.do("reserve", salt="dead", count=CHUNKS)["granted"]) == CHUNKS
    assert observer.stats()["write_leases"] == 1
    writer.kill()
    wait_until(lambda: is_clean(observer), "the dead writer's chunks are free", PROMPT_SECONDS)
    root, keys = make_keys(SPACE, CHUNKS, salt="dead")
    assert store(observer, SPACE, root, keys) == CHUNKS


def test_a_writer_killed_while_stopped_in_quarantine_leaves_nothing_locked(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    writer = puppet(shard_bytes=[SHARD_BYTES])
    writer.do("reserve", salt="dead", count=CHUNKS, ttl_ms=50)
    writer.tell("write", byte=1, stop_half_way=True)
    writer.await_stopped()
    wait_until(lambda: observer.stats()["quarantined_bytes"] > 0, "its extents are in quarantine")
    writer.kill()
    wait_until(lambda: is_clean(observer), "the quarantine ends with the process", PROMPT_SECONDS)


def test_a_killed_reader_leaves_nothing_locked(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    root, keys = make_keys(SPACE, CHUNKS, salt="read")
    store(observer, SPACE, root, keys)
    reader = puppet(shard_bytes=[SHARD_BYTES])
    assert reader.do("match", salt="read", count=CHUNKS, hold_ms=600_000) == CHUNKS
    reader.do("acquire")
    stats = observer.stats()
    assert (stats["holds"], stats["read_leases"]) == (1, 1)
    reader.kill()
    wait_until(lambda: is_clean(observer), "the dead reader's holds end", PROMPT_SECONDS)
    root, keys = make_keys(SPACE, CHUNKS, salt="next")
    assert store(observer, SPACE, root, keys) == CHUNKS, "what it held can be evicted"


def test_a_killed_rank_keeps_its_session_as_long_as_another_lives(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    scheduler, rank = (puppet(shard_bytes=[SHARD_BYTES], session="engine") for _ in range(2))
    scheduler.do("reserve", salt="shared", count=4)
    without_rank = observer.stats()["connections"]
    assert rank.do("ping")
    rank.kill()
    wait_until(
        lambda: observer.stats()["connections"] == without_rank,
        "the daemon noticed the rank's end",
    )
    assert observer.stats()["write_leases"] == 1
    scheduler.do("write", byte=1)
    assert scheduler.do("commit") == 4
    scheduler.kill()
    wait_until(lambda: is_clean(observer), "the session ends with its last process", PROMPT_SECONDS)


def test_a_closed_connection_keeps_extents_until_its_process_is_gone(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    writer = puppet(shard_bytes=[SHARD_BYTES])
    writer.do("reserve", salt="closed", count=4)
    writer.do("close")
    wait_until(lambda: observer.stats()["connections"] == 1, "the daemon noticed")
    stats = observer.stats()
    assert stats["quarantined_bytes"] == 4 * SHARD_BYTES, "it lives and may still write"
    root, keys = make_keys(SPACE, CHUNKS, salt="others")
    assert store(observer, SPACE, root, keys) == CHUNKS - 4, "nobody gets its extents"
    writer.kill()
    wait_until(lambda: is_clean(observer), "the quarantine ends with the process", PROMPT_SECONDS)


def test_a_process_that_comes_back_can_release_what_it_left(
    daemon: Daemon, observer: kvasir.Client
) -> None:
    root, keys = make_keys(SPACE, 4, salt="raw")

    def reserve(connection: RawConnection, session: str) -> int:
        assert connection.ask("KV.SESSION", session) == "OK"
        handle, _, _ = connection.ask("KV.OPEN", SPACE.to_json())
        lease, states, _, _ = connection.ask("KV.RESERVE", handle, root, keys)
        assert states == bytes(4)
        return int(lease)

    with RawConnection(daemon.path) as connection:
        lease = reserve(connection, "engine")
    # This process lives on.
    expected = 4 * SHARD_BYTES
    wait_until(lambda: observer.stats()["quarantined_bytes"] == expected, "the quarantine begins")
    with RawConnection(daemon.path) as stranger:
        assert stranger.ask("KV.SESSION", "somebody-else") == "OK"
        answer = stranger.ask("KV.RELEASE", lease)
        assert isinstance(answer, _resp.ErrorReply), "only its own session can release it"
        assert answer.line.startswith("KVLEASE")
    assert observer.stats()["quarantined_bytes"] == expected
    with RawConnection(daemon.path) as connection:
        assert connection.ask("KV.SESSION", "engine") == "OK"
        assert connection.ask("KV.RELEASE", lease) == "EXPIRED"
        assert observer.stats()["quarantined_bytes"] == 0
    wait_until(lambda: is_clean(observer), "nothing is left of either session")


def test_closing_one_of_two_connections_ends_no_lease(
    daemon: Daemon, observer: kvasir.Client
) -> None:
    root, keys = make_keys(SPACE, 2, salt="two")
    with RawConnection(daemon.path) as first, RawConnection(daemon.path) as second:
        for connection in (first, second):
            assert connection.ask("KV.SESSION", "engine") == "OK"
        handle, _, _ = first.ask("KV.OPEN", SPACE.to_json())
        lease, *_ = first.ask("KV.RESERVE", handle, root, keys)
        first.close()
        wait_until(lambda: observer.stats()["connections"] == 2, "the daemon noticed")
        assert second.ask("KV.COMMIT", lease, 0, "ALL") == 2
    assert observer.match(SPACE, root, keys).count == 2


def test_a_dropped_chunk_stays_readable_until_its_reader_is_done(
    daemon: Daemon, observer: kvasir.Client, puppet: MakePuppet
) -> None:
    root, keys = make_keys(SPACE, 4, salt="dropped")
    store(observer, SPACE, root, keys, b"kept")
    reader = puppet(shard_bytes=[SHARD_BYTES])
    reader.do("match", salt="dropped", count=4, hold_ms=60_000)
    reader.do("acquire")
    assert observer.drop_root(SPACE, root) == 4
    for number in itertools.count():
        # Ever new chunks go through all the rest of the arena, several times over.
        fresh_root, fresh_keys = make_keys(SPACE, CHUNKS // 2, salt=f"fresh-{number}")
        store(observer, SPACE, fresh_root, fresh_keys, b"fresh")
        if observer.stats()["chunks_evicted"] > 3 * CHUNKS:
            break
    assert reader.do("copy") == [chunk_content(b"kept", i, 0, 16).hex() for i in range(4)]
    assert reader.do("release_reading") is True
    reader.kill()
    wait_until(lambda: observer.stats()["chunks_doomed"] == 0, "the dropped chunks are freed")
