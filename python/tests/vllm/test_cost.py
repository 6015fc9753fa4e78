"""What loads and computing take is learnt, and the quicker of the two is taken. Virtual time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from kvasir.vllm import cost
from kvasir.vllm.cost import (
    FIRST_PROBE_S,
    LAST_PROBE_S,
    LEARNT,
    PROBE_CHUNKS,
    STALE_S,
    CostModel,
    Decision,
    Offer,
    StepMeter,
    StepWork,
)

MEMORY, DISK = 1, 2
CHUNK_TOKENS = 256
CHUNK_BYTES = 4 << 20
SLOWER = "disk is slower than computing"
TRIED = "disk is tried again on a part"


def work(*requests: str, tokens: int = 0, position: float = 0.0, decodes: int = 0) -> StepWork:
    return StepWork(frozenset(requests), tokens, position, decodes)


def offer(memory: int = 0, disk: int = 0, *, start: int = 0, ahead: int = 0) -> Offer:
    tiers = bytes([MEMORY] * memory + [DISK] * disk)
    return Offer(tiers, start, 0, CHUNK_TOKENS, CHUNK_BYTES, {DISK: ahead} if ahead else {})


class World:
    """An engine and tiers with known speeds, and the model that learns them."""

    def __init__(self, tokens_per_s: float = 10_000.0) -> None:
        self.model = CostModel()
        self.now = 1000.0
        self.tokens_per_s = tokens_per_s
        self.fixed = {MEMORY: 0.001, DISK: 0.01}
        self.bytes_per_s = {MEMORY: 10e9, DISK: 2e9}
        self.serial = 0

    def prefill(self, tokens: int = 4096, *, position: float = 0.0, factor: float = 1.0) -> None:
        """One request's prompt in one step, then a step in which it decodes, then nothing."""
        self.serial += 1
        name = f"r{self.serial}"
        self.model.step(
            self.now, work(name, tokens=tokens, position=position or tokens / 2), running=False
        )
        self.now += factor * tokens / self.tokens_per_s
        self.model.step(self.now, work(name, decodes=1), running=False)
        self.now += 7.0  # The engine idles.

    def takes(self, tier: int, size: float) -> float:
        return self.fixed[tier] + size / self.bytes_per_s[tier]

    def load(self, sizes: Mapping[int, int]) -> None:
        """A load ends."""
        total = sum(sizes.values())
        self.now += 0.1
        self.model.copied(self.now, total, self.takes(MEMORY, total))
        for tier, size in sizes.items():
            if tier != MEMORY:
                self.model.arrived(self.now, tier, size, self.takes(tier, size), waited=True)

    def learn(self) -> None:
        for size in (4, 16, 32, 64, 8):
            self.prefill()
            self.load({DISK: size * CHUNK_BYTES})

    def decide(self, match: Offer) -> Decision:
        return self.model.decide(self.now, match)


class TestSteps:
    def measured(self, *plans: tuple[float, StepWork, bool]) -> list[tuple[int, float] | None]:
        meter = StepMeter()
        found = [meter.plan(at, step, running=running) for at, step, running in plans]
        return [None if one is None else (one[0].tokens, pytest.approx(one[1])) for one in found]

    def test_a_step_took_until_the_next_goes_on_with_its_request(self) -> None:
        assert self.measured(
            (10.0, work("a", tokens=512), False),
            (10.5, work("a", tokens=100), False),
            (10.7, work("a", decodes=1), False),
        ) == [None, (512, 0.5), (100, 0.2)]

    def test_a_gap_counts_for_nothing(self) -> None:
        assert self.measured(
            (10.0, work("a", tokens=512), False),
            (99.0, work("b", tokens=100), False),
            (99.1, work(), False),
            (99.2, work("b", decodes=1), False),
        ) == [None, None, None, None]

    def test_of_overlapping_steps_each_took_from_plan_to_plan(self) -> None:
        # Planned ahead: the first two at once, then one whenever one has ended.
        assert self.measured(
            (10.00, work("a", tokens=1), False),
            (10.01, work("a", tokens=2), True),
            (10.50, work("a", tokens=3), True),
            (10.80, work("a", tokens=4), True),
            # Both that were under way have ended: what each took can't be told.
            (20.00, work("a", tokens=5), False),
            (20.30, work("a", tokens=6), False),
        ) == [None, None, (1, 0.49), (2, 0.3), None, (5, 0.3)]


