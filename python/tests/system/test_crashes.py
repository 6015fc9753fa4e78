"""The daemon is killed with kill -9: its memory goes, its clients live, nothing read is wrong."""

from __future__ import annotations

import functools
import random
import time

import kvasir
from support import make_keys, make_space, store, wait_until
from system.conftest import MakePuppet
from system.daemon import (
    Daemon,
    Puppet,
    PuppetError,
    arenas_mapped,
    shared_memory_mib,
    users_of_arena,
)

SPACE = make_space((64 << 10, 32 << 10))
ARENA_MIB = 128


def test_nothing_of_the_arena_is_left_once_daemon_and_clients_are_gone(
    idle_daemon: Daemon, puppet: MakePuppet
) -> None:
    idle_daemon.start(memory=f"{ARENA_MIB}MiB")
    (inode,) = arenas_mapped(idle_daemon.pid)
    clients = [puppet(shard_bytes=list(SPACE.shard_bytes)) for _ in range(2)]
    for number, client in enumerate(clients):
        client.do("map_arena")
        client.do("save", salt=str(number), count=8, data="x")
    assert set(users_of_arena(inode)) == {idle_daemon.pid, *(c.pid for c in clients)}
    # One of them is stopped, so that its mapping alone is what is left of the arena.
    clients[0].tell("stop")
    clients[0].await_stopped()
    idle_daemon.kill()
    wait_until(lambda: not arenas_mapped(clients[1].pid), "the idle client has unmapped")
    assert users_of_arena(inode) == [clients[0].pid]
    full = shared_memory_mib()
    clients[0].kill()
    wait_until(lambda: not users_of_arena(inode), "nobody has the arena")
    # Others on this machine use shared memory too, so this is only about most of it.
    wait_until(
        lambda: shared_memory_mib() < full - ARENA_MIB // 2, "the kernel has the memory back"
    )


def test_a_daemon_that_alone_had_the_arena_leaves_nothing_of_it(idle_daemon: Daemon) -> None:
    idle_daemon.start()
    (inode,) = arenas_mapped(idle_daemon.pid)
    assert users_of_arena(inode) == [idle_daemon.pid]
    idle_daemon.kill()
    assert users_of_arena(inode) == []


def test_a_restart_under_idle_clients_stays_inside_the_budget_and_they_resume(
    idle_daemon: Daemon, puppet: MakePuppet
) -> None:
    memory = f"{ARENA_MIB}MiB"
    idle_daemon.start(memory=memory)
    clients = [puppet(shard_bytes=list(SPACE.shard_bytes)) for _ in range(2)]
    before = [client.do("map_arena") for client in clients]
    (old,) = arenas_mapped(idle_daemon.pid)
    for client in clients:
        assert list(arenas_mapped(client.pid)) == [old]

    def in_use_mib() -> int:
        processes = [idle_daemon.pid, *(client.pid for client in clients)]
        return sum(sum(arenas_mapped(pid).values()) for pid in processes) >> 10

    assert ARENA_MIB * 0.95 <= in_use_mib() <= ARENA_MIB * 1.05, "all of it is in memory"
    idle_daemon.kill()
    # No call is made: the clients do nothing.
    wait_until(lambda: not any(arenas_mapped(c.pid) for c in clients), "idle clients have unmapped")
    assert users_of_arena(old) == [], "so the restart finds the memory free"
    idle_daemon.start(memory=memory)
    (new,) = arenas_mapped(idle_daemon.pid)
    assert new != old
    assert in_use_mib() <= ARENA_MIB * 1.05

    # They resume by themselves, on the next call.
    for number, client in enumerate(clients):
        wait_until(functools.partial(resumes, client), "the client works again")
        assert client.do("map_arena") != before[number]
        assert client.do("save", salt=f"after-{number}", count=8, data="x") == 8
        assert list(arenas_mapped(client.pid)) == [new]
    assert users_of_arena(old) == []
    assert ARENA_MIB * 0.95 <= in_use_mib() <= ARENA_MIB * 1.05, "one arena, not two"


