"""A store in which nothing can go says so, counts it, and works again once something can."""

from __future__ import annotations

import pytest

import kvasir
from support import make_keys, make_space, store
from system.daemon import MIB, Daemon

SHARD_BYTES = 256 << 10
SPACE = make_space((SHARD_BYTES,))
CHUNKS = 16 * MIB // SHARD_BYTES


def test_a_full_store_refuses_with_a_reason_counts_it_and_recovers(
    daemon: Daemon, observer: kvasir.Client
) -> None:
    root, keys = make_keys(SPACE, CHUNKS, salt="held")
    assert store(observer, SPACE, root, keys) == CHUNKS
    match = observer.match(SPACE, root, keys, hold_ms=600_000)
    assert match.count == CHUNKS
    assert match.hold is not None
    before = observer.stats()
    more_root, more = make_keys(SPACE, 10, salt="more")
    with observer.reserve(SPACE, more_root, more) as lease:
        assert lease.id == 0, "nothing was granted, so there is no lease"
        assert list(lease.states) == [3] * 10
        assert lease.reason.startswith("KVFULL ")
        assert "1 holds" in lease.reason, "it says what is in the way"
        assert "--memory" in lease.reason, "and what to do"
    after = observer.stats()
    assert after["chunks_refused_full"] - before["chunks_refused_full"] == 10
    assert after["chunks_evicted"] == before["chunks_evicted"], "nothing was let go for nothing"
    # What is held still answers, and what is granted elsewhere is not needed for that.
    assert observer.match(SPACE, root, keys).count == CHUNKS
    assert match.hold.release()
    assert store(observer, SPACE, more_root, more) == 10, "there is room after the release"
    assert observer.stats()["chunks_refused_full"] == after["chunks_refused_full"]


def test_what_fits_is_granted_and_the_rest_refused(daemon: Daemon, observer: kvasir.Client) -> None:
    root, keys = make_keys(SPACE, CHUNKS - 3, salt="held")
    store(observer, SPACE, root, keys)
    with observer.match(SPACE, root, keys, hold_ms=600_000).hold or pytest.fail("no hold"):
        more_root, more = make_keys(SPACE, 5, salt="more")
        with observer.reserve(SPACE, more_root, more) as lease:
            assert list(lease.states) == [0, 0, 0, 3, 3], "the leading chunks, which can match"
            assert lease.reason.startswith("KVFULL ")
            assert lease.commit(0) == 3
        assert observer.match(SPACE, more_root, more).count == 3
        assert observer.stats()["chunks_refused_full"] == 2


def test_a_store_full_of_reservations_refuses_and_recovers(
    daemon: Daemon, observer: kvasir.Client
) -> None:
    root, keys = make_keys(SPACE, CHUNKS, salt="writing")
    more_root, more = make_keys(SPACE, 1, salt="more")
    with observer.reserve(SPACE, root, keys) as lease:
        assert len(lease.granted) == CHUNKS
        with observer.reserve(SPACE, more_root, more) as refused:
            assert refused.granted == []
            assert "1 write leases" in refused.reason
    assert store(observer, SPACE, more_root, more) == 1
    assert observer.stats()["chunks_abandoned"] == CHUNKS, "what was given up is counted"


def test_at_most_half_the_arena_can_be_pinned(daemon: Daemon, observer: kvasir.Client) -> None:
    root, keys = make_keys(SPACE, CHUNKS, salt="pinned")
    store(observer, SPACE, root, keys)
    half = keys[: len(keys) // 2]
    with pytest.raises(kvasir.LimitReached, match="half"):
        observer.pin(SPACE, root, keys, 60_000)
    assert observer.stats()["pinned_bytes"] == 0, "a refused pin pins nothing"
    assert observer.pin(SPACE, root, half, 60_000) == CHUNKS // 2
    assert observer.pin(SPACE, root, half, 60_000) == CHUNKS // 2, "again is not more"
    with pytest.raises(kvasir.LimitReached):
        observer.pin(SPACE, root, keys[: len(half) + 32], 60_000)
    # What is pinned stays however much comes; the other half is there for everybody.
    for number in range(4):
        other_root, other = make_keys(SPACE, CHUNKS, salt=f"other-{number}")
        with observer.reserve(SPACE, other_root, other) as lease:
            assert len(lease.granted) == CHUNKS // 2
            lease.commit(0)
        assert observer.match(SPACE, root, half).count == CHUNKS // 2
    assert observer.unpin(SPACE, root, half) == CHUNKS // 2
    assert observer.stats()["pinned_bytes"] == 0
    other_root, other = make_keys(SPACE, CHUNKS, salt="all")
    assert store(observer, SPACE, other_root, other) == CHUNKS, "unpinned chunks can go"


def test_a_chunk_larger_than_the_arena_is_refused_when_its_space_is_opened(
    daemon: Daemon, observer: kvasir.Client
) -> None:
    with pytest.raises(kvasir.ServerError, match="--memory or use smaller chunks"):
        observer.open(make_space((17 * MIB,), name="too large"))
    assert observer.ping() > 0
