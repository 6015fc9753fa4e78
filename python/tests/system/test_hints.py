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
        all_of_them = ["HINT", "pending:31536000", "PRIORITY", "-8"]
        client.execute(command, handle, root, keys, *all_of_them)
