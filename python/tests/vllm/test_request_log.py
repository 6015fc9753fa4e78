"""The daemon's request log gets each request of an engine once, and the whole of its prompt."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from connector_double import Request, Shape
from connector_fakes import FakeStore

from kvasir import Hint, KeyChain, root
from kvasir.errors import KvasirError, NotConnected, ServerError
from kvasir.hints import NO_HINT
from kvasir.vllm.matcher import TELLS_MAX
from support import wait_until

PROMPT = random.Random(4).choices(range(900), k=200)


def keys_of(engine: Any, prompt: list[int]) -> bytes:
    space = engine.scheduler.space
    chain = KeyChain(root(space.id), space.chunk_tokens)
    chain.extend(prompt)
    return chain.keys


def test_a_request_is_told_whole_whatever_the_engine_has_itself(
    make_engine: Any, store: FakeStore
) -> None:
    store.logs_requests = True
    engine = make_engine()
    prompts = [PROMPT[:40], PROMPT[:40], PROMPT[:60], PROMPT[:5]]
    for number, prompt in enumerate(prompts):
        engine.generate(f"r{number}", prompt)
    assert store.calls["match"] < len(prompts), "what the engine has itself is not matched"
    assert store.requests == [(keys_of(engine, p), len(p), NO_HINT) for p in prompts]


def test_the_hint_goes_with_it(make_engine: Any, store: FakeStore) -> None:
    store.logs_requests = True
    said = {"kvasir.hint": "pending:2.5", "kvasir.priority": 3}
    make_engine().generate("a", PROMPT[:40], kv_transfer_params=said)
    assert [hint for _, _, hint in store.requests] == [Hint("pending", 2.5, 3)]


def test_misses_that_are_asked_again_and_preemption_count_once(
    make_engine: Any, store: FakeStore
) -> None:
    store.logs_requests = True
    engine = make_engine(Shape(blocks=28, step_tokens=64), local_cache=False)
    for name, start in (("a", 0), ("b", 100)):
        engine.add(Request(name, PROMPT[start : start + 40], 60))
    engine.run()
    assert store.calls["match"] > 2, "nothing was matched again"
    assert sorted(tokens for _, tokens, _ in store.requests) == [40, 40]


def test_ranks_tell_once(make_engine: Any, store: FakeStore) -> None:
    store.logs_requests = True
    make_engine(Shape(tensor_ranks=2, stages=2)).generate("a", PROMPT[:40])
    assert len(store.requests) == 1


def test_a_daemon_without_a_log_is_asked_once(make_engine: Any, store: FakeStore) -> None:
    engine = make_engine()
    for number in range(3):
        engine.generate(f"r{number}", PROMPT[number * 40 : number * 40 + 40])
    assert store.calls["log_requests"] == 1
    assert "log_request" not in store.calls


def test_a_new_daemon_is_asked_anew(make_engine: Any, store: FakeStore) -> None:
    engine = make_engine()
    engine.generate("a", PROMPT[:40])
    store.restart()
    store.logs_requests = True
    engine.generate("b", PROMPT[40:80])
    engine.generate("c", PROMPT[80:120])
    assert store.requests
    store.logs_requests = False
    store.restart()
    engine.generate("d", PROMPT[120:160])
    told = len(store.requests)
    engine.generate("e", PROMPT[160:200])
    assert len(store.requests) == told


@pytest.mark.parametrize(
    "error", [ServerError("unknown command", code="ERR"), NotConnected("away"), KvasirError("lost")]
)
def test_what_goes_wrong_with_it_does_not_matter(
    make_engine: Any, store: FakeStore, error: BaseException
) -> None:
    make_engine().generate("a", PROMPT[:40])
    store.logs_requests = True
    engine = make_engine()
    engine.generate("b", PROMPT[40:80])
    store.request_log_error = error
    assert engine.generate("c", PROMPT[:40]) == 40
    engine.check_nothing_leaks()
    assert store.idle()


def test_an_older_daemon_is_matched_as_ever(make_engine: Any, store: FakeStore) -> None:
    store.request_log_error = ServerError("unknown command", code="ERR")
    make_engine().generate("a", PROMPT[:40])
    assert make_engine().generate("b", PROMPT[:40]) == 40
    assert not store.requests


def test_nobody_waits_for_it(make_engine: Any, store: FakeStore) -> None:
    """With the thread that real engines have."""
    store.logs_requests = True
    engine = make_engine(inline=False)
    release = threading.Event()
    told = threading.Event()
    client = engine.scheduler.links[1].client
    original = client.log_request

    def slow(*arguments: Any, **more: Any) -> bool:
        told.set()
        assert release.wait(20)
        return bool(original(*arguments, **more))

    client.log_request = slow
    engine.add(Request("a", PROMPT[:40], 1))
    wait_until(lambda: engine.step() is None and engine.outputs.get("a"), "it is computed")
    assert told.wait(20)
    assert not store.requests
    release.set()
    engine.run()
    assert len(store.requests) == 1


def test_matches_go_before_what_is_told(
    make_engine: Any, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are planned in one step don't wait for each other's telling."""
    monkeypatch.setattr("kvasir.vllm.matcher.TELL_IDLE_S", 0.5)
    store.logs_requests = True
    engine = make_engine(inline=False)
    client = engine.scheduler.links[1].client
    order: list[str] = []
    for name in ("match", "log_request"):
        original = getattr(client, name)

        def noted(
            *arguments: Any, _name: str = name, _original: Any = original, **more: Any
        ) -> Any:
            order.append(_name)
            return _original(*arguments, **more)

        setattr(client, name, noted)
    for name in "abcd":
        engine.add(Request(name, PROMPT[:40], 1))
    engine.run()
    wait_until(lambda: len(store.requests) == 4, "all are told")
    assert order.index("log_request") >= order.count("match"), order


def test_what_waits_to_be_told_is_bounded(make_engine: Any, store: FakeStore) -> None:
    store.logs_requests = True
    engine = make_engine(inline=False)
    engine.generate("a", PROMPT[:40])
    wait_until(lambda: len(store.requests) == 1, "it is told")
    release = threading.Event()
    client = engine.scheduler.links[1].client
    original = client.log_request

    def slow(*arguments: Any, **more: Any) -> bool:
        assert release.wait(20)
        return bool(original(*arguments, **more))

    client.log_request = slow
    matcher = engine.scheduler._matcher
    space = engine.scheduler.space
    count = 2 * TELLS_MAX
    for tokens in range(count):
        matcher.tell_request(space, root(space.id), b"", tokens, NO_HINT)
    assert len(matcher._tells) <= TELLS_MAX
    release.set()
    wait_until(lambda: not matcher._tells, "the rest is told")
    wait_until(lambda: store.requests[-1][1] == count - 1, "the newest are kept")
    assert len(store.requests) <= TELLS_MAX + 2