class TestPrefillRate:
    def test_it_is_learnt_from_a_few_steps(self) -> None:
        world = World(tokens_per_s=8000)
        for _ in range(LEARNT):
            assert world.model.compute_seconds(0, 8000) is None
            world.prefill()
        assert world.model.compute_seconds(0, 8000) == pytest.approx(1.0)

    def test_a_warm_up_does_not_count(self) -> None:
        world = World()
        world.prefill(factor=200)
        for _ in range(3):
            world.prefill()
        assert world.model.compute_seconds(0, 10_000) == pytest.approx(1.0)

    def test_a_lasting_change_is_followed(self) -> None:
        world = World()
        for _ in range(30):
            world.prefill()
        world.tokens_per_s /= 4
        for _ in range(10):
            world.prefill()
        assert world.model.compute_seconds(0, 10_000) == pytest.approx(4.0)

    def test_decoding_teaches_nothing_about_it_and_is_taken_off(self) -> None:
        world, model = World(), CostModel()
        now = 0.0
        model.step(now, work("a", decodes=1), running=False)
        for _ in range(20):
            now += 0.05
            model.step(now, work("a", decodes=1), running=False)
        assert model.compute_seconds(0, 1000) is None
        for number in range(4):
            # Each step decodes too, which takes 0.05 s.
            step = work("a", f"p{number}", tokens=1000, position=500, decodes=1)
            now += 0.05
            model.step(now, step, running=False)
            now += 0.15
            model.step(now, work("a", decodes=1), running=False)
        assert model.compute_seconds(0, 10_000) == pytest.approx(1.0, rel=0.01)
        assert world.model.compute_seconds(0, 1) is None

    def test_tails_of_a_few_tokens_do_not_set_the_rate(self) -> None:
        world = World()
        for _ in range(5):
            world.prefill()
            for _ in range(2):
                # What is left after a hit: few tokens, and the same overhead.
                world.prefill(150, position=2500, factor=20)
            world.prefill(100, factor=1000)
        assert world.model.compute_seconds(0, 10_000) == pytest.approx(1.0)

    def test_a_step_for_the_last_token_is_needed_anyway(self) -> None:
        model, now = CostModel(), 0.0
        for number in range(5):
            # 0.1 s for any step, and 0.1 s for each thousand tokens.
            model.step(now, work(f"r{number}", tokens=1000, position=500), running=False)
            now += 0.2
            model.step(now, work(f"r{number}", decodes=1), running=False)
            now += 0.1
            model.step(now, work(f"r{number}", decodes=1), running=False)
            now += 5.0
        # The first of them was seen before any decoding was.
        assert model.compute_seconds(0, 1000) == pytest.approx(0.1)

    def test_long_contexts_are_slower(self) -> None:
        world = World()
        for _ in range(5):
            world.prefill(1024)
            world.prefill(1024, position=12_000, factor=4)
        near = world.model.compute_seconds(0, 1000)
        far = world.model.compute_seconds(12_000, 13_000)
        assert (near, far) == (pytest.approx(0.1), pytest.approx(0.4))
        # In between, and beyond: as the nearest that is known.
        assert world.model.compute_seconds(0, 16_384) == pytest.approx(0.4096 + 4 * 1.2288)
        assert world.model.compute_seconds(50_000, 51_000) == pytest.approx(0.4)


