"""The scheduler's side: what is matched, loaded and saved, step by step.

Knows vLLM's `Request` and `SchedulerOutput` by their attributes only, so that a double of the
scheduler can drive it. All methods are called on the scheduler's thread; none blocks longer than
the timeouts in the options, and none raises because of the daemon. Matches and releases are said by
the matcher's thread; an answer that isn't there in time is picked up when vLLM asks again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from kvasir.errors import KvasirError, ServerError, Timeout
from kvasir.hints import NO_HINT, Hint, hint_of
from kvasir.identity import Space
from kvasir.leases import MEMORY, ReserveRequest
from kvasir.vllm.config import ConnectorOptions
from kvasir.vllm.cost import CostModel, Decision, Offer, StepWork
from kvasir.vllm.grid import Grid
from kvasir.vllm.identity import AdapterIdentities
from kvasir.vllm.keys import RequestKeys, UnknownKinds, why_not_cached
from kvasir.vllm.link import Connection, Link, Outage
from kvasir.vllm.matcher import Matcher, Ticket
from kvasir.vllm.metadata import LoadSpec, LoadTimes, SaveSpec, StepMetadata, WorkerReport
from kvasir.vllm.stats import Counters, tier_name

log = logging.getLogger("vllm.kvasir")

NULL_BLOCK = 0
"""vLLM's stand-in for a block that slid out of an attention window."""

ADAPTER_WAIT_S = 2.0
"""How long a request waits for its adapter to be read, before it goes without the cache."""

FIRST_PAUSE_S = 0.25
LAST_PAUSE_S = 5.0
"""After a refusal, nothing is saved for a while: the store says when it is full, once a pause."""

STATE_GRANTED, STATE_PRESENT, STATE_WRITING, STATE_REFUSED = range(4)


@dataclass(slots=True)
class KeptMatch:
    """The answer to a match, kept while vLLM asks again."""

    first: int
    """Chunk at which the match began."""
    count: int
    """Chunks that are taken of what matched."""
    known: int
    """Chunks that the request had keys for."""
    tiers: bytes
    hold: int
    arena_id: bytes
    asked_at: float
    deadline: float
    left_out: int = 0
    """Chunks that matched and are not taken."""
    reason: str = ""
    """Why not."""
    prefetched_at: float = 0.0
    """When chunks began to move to memory, in monotonic seconds; 0 if all were there."""

    def end(self, chunk_tokens: int) -> int:
        return (self.first + self.count) * chunk_tokens


@dataclass(slots=True)
class RunningLoad:
    """A load that workers are at; the engine keeps its blocks until they all report."""

    hold: int
    arena_id: bytes
    tokens: int
    by_tier: dict[int, int] = field(default_factory=dict)
    """Those tokens by the tier that they come from."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of its chunks by tier, of all shards together."""
    ahead: dict[int, int] = field(default_factory=dict)
    """Bytes of the loads that were under way when it was planned, by tier."""
    times: LoadTimes | None = None
    """What the slowest rank took."""
    end: int = 0
    """Chunks, from the first on, that the store has if this load succeeds."""
    failed: bool = False


@dataclass(slots=True)
class RequestState:
    """What is known of one request."""

    request: Any
    uncacheable: str = ""
    hint: Hint = NO_HINT
    """What the request says of the time after it."""
    keys: RequestKeys | None = None
    told: bool = False
    """The daemon's request log, if there is one, has it."""
    first_seen: float = 0.0
    asked_tokens: int = 0
    """What vLLM said it has of its own, when it asked last."""
    match: KeptMatch | None = None
    ticket: Ticket | None = None
    """A match whose answer isn't there yet."""
    gave_up: bool = False
    """The answer took too long: no more matches until vLLM has given it blocks."""
    load: RunningLoad | None = None
    taken: RunningLoad | None = None
    """The last load, for its tiers."""
    no_match: bool = False
    """A load of this request failed: it is computed from now on."""
    offered: int = 0
    """Chunks, from the first on, that were offered to the store."""
    tainted: bool = False
    """Its blocks were computed before the weights changed."""
    saves: set[int] = field(default_factory=set)
    """Asynchronous saves under way."""
    finished: bool = False
    final_blocks: list[int] | None = None
    """Blocks of a finished request with something left to save."""


@dataclass(slots=True)
class _Candidate:
    """Chunks of one request to be reserved."""

    state: RequestState
    first: int
    end: int
    blocks: Sequence[int]


