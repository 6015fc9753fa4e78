"""What requests say of the time after them reaches the store, and does no harm."""

from __future__ import annotations

import random
from typing import Any

import pytest
from connector_fakes import FakeStore

from kvasir import Hint
from kvasir.hints import NO_HINT, SECONDS_MOST, hint_of

PROMPT = random.Random(1).choices(range(900), k=48)


@pytest.mark.parametrize(
    ("params", "hint"),
    [
        (None, NO_HINT),
        ({}, NO_HINT),
        ({"do_remote_decode": True}, NO_HINT),
        ({"kvasir.hint": None, "kvasir.priority": None}, NO_HINT),
        ({"kvasir.hint": "none"}, NO_HINT),
        ({"kvasir.hint": "closed"}, Hint("closed")),
        ({"kvasir.hint": "pending"}, Hint("pending")),
        ({"kvasir.hint": "pending:0"}, Hint("pending", 0.0)),
        ({"kvasir.hint": "pending:2.5", "kvasir.priority": 7}, Hint("pending", 2.5, 7)),
        ({"kvasir.hint": f"pending:{SECONDS_MOST}"}, Hint("pending", float(SECONDS_MOST))),
        ({"kvasir.priority": -8}, Hint(priority=-8)),
        ({"kvasir.pin_s": 600}, Hint(pin_seconds=600)),
        ({"kvasir.pin_s": 0.001, "kvasir.hint": "pending"}, Hint("pending", pin_seconds=0.001)),
        ({"kvasir.pin_s": SECONDS_MOST}, Hint(pin_seconds=SECONDS_MOST)),
        ({"kvasir.pin_s": "forever"}, Hint(pin_seconds="forever")),
        ({"kvasir.pin_s": None}, NO_HINT),
    ],
)
def test_what_is_understood(params: dict[str, Any] | None, hint: Hint) -> None:
    assert hint_of(params) == hint


WRONG: list[dict[str, Any]] = [
    {"kvasir.hint": "open"},
    {"kvasir.hint": "Closed"},
    {"kvasir.hint": "closed:3"},
    {"kvasir.hint": "pending:"},
    {"kvasir.hint": "pending:soon"},
    {"kvasir.hint": "pending:-1"},
    {"kvasir.hint": "pending:nan"},
    {"kvasir.hint": "pending:inf"},
    {"kvasir.hint": f"pending:{SECONDS_MOST + 1}"},
    {"kvasir.hint": 3},
    {"kvasir.hint": ["closed"]},
    {"kvasir.priority": 8},
    {"kvasir.priority": -9},
    {"kvasir.priority": "high"},
    {"kvasir.priority": True},
    {"kvasir.pin_s": 0},
    {"kvasir.pin_s": -1},
    {"kvasir.pin_s": float("nan")},
    {"kvasir.pin_s": SECONDS_MOST + 1},
    {"kvasir.pin_s": "600"},
    {"kvasir.pin_s": "Forever"},
    {"kvasir.pin_s": ""},
    {"kvasir.pin_s": ["forever"]},
    {"kvasir.pin_s": True},
]


@pytest.mark.parametrize("params", WRONG)
def test_what_is_not_understood(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hint|priority|pin"):
        hint_of(params)


def test_matches_and_saves_say_what_their_request_said(make_engine: Any, store: FakeStore) -> None:
    said = {"kvasir.hint": "pending:2.5", "kvasir.priority": -3, "kvasir.pin_s": 60}
    engine = make_engine()
    engine.generate("a", PROMPT, kv_transfer_params=said)
    assert {kind for kind, _ in store.hints} == {"match", "reserve"}
    assert {hint for _, hint in store.hints} == {Hint("pending", 2.5, -3, 60)}
    store.hints.clear()
    engine.generate("b", PROMPT[::-1])
    assert {hint for _, hint in store.hints} == {NO_HINT}


@pytest.mark.parametrize("params", WRONG)
def test_a_request_with_a_wrong_hint_is_served_and_counted(
    make_engine: Any, store: FakeStore, params: dict[str, Any]
) -> None:
    first, second = make_engine(), make_engine()
    first.generate("a", PROMPT, kv_transfer_params=params)
    assert second.generate("b", PROMPT, kv_transfer_params=params) > 0
    assert first.scheduler.counters.data["hints_not_understood"] == 1
    assert {hint for _, hint in store.hints} == {NO_HINT}
