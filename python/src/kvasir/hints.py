"""What a request says of the time after it, so that eviction can take it into account."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from ._resp import Argument

Expectation = Literal["none", "closed", "pending"]

#: Keys of vLLM's ``kv_transfer_params``.
HINT_KEY = "kvasir.hint"
PRIORITY_KEY = "kvasir.priority"
PIN_KEY = "kvasir.pin_s"

PRIORITY_LEAST, PRIORITY_MOST = -8, 7
SECONDS_MOST = 31_536_000
PIN_LEAST = 0.001
#: Instead of seconds: a pin without end, which outlives restarts of a daemon that has a disk.
FOREVER: Final = "forever"


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
    #: For so many seconds from the request on, nothing of it is evicted, as far as half of the
    #: daemon's memory goes (``pins_refused`` in its figures counts the rest). ``"forever"``: until
    #: it is unpinned or dropped, also over restarts of a daemon that has a disk. None: no pin.
    pin_seconds: float | Literal["forever"] | None = None

    @classmethod
    def parse(
        cls,
        text: str,
        priority: int = 0,
        pin_seconds: float | Literal["forever"] | None = None,
    ) -> Hint:
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
        if isinstance(pin_seconds, str):
            is_pin = pin_seconds == FOREVER
        else:
            is_pin = pin_seconds is None or PIN_LEAST <= pin_seconds <= SECONDS_MOST
        if not is_pin:
            raise ValueError(
                f"a pin is {PIN_LEAST} to {SECONDS_MOST:,} seconds long, or {FOREVER!r}, "
                f"not {str(pin_seconds)[:40]!r}"
            )
        return cls(word, seconds, priority, pin_seconds)  # type: ignore[arg-type]

    @property
    def arguments(self) -> list[Argument]:
        """As commands take it; nothing where it says nothing."""
        arguments: list[Argument] = []
        if self.expectation != "none":
            time = "" if self.seconds is None else f":{self.seconds:.3f}"
            arguments += ["HINT", f"{self.expectation}{time}"]
        if self.priority:
            arguments += ["PRIORITY", self.priority]
        if isinstance(self.pin_seconds, str):
            arguments += ["PIN", "FOREVER"]
        elif self.pin_seconds is not None:
            arguments += ["PIN", round(self.pin_seconds * 1000)]
        return arguments


NO_HINT = Hint()


def hint_of(params: Mapping[str, Any] | None) -> Hint:
    """The hint in a request's ``kv_transfer_params``; ValueError for one that is not understood."""
    if not params or not any(key in params for key in (HINT_KEY, PRIORITY_KEY, PIN_KEY)):
        return NO_HINT
    text, priority = params.get(HINT_KEY) or "none", params.get(PRIORITY_KEY) or 0
    pin = params.get(PIN_KEY)
    is_pin = pin is None or isinstance(pin, str) or _is_number(pin, (int, float))
    if isinstance(text, str) and _is_number(priority, int) and is_pin:
        return Hint.parse(text, priority, pin)
    raise ValueError(
        f"{HINT_KEY} is a text, {PRIORITY_KEY} a whole number, {PIN_KEY} seconds or "
        f"{FOREVER!r}; not {params!r}"
    )


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
