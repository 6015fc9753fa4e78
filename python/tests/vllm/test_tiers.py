"""Chunks that are on disk: fetched ahead, waited for beside each other, and left out where slow."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from connector_double import LOADING, Engine, Request, Shape
from connector_fakes import Chunk, FakeStore

from kvasir.errors import ConnectionLost, ServerError
from kvasir.vllm.config import ConnectorOptions
from kvasir.vllm.cost import FIRST_PROBE_S, PROBE_CHUNKS, CostModel, Decision, StepWork
from kvasir.vllm.metadata import LoadTimes, WorkerReport
from kvasir.vllm.worker import WAITERS
from support import wait_until

PROMPT = random.Random(11).choices(range(900), k=800)
CHUNK = 8


def quick(**more: Any) -> ConnectorOptions:
    values: dict[str, Any] = {
        "chunk_tokens": CHUNK,
        "min_load_tokens": 0,
        "retry_miss_ms": 0,
        "idle_wait_ms": 5,
    }
    return ConnectorOptions(**{**values, **more})


def knowing(chunk_bytes: int, *, disk: float, memory: float = 1e-9) -> CostModel:
    """A model that knows: a chunk is computed in 1 s, and loaded in as many seconds as given."""
    model = CostModel()
    now = time.monotonic() - 1.0
    for number in range(5):
        step = StepWork(frozenset({f"r{number}"}), 800, 400.0, 0)
        model.step(now + 200 * number, step, running=False)
        model.step(now + 200 * number + 100, step, running=False)
        model.copied(now, (number + 1) * chunk_bytes, memory * (number + 1))
        size = (number + 1) * chunk_bytes
        model.arrived(now, 2, size, disk * (number + 1), waited=True)
    return model


@pytest.fixture
def on_disk(make_engine: Any, store: FakeStore) -> FakeStore:
    """A store that has 40 tokens of the prompt, 5 chunks, on disk."""
    make_engine().generate("a", PROMPT[:40])
    store.to_disk()
    store.calls.clear()
    return store


class TestPrefetch:
    def test_what_is_on_disk_is_fetched_right_behind_the_match(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        engine = make_engine()
        assert engine.generate("b", PROMPT[:48]) == 40
        calls = [name for name in on_disk.calls if name != "log_requests"]
        assert calls[:3] == ["match", "prefetch", "acquire"]
        assert on_disk.prefetched == [5]
        data = engine.scheduler.counters.data
        assert (data["prefetches"], data["hit_tokens"], data["hit_tokens_disk"]) == (1, 40, 40)
        assert "skipped_load_tokens" not in data
        loaded = engine.workers[0].side.take_stats()
        assert loaded["loaded_bytes_disk"] == loaded["loaded_bytes"] > 0
        assert on_disk.idle()

    def test_what_is_in_memory_is_not(self, make_engine: Any, store: FakeStore) -> None:
        make_engine().generate("a", PROMPT[:40])
        engine = make_engine()
        assert engine.generate("b", PROMPT[:40]) == 40
        assert store.prefetched == []
        assert engine.scheduler.counters.data["hit_tokens_memory"] == 40

    def test_tokens_are_counted_for_the_tier_of_their_chunk(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        make_engine().generate("a", PROMPT[:40])
        store.to_disk(but_first=2)
        engine = make_engine()
        # Twelve tokens are the engine's own: the load starts inside the second chunk.
        engine.generate("own", [*PROMPT[:12], *range(100, 110)])
        sources = []
        original = engine.scheduler.loaded_from

        def spy(request: Any, tokens: int) -> dict[int, int]:
            sources.append(original(request, tokens))
            return original(request, tokens)

        engine.scheduler.loaded_from = spy
        engine.workers[0].side.take_stats()
        assert engine.generate("b", PROMPT[:40]) == 28
        assert sources == [{1: 4, 2: 24}]
        assert engine.scheduler.counters.data["hit_tokens_disk"] == 24
        loaded = engine.workers[0].side.take_stats()
        assert loaded["loaded_bytes_disk"] == 6 * loaded["loaded_bytes_memory"]

    def test_only_what_memory_has_room_for_is_taken(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        on_disk.room_to_promote = 3
        engine = make_engine()
        assert engine.generate("b", PROMPT[:40]) == 24
        data = engine.scheduler.counters.data
        assert data["skipped_load_tokens"] == 16
        assert data["reasons"] == {"skipped_load_tokens: no memory to bring it to": 16}
        assert data["missed_tokens"] == 0
        assert on_disk.idle()

    def test_with_no_room_at_all_it_is_computed_and_nothing_is_held(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        on_disk.room_to_promote = 0
        engine = make_engine()
        request = engine.add(Request("b", PROMPT[:40], 1))
        engine.step()
        assert not on_disk.holds
        assert request.status != LOADING
        engine.run()
        assert engine.external == {}
        assert engine.scheduler.counters.data["skipped_load_tokens"] == 40

    @pytest.mark.parametrize("error", [ServerError("no", code="ERR"), ConnectionLost("gone")])
    @pytest.mark.parametrize("in_memory", [0, 2])
    def test_a_prefetch_that_fails_costs_only_what_is_on_disk(
        self, make_engine: Any, store: FakeStore, error: Exception, in_memory: int
    ) -> None:
        make_engine().generate("a", PROMPT[:40])
        store.to_disk(but_first=in_memory)
        store.prefetch_fails = [error]
        engine = make_engine()
        assert engine.generate("b", PROMPT[:40]) == in_memory * CHUNK
        assert engine.scheduler.counters.data["skipped_load_tokens"] == (5 - in_memory) * CHUNK
        engine.check_nothing_leaks()
        assert store.idle()

    def test_too_few_tokens_are_not_fetched(self, make_engine: Any, on_disk: FakeStore) -> None:
        engine = make_engine(options=quick(min_load_tokens=41))
        assert engine.generate("b", PROMPT[:40]) == 0
        assert on_disk.prefetched == []
        assert on_disk.idle()
        assert "skipped_load_tokens" not in engine.scheduler.counters.data

    def test_a_daemon_that_is_slow_to_answer_it_keeps_nobody(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        answers = threading.Event()
        original = on_disk.prefetch

        def slow(space: Any, keys: bytes) -> int:
            assert answers.wait(20)
            return original(space, keys)

        on_disk.prefetch = slow
        engine = make_engine(options=quick(match_timeout_ms=20), inline=False)
        engine.add(Request("b", PROMPT[:40], 3))
        for _ in range(5):
            engine.step()
        assert engine.passed_over["b"] == 5
        assert engine.asking_s[0] < 0.2
        assert sorted(engine.asking_s[1:])[1] < 0.02
        answers.set()
        engine.run()
        assert engine.external["b"] == 40
        assert on_disk.idle()

    def test_a_request_that_gave_up_meanwhile_leaves_no_hold(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        answers = threading.Event()
        original = on_disk.prefetch
        on_disk.prefetch = lambda *more: original(*more) if answers.wait(20) else 0
        engine = make_engine(options=quick(match_timeout_ms=5), inline=False)
        request = engine.add(Request("b", PROMPT[:40], 3))
        engine.step()
        engine.abort(request)
        answers.set()
        engine.run()
        engine.check_nothing_leaks()
        assert on_disk.idle()

    def test_what_nobody_wants_any_more_is_not_fetched(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        on_disk.answers.clear()
        engine = make_engine(options=quick(match_timeout_ms=5), inline=False)
        request = engine.add(Request("b", PROMPT[:40], 3))
        engine.step()
        wait_until(lambda: on_disk.calls.get("match"), "it is not asked")
        engine.abort(request)
        on_disk.answers.set()
        engine.run()
        assert on_disk.prefetched == []
        assert on_disk.idle()

    def test_ranks_load_their_parts_and_the_slowest_counts(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        shape = Shape(tensor_ranks=2)
        make_engine(shape).generate("a", PROMPT[:40])
        store.to_disk()
        engine = make_engine(shape)
        assert engine.generate("b", PROMPT[:40]) == 40
        assert store.prefetched == [5]
        assert store.idle()
        one, other = LoadTimes(0.1, 2.0, False), LoadTimes(0.3, 1.0, True)
        report = WorkerReport(load_times={"b": one}).aggregate(
            WorkerReport(load_times={"b": other, "c": one})
        )
        assert report.load_times == {"b": LoadTimes(0.3, 2.0, True), "c": one}
        assert not WorkerReport(load_times={"b": one}).is_empty()


class TestChoice:
    def engine(self, make_engine: Any, *, disk: float, **more: Any) -> Engine:
        model = knowing(make_engine().scheduler.space.chunk_bytes, disk=disk, **more)
        return make_engine(cost=model, options=quick())

    def test_a_slow_disk_is_left_out_and_memory_is_not(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        make_engine().generate("a", PROMPT[:40])
        store.to_disk(but_first=2)
        engine = self.engine(make_engine, disk=30.0)
        assert engine.generate("b", PROMPT[:40]) == 16
        assert store.prefetched == []
        data = engine.scheduler.counters.data
        assert data["skipped_load_tokens"] == 24
        assert data["reasons"] == {"skipped_load_tokens: disk is slower than computing": 24}
        assert "Kvasir hit tokens" in engine.scheduler.counters.summary()
        assert store.idle()

    def test_what_a_trial_leaves_out_is_counted(self, make_engine: Any, store: FakeStore) -> None:
        make_engine().generate("a", PROMPT[:160])
        store.to_disk()
        engine = self.engine(make_engine, disk=30.0)
        engine.scheduler._clock = lambda: time.monotonic() + FIRST_PROBE_S
        assert engine.generate("b", PROMPT[:200]) == PROBE_CHUNKS * CHUNK
        data = engine.scheduler.counters.data
        assert data["skipped_load_tokens"] == 160 - PROBE_CHUNKS * CHUNK
        reason = "skipped_load_tokens: disk is tried again on a part"
        assert data["reasons"] == {reason: 160 - PROBE_CHUNKS * CHUNK}
        assert data["hit_tokens"] + data["missed_tokens"] + data["skipped_load_tokens"] == 200
        assert store.idle()

    def test_a_choice_that_fails_is_a_failed_match_that_holds_nothing(
        self, make_engine: Any, on_disk: FakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(CostModel):
            def decide(self, *more: Any) -> Decision:
                raise ZeroDivisionError("unforeseen")

        engine = make_engine(cost=Broken(), options=quick())
        assert engine.generate("b", PROMPT[:40]) == 0
        data = engine.scheduler.counters.data
        assert data["reasons"] == {"failed_matches: ZeroDivisionError": 1}
        assert data["missed_tokens"] == 40
        assert "a match failed" in caplog.text
        engine.check_nothing_leaks()
        assert on_disk.idle()

    def test_learning_that_fails_costs_no_save(
        self, make_engine: Any, store: FakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(CostModel):
            def step(self, *more: Any, **named: Any) -> None:
                raise ZeroDivisionError("unforeseen")

        engine = make_engine(cost=Broken(), options=quick())
        engine.generate("a", PROMPT[:40], 5)
        assert "failed_saves" not in engine.scheduler.counters.data
        assert caplog.text.count("can't be learnt") == 1
        engine.reset_prefix_cache()
        assert engine.generate("b", PROMPT[:40]) == 40

    def test_saves_that_fail_cost_no_learning(self, make_engine: Any, store: FakeStore) -> None:
        steps = []

        class Spy(CostModel):
            def step(self, *more: Any, **named: Any) -> None:
                steps.append(more)

        engine = make_engine(cost=Spy(), options=quick())

        def fail(*more: Any) -> None:
            raise ZeroDivisionError("unforeseen")

        engine.scheduler._plan_saves = fail
        engine.generate("a", PROMPT[:40], 5)
        assert engine.scheduler.counters.data["failed_saves"] > 3
        assert len(steps) > 3

    def test_a_quick_disk_is_taken(self, make_engine: Any, store: FakeStore) -> None:
        make_engine().generate("a", PROMPT[:40])
        store.to_disk(but_first=2)
        assert self.engine(make_engine, disk=0.01).generate("b", PROMPT[:40]) == 40

    def test_slow_memory_is_left_out_too(self, make_engine: Any, store: FakeStore) -> None:
        make_engine().generate("a", PROMPT[:40])
        engine = self.engine(make_engine, disk=0.01, memory=50.0)
        assert engine.generate("b", PROMPT[:40]) == 0
        assert store.idle()

    def test_tokens_that_the_engine_has_are_not_weighed(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        make_engine().generate("a", PROMPT[:40])
        store.to_disk()
        # A chunk takes 0.7 s instead of 1 s, of which four tokens are half.
        engine = self.engine(make_engine, disk=0.7)
        request = Request("b", PROMPT[:40], 1)
        side = engine.scheduler
        side.on_new_request(request)
        assert side.get_num_new_matched_tokens(request, 36) == (0, False)
        assert side.get_num_new_matched_tokens(request, 16) == (24, True)
        side.request_finished(request, [])
        assert store.idle()

    def test_the_option_takes_everything(self, make_engine: Any, on_disk: FakeStore) -> None:
        engine = self.engine(make_engine, disk=30.0)
        side = engine.scheduler
        side._options = quick(load_if_slower=True)
        assert engine.generate("b", PROMPT[:40]) == 40

    def test_what_is_left_out_is_counted_once_however_often_it_is_asked(
        self, make_engine: Any, on_disk: FakeStore
    ) -> None:
        engine = self.engine(make_engine, disk=30.0)
        request = Request("b", PROMPT[:40], 1)
        side = engine.scheduler
        side.on_new_request(request)
        for _ in range(4):
            assert side.get_num_new_matched_tokens(request, 0) == (0, False)
            assert on_disk.idle()
        for _ in range(2):
            side.update_state_after_alloc(request, [], 0)
            assert side.counters.data["skipped_load_tokens"] == 40
        side.request_finished(request, [])

    def test_an_engine_learns_from_its_steps_and_loads(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        model = CostModel()
        shape = Shape(blocks=512, step_tokens=256)
        engine = make_engine(shape, cost=model, options=quick(load_if_slower=True))
        store.has_arrived = lambda chunk: time.monotonic() > until
        for number in range(5):
            prompt = [number, *PROMPT[: 159 + 40 * number]]
            engine.generate(f"c{number}", prompt, 4)
            engine.settle()
            engine.reset_prefix_cache()
            store.to_disk()
            until = time.monotonic() + 0.05 * (1 + number)
            before = engine.external.get(f"d{number}")
            assert before is None
            engine.generate(f"d{number}", prompt, 2)
            assert engine.external[f"d{number}"] == len(prompt) // CHUNK * CHUNK
        assert model.compute_seconds(0, 200) is not None
        chunks = 20 * engine.scheduler.space.chunk_bytes
        seconds = model.load_seconds({2: chunks})
        assert seconds is not None
        assert 0.03 < seconds < 0.4
        assert engine.scheduler._under_way == {2: 0}

    def test_what_was_ahead_counts_for_the_tier(self, make_engine: Any, store: FakeStore) -> None:
        class Spy(CostModel):
            def arrived(self, now: float, tier: int, size: int, *more: Any, **named: Any) -> None:
                sizes.append((tier, size))

        sizes: list[tuple[int, int]] = []
        engine = make_engine(Shape(blocks=512), cost=Spy(), options=quick(load_if_slower=True))
        for number in range(2):
            engine.generate(f"a{number}", [number, *PROMPT[:39]])
        engine.settle()
        engine.reset_prefix_cache()
        store.to_disk()
        for number in range(2):
            engine.add(Request(f"b{number}", [number, *PROMPT[:39]], 1))
        engine.run()
        own = 5 * engine.scheduler.space.chunk_bytes
        assert sorted(sizes) == [(2, own), (2, 2 * own)]


class TestWaiting:
    def start(self, engine: Engine, store: FakeStore, count: int) -> list[Request]:
        """Saves prompts of their own, puts them on disk and begins to load all of them."""
        prompts = [[number, *PROMPT[:23]] for number in range(count)]
        for number, prompt in enumerate(prompts):
            engine.generate(f"save{number}", prompt)
        engine.settle()
        engine.reset_prefix_cache()
        store.to_disk()
        return [engine.add(Request(f"r{n}", prompt, 1)) for n, prompt in enumerate(prompts)]

    @pytest.mark.parametrize("stuck", [1, WAITERS - 1, WAITERS + 3])
    def test_loads_that_wait_keep_no_other_waiting(
        self, make_engine: Any, store: FakeStore, stuck: int
    ) -> None:
        engine = make_engine(Shape(blocks=512))
        keys: set[bytes] = set()
        begun = time.monotonic()
        # All of them wait, the stuck ones in front; the others' chunks are there a little later.
        store.has_arrived = lambda chunk: chunk.key not in keys and time.monotonic() > begun + 0.3
        requests = self.start(engine, store, stuck + 4)
        for request in requests[:stuck]:
            state = engine.scheduler._state(request)
            chain = engine.scheduler._keys(state, engine.scheduler.space)
            chain.extend()
            keys.add(chain.key(0))
        last = [request.request_id for request in requests[stuck:]]
        begun = time.monotonic()
        for _ in range(3):
            engine.step()
        assert all(request.status == LOADING for request in requests)
        while not all(name in engine.outputs for name in last):
            engine.step()
            assert time.monotonic() - begun < 5, "those behind wait for those before"
        assert all(request.status == LOADING for request in requests[:stuck])
        keys.clear()
        engine.run()
        assert all(engine.external[f"r{n}"] == 24 for n in range(stuck + 4))
        assert len(engine.workers[0].side._waiters) <= WAITERS
        engine.check_nothing_leaks()
        assert store.idle()

    def test_steps_go_on_while_loads_wait(self, make_engine: Any, store: FakeStore) -> None:
        engine = make_engine(Shape(blocks=512))
        arrived = threading.Event()
        store.has_arrived = lambda chunk: arrived.is_set()
        self.start(engine, store, 3)
        busy = engine.add(Request("busy", [5] * 30, 40))
        begun = time.monotonic()
        while "busy" not in engine.outputs:
            engine.step()
        assert time.monotonic() - begun < 3
        assert busy.num_tokens == 70
        assert not {"r0", "r1", "r2"} & set(engine.outputs)
        arrived.set()
        engine.run()
        assert engine.external["r2"] == 24

    def test_what_never_arrives_is_computed_after_the_time_out(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        engine = make_engine(Shape(blocks=512), options=quick(load_timeout_ms=150))
        store.has_arrived = lambda chunk: False
        begun = time.monotonic()
        self.start(engine, store, WAITERS + 2)
        engine.run()
        assert 0.15 < time.monotonic() - begun < 5
        reasons = engine.workers[0].side.take_stats()["reasons"]
        assert reasons == {"failed_loads: its chunks did not reach memory in time": WAITERS + 2}
        engine.check_nothing_leaks()
        assert store.idle()

    def test_an_end_while_loads_wait(self, make_engine: Any, store: FakeStore) -> None:
        engine = make_engine(Shape(blocks=512))
        store.has_arrived = lambda chunk: False
        self.start(engine, store, WAITERS + 2)
        engine.step()
        wait_until(lambda: store.calls.get("wait", 0) > 3, "nothing waits")
        begun = time.monotonic()
        engine.close()
        assert time.monotonic() - begun < 4

    def test_chunks_that_can_not_be_brought_are_computed(
        self, make_engine: Any, store: FakeStore
    ) -> None:
        engine = make_engine()
        engine.generate("a", PROMPT[:40])
        engine.reset_prefix_cache()
        store.to_disk()
        original = store.prefetch

        def forgets(space: Any, keys: bytes) -> int:
            # They were on their way, and were given up again before they were acquired.
            count = original(space, keys)
            chunks: list[Chunk] = list(store.chunks.values())
            for chunk in chunks:
                chunk.moving = False
            store.room_to_promote = 2
            return count

        store.prefetch = forgets
        engine.generate("b", PROMPT[:40])
        reasons = engine.workers[0].side.take_stats()["reasons"]
        assert reasons == {"failed_loads: chunks were gone": 1}
        engine.check_nothing_leaks()
        assert store.idle()