class TestTiers:
    def test_fixed_cost_and_bandwidth_are_told_apart(self) -> None:
        world = World()
        world.fixed[DISK] = 0.05
        for size in (1, 2, 4, 8, 16, 32):
            world.load({DISK: size << 20})
        for size in (1 << 20, 500 << 20):
            expected = world.takes(DISK, size) + world.takes(MEMORY, size)
            assert world.model.load_seconds({DISK: size}) == pytest.approx(expected, rel=0.05)

    def test_single_outliers_change_nothing(self) -> None:
        world, rng = World(), random.Random(3)
        for number in range(40):
            size = rng.choice([1, 4, 16, 64]) << 20
            world.load({MEMORY: size})
            if number % 5 == 4:
                world.model.copied(world.now, size, 3.0)
        expected = world.takes(MEMORY, 32 << 20)
        assert world.model.load_seconds({MEMORY: 32 << 20}) == pytest.approx(expected, rel=0.1)

    def test_loads_of_one_size_are_scaled(self) -> None:
        world = World()
        for _ in range(5):
            world.load({MEMORY: 10 << 20})
        expected = 2 * world.takes(MEMORY, 10 << 20)
        assert world.model.load_seconds({MEMORY: 20 << 20}) == pytest.approx(expected)

    def test_nothing_is_known_before_the_third(self) -> None:
        world = World()
        for _ in range(LEARNT):
            assert world.model.load_seconds({MEMORY: 1}) is None
            world.load({MEMORY: 10 << 20})
        assert world.model.load_seconds({MEMORY: 1}) is not None
        assert world.model.load_seconds({MEMORY: 1, DISK: 1}) is None

    def test_what_was_there_in_time_is_a_bound(self) -> None:
        world = World()
        for _ in range(5):
            # Before anything is known a bound says nothing.
            world.model.arrived(world.now, DISK, 10 << 20, 90.0, waited=False)
        world.model.copied(world.now, 1, 1e-9)
        world.load({MEMORY: 1 << 20})
        world.load({MEMORY: 1 << 20})
        assert world.model.load_seconds({DISK: 10 << 20}) is None
        for _ in range(4):
            world.load({DISK: 10 << 20})
        before = world.model.load_seconds({DISK: 10 << 20})
        world.model.arrived(world.now, DISK, 10 << 20, 90.0, waited=False)
        assert world.model.load_seconds({DISK: 10 << 20}) == before
        for _ in range(9):
            world.model.arrived(world.now, DISK, 10 << 20, 0.0001, waited=False)
        after = world.model.load_seconds({DISK: 10 << 20})
        assert before is not None
        assert after is not None
        assert after < before / 2


