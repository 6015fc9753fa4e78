"""Hints on the wire: what the daemon takes and what it refuses, with every policy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import kvasir
from kvasir import Hint
from support import make_keys, make_space, read_back, store
from system.daemon import Daemon

SPACE = make_space((8 << 10,), name="hints")
POLICIES = ["adaptive", "lru", "arc", "s3fifo", "lfuda"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_and_takes_hints(idle_daemon: Daemon, policy: str) -> None:
    idle_daemon.start("--policy", policy, memory="2MiB")
    hints = [Hint(), Hint("closed"), Hint("pending"), Hint("pending", 2.5, 7), Hint(priority=-8)]
    with kvasir.Client(idle_daemon.path) as client:
        assert client.stats()[f"policy_{policy}"] == 1
        for number in range(100):
            salt = f"prompt {number % 40}"
            root, keys = make_keys(SPACE, 10, salt=salt)
            hint = hints[number % len(hints)]
            match = client.match(SPACE, root, keys, hold_ms=1000, hint=hint)
            if match.hold is not None:
                match.hold.release()
            with client.reserve(SPACE, root, keys, hint=hint):
                pass
            store(client, SPACE, root, keys, salt.encode())
            assert read_back(client, SPACE, root, keys, salt.encode()) == 10
        assert client.stats()["chunks_evicted"] > 0


@pytest.mark.parametrize("command", ["KV.MATCH", "KV.RESERVE"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["HINT", "open"], "KVARG"),
        (["HINT", "CLOSED"], "KVARG"),
        (["HINT", "pending:"], "KVARG"),
        (["HINT", "pending:-1"], "KVARG"),
        (["HINT", "pending:nan"], "KVARG"),
        (["HINT", "pending:31536001"], "KVARG"),
        (["PRIORITY", "8"], "KVARG"),
        (["PRIORITY", "-9"], "KVARG"),
        (["PRIORITY", "high"], "KVARG"),
        (["PIN", "0"], "KVARG"),
        (["PIN", "31536000001"], "KVARG"),
        (["HINT"], "ERR"),
        (["HINT", "closed", "HINT", "closed"], "ERR"),
    ],
)
def test_what_is_not_understood_is_refused(
    idle_daemon: Daemon, command: str, words: Sequence[str], code: str
) -> None:
    idle_daemon.start()
    root, keys = make_keys(SPACE, 2)
    with kvasir.Client(idle_daemon.path) as client:
        handle = client.open(SPACE).handle
        with pytest.raises(kvasir.ServerError) as caught:
            client.execute(command, handle, root, keys, *words)
        assert caught.value.code == code
        all_of_them = ["HINT", "pending:31536000", "PRIORITY", "-8", "PIN", "31536000000"]
        client.execute(command, handle, root, keys, *all_of_them)


@pytest.mark.parametrize("is_hex", [False, True])
def test_all_options_at_once(idle_daemon: Daemon, *, is_hex: bool) -> None:
    idle_daemon.start()
    root, keys = make_keys(SPACE, 3)
    hints = ["HINT", "pending:2", "PRIORITY", 7, "PIN", 60_000]
    parent: bytes | str = keys[:32]
    first: list[bytes | str] = [root, keys[:32]]
    rest: list[bytes | str] = [root, keys[32:]]
    last: list[str] = []
    if is_hex:
        parent, last = keys[:32].hex(), ["HEX"]
        first, rest = [root.hex(), keys[:32].hex()], [root.hex(), keys[32:].hex()]
    with kvasir.Client(idle_daemon.path) as client:
        handle = client.open(SPACE).handle
        reserve = ["TTL", 1000, "TAG", 1, *hints, *last]
        lease = client.execute("KV.RESERVE", handle, *first, *reserve)[0]
        assert client.execute("KV.COMMIT", lease, 0, "ALL") == 1
        reserve = ["PARENT", parent, "TTL", 1000, "TAG", 2, *hints, *last]
        lease = client.execute("KV.RESERVE", handle, *rest, *reserve)[0]
        assert client.execute("KV.COMMIT", lease, 0, "ALL") == 2
        match = ["HOLD", 1000, "READERS", 1, *hints, *last]
        assert client.execute("KV.MATCH", handle, *first, *match)[0] == 1


@pytest.mark.parametrize("command", ["match", "reserve"])
def test_a_pin_of_a_request_keeps_what_it_used(idle_daemon: Daemon, command: str) -> None:
    idle_daemon.start("--memory-only", "--policy", "lru", memory="2MiB")
    pinned = Hint(pin_seconds=600)
    root, keys = make_keys(SPACE, 10, salt="pinned")
    with kvasir.Client(idle_daemon.path) as client:

        def crowd(name: str) -> None:
            for number in range(60):
                other, chain = make_keys(SPACE, 10, salt=f"{name} {number}")
                store(client, SPACE, other, chain, b"x")

        if command == "match":
            store(client, SPACE, root, keys, b"p")
            assert client.match(SPACE, root, keys, hint=pinned).count == 10
        else:
            with client.reserve(SPACE, root, keys, hint=pinned) as lease:
                for position in lease.granted:
                    lease.view(position, 0)[:1] = b"p"
                lease.commit(0)
        crowd("first")
        assert client.match(SPACE, root, keys).count == 10
        assert client.stats()["pinned_bytes"] == 10 * (8 << 10)
        # Half of the memory, and no more: 128 chunks.
        for number in range(12):
            other, chain = make_keys(SPACE, 10, salt=f"more {number}")
            store(client, SPACE, other, chain, b"x")
            assert client.match(SPACE, other, chain, hint=pinned).count == 10
        stats = client.stats()
        assert stats["pinned_bytes"] == 1 << 20
        assert stats["pins_refused"] == 10 + 12 * 10 - 128
        # It does not end sooner because somebody else wants it for less long.
        assert client.match(SPACE, root, keys, hint=Hint(pin_seconds=0.001)).count == 10
        crowd("second")
        assert client.match(SPACE, root, keys).count == 10
        assert client.unpin(SPACE, root, keys) == 10
        crowd("third")
        assert client.match(SPACE, root, keys).count == 0