def resumes(client: Puppet) -> bool:
    try:
        return bool(client.do("ping"))
    except PuppetError as error:
        if error.code in ("NOTCONNECTED", "CONNECTIONLOST"):
            return False
        raise


def test_a_lease_of_the_killed_daemon_is_worth_nothing_at_the_next(
    idle_daemon: Daemon, puppet: MakePuppet
) -> None:
    idle_daemon.start()
    client = puppet(shard_bytes=list(SPACE.shard_bytes))
    client.do("save", salt="s", count=4, data="old")
    client.do("match", salt="s", count=4, hold_ms=60_000)
    client.do("acquire")
    idle_daemon.kill()
    idle_daemon.start()
    with kvasir.Client(idle_daemon.path) as other:
        root, keys = make_keys(SPACE, 4, salt="s")
        store(other, SPACE, root, keys, b"new")
        # The same numbers are given to other holds and leases now.
        other.match(SPACE, root, keys, hold_ms=60_000)
        held = other.stats()["holds"]
        wait_until(lambda: resumes(client), "the client works again")
        assert client.do("release_reading") is False
        assert other.stats()["holds"] == held, "it has released nobody else's"


def test_kill_at_any_moment_makes_no_client_hang_and_no_byte_wrong(
    idle_daemon: Daemon, puppet: MakePuppet, rng: random.Random
) -> None:
    """The arena is small, so that eviction, refusals and expiry go on all the time."""
    rounds, timeout = 20, 5.0
    sessions = ["alone", "together", "together"]
    clients = [puppet(shard_bytes=list(SPACE.shard_bytes), session=name) for name in sessions]
    idle_daemon.start(memory="8MiB")
    stop_file = idle_daemon.directory / "stop"
    for client in clients:
        client.tell(
            "load", seed=rng.getrandbits(32), salts=10, stop=str(stop_file), timeout=timeout
        )
    for number in range(rounds):
        # The load is on: something was sealed, and something was read, by this daemon.
        with kvasir.Client(idle_daemon.path) as observer:
            wait_until(
                functools.partial(works, observer), f"round {number}: the clients are back", 20
            )
        time.sleep(rng.uniform(0, 0.05))
        idle_daemon.kill()
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.1))
        flags = ["--verify", "all"] if rng.random() < 0.3 else []
        idle_daemon.launch(*flags, memory="8MiB")
    with kvasir.Client(idle_daemon.path) as observer:
        wait_until(lambda: connects(observer), "the last daemon serves")
        wait_until(lambda: works(observer), "and the clients are back")
    stop_file.touch()
    results = [client.answer() for client in clients]
    for result in results:
        print(result)
        assert result["unforeseen"] == [], "no timeout, nothing but the end of connections"
        assert result["slowest"] < timeout, "every call was answered in time"
        assert result["wrong"] == 0
        assert result["failed"] > 0, "it felt the daemon's deaths"
        assert result["saved"] > 0
        assert result["loaded"] > 0
    with kvasir.Client(idle_daemon.path) as observer:
        for client in clients:
            client.kill()

        def claims() -> int:
            stats = observer.stats()
            names = ("holds", "read_leases", "write_leases", "quarantined_bytes", "chunks_writing")
            return sum(stats[name] for name in names)

        wait_until(lambda: claims() == 0, "nothing is left of the clients")


def connects(client: kvasir.Client) -> bool:
    try:
        return client.ping() > 0
    except kvasir.NotConnected:
        return False


def works(client: kvasir.Client) -> bool:
    try:
        stats = client.stats()
    except (kvasir.NotConnected, kvasir.ConnectionLost):
        return False
    return bool(stats["chunks_sealed"] > 5 and stats["bytes_acquired"] > 0)
