"""The connector's own options: `kvasir.*` keys of `kv_connector_extra_config`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

PREFIX = "kvasir."


@dataclass(frozen=True, slots=True)
class ConnectorOptions:
    """What a user can set, with its default; durations are in milliseconds."""

    socket: str | None = None
    """Where the daemon listens; None follows the rule of docs/protocol.md."""
    chunk_tokens: int | None = None
    """Tokens of a chunk, a multiple of the block size. None: `DEFAULT_CHUNK_TOKENS`, rounded up
    to a multiple of the block size."""
    match_timeout_ms: int = 20
    """Longest time that the matches of one step together may keep vLLM's scheduler; a request whose
    answer isn't there by then is passed over in this step and asked for again in the next."""
    match_patience_ms: int = 1000
    """How long a request waits for the answer to its match before that counts as a miss."""
    save_timeout_ms: int = 100
    """Longest time that reserving room for a step's saves may keep vLLM's scheduler."""
    load_timeout_ms: int = 30_000
    """Longest time that a load may wait for its chunks to reach memory."""
    hold_ms: int = 30_000
    """How long matched chunks stay in the store, waiting for vLLM to take them."""
    lease_ms: int = 60_000
    """How long a worker may take to copy a save into the store."""
    retry_miss_ms: int = 500
    """A waiting request that missed is looked up again after this time."""
    min_load_tokens: int = 64
    """Fewer external tokens than this are computed rather than loaded."""
    load_if_slower: bool = False
    """Load whatever matches, also where computing it would be done sooner."""
    ttl_s: int | None = None
    """Seconds after which what is saved is dropped; 0 for never. None: as the space has it."""
    ttl_sliding: bool = False
    """Whether that time begins anew with each use."""
    idle_wait_ms: int = 5
    """In a step that computes nothing, a worker waits this long for a load to finish instead of
    spinning through empty steps."""
    load_failure_policy: Literal["recompute", "fail"] = "recompute"
    """What vLLM does with a request whose load failed."""
    model_id: str | None = None
    """Asserts the identity of the weights instead of reading it from their files: engines that
    are given the same text share KV. For weights that are not on the local disk."""


DEFAULT_CHUNK_TOKENS = 256
TTL_S_MOST = 31_536_000
TTL_S_LEAST_SLIDING = 2


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty string")
    return value


def _integer(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"an integer of at least {least}")
        return value

    return check


def _boolean(value: Any) -> bool:
    word = str(value).strip().lower() if isinstance(value, (bool, str)) else ""
    if word not in ("true", "false"):
        raise ValueError("true or false")
    return word == "true"


def _policy(value: Any) -> str:
    if value not in ("recompute", "fail"):
        raise ValueError("'recompute' or 'fail'")
    return str(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "socket": _text,
    "chunk_tokens": _integer(1),
    "match_timeout_ms": _integer(1),
    "match_patience_ms": _integer(0),
    "save_timeout_ms": _integer(1),
    "load_timeout_ms": _integer(1),
    "hold_ms": _integer(100),
    "lease_ms": _integer(100),
    "retry_miss_ms": _integer(0),
    "min_load_tokens": _integer(0),
    "load_if_slower": _boolean,
    "ttl_s": _integer(0),
    "ttl_sliding": _boolean,
    "idle_wait_ms": _integer(0),
    "load_failure_policy": _policy,
    "model_id": _text,
}


def parse_options(extra_config: Mapping[str, Any]) -> ConnectorOptions:
    """Reads the `kvasir.*` options; other keys belong to somebody else and are left alone.

    Raises ValueError for an option that does not exist (naming the nearest that does) and for a
    value that is not what the option takes.
    """
    known = [field.name for field in fields(ConnectorOptions)]
    options = ConnectorOptions()
    for key, value in extra_config.items():
        if not key.startswith(PREFIX):
            continue
        name = key[len(PREFIX) :]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; did you mean '{PREFIX}{near[0]}'?" if near else ""
            raise ValueError(
                f"kv_connector_extra_config has no option '{key}'{hint} "
                f"Options: {', '.join(PREFIX + option for option in known)}."
            )
        if value is None:
            continue
        try:
            checked = _CHECKS[name](value)
        except ValueError as error:
            raise ValueError(
                f"kv_connector_extra_config option '{key}' takes {error}, not {value!r}."
            ) from None
        options = replace(options, **{name: checked})
    if options.ttl_s is not None and options.ttl_s > TTL_S_MOST:
        raise ValueError(f"'{PREFIX}ttl_s' takes up to {TTL_S_MOST}, a year, not {options.ttl_s}.")
    if options.ttl_sliding and (options.ttl_s or 0) < TTL_S_LEAST_SLIDING:
        raise ValueError(
            f"'{PREFIX}ttl_sliding' needs '{PREFIX}ttl_s' of at least {TTL_S_LEAST_SLIDING}."
        )
    return options


def resolve_chunk_tokens(options: ConnectorOptions, block_tokens: int) -> int:
    """Tokens of a chunk for an engine whose blocks have `block_tokens` tokens."""
    asked = options.chunk_tokens
    if asked is None:
        return -(-DEFAULT_CHUNK_TOKENS // block_tokens) * block_tokens
    if asked % block_tokens == 0:
        return asked
    below = asked // block_tokens * block_tokens
    nearest = [str(value) for value in (below, below + block_tokens) if value > 0]
    raise ValueError(
        f"'{PREFIX}chunk_tokens' is {asked}, but must be a multiple of the engine's block size, "
        f"{block_tokens}: use {' or '.join(nearest)}."
    )
