"""Whether a load is worth it: what it would take, against what computing would.

Both are learnt from what the engine does anyway: its steps tell how fast it prefills, finished
loads how fast each tier brings bytes. Times are handed in; nothing is measured here and nothing
waits, so tests drive it on virtual time. Where nothing is known yet, loads are taken: that is how
it gets known. A tier that was found too slow is tried again now and then, first on a few chunks,
then on more as long as there is hope, so that a wrong estimate heals by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from kvasir.leases import MEMORY
from kvasir.vllm.stats import tier_name

LEAST_PREFILL = 128
"""A step that prefills fewer tokens says little about the rate."""
PREFILL_SAMPLES = 15
WEIGHTY_TOKENS = 1024
"""A step of more tokens than this counts no more than one of so many."""
FIRST_BUCKET = 2048
"""Prefill slows down with the length of what goes before: positions are kept apart in buckets that
double in size, the first of this many tokens."""
DECODE_SAMPLES = 31

LOAD_SAMPLES = 9
LEARNT = 3
"""So many samples make an estimate."""
APART = 1.25
"""Loads whose sizes differ by less tell nothing about a fixed cost."""
STALE_S = 60.0
"""Samples older than this give way to two new ones that agree."""
MARGIN = 1.25
"""By so much the other choice has to be better before a tier's is changed, and by so much a load
differs that is not as expected."""
SIZES_MAX = 17
"""Choices are kept apart by the power of two of a match's size, so many of them: 65,536 chunks."""
PROBE_CHUNKS = 8
"""The first try of a tier that is left out; one that gives hope is followed by twice as many."""
FIRST_PROBE_S = 30.0
LAST_PROBE_S = 600.0
"""A tier that is left out is tried again after this time, each time after twice as long."""
CUTS_MAX = 64


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes."""

    requests: frozenset[str]
    tokens: int
    """Prefilled tokens."""
    position: float
    """Where in their requests they stand, on average."""
    decodes: int
    """Requests that decode."""


class StepMeter:
    """Tells from the times at which steps are planned how long each took.

    A step's time counts only where the engine can't have been idle in it. With synchronous
    scheduling that is when the next step goes on with one of its requests. With asynchronous
    scheduling a step is planned while the one before runs: then the time since the last plan is
    that of the step before that.
    """

    def __init__(self) -> None:
        self._at = 0.0
        self._previous: StepWork | None = None
        self._older: StepWork | None = None
        self._overlapped = False

    @property
    def previous(self) -> StepWork | None:
        """The step that was planned last."""
        return self._previous

    def plan(self, now: float, step: StepWork, *, running: bool) -> tuple[StepWork, float] | None:
        """A step is planned; `running`: the one before has not ended. What took how long."""
        previous, older, overlapped = self._previous, self._older, self._overlapped
        took = now - self._at
        self._at, self._previous, self._older, self._overlapped = now, step, previous, running
        if previous is None or took <= 0:
            return None
        if running:
            return (older, took) if overlapped and older is not None else None
        if overlapped or not previous.requests & step.requests:
            # Two steps have ended, or there was nothing to do in between.
            return None
        return previous, took


class PrefillRate:
    """How long the engine takes to compute tokens, by where they stand in their request."""

    def __init__(self) -> None:
        self._buckets: dict[int, deque[tuple[float, float]]] = {}
        self._decode_steps: deque[float] = deque(maxlen=DECODE_SAMPLES)

    def add(self, step: StepWork, seconds: float) -> None:
        """A step's time, whatever it did."""
        if not step.tokens:
            if step.decodes:
                self._decode_steps.append(seconds)
            return
        if step.tokens < LEAST_PREFILL:
            return
        if self._decode_steps:
            # One step is needed in any case, if only for the last token; never all of the time.
            seconds = max(seconds / 4, seconds - median(self._decode_steps))
        samples = self._buckets.setdefault(
            _bucket(int(step.position)), deque(maxlen=PREFILL_SAMPLES)
        )
        samples.append((seconds / step.tokens, float(min(step.tokens, WEIGHTY_TOKENS))))

    def learnt(self) -> dict[int, float]:
        """Seconds per token, for each bucket that is known."""
        return {
            bucket: _weighted_median(samples)
            for bucket, samples in self._buckets.items()
            if len(samples) >= LEARNT
        }

    @staticmethod
    def seconds(learnt: Mapping[int, float], first: int, end: int) -> float | None:
        """What the tokens from `first` to `end` of a request take, or None: not known yet."""
        if not learnt:
            return None
        total = 0.0
        while first < end:
            bucket = _bucket(first)
            upto = min(end, FIRST_BUCKET << bucket)
            # Of two that are equally near the earlier, which is the faster: this way loads are
            # rather left out, and what is computed instead tells the truth.
            nearest = min(learnt, key=lambda known: (abs(known - bucket), known))
            total += (upto - first) * learnt[nearest]
            first = upto
        return total