class TestDecisions:
    def test_everything_is_taken_until_something_is_known(self) -> None:
        world = World()
        world.bytes_per_s[DISK] = 1e6
        assert world.decide(offer(3, 5)) == Decision(8)
        for _ in range(5):
            world.prefill()
        assert world.decide(offer(3, 5)) == Decision(8)

    def test_quick_loads_are_taken(self) -> None:
        world = World()
        world.learn()
        for match in (offer(8), offer(0, 8), offer(8, 8), offer(1), offer(0, 1)):
            assert world.decide(match) == Decision(len(match.tiers))

    def test_a_slow_disk_is_left_out_and_memory_is_not(self) -> None:
        world = World()
        world.bytes_per_s[DISK] = 50e6  # A chunk: 84 ms, computing it: 26 ms.
        world.learn()
        assert world.decide(offer(8, 8)) == Decision(8, "disk is slower than computing")
        assert world.decide(offer(0, 8)) == Decision(0, "disk is slower than computing")
        assert world.decide(offer(8)) == Decision(8)

    def test_a_load_shorter_than_its_fixed_cost_is_worth_is_left_out(self) -> None:
        world = World()
        world.fixed[DISK] = 0.2
        world.learn()
        assert world.decide(offer(0, 2)).chunks == 0
        assert world.decide(offer(0, 64)).chunks == 64

    def test_tokens_that_the_engine_has_are_not_worth_loading(self) -> None:
        world = World()
        world.fixed[DISK] = 0.1
        world.learn()
        assert world.decide(offer(0, 10)).chunks == 10
        # All but the last chunk's are there: 26 ms of computing.
        late = Offer(bytes([DISK]), 9 * 256, 9 * 256, CHUNK_TOKENS, CHUNK_BYTES, {})
        assert world.decide(late).chunks == 0

    def test_loads_under_way_come_first(self) -> None:
        world = World()
        world.learn()
        assert world.decide(offer(0, 8)).chunks == 8
        # Computing takes 0.2 s. Of what is ahead the disk brings 2 GB/s, and memory 10.
        assert world.decide(offer(8, 0, ahead=700 << 20)).chunks == 8
        assert world.decide(offer(0, 8, ahead=700 << 20)).chunks == 0

    def test_memory_behind_a_slow_disk_pulls_it_along_where_that_pays(self) -> None:
        world = World()
        world.bytes_per_s[DISK] = 50e6
        world.learn()
        one = replace(offer(), tiers=bytes([DISK] * 2 + [MEMORY] * 60))
        assert world.decide(one).chunks == 62
        one = replace(offer(), tiers=bytes([DISK] * 60 + [MEMORY] * 2))
        assert world.decide(one).chunks == 0

    def test_a_choice_is_kept_where_both_are_about_as_good(self) -> None:
        chosen = []
        for was_slow in (False, True):
            world = World()
            world.fixed[DISK] = world.fixed[MEMORY] = 1e-9
            world.bytes_per_s[DISK] = 50e6 if was_slow else 2e9
            world.learn()
            world.decide(offer(0, 8))
            # 4 MiB in 26 ms are 164 MB/s: now it makes no difference.
            world.bytes_per_s[DISK] = 164e6
            world.learn()
            world.learn()
            chosen.append(world.decide(offer(0, 8)).chunks)
        assert chosen == [8, 0]

    def test_a_choice_is_kept_for_matches_of_about_that_size(self) -> None:
        world = World()
        world.fixed[DISK] = 0.2
        world.learn()
        assert world.decide(offer(0, 2)).chunks == 0
        assert world.decide(offer(0, 64)).chunks == 64
        # A little quicker, so that small matches are worth it if nothing else counts.
        world.fixed[DISK], world.fixed[MEMORY] = 0.045, 1e-9
        for _ in range(3):
            world.learn()
        for _ in range(3):
            assert world.decide(offer(0, 64)).chunks == 64
            assert world.decide(offer(0, 2)) == Decision(0, SLOWER)

    def test_what_is_learnt_is_computed_once_for_a_decision(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        original = cost._weighted_median

        def spy(samples: Iterable[tuple[float, float]]) -> float:
            calls.append(1)
            return original(samples)

        world = World()
        world.learn()
        monkeypatch.setattr(cost, "_weighted_median", spy)
        world.decide(replace(offer(), tiers=bytes([DISK, MEMORY]) * 30))
        assert len(calls) == 1

    def test_a_long_match_of_changing_tiers_takes_no_time(self) -> None:
        world = World()
        world.learn()
        one = replace(offer(), tiers=bytes([DISK, MEMORY]) * 30_000)
        assert world.decide(one).chunks == 60_000


class TestHealing:
    @pytest.fixture
    def slow(self) -> World:
        world = World()
        world.bytes_per_s[DISK] = 50e6
        world.learn()
        assert world.decide(offer(0, 32)).chunks == 0
        return world

    def test_a_slow_tier_is_tried_again_on_a_few_chunks(self, slow: World) -> None:
        slow.now += FIRST_PROBE_S
        assert slow.decide(offer(4, 32)) == Decision(4 + PROBE_CHUNKS, TRIED, probe=True)
        # Once, whatever else is asked meanwhile.
        assert slow.decide(offer(4, 32)) == Decision(4, SLOWER)

    def test_one_that_stays_slow_is_tried_ever_more_rarely(self, slow: World) -> None:
        tries = []
        begin = slow.now
        while slow.now < begin + 3600:
            if slow.decide(offer(0, 32)).probe:
                tries.append(slow.now)
                slow.load({DISK: PROBE_CHUNKS * CHUNK_BYTES})
            slow.now += 1.0
        gaps = [later - one for one, later in itertools.pairwise(tries)]
        assert gaps == sorted(gaps)
        assert gaps[-1] == pytest.approx(LAST_PROBE_S, rel=0.01)
        assert 5 < len(tries) < 15

    def test_one_that_got_quick_is_used_again_after_two_tries(self, slow: World) -> None:
        slow.bytes_per_s[DISK] = 5e9
        slow.now += FIRST_PROBE_S
        for chunks in (PROBE_CHUNKS, 2 * PROBE_CHUNKS):
            assert slow.decide(offer(0, 32)) == Decision(chunks, TRIED, probe=True)
            # Until it is known what came of it there is no other.
            assert slow.decide(offer(0, 32)) == Decision(0, SLOWER)
            slow.load({DISK: chunks * CHUNK_BYTES})
        assert slow.decide(offer(0, 32)) == Decision(32)

    @pytest.mark.parametrize("was", [50e6, 300e6, 1.2e9, None])
    def test_a_fixed_cost_does_not_keep_a_quick_tier_left_out(self, was: float | None) -> None:
        """All of it takes 0.28 s from disk, and 0.66 s to compute."""
        world = World(tokens_per_s=50_000)
        match = replace(offer(0, 128), chunk_bytes=8 << 20)
        for _ in range(LEARNT):
            world.prefill()
        # Slow once, or known from small loads only, most of whose time is the fixed cost.
        world.fixed[DISK] = 0.08 if was is None else 0.01
        world.bytes_per_s[DISK] = was or 6e9
        for _ in range(9):
            world.load({DISK: (8 if was is None else 128) * match.chunk_bytes})
        assert world.decide(match) == Decision(0, SLOWER)
        world.fixed[DISK], world.bytes_per_s[DISK] = 0.08, 6e9
        begin = world.now
        while (decision := world.decide(match)) != Decision(128):
            if decision.chunks:
                world.load({DISK: decision.chunks * match.chunk_bytes})
            world.now += 1.0
            assert world.now < begin + 1200
        for _ in range(20):
            world.load({DISK: 128 * match.chunk_bytes})
            assert world.decide(match) == Decision(128)

    def test_a_try_of_which_nothing_is_heard_is_not_followed_by_a_larger_one(
        self, slow: World
    ) -> None:
        for _ in range(3):
            slow.now += LAST_PROBE_S
            assert slow.decide(offer(0, 32)) == Decision(PROBE_CHUNKS, TRIED, probe=True)

    def test_one_quick_try_may_be_an_outlier(self, slow: World) -> None:
        slow.now += FIRST_PROBE_S
        assert slow.decide(offer(0, 32)).probe
        slow.model.arrived(slow.now, DISK, PROBE_CHUNKS * CHUNK_BYTES, 0.001, waited=True)
        slow.model.copied(slow.now, PROBE_CHUNKS * CHUNK_BYTES, 0.001)
        assert slow.decide(offer(0, 32)).probe
        slow.load({DISK: 2 * PROBE_CHUNKS * CHUNK_BYTES})
        assert slow.decide(offer(0, 32)) == Decision(0, SLOWER)

    def test_after_it_was_of_use_it_is_tried_as_soon_again(self, slow: World) -> None:
        for _ in range(4):
            slow.now += LAST_PROBE_S
            assert slow.decide(offer(0, 32)).probe
            slow.load({DISK: PROBE_CHUNKS * CHUNK_BYTES})
        slow.bytes_per_s[DISK] = 5e9
        slow.now += LAST_PROBE_S
        for chunks in (PROBE_CHUNKS, 2 * PROBE_CHUNKS):
            assert slow.decide(offer(0, 32)).chunks == chunks
            slow.load({DISK: chunks * CHUNK_BYTES})
        assert slow.decide(offer(0, 32)) == Decision(32)
        slow.bytes_per_s[DISK] = 50e6
        for _ in range(4):
            slow.load({DISK: 32 * CHUNK_BYTES})
        assert slow.decide(offer(0, 32)).chunks == 0
        slow.now += FIRST_PROBE_S
        assert slow.decide(offer(0, 32)).probe

    def test_one_that_got_slow_is_left_within_a_few_loads(self) -> None:
        world = World()
        world.learn()
        world.bytes_per_s[DISK] = 10e6
        loads = 0
        while world.decide(offer(0, 32)).chunks:
            world.load({DISK: 32 * CHUNK_BYTES})
            loads += 1
            assert loads <= 6
        world.now += STALE_S

    def test_old_samples_give_way_to_two_new_ones_that_agree(self) -> None:
        world = World()
        world.learn()
        world.bytes_per_s[DISK] = 10e6
        world.now += STALE_S + 1
        world.load({DISK: 32 * CHUNK_BYTES})
        assert world.decide(offer(0, 32)).chunks == 32
        world.load({DISK: 16 * CHUNK_BYTES})
        assert world.decide(offer(0, 32)).chunks == 0

    def test_one_outlier_after_a_while_changes_nothing(self) -> None:
        world = World()
        world.learn()
        before = world.model.load_seconds({DISK: 32 * CHUNK_BYTES})
        for _ in range(5):
            world.now += STALE_S + 1
            world.model.arrived(world.now, DISK, 32 * CHUNK_BYTES, 20.0, waited=True)
            assert world.model.load_seconds({DISK: 32 * CHUNK_BYTES}) == before
            world.load({DISK: 32 * CHUNK_BYTES})
            assert world.decide(offer(0, 32)).chunks == 32

    def test_samples_that_contradict_each_other_count_like_all_others(self) -> None:
        world = World()
        world.learn()
        world.now += STALE_S + 1
        before = world.model.load_seconds({DISK: 32 * CHUNK_BYTES})
        for seconds in (20.0, 1.0, 9.0):
            assert world.model.load_seconds({DISK: 32 * CHUNK_BYTES}) == before
            world.model.arrived(world.now, DISK, 32 * CHUNK_BYTES, seconds, waited=True)
        assert world.model.load_seconds({DISK: 32 * CHUNK_BYTES}) != before

    def test_a_wrong_rate_heals_because_what_is_left_out_is_computed(self) -> None:
        world = World(tokens_per_s=1e6)
        world.learn()
        assert world.decide(offer(0, 32)).chunks == 0
        world.tokens_per_s = 2000.0
        for _ in range(8):
            world.decide(offer(0, 32))
            world.prefill()
        assert world.decide(offer(0, 32)).chunks == 32
