"""A daemon that takes its time: nobody waits for it beyond the bounds, and nothing is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from connector_double import Engine, Request, Shape
from connector_fakes import FakeStore

import kvasir
from fake_server import FakeServer
from kvasir.errors import ConnectionLost
from kvasir.vllm.config import ConnectorOptions
from support import wait_until

PROMPT = random.Random(5).choices(range(900), k=800)
SLACK_S = 0.1
"""What a busy machine may add to a bound."""


def quick(**more: Any) -> ConnectorOptions:
    values: dict[str, Any] = {
        "chunk_tokens": 8,
        "min_load_tokens": 0,
        "retry_miss_ms": 0,
        "idle_wait_ms": 5,
        "match_timeout_ms": 20,
        "match_patience_ms": 5000,
    }
    return ConnectorOptions(**{**values, **more})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


class TestMatches:
    """Against the store in memory, which answers when the test lets it."""

    @pytest.fixture
    def engine(self, make_engine: Any, store: FakeStore) -> Iterator[Callable[..., Engine]]:
        make_engine(Shape(blocks=256)).generate("a", PROMPT[:400])
        store.calls.clear()

        def make(**more: Any) -> Engine:
            options = quick(**more)
            return make_engine(Shape(blocks=256), options=options, inline=False)

        yield make
        store.answers.set()

    def test_an_answer_that_comes_later_is_picked_up(
        self, engine: Any, store: FakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = engine()
        store.answers.clear()
        request = one.add(Request("b", PROMPT[:400], 3))
        for _ in range(6):
            one.step()
        assert one.passed_over["b"] == 6
        assert not request.blocks
        store.answers.set()
        one.run()
        assert one.external["b"] == 400
        assert store.calls["match"] == 1, "it is asked once"
        assert "reasons" not in one.scheduler.counters.data
        assert warnings(caplog) == []
        one.check_nothing_leaks()
        assert store.idle()

    def test_others_go_on_meanwhile(self, engine: Any, store: FakeStore) -> None:
        one = engine()
        one.add(Request("busy", [5] * 30, 40))
        one.step()
        store.answers.clear()
        one.add(Request("b", PROMPT[:400], 3))
        for _ in range(25):
            one.step()
        assert one.requests["busy"].num_tokens >= 50
        store.answers.set()
        one.run()
        assert one.external["b"] == 400

    def test_the_matches_of_a_step_together_keep_the_scheduler_no_longer_than_the_bound(
        self, engine: Any, store: FakeStore
    ) -> None:
        one = engine(match_timeout_ms=30)
        store.answers.clear()
        for i in range(12):
            one.add(Request(f"b{i}", PROMPT[: 200 + 8 * i], 1))
        for _ in range(5):
            one.step()
        assert 0.02 < one.asking_s[0] < 0.030 + SLACK_S
        assert sorted(one.asking_s[1:])[2] < 0.02, "asked again, nobody waits"
        store.answers.set()
        one.run()
        assert one.external["b0"] == 200
        assert len(one.outputs) == 12
        assert "reasons" not in one.scheduler.counters.data
        one.check_nothing_leaks()
        assert store.idle()

    def test_patience_ends_and_a_late_answer_holds_nothing(
        self, engine: Any, store: FakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = engine(match_patience_ms=60)
        store.answers.clear()
        one.add(Request("b", PROMPT[:40], 3))
        begun = time.monotonic()
        while one.has_work():
            one.step()
        assert time.monotonic() - begun > 0.06
        assert one.external == {}
        # The next is not kept waiting at all: the daemon owes an answer already.
        one.add(Request("c", PROMPT[:48], 3))
        while one.has_work():
            one.step()
        assert "c" not in one.passed_over
        assert one.scheduler.counters.data["reasons"] == {"failed_matches: no answer in time": 2}
        assert len(warnings(caplog)) == 1
        assert len(store.holds) == 1
        store.answers.set()
        one.settle()
        assert store.idle()
        one.reset_prefix_cache()
        assert one.generate("d", PROMPT[:40]) == 40

    def test_a_request_that_ends_before_its_answer_leaves_no_hold(
        self, engine: Any, store: FakeStore
    ) -> None:
        one = engine()
        store.answers.clear()
        requests = [one.add(Request(f"b{i}", PROMPT[: 80 + i], 3)) for i in range(4)]
        one.step()
        for request in requests:
            one.abort(request)
        for _ in range(3):
            one.step()
        one.check_nothing_leaks()
        assert store.holds
        store.answers.set()
        one.run()
        assert store.idle()
        assert store.calls["match"] == 1, "what nobody waits for is not asked"

    def test_an_answer_that_arrived_unseen_is_released(self, engine: Any, store: FakeStore) -> None:
        one = engine()
        store.answers.clear()
        request = one.add(Request("b", PROMPT[:80], 3))
        one.step()
        store.answers.set()
        one.settle()
        assert store.holds
        one.abort(request)
        one.run()
        assert store.idle()

    def test_a_request_that_changes_is_asked_for_anew(self, engine: Any, store: FakeStore) -> None:
        one = engine()
        side = one.scheduler
        store.answers.clear()
        request = Request("b", PROMPT[:80], 1)
        side.on_new_request(request)
        assert side.get_num_new_matched_tokens(request, 40) == (None, False)
        # Of its own 40 tokens the engine has lost some: the answer would begin too late.
        assert side.get_num_new_matched_tokens(request, 16) == (None, False)
        # More of its own: the answer will do.
        assert side.get_num_new_matched_tokens(request, 24) == (None, False)
        store.answers.set()
        one.settle()
        assert side.get_num_new_matched_tokens(request, 24) == (56, True)
        one.settle()
        assert len(store.holds) == 1
        assert store.calls["match"] == 2
        side.request_finished(request, [])
        one.settle()
        assert store.idle()

    def test_a_reset_forgets_answers_on_their_way(self, engine: Any, store: FakeStore) -> None:
        one = engine()
        store.answers.clear()
        one.add(Request("b", PROMPT[:80], 1))
        one.step()
        one.scheduler.reset_cache()
        store.answers.set()
        one.run()
        assert "b" not in one.external
        assert store.idle()

    def test_what_holds_too_short_to_be_loaded_does_not_keep_its_request_for_ever(
        self, engine: Any, store: FakeStore
    ) -> None:
        one = engine(hold_ms=100, match_patience_ms=300)
        store.match_takes_s = lambda: 0.07
        begun = time.monotonic()
        one.generate("b", PROMPT[:80])
        assert time.monotonic() - begun < 3
        store.match_takes_s = lambda: 0.0
        one.check_nothing_leaks()
        assert store.idle()

    def test_a_daemon_that_dies_owing_an_answer(
        self, engine: Any, store: FakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = engine()
        store.answers.clear()
        one.add(Request("b", PROMPT[:80], 3))
        one.step()
        store.kill()
        store.answers.set()
        one.run()
        assert len(one.outputs["b"]) == 3
        assert len(warnings(caplog)) == 1
        one.check_nothing_leaks()

    def test_a_release_that_found_no_connection_is_said_later(
        self, engine: Any, store: FakeStore
    ) -> None:
        one = engine()
        client = one.scheduler.links[1].client
        request = Request("b", PROMPT[:80], 1)
        side = one.scheduler
        assert side.get_num_new_matched_tokens(request, 0) == (80, True)
        real = client.release

        def lost(*_: Any, **__: Any) -> bool:
            raise ConnectionLost("gone")

        client.release = lost
        side.request_finished(request, [])
        one.settle()
        assert len(store.holds) == 1
        client.release = real
        one.generate("c", PROMPT[100:140])
        assert store.idle()


class TestRealClients:
    """The client's own behaviour beside it, against a daemon that is made slow."""

    @pytest.fixture
    def engine(self, fake_server: FakeServer) -> Iterator[Callable[..., Engine]]:
        made: list[Engine] = []

        def client(session: str) -> kvasir.Client:
            one = kvasir.Client(
                fake_server.path, session=session, timeout=5.0, reconnect_in_background=True
            )
            wait_until(lambda: one.connected, "no connection")
            return one

        def make(**more: Any) -> Engine:
            more = {"match_timeout_ms": 200, "save_timeout_ms": 900, **more}
            made.append(Engine(Shape(blocks=256), client, options=quick(**more), inline=False))
            for link in made[-1].scheduler.links:
                connection = link.ready(5, dial=True)
                assert connection is not None
                connection.client.open(made[-1].scheduler.space)
            return made[-1]

        yield make
        fake_server.delays.clear()
        for one in made:
            one.close()

    def test_a_slow_match_closes_nothing_and_is_a_hit(
        self, engine: Any, fake_server: FakeServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine().generate("a", PROMPT[:80])
        one = engine(match_timeout_ms=5)
        greetings = len(fake_server.commands("HELLO"))
        fake_server.delays["KV.MATCH"] = 0.2
        assert one.generate("b", PROMPT[:80]) == 80
        assert one.passed_over["b"] > 1
        assert max(one.asking_s) < 0.005 + SLACK_S
        # The worker's two connections of its first step, and no other.
        assert len(fake_server.commands("HELLO")) <= greetings + 2
        assert warnings(caplog) == []
        wait_until(lambda: not fake_server.holds, "a hold is left")

    def test_an_aborted_request_leaves_no_hold(self, engine: Any, fake_server: FakeServer) -> None:
        engine().generate("a", PROMPT[:80])
        one = engine(match_timeout_ms=5)
        fake_server.delays["KV.MATCH"] = 0.1
        request = one.add(Request("b", PROMPT[:80], 1))
        one.step()
        one.abort(request)
        one.run()
        assert len(fake_server.commands("KV.MATCH")) == 2
        wait_until(lambda: not fake_server.holds, "a hold is left")
        assert fake_server.commands("KV.RELEASE")

    def test_a_daemon_that_hangs_costs_one_patience_and_one_warning(
        self, engine: Any, fake_server: FakeServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine().generate("a", PROMPT[:80])
        one = engine(match_timeout_ms=5, match_patience_ms=150)
        fake_server.delays["KV.MATCH"] = 1.5  # Longer than the answer is waited for.
        begun = time.monotonic()
        for i in range(4):
            one.reset_prefix_cache()
            one.add(Request(f"b{i}", PROMPT[: 80 + i], 1))
            while one.has_work():
                one.step()
        assert 0.15 < time.monotonic() - begun < 1
        assert set(one.passed_over) == {"b0"}
        assert one.external == {}
        assert len(warnings(caplog)) == 1
        fake_server.delays.clear()

        def resumed() -> bool:
            one.reset_prefix_cache()
            return bool(one.generate(f"again{time.monotonic()}", PROMPT[:80]))

        wait_until(resumed, "caching did not resume")

    def test_a_reserve_that_is_answered_too_late_is_one_failure_and_is_taken_back(
        self, engine: Any, fake_server: FakeServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        one = engine(save_timeout_ms=20)
        for round_number in range(2):
            one.scheduler._pause_until = 0.0
            fake_server.delays["KV.RESERVE"] = 0.2
            for i in range(3):
                start = 100 * (3 * round_number + i)
                one.add(Request(f"r{round_number}.{i}", PROMPT[start : start + 20], 1))
            one.step()
            one.run()
            fake_server.delays.clear()
            # The answer was lost with the connection; the next connection says so.
            wait_until(
                lambda: not fake_server.writes and one.scheduler.links[0].client.connected,
                "a lease is left",
            )
            wait_until(lambda: one.scheduler.links[0].current() is not None, "not connected")
        reasons = one.scheduler.counters.data["reasons"]
        assert reasons == {"failed_saves: no answer in time": 2}
        assert warnings(caplog) == []
        assert "refused_chunks" not in one.scheduler.counters.data
        one.scheduler._pause_until = 0.0
        one.reset_prefix_cache()
        one.scheduler._options = quick(save_timeout_ms=900)
        one.generate("later", PROMPT[:80])
        one.settle()
        assert sum(chunk.sealed for chunk in fake_server.chunks.values()) == 10


def test_a_match_of_400_keys_keeps_the_scheduler_no_longer_than_the_bound(
    kvasir_server: Any,
) -> None:
    def client(session: str) -> kvasir.Client:
        one = kvasir.Client(kvasir_server.path, session=session, reconnect_in_background=True)
        wait_until(lambda: one.connected, "no connection")
        return one

    shape = Shape(blocks=900, step_tokens=4000)
    options = quick(save_timeout_ms=900)
    prompt = random.Random(7).choices(range(900), k=3200)
    engine = Engine(shape, client, options=options, inline=False)
    try:
        for link in engine.scheduler.links:
            assert link.ready(5, dial=True) is not None
        engine.generate("save", prompt)
        engine.settle()
        side = engine.scheduler
        took = []
        for i in range(50):
            request = Request(f"r{i}", prompt, 1)
            side.on_new_request(request)
            side._waited_s = 0.0
            side._keys(side._state(request), side.space).extend()
            while True:
                begun = time.perf_counter()
                answer, _ = side.get_num_new_matched_tokens(request, 0)
                took.append(time.perf_counter() - begun)
                if answer is not None:
                    break
                time.sleep(0.001)
            assert answer == 3200
            side.request_finished(request, [])
        took.sort()
        print(f"400 keys: {took[25] * 1e6:.0f} µs in the middle, {took[-1] * 1e6:.0f} µs at most")
        assert took[-1] < 0.020 + SLACK_S
    finally:
        engine.close()
