"""A reply that nobody waits for any more locks nothing."""

from __future__ import annotations

import os
import signal

import pytest

import kvasir
from support import make_keys, make_space, store, wait_until
from system.daemon import Daemon

SPACE = make_space((256 << 10,))


@pytest.mark.parametrize("colleague", [True, False], ids=["session lives on", "session ends"])
def test_a_reserve_whose_reply_was_lost_is_taken_back(
    daemon: Daemon, observer: kvasir.Client, colleague: bool
) -> None:
    root, keys = make_keys(SPACE, 20)
    with kvasir.Client(daemon.path, session="engine") as client:
        others = [kvasir.Client(daemon.path, session="engine")] if colleague else []
        try:
            for other in others:
                other.ping()
            client.open(SPACE)
            os.kill(daemon.pid, signal.SIGSTOP)
            try:
                with pytest.raises(kvasir.Timeout):
                    client.reserve(SPACE, root, keys, timeout=0.2)
            finally:
                os.kill(daemon.pid, signal.SIGCONT)
            # The daemon grants it all the same: it can't know that nobody listens.
            wait_until(
                lambda: observer.stats()["chunks_granted"] == 20, "the reserve was carried out"
            )
            assert observer.stats()["used_bytes"] == 20 * (256 << 10)
            wait_until(lambda: _answers(client), "the client is back")
            stats = observer.stats()
            assert stats["write_leases"] == 0
            assert stats["quarantined_bytes"] == 0
            assert stats["used_bytes"] == 0
            assert store(client, SPACE, root, keys) == 20, "and the chunks can be written again"
        finally:
            for other in others:
                other.close()


def _answers(client: kvasir.Client) -> bool:
    try:
        client.ping()
    except kvasir.NotConnected:
        return False
    return True