def _bucket(position: int) -> int:
    return (position // FIRST_BUCKET).bit_length()


def _weighted_median(samples: Iterable[tuple[float, float]]) -> float:
    ordered = sorted(samples)
    half = sum(weight for _, weight in ordered) / 2
    for value, weight in ordered:
        half -= weight
        if half <= 0:
            return value
    return ordered[-1][0]


class TierCost:
    """What one tier takes to bring bytes: a fixed time and a time per byte."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=LOAD_SAMPLES)
        self._known = False
        self._fixed = 0.0
        self._per_byte = 0.0
        self._heard_at = float("-inf")
        self._doubts: list[tuple[float, float]] = []
        """Samples in a row that are not as expected, and not believed yet."""
        self._left_out: set[int] = set()
        """Sizes of matches, as powers of two, for which loads were not worth it when last asked."""
        self._probe_s = FIRST_PROBE_S
        self._probed_at = float("-inf")
        self._trying = 0
        """Chunks of a probe of which nothing has been heard yet."""
        self._hopeful = 0
        """Chunks of the last probe, if it gave hope."""
        self._probe_worth = 0.0
        """A probe that takes as long leaves no hope that the whole match takes less."""
        self._eager = False
        """The last probe was quicker than expected: the next one is due."""

    def add(self, now: float, size: float, seconds: float) -> None:
        """A load of `size` bytes took this long."""
        if size <= 0 or seconds <= 0:
            return
        probing, stale = self._trying > 0, now - self._heard_at > STALE_S
        self._heard_at = now
        expected = self.seconds(size)
        if probing:
            self._eager = expected is not None and seconds < expected / MARGIN
            self._hopeful = self._trying if seconds < self._probe_worth else 0
            self._trying = 0
        if expected is None or not (probing or stale or self._doubts):
            self._samples.append((size, seconds))
        else:
            self._add_apart(size, seconds, expected)
        if self._known or len(self._samples) >= LEARNT:
            self._known = True
            self._fixed, self._per_byte = _line(self._samples)

    def _add_apart(self, size: float, seconds: float, expected: float) -> None:
        """A sample that comes long after the others. What is not as expected may be an outlier: it
        is believed once the next agrees, and then the old ones are not."""
        if expected / MARGIN <= seconds <= expected * MARGIN:
            self._doubts.clear()
            self._samples.append((size, seconds))
            return
        self._doubts.append((size, seconds))
        if len(self._doubts) > 1 and _agree(*self._doubts[-2:]):
            self._samples.clear()
            self._samples += self._doubts[-2:]
            self._doubts.clear()
        elif len(self._doubts) >= LEARNT:
            # They contradict each other too: samples like all others, of which the middle counts.
            self._samples += self._doubts
            self._doubts.clear()

    def add_bound(self, now: float, size: float, seconds: float) -> None:
        """A load took no longer than this: of use only where more was expected."""
        expected = self.seconds(size)
        if expected is not None and expected > seconds:
            self.add(now, size, seconds)

    def seconds(self, size: float) -> float | None:
        """What so many bytes take, or None: not known yet."""
        return self._fixed + size * self._per_byte if self._known else None

    def biased(self, size: float, match: int) -> float:
        """The same for a choice: nothing where nothing is known, and in favour of the last one for
        matches of about so many chunks."""
        seconds = self.seconds(size) or 0.0
        return seconds * MARGIN if _power(match) in self._left_out else seconds / MARGIN

    def choose(self, match: int, taken: bool) -> None:
        """Whether loads from here are worth it, for a match of so many chunks."""
        if taken:
            self._left_out.discard(_power(match))
            self._probe_s = FIRST_PROBE_S
            self._hopeful = 0
            self._eager = False
        else:
            self._left_out.add(_power(match))

    def probe(self, now: float, chunks: int, worth: float) -> int:
        """How many of `chunks` to try although it is too slow: 0 unless it is time for that.

        Computing the match instead takes `worth` seconds. A probe that was quicker than expected is
        followed at once, by twice as many chunks; any other after twice the time, by twice as many
        where it took less than the match is worth: what it took may be a fixed cost.
        """
        since = now - max(self._heard_at, self._probed_at)
        if since < self._probe_s and not self._eager:
            return 0
        self._probed_at = now
        self._probe_s = min(2 * self._probe_s, LAST_PROBE_S)
        self._eager = False
        self._probe_worth = worth / MARGIN
        self._trying = min(chunks, max(PROBE_CHUNKS, 2 * self._hopeful))
        return self._trying


def _power(chunks: int) -> int:
    return min(chunks.bit_length(), SIZES_MAX)


def _agree(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the larger of two loads took longer, and not more so than in proportion."""
    (size, seconds), (more, longer) = sorted((one, other))
    return seconds / MARGIN <= longer <= seconds * more / size * MARGIN


def _line(samples: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Fixed seconds and seconds per byte: medians, so that single outliers change nothing."""
    points = sorted(samples)
    slopes = [
        (later[1] - one[1]) / (later[0] - one[0])
        for one, later in combinations(points, 2)
        if later[0] > APART * one[0]
    ]
    through_zero = median(seconds / size for size, seconds in points)
    if len(slopes) < LEARNT:
        return 0.0, through_zero
    slope = median(slopes)
    if slope <= 0:
        return median(seconds for _, seconds in points), 0.0
    fixed = median(seconds - slope * size for size, seconds in points)
    return (fixed, slope) if fixed >= 0 else (0.0, through_zero)


@dataclass(frozen=True, slots=True)
class Offer:
    """A match, as far as its worth depends on it."""

    tiers: bytes
    """Where each chunk is."""
    start: int
    """Token from which on the engine has none of its own, in the first of the chunks."""
    first: int
    """Token at which the first chunk begins."""
    chunk_tokens: int
    chunk_bytes: int
    """Of all shards together."""
    ahead: Mapping[int, int]
    """Bytes of loads under way, by tier."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many leading chunks of a match are taken, and why not all of them."""

    chunks: int
    reason: str = ""
    probe: bool = False


class CostModel:
    """What is learnt, and what follows from it. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meter = StepMeter()
        self._prefill = PrefillRate()
        self._tiers: dict[int, TierCost] = {}

    @property
    def previous_step(self) -> StepWork | None:
        """The step that was planned last."""
        return self._meter.previous

    def step(self, now: float, step: StepWork, *, running: bool) -> None:
        """A step is planned; `running` says that the one before has not ended."""
        measured = self._meter.plan(now, step, running=running)
        if measured is not None:
            with self._lock:
                self._prefill.add(*measured)

    def copied(self, now: float, size: int, seconds: float) -> None:
        """A load's bytes went from memory to the engine's blocks in this time."""
        with self._lock:
            self._tier(MEMORY).add(now, size, seconds)

    def arrived(self, now: float, tier: int, size: int, seconds: float, *, waited: bool) -> None:
        """A tier brought bytes, those of loads ahead included, to memory. Where nobody had to wait
        for them it took `seconds` at most."""
        with self._lock:
            cost = self._tier(tier)
            if waited:
                cost.add(now, size, seconds)
            else:
                cost.add_bound(now, size, seconds)

    def load_seconds(self, tiers: Mapping[int, int]) -> float | None:
        """What loading so many bytes of each tier takes, or None: not known yet."""
        with self._lock:
            parts = [self._tier(MEMORY).seconds(sum(tiers.values()))]
            parts += [self._tier(t).seconds(size) for t, size in tiers.items() if t != MEMORY]
            return None if None in parts else sum(part for part in parts if part is not None)

    def compute_seconds(self, first: int, end: int) -> float | None:
        """What computing these tokens takes, or None: not known yet."""
        with self._lock:
            return self._prefill.seconds(self._prefill.learnt(), first, end)

    def decide(self, now: float, offer: Offer) -> Decision:
        """How much of a match to take: what makes load and computing the rest shortest."""
        count = len(offer.tiers)
        with self._lock:
            cuts = _cuts(offer.tiers)
            learnt = self._prefill.learnt()
            costs = {cut: self._cost(offer, cut, learnt) for cut in cuts}
            known = {cut: cost for cut, cost in costs.items() if cost is not None}
            if len(known) < len(cuts):
                return Decision(count)
            # Where there is nothing to choose, more is better.
            best = min(known, key=lambda cut: (known[cut], -cut))
            for tier in set(offer.tiers[:best]):
                self._tier(tier).choose(count, True)
            if best == count:
                return Decision(count)
            slow = offer.tiers[best]
            self._tier(slow).choose(count, False)
            end = next(cut for cut in cuts if cut > best)
            worth = self._computing(offer, best, learnt) or 0.0
            tried = self._tier(slow).probe(now, end - best, worth)
            if tried:
                reason = f"{tier_name(slow)} is tried again on a part"
                return Decision(best + tried, reason, probe=True)
            return Decision(best, f"{tier_name(slow)} is slower than computing")

    def _tier(self, tier: int) -> TierCost:
        return self._tiers.setdefault(tier, TierCost())

    def _computing(self, offer: Offer, cut: int, learnt: Mapping[int, float]) -> float | None:
        """Seconds for computing all but `cut` chunks. None: not known."""
        end = offer.first + len(offer.tiers) * offer.chunk_tokens
        begin = max(offer.start, offer.first + cut * offer.chunk_tokens)
        return self._prefill.seconds(learnt, begin, end) if begin < end else 0.0

    def _cost(self, offer: Offer, cut: int, learnt: Mapping[int, float]) -> float | None:
        """Seconds for loading `cut` chunks and computing the others. None: not known."""
        computing = self._computing(offer, cut, learnt)
        if computing is None or cut == 0:
            return computing
        count = len(offer.tiers)
        every = cut * offer.chunk_bytes + sum(offer.ahead.values())
        loading = self._tier(MEMORY).biased(every, count)
        for tier in set(offer.tiers[:cut]) - {MEMORY}:
            size = offer.tiers[:cut].count(tier) * offer.chunk_bytes
            loading += self._tier(tier).biased(size + offer.ahead.get(tier, 0), count)
        return computing + loading


def _cuts(tiers: Sequence[int]) -> list[int]:
    """Where a match may be cut: nowhere, where the tier changes, and at its end.

    Costs grow evenly inside a run of one tier, so nothing is gained by cutting there.
    """
    changes = [i for i in range(1, len(tiers)) if tiers[i] != tiers[i - 1]]
    return [0, *changes[: CUTS_MAX - 2], len(tiers)]