class SchedulerSide:
    """The scheduler's half of the connector."""

    def __init__(
        self,
        options: ConnectorOptions,
        grid: Grid,
        link: Link,
        matcher: Matcher,
        *,
        adapters: AdapterIdentities,
        loads: bool = True,
        saves: bool = True,
        kinds: UnknownKinds | None = None,
        content_named: bool = True,
        session: str,
        new_generation: Callable[[], str],
        cost: CostModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._cost = cost or CostModel()
        self._grid = grid
        self._link = link
        self._matcher = matcher
        self._patience_s = max(options.match_patience_ms, options.match_timeout_ms) / 1000
        self._adapters = adapters
        self._loads_wanted = loads
        self._saves_wanted = saves
        self._kinds = kinds
        self._content_named = content_named
        self._session = session
        self._new_generation = new_generation
        self._clock = clock
        self._space: Space | None = None
        self._asynchronous = False
        self._requests: dict[str, RequestState] = {}
        self._planned: list[LoadSpec] = []
        self._under_way: dict[int, int] = {}
        """Bytes of the loads that workers are at, by the tier that they come from."""
        self._delayed: list[str] = []
        self._discard: list[str] = []
        self._waiting_final: dict[str, RequestState] = {}
        self._next_save = 1
        self._save_owner: dict[int, RequestState] = {}
        self._save_reports: dict[int, int] = {}
        self._pause_until = float("-inf")
        self._pause_s = FIRST_PAUSE_S
        self._waited_s = 0.0
        """How long matches have kept the step that is being planned."""
        self._outage = Outage(clock)
        self._warned: set[str] = set()
        self.counters = Counters()

    # -- start and end -------------------------------------------------------------------------

    @property
    def space(self) -> Space | None:
        """The engine's space, once its workers have said what they hold."""
        return self._space

    @property
    def links(self) -> tuple[Link, Link]:
        """The connection of saves, and that of matches."""
        return self._link, self._matcher.link

    def start(self, space: Space, *, asynchronous: bool) -> None:
        """The workers are known: caching begins."""
        self._space = space
        self._asynchronous = asynchronous

    def shutdown(self) -> None:
        """Ends the session, and with it all holds and leases."""
        self._matcher.close()
        self._link.close()

    def reset_cache(self) -> bool:
        """The weights have changed: nothing stored so far is valid for this engine any more.

        The generation becomes a random one. A counter would make two engines share that were
        given different weights.
        """
        if self._space is not None:
            self._space = replace(self._space, generation=self._new_generation())
        self._adapters.forget()
        for state in self._requests.values():
            self._release_match(state)
            state.keys = None
            state.offered = 0
            # What it has computed so far belongs to the old weights. vLLM asks for a match again
            # if it starts over; only then it is clean.
            state.tainted = True
            state.final_blocks = None
            if state.load is not None:
                self._discard.append(state.request.request_id)
        # vLLM waits for these to be reported as sent; they go without their last save.
        log.info("Kvasir: the cache was reset; what this engine stored so far is not used again")
        return True

    # -- requests ------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        self._state(request)

    def get_num_new_matched_tokens(
        self, request: Any, computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many tokens beyond `computed_tokens` can be loaded; the second is always async.

        vLLM asks at every step while it has no blocks for the request: the answer is kept, and
        with it the hold on the chunks, until the deadline of the hold nears. None tokens say that
        it isn't known yet; vLLM then passes the request over and asks again at its next step.
        """
        state = self._state(request)
        state.asked_tokens = computed_tokens
        # It starts from what the engine has in its own cache; that the engine has reset too.
        state.tainted = False
        space = self._space
        if (
            space is None
            or not self._loads_wanted
            or state.no_match
            or request.skip_reading_prefix_cache
        ):
            return 0, False
        connection = self._matching()
        if connection is None:
            if state.ticket is not None and state.ticket.wait(0):
                self._picked_up(state, state.ticket)  # For why it was lost.
            self._release_match(state)
            return 0, False
        keys = self._keys(state, space)
        if keys is None:
            if not state.uncacheable and self._clock() - state.first_seen < ADAPTER_WAIT_S:
                return None, False
            return 0, False
        match = self._matched(state, keys, connection, computed_tokens)
        self._tell_request(state, keys, connection)
        if match is None:
            return (0 if state.ticket is None else None), False
        external = match.end(space.chunk_tokens) - computed_tokens
        if external < max(1, self._options.min_load_tokens):
            self._release_match(state, keep_miss=True)
            return 0, False
        return external, True

    def update_state_after_alloc(
        self, request: Any, block_ids: Sequence[int], external_tokens: int
    ) -> None:
        """vLLM has blocks for the request, and takes `external_tokens` of what was offered."""
        state = self._state(request)
        state.gave_up = False
        self._count_left_out(state)
        space = self._space
        if external_tokens == 0 or space is None:
            # Also called after a load, when there is nothing left to release.
            self._release_match(state)
            return
        start = state.asked_tokens
        end = start + external_tokens
        match = state.match
        state.match = None
        block_tokens = space.block_tokens
        blocks = list(block_ids[start // block_tokens : -(-end // block_tokens)])
        spec = LoadSpec(
            request_id=request.request_id,
            arena=b"",
            hold=0,
            first=0,
            count=-(-end // space.chunk_tokens) - start // space.chunk_tokens,
            skip_blocks=start % space.chunk_tokens // block_tokens,
            blocks=blocks,
        )
        # vLLM waits for the report of this load whatever happens, so a load goes out even where
        # its hold is gone: without a hold it fails, and the request is computed.
        if match is None or end > match.end(space.chunk_tokens):
            log.error("Kvasir: vLLM took a load that was not offered; it is computed instead")
            self._planned.append(spec)
            state.load = RunningLoad(0, b"", external_tokens)
            return
        spec.arena = match.arena_id
        spec.hold = match.hold
        spec.first = start // space.chunk_tokens - match.first
        spec.tiers = match.tiers[spec.first : spec.first + spec.count]
        spec.prefetched_at = match.prefetched_at
        self._planned.append(spec)
        state.load = state.taken = RunningLoad(
            match.hold,
            match.arena_id,
            external_tokens,
            by_tier=_tokens_by_tier(spec.tiers, start, end, space.chunk_tokens),
            sizes={tier: spec.tiers.count(tier) * space.chunk_bytes for tier in set(spec.tiers)},
            ahead=dict(self._under_way),
            end=end // space.chunk_tokens,
        )
        for tier, size in state.load.sizes.items():
            self._under_way[tier] = self._under_way.get(tier, 0) + size

    def loaded_from(self, request: Any, external_tokens: int) -> dict[int, int]:
        """Tokens of the last load by tier (1 memory, 2 disk, 3 remote, 4 peer)."""
        state = self._requests.get(request.request_id)
        if state is None or state.taken is None or state.taken.tokens != external_tokens:
            return {}
        return dict(state.taken.by_tier)

    def request_finished(self, request: Any, block_ids: Sequence[int]) -> bool:
        """The request has ended; True asks vLLM to keep its blocks until workers report."""
        state = self._requests.get(request.request_id)
        if state is None:
            return False
        state.finished = True
        self._release_match(state)
        if state.load is not None:
            # It was aborted while it loads. vLLM keeps the blocks until every worker has reported
            # this load, and frees them then: they must not be reported as sent as well.
            return False
        if self._has_final_save(state):
            state.final_blocks = list(block_ids)
            self._waiting_final[request.request_id] = state
            return True
        if state.saves:
            self._delayed.append(request.request_id)
            return True
        del self._requests[request.request_id]
        return False

    def has_pending_work(self) -> bool:
        """Whether steps are needed even if no request is left."""
        return bool(self._waiting_final or self._delayed)

    # -- steps ---------------------------------------------------------------------------------

    def build_step(self, output: Any) -> StepMetadata:
        """What workers do in this step: loads planned since the last one, saves of what the step
        completes, and blocks to be let go of."""
        self._waited_s = 0.0
        step = StepMetadata(
            session=self._session,
            idle=output.total_num_scheduled_tokens == 0,
        )
        step.loads, self._planned = self._planned, []
        step.discard_loads, self._discard = self._discard, []
        step.preempted = sorted(output.preempted_req_ids or ())
        try:
            self._plan_saves(output, step)
        except Exception as error:
            # The step must go out: loads and blocks wait for it.
            log.exception("Kvasir: planning this step's saves failed")
            self.counters.fail("failed_saves", type(error).__name__)
        try:
            self._learn_step(output)
        except Exception as error:  # noqa: BLE001 - nothing but an estimate depends on it
            self._warn_once("learn", "Kvasir: what steps take can't be learnt: %r", error)
        step.delayed += self._delayed
        self._delayed = []
        step.delayed += self._waiting_final
        self._waiting_final = {}
        return step

    def update_from_workers(
        self, report: WorkerReport | None, received: Iterable[str], sent: Iterable[str]
    ) -> None:
        """What workers reported with the step that vLLM is taking in."""
        if report is not None:
            for request_id in report.failed_loads:
                state = self._requests.get(request_id)
                if state is not None:
                    state.no_match = True
                    if state.load is not None:
                        state.load.failed = True
            for save, count in report.finished_saves.items():
                self._save_done(save, count)
            for request_id, times in report.load_times.items():
                self._load_timed(request_id, times)
            if report.outage and self._link.current() is None:
                self._outage.down(report.outage)
        for request_id in received:
            self._load_over(request_id)
        for request_id in sent:
            self._requests.pop(request_id, None)

    def _load_over(self, request_id: str) -> None:
        state = self._requests.get(request_id)
        if state is None or state.load is None:
            return
        load, state.load = state.load, None
        for tier, size in load.sizes.items():
            self._under_way[tier] -= size
        if load.failed:
            # Not every worker may have released its part of the hold.
            self._matcher.release(load.arena_id, load.hold)
        else:
            # A chunk is only matched while all that it follows is stored.
            state.offered = max(state.offered, load.end)
            self.counters.add_tiers("hit_tokens", load.by_tier)
            self._learn_load(load)
        if state.finished:
            del self._requests[request_id]

    def _load_timed(self, request_id: str, times: LoadTimes) -> None:
        """A rank's times, which come before the last rank has reported the load, or with it."""
        state = self._requests.get(request_id)
        if state is not None and state.load is not None:
            before = state.load.times
            state.load.times = times if before is None else before.slower(times)

    # -- learning what loads and steps take ----------------------------------------------------

    def _learn_load(self, load: RunningLoad) -> None:
        times = load.times
        if times is None:
            return
        now = self._clock()
        self._cost.copied(now, sum(load.sizes.values()), times.copied)
        slower = [tier for tier in load.sizes if tier != MEMORY]
        # Of a load from several slower tiers nobody can tell which one it waited for.
        if len(slower) == 1 and times.arrived > 0:
            (tier,) = slower
            size = load.sizes[tier] + load.ahead.get(tier, 0)
            self._cost.arrived(now, tier, size, times.arrived, waited=times.waited)

    def _learn_step(self, output: Any) -> None:
        """The step that is planned tells how long the one before took."""
        tokens = decodes = 0
        position = 0.0
        for request_id, scheduled in output.num_scheduled_tokens.items():
            state = self._requests.get(request_id)
            if state is None:
                continue
            computed = state.request.num_computed_tokens
            if computed < state.request.num_prompt_tokens and scheduled > 1:
                tokens += scheduled
                position += scheduled * (computed + scheduled / 2)
            else:
                decodes += 1
        work = StepWork(
            frozenset(output.num_scheduled_tokens), tokens, position / max(1, tokens), decodes
        )
        self._cost.step(self._clock(), work, running=self._is_running(self._cost.previous_step))

    def _is_running(self, step: StepWork | None) -> bool:
        """Whether a step's output has not been taken in: true of all its requests, or of none."""
        for request_id in step.requests if step is not None else ():
            state = self._requests.get(request_id)
            if state is not None and not state.finished:
                return bool(getattr(state.request, "num_in_flight_tokens", 0))
        return False

    def _decide(
        self, space: Space, first: int, start: int, ahead: Mapping[int, int], tiers: bytes
    ) -> Decision:
        """How much of a match is taken. On the matcher's thread."""
        count = len(tiers)
        if (first + count) * space.chunk_tokens - start < max(1, self._options.min_load_tokens):
            return Decision(0)
        if self._options.load_if_slower:
            return Decision(count)
        offer = Offer(
            tiers, start, first * space.chunk_tokens, space.chunk_tokens, space.chunk_bytes, ahead
        )
        decision = self._cost.decide(self._clock(), offer)
        if decision.probe:
            log.info(
                "Kvasir: chunks in the %s tier are loaded again, to see whether that is still "
                "slower than computing them",
                tier_name(tiers[decision.chunks - 1]),
            )
        return decision

    def _count_left_out(self, state: RequestState) -> None:
        """Once vLLM has decided, what the store had and the request computes is counted."""
        match, space = state.match, self._space
        if match is None or space is None or not match.left_out:
            return
        tokens = match.left_out * space.chunk_tokens
        self.counters.fail("skipped_load_tokens", match.reason, tokens)
        self._say_once(
            f"skipped {match.reason}",
            "Kvasir: %d tokens are computed though they are stored (%s); this is counted as "
            "skipped_load_tokens",
            tokens,
            match.reason,
        )

    def _save_done(self, save: int, count: int) -> None:
        total = self._save_reports.get(save, 0) + count
        if total < self._grid.workers:
            self._save_reports[save] = total
            return
        self._save_reports.pop(save, None)
        state = self._save_owner.pop(save, None)
        if state is not None:
            state.saves.discard(save)

    # -- matching ------------------------------------------------------------------------------

    def _matched(
        self, state: RequestState, keys: RequestKeys, connection: Connection, computed: int
    ) -> KeptMatch | None:
        """What the store has, or None: nothing, or, with a ticket, not known yet."""
        first = computed // keys.space.chunk_tokens
        known = keys.extend()
        kept = state.match
        if kept is not None:
            if self._still_good(kept, connection, first, known):
                return kept if kept.count else None
            self._release_match(state)
        ticket = state.ticket
        now = since = self._clock()
        if ticket is not None:
            since = ticket.since
            if ticket.space is not keys.space or ticket.known != known or first < ticket.first:
                self._forget_ticket(state)
                ticket = None
            elif ticket.wait(0):
                match = self._picked_up(state, ticket)
                if not match.count or self._still_good(match, connection, first, known):
                    return match if match.count else None
                # What it holds is about to end, or is of a daemon that is gone.
                self._release_match(state)
                ticket = None
        if known <= first or state.gave_up:
            self._forget_ticket(state)
            return None
        if ticket is None:
            ticket = Ticket(
                keys.space,
                keys.root,
                keys.slice(first, known),
                first=first,
                known=known,
                asked_at=now,
                since=since,
                hint=state.hint,
                decide=partial(self._decide, keys.space, first, computed, dict(self._under_way)),
            )
            if self._matcher.busy_s() > self._patience_s:
                # The daemon has owed somebody else an answer for as long as that.
                self._give_up(state, ticket)
                return None
            state.ticket = ticket
            begun = time.monotonic()
            self._matcher.ask(ticket)
            arrived = ticket.wait(self._match_time_left())
            self._waited_s += time.monotonic() - begun
            if arrived:
                match = self._picked_up(state, ticket)
                return match if match.count else None
        if self._clock() - ticket.since >= self._patience_s:
            self._forget_ticket(state)
            self._give_up(state, ticket)
        return None

    def _tell_request(self, state: RequestState, keys: RequestKeys, connection: Connection) -> None:
        """The daemon's request log gets each request once, and its whole prompt: also what the
        engine's own cache has of it, and however often it is matched."""
        if state.told:
            return
        state.told = True
        if self._matcher.wants_requests(connection):
            tokens = len(state.request.all_token_ids)
            whole = keys.slice(0, keys.extend())
            self._matcher.tell_request(keys.space, keys.root, whole, tokens, state.hint)

    def _match_time_left(self) -> float:
        """How much longer matches may keep the step that is being planned, in seconds."""
        return max(0.0, self._options.match_timeout_ms / 1000 - self._waited_s)

    def _picked_up(self, state: RequestState, ticket: Ticket) -> KeptMatch:
        """The answer, kept as the request's match; an error is a miss."""
        state.ticket = None
        answer, error = ticket.answer, ticket.error
        hold, tiers, arena_id, count = 0, b"", b"", 0
        if ticket.connection is not None:
            arena_id = ticket.connection.arena_id
        if answer is not None and answer.hold is not None:
            hold = answer.hold.id
        if answer is None or error is not None:
            # There may be both: what was to be done with the answer has failed.
            error = error or KvasirError("no answer")
            if isinstance(error, ServerError):
                self._server_refused("failed_matches", error)
            elif isinstance(error, (KvasirError, OSError)):
                self._lost(error, self._matcher.link)
            else:
                log.error("Kvasir: a match failed; the request is computed", exc_info=error)
                self.counters.fail("failed_matches", type(error).__name__)
        else:
            self._outage.up()
            self.counters.add("matches")
            if hold:
                tiers, count = bytes(answer.tiers), ticket.taken
        found = len(tiers)
        missed = ticket.known - ticket.first - found
        self.counters.add("missed_tokens", missed * ticket.space.chunk_tokens)
        if ticket.prefetched_at:
            self.counters.add("prefetches")
        if hold and not count:
            self._matcher.release(arena_id, hold)
            hold = 0
        now = self._clock()
        state.match = KeptMatch(
            ticket.first,
            count,
            ticket.known,
            tiers[:count],
            hold,
            arena_id,
            now,
            ticket.asked_at + self._options.hold_ms / 1000,
            left_out=found - count if ticket.refused else 0,
            reason=ticket.refused,
            prefetched_at=ticket.prefetched_at,
        )
        return state.match

    def _give_up(self, state: RequestState, ticket: Ticket) -> None:
        """The answer takes too long: the request is computed."""
        state.gave_up = True
        self.counters.fail("failed_matches", "no answer in time")
        self.counters.add(
            "missed_tokens", (ticket.known - ticket.first) * ticket.space.chunk_tokens
        )
        self._outage.down("it does not answer")

    def _forget_ticket(self, state: RequestState) -> None:
        ticket, state.ticket = state.ticket, None
        if ticket is not None:
            self._matcher.forget(ticket)

    def _still_good(self, kept: KeptMatch, connection: Connection, first: int, known: int) -> bool:
        now = self._clock()
        if kept.arena_id != connection.arena_id or kept.known != known or first < kept.first:
            return False
        if not kept.count:
            return now - kept.asked_at < self._options.retry_miss_ms / 1000
        # Half of the hold is left for the load itself.
        return (
            kept.deadline - now > self._options.hold_ms / 2000 and first < kept.first + kept.count
        )

    def _release_match(self, state: RequestState, *, keep_miss: bool = False) -> None:
        """Lets go of what the match holds. With `keep_miss` it is remembered as a miss."""
        self._forget_ticket(state)
        match = state.match
        if match is None:
            return
        self._matcher.release(match.arena_id, match.hold)
        if keep_miss:
            match.hold = 0
            match.count = 0
            match.asked_at = self._clock()
        else:
            state.match = None

    # -- saving --------------------------------------------------------------------------------

    def _valid_tokens(self, request: Any, scheduled: int) -> int:
        """Tokens whose KV is in its blocks, and right, once this step's forward has run.

        `num_computed_tokens + scheduled` counts every position that has been written by then: also
        those of drafts that may be rejected, and, under asynchronous scheduling, those of
        placeholders for tokens that are still being sampled. `all_token_ids` has only what vLLM
        has accepted. A position below both was computed from the id that is there: an accepted id
        is the input of the step after the one that made it (or was itself a draft that was
        accepted), that step runs on every worker before this step's saves do, and a position that
        a rejected draft had used is written again before its id is accepted.
        """
        return min(request.num_computed_tokens + scheduled, len(request.all_token_ids))

    def _final_tokens(self, request: Any) -> int:
        """The same for a request that has ended: only steps whose output has been taken in count,
        because no further step of it may run."""
        in_flight = getattr(request, "num_in_flight_tokens", 0)
        computed = max(0, request.num_computed_tokens - in_flight)
        return min(computed, len(request.all_token_ids))

    def _has_final_save(self, state: RequestState) -> bool:
        space = self._space
        if (
            space is None
            or not self._may_save(state)
            or self._final_tokens(state.request) // space.chunk_tokens <= state.offered
        ):
            return False
        return self._link.current() is not None and self._keys(state, space) is not None

    def _may_save(self, state: RequestState) -> bool:
        return (
            self._saves_wanted
            and not state.tainted
            and not state.uncacheable
            and self._clock() >= self._pause_until
        )

    def _plan_saves(self, output: Any, step: StepMetadata) -> None:
        space = self._space
        if space is None or not self._saves_wanted:
            return
        candidates = list(self._candidates(output, space))
        if not candidates:
            return
        connection = self._saving()
        if connection is None:
            self.counters.fail("failed_saves", "not connected", len(candidates))
            return
        answers = self._reserve(connection, candidates)
        if answers is None:
            return
        gaps = [
            replace(candidate, first=0)
            for candidate, answer in zip(candidates, answers, strict=True)
            if isinstance(answer, ServerError) and answer.code == "KVGAP" and candidate.first > 0
        ]
        if gaps:
            # What this request follows was evicted: its whole prefix is in its blocks still.
            before = candidates
            candidates = [
                c
                for c, a in zip(before, answers, strict=True)
                if not (isinstance(a, ServerError) and a.code == "KVGAP" and c.first > 0)
            ]
            answers = [
                a
                for c, a in zip(before, answers, strict=True)
                if not (isinstance(a, ServerError) and a.code == "KVGAP" and c.first > 0)
            ]
            again = self._reserve(connection, gaps)
            if again is not None:
                candidates += gaps
                answers += again
        for candidate, answer in zip(candidates, answers, strict=True):
            self._granted(candidate, answer, connection, space, step)

    def _candidates(self, output: Any, space: Space) -> Iterable[_Candidate]:
        blocks_of = output.kv_connector_block_state
        for request_id, scheduled in output.num_scheduled_tokens.items():
            state = self._requests.get(request_id)
            if state is None or not self._may_save(state):
                continue
            valid = self._valid_tokens(state.request, scheduled)
            if valid // space.chunk_tokens <= state.offered:
                continue
            keys = self._keys(state, space)
            if keys is None:
                continue
            end = min(valid // space.chunk_tokens, keys.extend())
            groups = blocks_of.get_block_ids(request_id) if blocks_of is not None else None
            if groups is None or end <= state.offered:
                continue
            yield _Candidate(state, state.offered, end, groups[0])
        for state in self._waiting_final.values():
            keys = self._keys(state, space)
            if keys is None or state.final_blocks is None or not self._may_save(state):
                continue
            valid = self._final_tokens(state.request)
            end = min(valid // space.chunk_tokens, keys.extend())
            if end > state.offered:
                yield _Candidate(state, state.offered, end, state.final_blocks)

    def _reserve(
        self, connection: Connection, candidates: Sequence[_Candidate]
    ) -> list[Any] | None:
        """One round trip for all; an exception in place of a lease where there is none.

        None: there was no answer. The client takes back what was granted unheard, and the chunks
        are offered again later.
        """
        asked = []
        for candidate in candidates:
            keys = candidate.state.keys
            assert keys is not None
            asked.append(
                ReserveRequest(
                    keys.space,
                    keys.root,
                    keys.slice(candidate.first, candidate.end),
                    keys.key(candidate.first - 1) if candidate.first else None,
                    self._options.lease_ms,
                    candidate.state.hint,
                )
            )
        try:
            return list(
                connection.client.pipeline_reserve(
                    asked, timeout=self._options.save_timeout_ms / 1000
                )
            )
        except ServerError as error:
            return [error] * len(candidates)
        except Timeout as error:
            # It is slow, not away: that is counted, and not worth a warning.
            self._link.failed(error)
            self.counters.fail("failed_saves", "no answer in time")
        except (KvasirError, OSError) as error:
            self._lost(error, self._link)
        self._pause()
        return None

    def _granted(
        self,
        candidate: _Candidate,
        answer: Any,
        connection: Connection,
        space: Space,
        step: StepMetadata,
    ) -> None:
        state = candidate.state
        if isinstance(answer, BaseException):
            self._refuse(
                str(getattr(answer, "code", type(answer).__name__)),
                str(answer),
                candidate.end - candidate.first,
            )
            return
        if answer.incarnation != connection.incarnation:
            # Nobody will write there; left alone, it would stay locked while this engine lives.
            self.counters.fail("failed_saves", "the connection was lost")
            if answer.id:
                with contextlib.suppress(KvasirError, OSError):
                    connection.client.release(
                        answer.id,
                        incarnation=answer.incarnation,
                        timeout=self._options.save_timeout_ms / 1000,
                    )
            return
        states = answer.states
        refused = states.find(STATE_REFUSED)
        state.offered = candidate.end if refused < 0 else candidate.first + refused
        held = states.count(STATE_PRESENT) + states.count(STATE_WRITING)
        self.counters.add("present_chunks", held)
        if refused >= 0:
            code, _, sentence = (answer.reason or "refused").partition(" ")
            self._refuse(code, sentence, states.count(STATE_REFUSED))
        else:
            self._pause_s = FIRST_PAUSE_S
        granted = list(answer.granted)
        if not granted or not answer.id:
            return
        chunk_blocks = space.chunk_tokens // space.block_tokens
        blocks: list[int] = []
        for position in granted:
            start = (candidate.first + position) * chunk_blocks
            blocks += candidate.blocks[start : start + chunk_blocks]
        if len(blocks) != len(granted) * chunk_blocks or NULL_BLOCK in blocks:
            # Blocks that slid out of the attention window: this prefix can't be saved any more.
            self.counters.fail("failed_saves", "blocks slid out of the window", len(granted))
            state.uncacheable = "its blocks slid out of the attention window"
            self._matcher.release(connection.arena_id, answer.id)
            return
        save = self._next_save
        self._next_save += 1
        if self._asynchronous:
            state.saves.add(save)
            self._save_owner[save] = state
        step.saves.append(
            SaveSpec(
                request_id=state.request.request_id,
                save=save,
                arena=connection.arena_id,
                lease=answer.id,
                blocks=blocks,
                extents=np.ascontiguousarray(answer.extents, dtype="<u8").tobytes(),
            )
        )

    def _refuse(self, code: str, sentence: str, chunks: int) -> None:
        """Counts what the store did not take, and leaves it alone for a while."""
        self.counters.fail("refused_chunks", code, chunks)
        self._pause()
        self._warn_once(
            f"refused {code}",
            "Kvasir did not take chunks (%s %s); it is asked again later, and refusals are counted",
            code,
            sentence,
        )

    def _pause(self) -> None:
        """Nothing is saved for a while, each time for longer until something was."""
        self._pause_until = self._clock() + self._pause_s
        self._pause_s = min(self._pause_s * 2, LAST_PAUSE_S)

    # -- helpers -------------------------------------------------------------------------------

    def _state(self, request: Any) -> RequestState:
        state = self._requests.get(request.request_id)
        if state is None:
            state = RequestState(request, first_seen=self._clock())
            state.uncacheable = why_not_cached(
                request, self._kinds, content_named=self._content_named
            )
            if state.uncacheable:
                self.counters.fail("uncached_requests", state.uncacheable)
            try:
                state.hint = hint_of(getattr(request, "kv_transfer_params", None))
            except ValueError:
                # No reason to refuse a request, which is cached without it.
                self.counters.add("hints_not_understood")
            self._requests[request.request_id] = state
        return state

    def _keys(self, state: RequestState, space: Space) -> RequestKeys | None:
        """The request's keys in the space as it is now, or None while (or because) it has none."""
        if state.uncacheable:
            return None
        if state.keys is not None and state.keys.space is space:
            return state.keys
        adapter = self._adapters.of(state.request.lora_request)
        if adapter is None:
            state.uncacheable = "an adapter whose content can't be told"
            self.counters.fail("uncached_requests", state.uncacheable)
            return None
        if adapter == AdapterIdentities.PENDING:
            return None
        state.keys = RequestKeys(state.request, space, adapter)
        return state.keys

    def _matching(self) -> Connection | None:
        """The connection of matches; one that was just made again is worth half of their time."""
        link = self._matcher.link
        connection = link.current()
        if connection is None:
            begun = time.monotonic()
            half = self._options.match_timeout_ms / 2000
            connection = link.ready(min(half, self._match_time_left()))
            self._waited_s += time.monotonic() - begun
        if connection is None:
            self._outage.down(link.last_error)
        return connection

    def _saving(self) -> Connection | None:
        """The connection of saves."""
        connection = self._link.ready(self._options.match_timeout_ms / 2000)
        if connection is None:
            self._outage.down(self._link.last_error)
        return connection

    def _lost(self, error: BaseException, link: Link) -> None:
        link.failed(error)
        self.counters.fail("outages", type(error).__name__)
        self._outage.down(str(error) or type(error).__name__)

    def _server_refused(self, name: str, error: ServerError) -> None:
        self.counters.fail(name, error.code)
        self._warn_once(f"{name} {error.code}", "Kvasir refused a request: %s", error)

    def _warn_once(self, key: str, message: str, *arguments: Any) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning(message, *arguments)

    def _say_once(self, key: str, message: str, *arguments: Any) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.info(message, *arguments)


def _tokens_by_tier(tiers: bytes, start: int, end: int, chunk_tokens: int) -> dict[int, int]:
    """Tokens from `start` to `end` by the tier of their chunk; `start` is in the first one."""
    counts: dict[int, int] = {}
    for tier in tiers:
        chunk_end = min(end, (start // chunk_tokens + 1) * chunk_tokens)
        if chunk_end > start:
            counts[tier] = counts.get(tier, 0) + chunk_end - start
        start = chunk_end
    return counts


def describe_requests(side: SchedulerSide) -> Mapping[str, RequestState]:
    """The requests that are known, for tests and debugging."""
    return dict(side._requests)
