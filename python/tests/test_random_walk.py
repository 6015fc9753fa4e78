"""Random saves, loads and drops by several clients, against a model that is a dictionary."""

from __future__ import annotations

import random
from typing import Any

import kvasir
from support import chunk_content, make_keys, make_space, store


def check_load(
    client: kvasir.Client, space: kvasir.Space, root: bytes, keys: bytes, saved: list[bytes]
) -> None:
    match = client.match(space, root, keys, hold_ms=60_000, readers=space.shards)
    assert match.count == len(saved)
    if match.hold is None:
        assert not saved
        return
    first = len(saved) // 2
    for shard, length in enumerate(space.shard_bytes):
        with match.hold.acquire(shard, first=first).wait() as lease:
            assert lease.usable == len(lease) == len(saved) - first
            for index in range(len(lease)):
                position = first + index
                expected = chunk_content(saved[position], position, shard, length)
                assert bytes(lease.view(index)) == expected


def test_clients_see_what_the_model_sees(kvasir_server: Any, rng: random.Random) -> None:
    spaces = [make_space((4096,)), make_space((4096, 8192), name="two shards")]
    prompts = [
        (space, *make_keys(space, 12, salt=str(number))) for space in spaces for number in range(3)
    ]
    # What was saved of each prompt, by position: who wrote it says what is in it.
    model: list[list[bytes]] = [[] for _ in prompts]
    clients = [kvasir.Client(kvasir_server.path) for _ in range(3)]
    try:
        for step in range(250):
            client = rng.choice(clients)
            number = rng.randrange(len(prompts))
            space, root, keys = prompts[number]
            saved = model[number]
            action = rng.choice(["save", "save", "load", "load", "drop", "give up", "leave"])
            if action == "save":
                end = rng.randrange(1, 13)
                data = b"step %d" % step
                assert store(client, space, root, keys[: 32 * end], data) == max(
                    0, end - len(saved)
                )
                saved += [data] * (end - len(saved))
            elif action == "load":
                check_load(client, space, root, keys, saved)
            elif action == "drop":
                first = rng.randrange(12)
                dropped = client.drop_keys(space, root, keys[32 * first : 32 * first + 32])
                assert dropped == max(0, len(saved) - first)
                del saved[first:]
            elif action == "give up":
                with client.reserve(space, root, keys) as lease:
                    assert lease.granted == list(range(len(saved), 12))
                    if space.shards > 1 and lease.granted:
                        lease.commit(0)
            else:
                client.close()
                client.connect()
            located = rng.choice(clients).locate(space, root, keys)
            assert located == bytes([1] * len(saved) + [0] * (12 - len(saved))), (step, action)
    finally:
        for client in clients:
            client.close()
