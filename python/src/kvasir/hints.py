"""What a request says of the time after it, so that eviction can take it into account."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from ._resp import Argument

Expectation = Literal["none", "closed", "pending"]

#: Keys of vLLM's ``kv_transfer_params``.
HINT_KEY = "kvasir.hint"
PRIORITY_KEY = "kvasir.priority"

PRIORITY_LEAST, PRIORITY_MOST = -8, 7
SECONDS_MOST = 31_536_000


class Hint(NamedTuple):
    """A hint of :meth:`Client.match` and :meth:`Client.reserve`.

    It is evidence, not a command: the daemon learns how far each kind can be believed.
    """

    #: ``closed``: nobody goes on from here. ``pending``: somebody will (a tool is out, a person
    #: types). ``none``: nothing is said.
    expectation: Expectation = "none"
    #: With ``pending``: in about so many seconds; None if that isn't known.
    seconds: float | None = None
    #: -8 to 7, 0 is ordinary. Below it chunks count less, above it more; taken as it is said.
    priority: int = 0

    @classmethod
    def parse(cls, text: str, priority: int = 0) -> Hint:
        """Reads ``closed``, ``pending``, ``pending:SECONDS`` or ``none``; else ValueError."""
        word, colon, rest = text.partition(":")
        seconds: float | None = None
        if colon:
            try:
                seconds = float(rest)
            except ValueError:
                seconds = math.nan
        is_word = word in get_args(Expectation) and (not colon or word == "pending")
        if not is_word or (seconds is not None and not 0 <= seconds <= SECONDS_MOST):
            raise ValueError(
                f"a hint is closed, pending, pending:SECONDS or none, not {text[:40]!r}"
            )
        if not PRIORITY_LEAST <= priority <= PRIORITY_MOST:
            raise ValueError(f"a priority is {PRIORITY_LEAST} to {PRIORITY_MOST}, not {priority}")
        return cls(word, seconds, priority)  # type: ignore[arg-type]

    @property
    def arguments(self) -> list[Argument]:
        """As commands take it; nothing where it says nothing."""
        arguments: list[Argument] = []
        if self.expectation != "none":
            time = "" if self.seconds is None else f":{self.seconds:.3f}"
            arguments += ["HINT", f"{self.expectation}{time}"]
        if self.priority:
            arguments += ["PRIORITY", self.priority]
        return arguments


NO_HINT = Hint()


def hint_of(params: Mapping[str, Any] | None) -> Hint:
    """The hint in a request's ``kv_transfer_params``; ValueError for one that is not understood."""
    if not params or (HINT_KEY not in params and PRIORITY_KEY not in params):
        return NO_HINT
    text, priority = params.get(HINT_KEY) or "none", params.get(PRIORITY_KEY) or 0
    if isinstance(text, str) and isinstance(priority, int) and not isinstance(priority, bool):
        return Hint.parse(text, priority)
    raise ValueError(f"{HINT_KEY} is a text and {PRIORITY_KEY} a whole number, not {params!r}")
