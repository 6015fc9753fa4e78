"""The two walks and the housekeeping, against every daemon there is."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np
import pytest

import kvasir
from fake_server import FakeServer
from kvasir.leases import (
    ABSENT,
    BEING_WRITTEN,
    DISK,
    GRANTED,
    MEMORY,
    PRESENT,
    WRITING,
    Location,
)
from support import chunk_content, make_keys, make_space, store, wait_until


def wait_past(ms: int) -> None:
    """Until a deadline that the daemon counts from a request that was answered has passed."""
    deadline = time.monotonic() + ms / 1000 + 0.005
    wait_until(lambda: time.monotonic() > deadline, "the deadline")


def test_what_was_saved_is_loaded_in_every_shard(client: kvasir.Client) -> None:
    space = make_space((8192, 4096, 12288))
    root, keys = make_keys(space, 5)
    assert client.match(space, root, keys).count == 0
    assert store(client, space, root, keys, b"data") == 5
    match = client.match(space, root, keys, hold_ms=30_000, readers=3)
    assert match.count == 5
    assert match.tiers == bytes([MEMORY] * 5)
    assert match.hold is not None
    assert match.hold.count == 5
    for shard, length in enumerate(space.shard_bytes):
        with match.hold.acquire(shard) as lease:
            lease.wait(1)
            assert len(lease) == lease.usable == 5
            assert lease.gone == []
            for position in range(5):
                expected = chunk_content(b"data", position, shard, length)
                assert bytes(lease.view(position)) == expected
                array = lease.array(position, np.uint16, (length // 16, 8))
                assert array.tobytes() == expected
                assert not array.flags.writeable
                assert lease.view(position).readonly
    # The last reader took the hold with it.
    with pytest.raises(kvasir.ServerError) as caught:
        match.hold.acquire(0)
    assert caught.value.code in ("KVLEASE", "KVEXPIRED")


def test_a_match_is_the_leading_part(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 6)
    store(client, space, root, keys[: 4 * 32])
    assert client.match(space, root, keys).count == 4
    assert client.match(space, root, keys[32:]).count == 3
    other_root, other_keys = make_keys(space, 6, salt="another tenant")
    assert client.match(space, other_root, other_keys).count == 0
    missed = client.match(space, other_root, other_keys, hold_ms=1000)
    assert (missed.count, missed.tiers, missed.hold) == (0, b"", None)


def test_a_part_of_a_hold_can_be_acquired(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 5)
    store(client, space, root, keys, b"part")
    with client.match(space, root, keys, hold_ms=30_000, readers=2).hold as hold:  # type: ignore[union-attr]
        with hold.acquire(0, first=3).wait() as tail:
            assert len(tail) == 2
            assert bytes(tail.view(1)) == chunk_content(b"part", 4, 0, 8192)
        with hold.acquire(0, first=1, count=2).wait() as middle:
            assert len(middle) == 2
            assert bytes(middle.view(0)) == chunk_content(b"part", 1, 0, 8192)
        with pytest.raises(IndexError):
            middle.extents[2]
    assert hold.released


def test_what_is_present_or_being_written_is_not_granted(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 6)
    store(client, space, root, keys[: 2 * 32])
    with client.reserve(space, root, keys[: 4 * 32]) as first:
        assert first.states == bytes([PRESENT, PRESENT, GRANTED, GRANTED])
        assert first.granted == [2, 3]
        assert first.extents.shape == (2, 1, 2)
        assert client.locate(space, root, keys) == bytes(
            [MEMORY, MEMORY, BEING_WRITTEN, BEING_WRITTEN, ABSENT, ABSENT]
        )
        second = client.reserve(space, root, keys)
        assert second.states == bytes([PRESENT, PRESENT, WRITING, WRITING, GRANTED, GRANTED])
        with pytest.raises(kvasir.KvasirError, match="was not granted"):
            second.view(0, 0)
        assert second.release()
        assert second.release()
        with pytest.raises(kvasir.LeaseExpired, match="was released"):
            second.view(4, 0)
    # Nothing was committed, so nothing is left.
    assert client.locate(space, root, keys) == bytes([MEMORY, MEMORY, 0, 0, 0, 0])


def test_nothing_to_write_is_a_lease_of_nothing(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 2)
    store(client, space, root, keys)
    with client.reserve(space, root, keys) as lease:
        assert lease.id == 0
        assert lease.granted == []
        assert lease.committed
        assert lease.extents.shape == (0, 1, 2)
    assert client.reserve(space, root, keys).release()


def test_chunks_are_sealed_one_by_one_when_all_shards_are(client: kvasir.Client) -> None:
    space = make_space((4096, 4096))
    root, keys = make_keys(space, 3)
    lease = client.reserve(space, root, keys)
    assert lease.commit(0) == 0
    assert client.match(space, root, keys).count == 0
    assert lease.commit(1, [0]) == 1
    assert client.match(space, root, keys).count == 1
    assert not lease.committed
    assert client.commit(lease.id, 1, [1, 2]) == 2
    assert client.match(space, root, keys).count == 3
    # The last commit ended the lease, which a release hears about.
    assert lease.release() is False


def test_a_chain_goes_on_after_its_parent(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 4)
    with pytest.raises(kvasir.KeyGap):
        client.reserve(space, root, keys[64:], parent=keys[32:64])
    store(client, space, root, keys[:64])
    with client.reserve(space, root, keys[64:], parent=keys[32:64]) as lease:
        assert lease.granted == [0, 1]
        lease.commit(0)
    assert client.match(space, root, keys).count == 4


def test_several_reserves_go_in_one_round_trip(client: kvasir.Client) -> None:
    space, other = make_space(), make_space((4096,), name="another")
    requests = []
    for index, wanted in enumerate((space, other, space)):
        root, keys = make_keys(wanted, 2, salt=str(index))
        requests.append(kvasir.ReserveRequest(wanted, root, keys))
    gap = requests[0]._replace(parent=b"p" * 32)
    results = client.pipeline_reserve([requests[0], gap, *requests[1:]])
    assert isinstance(results[1], kvasir.KeyGap)
    leases = [result for result in results if isinstance(result, kvasir.WriteLease)]
    assert [lease.granted for lease in leases] == [[0, 1]] * 3
    assert all(lease.release() for lease in leases)
    assert client.pipeline_reserve([]) == []


def test_a_large_pipeline_does_not_stop_in_full_buffers(client: kvasir.Client) -> None:
    space = make_space(tuple([4096] * 8))
    root, keys = make_keys(space, 1000)
    request = kvasir.ReserveRequest(space, root, keys)
    results = client.pipeline_reserve([request] * 40, timeout=60)
    assert len(results) == 40
    leases = [result for result in results if isinstance(result, kvasir.WriteLease)]
    assert len(leases) == 40
    assert leases[0].granted
    assert leases[1].states[0] == WRITING
    assert leases[0].reason == "" or leases[0].reason.startswith("KVFULL")
    for lease in leases:
        lease.release()


def test_a_full_store_says_so(client: kvasir.Client) -> None:
    space = make_space((1 << 20,))
    root, keys = make_keys(space, 200)
    with client.reserve(space, root, keys) as lease:
        assert 0 < len(lease.granted) < 200
        assert lease.states[len(lease.granted)] == 3
        assert lease.reason.startswith("KVFULL ")
        assert len(lease.reason) > 20
    with client.reserve(space, root, keys) as again:
        assert len(again.granted) == len(lease.granted)


def test_a_write_lease_ends_with_its_with_block(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 2)

    def fail() -> None:
        with client.reserve(space, root, keys) as lease:
            lease.commit(0, [0])
            raise RuntimeError("the engine")

    with pytest.raises(RuntimeError):
        fail()
    assert client.locate(space, root, keys) == bytes([MEMORY, ABSENT])


def test_shards_can_be_given_up_one_by_one(client: kvasir.Client) -> None:
    space = make_space((4096, 4096))
    root, keys = make_keys(space, 1)
    lease = client.reserve(space, root, keys)
    assert lease.release(0)
    assert client.locate(space, root, keys) == bytes([BEING_WRITTEN])
    assert lease.release(1)
    assert client.locate(space, root, keys) == bytes([ABSENT])


def test_an_expired_reader_learns_at_release(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 2)
    store(client, space, root, keys)
    hold = client.match(space, root, keys, hold_ms=1).hold
    assert hold is not None
    wait_past(1)
    assert hold.expired
    with pytest.raises(kvasir.ServerError) as caught:
        hold.acquire(0)
    assert caught.value.code in ("KVLEASE", "KVEXPIRED")

    match = client.match(space, root, keys, hold_ms=200)
    assert match.hold is not None
    lease = match.hold.acquire(0)
    wait_past(200)
    assert lease.release() is False


def test_an_expired_writer_can_not_commit(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 2)
    lease = client.reserve(space, root, keys, ttl_ms=1)
    wait_past(1)
    with pytest.raises(kvasir.LeaseExpired):
        lease.commit(0)
    assert lease.release() is False
    with client.reserve(space, root, keys) as again:
        assert again.granted == [0, 1]


def test_chunks_can_be_dropped(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 4)
    salted, salted_keys = make_keys(space, 2, salt="s")
    store(client, space, root, keys)
    store(client, space, salted, salted_keys)
    assert client.drop_keys(space, root, keys[64:96]) == 2
    assert client.match(space, root, keys).count == 2
    assert client.drop_root(space, root) == 2
    assert client.match(space, root, keys).count == 0
    assert client.match(space, salted, salted_keys).count == 2
    assert client.drop_space(space) == 2
    assert client.match(space, salted, salted_keys).count == 0


def test_the_housekeeping_answers(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 4)
    store(client, space, root, keys[:96])
    assert client.prefetch(space, root, keys) == 3
    assert client.pin(space, root, keys, 1000) == 3
    assert client.unpin(space, root, keys) == 3
    assert client.expire(space, root, keys, 3_600_000) == 3
    assert client.expire(space, root, keys, 3_600_000, sliding=True) == 3
    assert client.expire(space, root, keys, 0) == 3
    explained = client.explain(space, root, keys)
    assert (explained.matched, explained.code) == (3, "never-stored")
    assert len(explained.sentence) > 10
    assert client.explain(space, root, keys[:96]).code == "hit"
    opened = client.open(space)
    assert opened.id == space.id
    assert opened.shard_bytes == [8192]
    assert client.open(space) == opened
    (listed,) = client.spaces()
    assert listed["handle"] == opened.handle
    assert listed["id"] == space.id.hex()
    assert listed["model_name"] == "a model"
    assert listed["chunks"] == 3
    assert client.version()["protocol"] == 1
    assert client.stats()
    assert all(isinstance(key, str) for key in client.stats())
    assert 0 < client.ping() < 5
    with pytest.raises(kvasir.NoTier):
        client.sync()
    assert client.execute("ECHO", "hello") == b"hello"


def test_what_is_on_disk_is_located_and_fetched(
    fake_client: kvasir.Client, fake_server: FakeServer
) -> None:
    space = make_space()
    root, keys = make_keys(space, 5)
    store(fake_client, space, root, keys[:128])
    for chunk in fake_server.chunks.values():
        fake_server.on_disk.add(chunk.key)
        if chunk.depth > 0:
            chunk.tier = DISK

    def located() -> list[Location]:
        return [Location(one) for one in fake_client.locate(space, root, keys)]

    both, disk, absent = Location.MEMORY_AND_DISK, Location.DISK, Location.ABSENT
    assert located() == [both, disk, disk, disk, absent]
    assert fake_client.match(space, root, keys).tiers == bytes([1, 2, 2, 2])
    fake_server.room_to_promote = 2
    assert fake_client.prefetch(space, root, keys) == 3
    assert located() == [both, Location.ON_ITS_WAY, Location.ON_ITS_WAY, disk, absent]
    # Asked for again, what is on its way is not begun anew.
    assert fake_client.prefetch(space, root, keys) == 3
    fake_server.arrive()
    assert located() == [both, both, both, disk, absent]


def test_durability_is_awaited_and_its_failures_have_names(
    fake_client: kvasir.Client, fake_server: FakeServer
) -> None:
    with pytest.raises(kvasir.NoTier):
        fake_client.sync()
    fake_server.durable = True
    fake_server.delays["KV.SYNC"] = 0.1
    begun = time.monotonic()
    fake_client.sync()
    assert time.monotonic() - begun > 0.1
    assert fake_server.sync_ms == 60_000
    with pytest.raises(kvasir.Timeout, match="not everything is durable yet"):
        # The server says so itself, a little late.
        fake_client.sync(timeout=0.02)
    assert fake_server.sync_ms == 20
    fake_server.delays.clear()
    fake_client.sync(timeout=3600)
    assert fake_server.sync_ms == 600_000
    fake_server.errors["KV.SYNC"] = "KVDISK no space is left: give the directory more"
    with pytest.raises(kvasir.DiskFailed, match="no space is left") as caught:
        fake_client.sync()
    assert caught.value.code == "KVDISK"
    fake_server.errors.clear()
    fake_client.sync()
    assert fake_client.ping() < 5


def test_what_was_synced_outlives_the_daemon(disk_server: Any) -> None:
    space = make_space((8192, 4096))
    root, keys = make_keys(space, 6)
    with kvasir.Client(disk_server.path) as client:
        store(client, space, root, keys, b"kept")
        client.sync(timeout=30)
        assert set(client.locate(space, root, keys)) == {Location.MEMORY_AND_DISK}
    disk_server.restart()
    with kvasir.Client(disk_server.path) as client:
        # What it finds on disk is known a moment after the start.
        wait_until(lambda: client.match(space, root, keys).count == 6, "it is found again")
        assert client.match(space, root, keys).tiers == bytes([DISK] * 6)
        assert set(client.locate(space, root, keys)) == {Location.DISK}
        assert client.prefetch(space, root, keys[:96]) == 3
        wait_until(
            lambda: set(client.locate(space, root, keys[:96])) == {Location.MEMORY_AND_DISK},
            "it is in memory",
        )
        hold = client.match(space, root, keys, hold_ms=10_000, readers=2).hold
        assert hold is not None
        for shard, length in enumerate(space.shard_bytes):
            with hold.acquire(shard) as lease:
                lease.wait(5)
                for position in range(6):
                    expected = chunk_content(b"kept", position, shard, length)
                    assert bytes(lease.view(position)) == expected


def test_a_daemon_without_a_request_log_says_so(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 3)
    assert not client.log_requests()
    assert not client.log_request(space, root, keys, 50, hint=kvasir.Hint("pending", 1.5))
    assert not client.log_request(space, root, b"", 1)
    with pytest.raises(ValueError, match="32"):
        client.log_request(space, root, keys[:-1], 50)


def test_expired_chunks_are_gone(client: kvasir.Client) -> None:
    space = make_space()
    root, keys = make_keys(space, 1)
    store(client, space, root, keys)
    assert client.expire(space, root, keys, 1) == 1
    wait_until(lambda: client.match(space, root, keys).count == 0, "the chunk expires")


def test_errors_name_their_code_and_the_connection_goes_on(client: kvasir.Client) -> None:
    with pytest.raises(kvasir.ServerError, match="ERR") as caught:
        client.execute("KV.NONSENSE")
    assert caught.value.code == "ERR"
    with pytest.raises(kvasir.UnknownLease) as unknown:
        client.commit(2**50, 0)
    assert unknown.value.code == "KVLEASE"
    with pytest.raises(kvasir.UnknownLease):
        client.acquire(2**50, 0)
    with pytest.raises(kvasir.UnknownSpace):
        client.execute("KV.MATCH", 2**31, b"r" * 32, b"k" * 32)
    assert client.incarnation == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [(b"", "at least one"), (b"x" * 33, "33 bytes"), (b"x" * 32 * 65_537, "larger chunks")],
    ids=["none", "half", "too many"],
)
def test_keys_are_checked_before_they_are_sent(keys: bytes, message: str) -> None:
    space = make_space()
    client = kvasir.Client("/nowhere/k.sock")
    calls: list[Any] = [client.match, client.reserve, client.locate, client.explain]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(space, b"r" * 32, keys)


@pytest.mark.parametrize("session", ["", "with space", "ü", "x" * 129, "a\nb"])
def test_a_session_id_is_checked(session: str) -> None:
    with pytest.raises(ValueError, match="session must be"):
        kvasir.Client(session=session)


def test_processes_of_a_session_share_holds_and_leases(kvasir_server: Any) -> None:
    space = make_space((4096, 4096))
    root, keys = make_keys(space, 2)
    path = kvasir_server.path
    with (
        kvasir.Client(path, session="engine-1") as scheduler,
        kvasir.Client(path, session="engine-1") as rank,
        kvasir.Client(path, session="engine-2") as stranger,
    ):
        lease = scheduler.reserve(space, root, keys)
        assert rank.arena.id == scheduler.arena_id == stranger.arena_id
        with pytest.raises(kvasir.UnknownLease):
            stranger.commit(lease.id, 0)
        assert rank.commit(lease.id, 1) == 0
        assert scheduler.commit(lease.id, 0) == 2
        hold = scheduler.match(space, root, keys, hold_ms=10_000).hold
        assert hold is not None
        with pytest.raises((kvasir.UnknownLease, kvasir.LeaseExpired)):
            stranger.acquire(hold.id, 0)
        with rank.acquire(hold.id, 1).wait() as read:
            assert len(read.view(0)) == 4096
        # A session lives as long as one of its connections.
        hold = scheduler.match(space, root, keys, hold_ms=10_000).hold
        assert hold is not None
        scheduler.close()
        assert rank.release(hold.id)


def test_a_write_through_one_client_is_seen_by_another(kvasir_server: Any) -> None:
    space = make_space()
    root, keys = make_keys(space, 3)
    with kvasir.Client(kvasir_server.path) as writer:
        store(writer, space, root, keys, b"shared")
    with kvasir.Client(kvasir_server.path, read_only=True) as reader:
        hold = reader.match(space, root, keys, hold_ms=10_000).hold
        assert hold is not None
        with hold.acquire(0).wait() as lease:
            assert bytes(lease.view(2)) == chunk_content(b"shared", 2, 0, 8192)
        assert reader.arena.read_only
        with pytest.raises(kvasir.KvasirError, match="reading only"):
            reader.arena.view(0, 4096, writable=True)


def test_many_threads_share_one_client(client: kvasir.Client, rng: random.Random) -> None:
    space = make_space((4096,))
    seeds = [rng.randrange(2**32) for _ in range(8)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        own = random.Random(seeds[number])
        try:
            for turn in range(12):
                root, keys = make_keys(space, own.randrange(1, 8), salt=f"{number}-{turn}")
                count = len(keys) // 32
                data = b"%d/%d" % (number, turn)
                assert store(client, space, root, keys, data) == count
                match = client.match(space, root, keys, hold_ms=30_000)
                assert match.count == count, (match, number, turn)
                assert match.hold is not None
                with match.hold.acquire(0).wait() as lease:
                    for position in range(count):
                        expected = chunk_content(data, position, 0, 4096)
                        assert bytes(lease.view(position)) == expected
                assert client.drop_root(space, root) == count
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(seeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures
    assert client.incarnation == 1
