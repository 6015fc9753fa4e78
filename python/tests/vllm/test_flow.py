"""The two walks, and everything that vLLM's scheduler may do to them."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from connector_double import LOADING, Engine, Request, Shape, check_store
from connector_fakes import FakeDevice, FakeStore

from kvasir.errors import Timeout
from kvasir.vllm.config import ConnectorOptions

PROMPT = random.Random(1).choices(range(900), k=400)


def quick(**more: Any) -> ConnectorOptions:
    values: dict[str, Any] = {
        "chunk_tokens": 8,
        "min_load_tokens": 0,
        "retry_miss_ms": 0,
        "idle_wait_ms": 20,
    }
    return ConnectorOptions(**{**values, **more})


def test_a_new_engine_loads_what_another_saved(make_engine: Any, store: FakeStore) -> None:
    first = make_engine()
    assert first.generate("a", PROMPT[:40]) == 0
    assert check_store(first, store) == 5
    second = make_engine()
    assert second.generate("b", PROMPT[:40]) == 40
    assert second.outputs["b"]
    second.check_nothing_leaks()
    assert store.idle()


@pytest.mark.parametrize("length", range(1, 34))
def test_whole_chunks_are_answered_whole_and_else_only_the_tail_is_computed(
    make_engine: Any, length: int
) -> None:
    make_engine().generate("a", PROMPT[:40])
    assert make_engine().generate("b", PROMPT[:length]) == length // 8 * 8


def test_a_load_starts_inside_a_chunk(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    engine = make_engine()
    # The engine has three blocks of its own: one and a half chunks.
    engine.generate("b", [*PROMPT[:12], *range(100, 110)])
    engine.external.clear()
    assert engine.generate("c", PROMPT[:40]) == 28
    assert store.idle()


def test_each_turn_of_a_chat_saves_only_its_new_chunks(make_engine: Any, store: FakeStore) -> None:
    engine = make_engine()
    saved = []
    chat = PROMPT[:24]
    for turn in range(4):
        before = len(store.chunks)
        engine.generate(f"turn{turn}", chat, max_tokens=10)
        saved.append(len(store.chunks) - before)
        chat = engine.history[-1].all_token_ids + [7] * 6
    assert sum(saved) == len(store.chunks)
    assert saved[0] == 4
    assert all(count == 2 for count in saved[1:])
    check_store(engine, store)
    assert engine.scheduler.counters.data.get("failed_saves", 0) == 0


def test_generated_tokens_are_saved_and_the_last_one_is_not(
    make_engine: Any, store: FakeStore
) -> None:
    engine = make_engine()
    engine.generate("a", PROMPT[:10], max_tokens=30)
    # 40 tokens exist, KV of 39: the last one was never an input.
    assert len(store.chunks) == 4
    assert check_store(engine, store) == 4


def test_another_salt_never_hits(make_engine: Any) -> None:
    make_engine().generate("a", PROMPT[:40], cache_salt="one")
    assert make_engine().generate("b", PROMPT[:40], cache_salt="two") == 0
    assert make_engine().generate("c", PROMPT[:40]) == 0
    assert make_engine().generate("d", PROMPT[:40], cache_salt="one") == 40


def test_one_match_is_kept_while_vllm_asks_again(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:80])
    engine = make_engine(Shape(blocks=24))
    engine.add(Request("busy", PROMPT[200:260], 20))
    engine.step()
    waiting = engine.add(Request("waits", PROMPT[:80], 1))
    store.calls.clear()
    for _ in range(8):
        engine.step()
    assert waiting.status != LOADING, "the test needs a request that waits for blocks"
    assert store.calls["match"] == 1
    assert len(store.holds) == 1
    engine.run()
    assert engine.external["waits"] == 80
    assert store.idle()


def test_a_match_is_made_again_before_its_hold_ends(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    now = [0.0]
    engine = make_engine(clock=lambda: now[0], options=quick(hold_ms=1000))
    request = Request("b", PROMPT[:40], 1)
    side = engine.scheduler
    side.on_new_request(request)
    store.calls.clear()
    for seconds, matches in ((0.0, 1), (0.4, 1), (0.6, 2), (1.0, 2), (1.2, 3)):
        now[0] = seconds
        assert side.get_num_new_matched_tokens(request, 0) == (40, True)
        assert store.calls["match"] == matches
        assert len(store.holds) == 1
    side.request_finished(request, [])
    assert store.idle()


def test_a_hold_is_released_when_vllm_takes_nothing(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    engine = make_engine()
    request = Request("b", PROMPT[:40], 1)
    side = engine.scheduler
    side.on_new_request(request)
    assert side.get_num_new_matched_tokens(request, 0) == (40, True)
    assert not store.idle()
    side.update_state_after_alloc(request, [], 0)
    assert store.idle()
    side.request_finished(request, [])


def test_a_growing_local_hit_keeps_the_match(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    engine = make_engine()
    request = Request("b", PROMPT[:40], 1)
    side = engine.scheduler
    side.on_new_request(request)
    store.calls.clear()
    assert side.get_num_new_matched_tokens(request, 12) == (28, True)
    assert side.get_num_new_matched_tokens(request, 20) == (20, True)
    assert store.calls["match"] == 1
    assert side.get_num_new_matched_tokens(request, 4) == (36, True)
    assert store.calls["match"] == 2
    assert side.get_num_new_matched_tokens(request, 40) == (0, False)
    side.request_finished(request, [])
    assert store.idle()


@pytest.mark.parametrize("lost", range(5))
def test_failed_blocks_are_reported_one_by_one(
    make_engine: Any, store: FakeStore, lost: int
) -> None:
    make_engine().generate("a", PROMPT[:40])
    engine = make_engine()
    store.lose_at = lost
    request = engine.add(Request("b", PROMPT[:40], 4))
    computed = []
    original = engine.invalid_blocks

    def spy(invalid: set[int]) -> None:
        original(invalid)
        computed.append(request.num_computed_tokens)

    engine.invalid_blocks = spy
    engine.run()
    assert computed == [lost * 8]
    assert len(engine.outputs["b"]) == 4
    assert engine.scheduler.counters.data["matches"] == 1, "it is not matched again"
    engine.check_nothing_leaks()
    store.lose_at = None
    assert store.idle()


def test_a_lease_that_expired_fails_the_whole_load(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    store.expire_reads = True
    engine = make_engine()
    engine.generate("b", PROMPT[:40], max_tokens=3)
    assert engine.scheduler.counters.data.get("hit_tokens", 0) == 0
    engine.check_nothing_leaks()


def test_a_load_waits_for_a_slow_tier_and_others_pass_it(
    make_engine: Any, store: FakeStore
) -> None:
    make_engine().generate("a", PROMPT[:40])
    store.pending_waits = 3
    engine = make_engine()
    assert engine.generate("b", PROMPT[:40]) == 40
    assert store.idle()


def test_a_load_that_takes_too_long_is_computed(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    store.pending_waits = 1_000_000_000
    engine = make_engine(options=quick(load_timeout_ms=50))
    engine.generate("b", PROMPT[:40])
    data = engine.workers[0].side.take_stats()
    assert data["reasons"] == {"failed_loads: its chunks did not reach memory in time": 1}
    assert store.idle()


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("waits", [0, 10_000])
def test_an_abort_at_any_point_of_a_load_is_reported_once(
    make_engine: Any, store: FakeStore, steps: int, waits: int
) -> None:
    make_engine().generate("a", PROMPT[:80])
    store.pending_waits = waits
    engine = make_engine(options=quick(idle_wait_ms=1))
    request = engine.add(Request("b", PROMPT[:80], 3))
    for _ in range(steps):
        engine.step()
    engine.abort(request)
    engine.run()
    engine.check_nothing_leaks()
    assert store.idle()


def test_a_request_aborted_while_it_loads_is_not_saved(make_engine: Any, store: FakeStore) -> None:
    """Its blocks count as computed already, and hold nothing yet."""
    make_engine().generate("a", PROMPT[:80])
    store.pending_waits = 10_000
    engine = make_engine(options=quick(idle_wait_ms=1))
    request = engine.add(Request("b", PROMPT[:80], 3))
    engine.step()
    assert request.status == LOADING
    assert engine.scheduler.request_finished(request, request.blocks) is False
    assert not engine.scheduler.has_pending_work()
    store.pending_waits = 0


def test_a_preempted_request_loads_what_it_had_generated(
    make_engine: Any, store: FakeStore
) -> None:
    engine = make_engine(Shape(blocks=28, step_tokens=64), local_cache=False)
    engine.add(Request("a", PROMPT[:40], 60))
    engine.add(Request("b", PROMPT[100:140], 60))
    engine.run()
    assert engine.external.get("b", 0) > 40, "the generated tokens count too"
    assert len(engine.outputs["b"]) == 60
    engine.check_nothing_leaks()
    check_store(engine, store)
    assert store.idle()


def test_a_full_store_is_counted_and_left_alone_for_a_while(
    make_engine: Any, store: FakeStore
) -> None:
    now = [0.0]
    engine = make_engine(clock=lambda: now[0])
    store.refuse_saves = "KVFULL everything is held"
    engine.generate("a", PROMPT[:100], max_tokens=30)
    assert store.calls["reserve"] == 1, "not at every step"
    reasons = engine.scheduler.counters.data["reasons"]
    assert reasons == {"refused_chunks: KVFULL": 3}
    store.refuse_saves = ""
    now[0] = 60.0
    engine.generate("b", PROMPT[:100], max_tokens=30)
    assert check_store(engine, store) == 16


def test_a_request_goes_on_saving_after_a_refusal(make_engine: Any, store: FakeStore) -> None:
    now = [0.0]
    engine = make_engine(clock=lambda: now[0])
    store.refuse_saves = "KVFULL everything is held"
    request = engine.add(Request("a", PROMPT[:40], 20))
    engine.step()
    engine.step()
    assert not store.chunks
    store.refuse_saves = ""
    now[0] = 60.0
    engine.run()
    assert request.num_tokens == 60
    assert check_store(engine, store) == 7


def test_evicted_parents_are_saved_again(make_engine: Any, store: FakeStore) -> None:
    engine = make_engine()
    engine.add(Request("a", PROMPT[:40], 40))
    for _ in range(4):
        engine.step()
    engine.settle()
    assert len(store.chunks) == 5
    store.drop_all()
    engine.run()
    assert check_store(engine, store) == 9
    assert store.idle()


@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_only_accepted_tokens_are_saved(
    make_engine: Any, store: FakeStore, drafts: int, asynchronous: bool, seed: int
) -> None:
    engine = make_engine(
        Shape(drafts=drafts, asynchronous_scheduling=asynchronous, blocks=128),
        rng=random.Random(seed),
    )
    for i in range(6):
        engine.add(Request(f"r{i}", PROMPT[i * 20 : i * 20 + 13 + i], 41 + i))
    engine.run()
    engine.check_nothing_leaks()
    assert store.idle()
    # The KV of the last token exists only if it was a draft.
    checked = check_store(engine, store)
    least, most = (sum((54 + 2 * i - less) // 8 for i in range(6)) for less in (1, 0))
    assert checked == least if drafts == 0 else least <= checked <= most


def test_what_a_finished_request_has_left_to_save_delays_its_blocks(
    make_engine: Any, store: FakeStore
) -> None:
    """With drafts, the last step may complete a chunk that no step before could know of."""
    engine = make_engine(Shape(drafts=3))
    engine.rng = SimpleNamespace(randint=lambda low, high: high)  # All drafts are accepted.
    request = engine.add(Request("a", PROMPT[:13], 12))
    delayed = 0
    while engine.has_work():
        engine.step()
        delayed += request.status == 4 and "a" in engine.requests
    engine.settle()
    assert delayed, "the case did not occur"
    assert check_store(engine, store) == 3
    engine.check_nothing_leaks()


def test_a_dead_daemon_costs_misses_and_one_warning(
    make_engine: Any, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    engine.generate("a", PROMPT[:40])
    store.kill()
    caplog.clear()
    for i in range(4):
        engine.generate(f"b{i}", PROMPT[:60], max_tokens=12)
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "can't be used" in warnings[0].getMessage()
    store.start()
    with caplog.at_level("INFO"):
        engine.reset_prefix_cache()
        engine.generate("c", PROMPT[:40])
    assert [r.getMessage() for r in caplog.records].count(
        "Kvasir answers again: caching goes on"
    ) == 1
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    fresh = make_engine()
    assert fresh.generate("d", PROMPT[:40]) == 40


def test_an_engine_without_a_daemon_works_from_the_start(
    make_engine: Any, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.kill()
    engine = make_engine()
    engine.generate("a", PROMPT[:40], max_tokens=5)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    store.start()
    engine.reset_prefix_cache()
    engine.generate("b", PROMPT[:40], max_tokens=5)
    assert check_store(engine, store) == 5


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("revive", [False, True])
def test_a_daemon_killed_between_any_two_steps_never_gives_a_wrong_byte(
    make_engine: Any, store: FakeStore, steps: int, revive: bool
) -> None:
    make_engine().generate("a", PROMPT[:80])
    engine = make_engine(options=quick(idle_wait_ms=0))
    engine.add(Request("b", PROMPT[:80], 10))
    engine.add(Request("c", PROMPT[200:260], 10))
    for _ in range(steps):
        engine.step()
    store.restart() if revive else store.kill()
    engine.run()
    engine.check_nothing_leaks()
    if revive:
        check_store(engine, store)


def test_extents_of_a_dead_daemon_are_not_written_in_the_next(
    make_engine: Any, store: FakeStore
) -> None:
    engine = make_engine()
    engine.generate("warm", PROMPT[100:140])
    engine.add(Request("a", PROMPT[:24], 1))
    step = engine.schedule()
    assert step.metadata.saves, "the test needs a save under way"
    store.restart()
    engine.execute(step)
    engine.update(step)
    engine.run()
    assert not store.arena.bytes.any()
    data = engine.workers[0].side.take_stats()
    assert data["reasons"] == {"failed_saves: the daemon was restarted": 1}


def test_a_worker_that_connects_later_than_the_scheduler_gives_its_lease_back(
    make_engine: Any, store: FakeStore
) -> None:
    engine = make_engine()
    engine.generate("warm", PROMPT[100:140])
    client = engine.workers[0].side._link.client
    engine.add(Request("a", PROMPT[:24], 1))
    step = engine.schedule()
    assert step.metadata.saves, "the test needs a save under way"
    client.closed = True
    engine.execute(step)
    engine.update(step)
    assert store.leases
    client.closed = False
    engine.run()
    engine.generate("b", PROMPT[200:240])
    assert not store.leases
    engine.reset_prefix_cache()
    engine.generate("c", PROMPT[:24])
    engine.reset_prefix_cache()
    assert engine.generate("d", PROMPT[:24]) == 24, "its chunks can be saved"


def test_a_match_that_times_out_is_a_miss(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    engine = make_engine()
    store.match_fails.append(Timeout("no answer in time"))
    assert engine.generate("b", PROMPT[:40]) == 0
    assert engine.scheduler.counters.data["reasons"] == {"outages: Timeout": 1}


def test_reset_cache_never_shares_with_what_was_before(make_engine: Any, store: FakeStore) -> None:
    first, second = make_engine(), make_engine()
    first.generate("a", PROMPT[:40])
    for engine in (first, second):
        assert engine.scheduler.reset_cache() is True
        engine.reset_prefix_cache()
    assert first.generate("b", PROMPT[:40]) == 0
    assert second.generate("c", PROMPT[:40]) == 0, "each was given other weights"
    first.reset_prefix_cache()
    assert first.generate("d", PROMPT[:40]) == 40
    assert store.idle()


def test_requests_that_run_through_a_reset_are_not_saved(
    make_engine: Any, store: FakeStore
) -> None:
    engine = make_engine()
    engine.add(Request("a", PROMPT[:40], 60))
    for _ in range(6):
        engine.step()
    engine.settle()
    before = len(store.chunks)
    engine.scheduler.reset_cache()
    engine.run()
    assert len(store.chunks) == before
    engine.check_nothing_leaks()


def test_a_load_under_way_at_a_reset_is_discarded(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    store.pending_waits = 50
    engine = make_engine(options=quick(idle_wait_ms=1))
    request = engine.add(Request("b", PROMPT[:40], 3))
    engine.step()
    assert request.status == LOADING
    engine.scheduler.reset_cache()
    engine.reset_prefix_cache()
    store.pending_waits = 0
    engine.run()
    assert engine.scheduler.counters.data.get("hit_tokens", 0) == 0
    engine.check_nothing_leaks()
    assert store.idle()


def test_producers_only_save_and_consumers_only_load(make_engine: Any, store: FakeStore) -> None:
    producer = make_engine()
    producer.scheduler._loads_wanted = False
    producer.generate("a", PROMPT[:40])
    assert store.calls.get("match", 0) == 0
    consumer = make_engine()
    consumer.scheduler._saves_wanted = False
    reserved = store.calls["reserve"]
    assert consumer.generate("b", PROMPT[:80]) == 40
    assert store.calls["reserve"] == reserved


def test_requests_of_an_unknown_kind_are_left_alone(make_engine: Any, store: FakeStore) -> None:
    engine = make_engine()
    engine.generate("a", PROMPT[:40], prompt_embeds=object())
    engine.generate("b", PROMPT[:40], resumable=True)
    engine.generate("c", PROMPT[:40], prompt_is_token_ids=[True])
    assert not store.calls.get("match")
    assert not store.calls.get("reserve")
    assert engine.scheduler.counters.data["uncached_requests"] == 3
    engine.check_nothing_leaks()


def test_few_tokens_are_not_worth_a_load(make_engine: Any, store: FakeStore) -> None:
    make_engine().generate("a", PROMPT[:40])
    engine = make_engine(options=quick(min_load_tokens=17))
    assert engine.generate("b", PROMPT[:16]) == 0
    assert engine.generate("c", PROMPT[:40]) > 0
    assert store.idle()


class TestAsynchronousDevice:
    """Copies that go on behind the engine's steps."""

    @pytest.fixture
    def devices(self) -> list[FakeDevice]:
        return []

    @pytest.fixture
    def engine(self, make_engine: Any, devices: list[FakeDevice], seed: int) -> Any:
        def make(shape: Shape | None = None, **more: Any) -> Engine:
            def device(tensors: Any) -> FakeDevice:
                devices.append(FakeDevice(tensors, random.Random(seed)))
                return devices[-1]

            return make_engine(shape, make_device=device, **more)

        return make

    def test_saves_and_loads(self, engine: Any, store: FakeStore) -> None:
        first = engine()
        first.generate("a", PROMPT[:40], max_tokens=9)
        assert check_store(first, store) == 6
        first.check_nothing_leaks()
        assert engine().generate("b", PROMPT[:40]) == 40

    def test_blocks_stay_until_the_copy_is_over(
        self, engine: Any, devices: list[FakeDevice], store: FakeStore
    ) -> None:
        one = engine(options=quick(idle_wait_ms=1))
        devices[0].hold_copies.set()
        request = one.add(Request("a", PROMPT[:40], 1))
        for _ in range(12):
            one.step()
        assert request.status == 4
        assert "a" in one.requests, "its blocks are read still"
        assert one.scheduler.has_pending_work() or one.has_work()
        devices[0].hold_copies.clear()
        one.run()
        one.check_nothing_leaks()
        assert check_store(one, store) == 5

    def test_preemption_waits_for_copies(
        self, engine: Any, devices: list[FakeDevice], store: FakeStore
    ) -> None:
        one = engine(Shape(blocks=24, step_tokens=48), local_cache=False)
        devices[0].hold_copies.set()
        one.add(Request("a", PROMPT[:40], 20))
        one.add(Request("b", PROMPT[100:140], 20))
        for _ in range(30):
            one.step()
            if any(request.status == 3 for request in one.history):
                break
        else:
            pytest.fail("nothing was preempted")
        for _ in range(3):
            one.step()
        devices[0].hold_copies.clear()
        one.run()
        check_store(one, store)
        one.check_nothing_leaks()

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_with_asynchronous_scheduling_and_drafts(
        self, engine: Any, store: FakeStore, asynchronous: bool
    ) -> None:
        one = engine(Shape(drafts=2, asynchronous_scheduling=asynchronous, blocks=128))
        for i in range(5):
            one.add(Request(f"r{i}", PROMPT[i * 10 : i * 10 + 30 + i], 21 + i))
        one.run()
        one.check_nothing_leaks()
        check_store(one, store)
        assert store.idle()
