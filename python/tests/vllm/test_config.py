"""The connector's own options."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kvasir.vllm.config import (
    DEFAULT_CHUNK_TOKENS,
    ConnectorOptions,
    parse_options,
    resolve_chunk_tokens,
)
from kvasir.vllm.stats import SUMMED


def test_defaults_need_no_option() -> None:
    assert parse_options({}) == ConnectorOptions()
    assert parse_options({"somebody.else": 1}) == ConnectorOptions()


def test_options_are_read() -> None:
    options = parse_options(
        {"kvasir.socket": "/run/k.sock", "kvasir.chunk_tokens": 512, "kvasir.hold_ms": "1000"}
    )
    assert (options.socket, options.chunk_tokens, options.hold_ms) == ("/run/k.sock", 512, 1000)


@pytest.mark.parametrize(
    ("value", "wanted"), [(True, True), (False, False), ("true", True), ("False", False)]
)
def test_a_switch_is_read(value: object, wanted: bool) -> None:
    assert parse_options({"kvasir.load_if_slower": value}).load_if_slower is wanted


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("kvasir.chunk_token", "kvasir.chunk_tokens"),
        ("kvasir.sokcet", "kvasir.socket"),
        ("kvasir.timeout", "kvasir.match_timeout_ms"),
    ],
)
def test_an_unknown_option_names_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ValueError, match="has no option") as error:
        parse_options({key: 1})
    assert key in str(error.value)
    assert "did you mean 'kvasir." in str(error.value)
    if key != "kvasir.timeout":
        assert f"did you mean '{near}'" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kvasir.socket", 3),
        ("kvasir.socket", ""),
        ("kvasir.chunk_tokens", 0),
        ("kvasir.chunk_tokens", "many"),
        ("kvasir.hold_ms", True),
        ("kvasir.hold_ms", 5),
        ("kvasir.load_failure_policy", "ignore"),
        ("kvasir.load_if_slower", "yes"),
        ("kvasir.load_if_slower", 1),
    ],
)
def test_a_wrong_value_is_refused_with_what_the_option_takes(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"'{key}' takes"):
        parse_options({key: value})


@pytest.mark.parametrize(("block", "expected"), [(16, 256), (128, 256), (96, 288), (512, 512)])
def test_the_default_chunk_has_whole_blocks(block: int, expected: int) -> None:
    assert resolve_chunk_tokens(ConnectorOptions(), block) == expected


def test_a_chunk_that_was_asked_for_is_taken_or_refused() -> None:
    assert resolve_chunk_tokens(ConnectorOptions(chunk_tokens=192), 64) == 192
    with pytest.raises(ValueError, match="use 128 or 256"):
        resolve_chunk_tokens(ConnectorOptions(chunk_tokens=200), 128)
    with pytest.raises(ValueError, match="use 128"):
        resolve_chunk_tokens(ConnectorOptions(chunk_tokens=100), 128)


def test_the_page_lists_every_option_with_its_default() -> None:
    page = Path(__file__).parents[3] / "docs" / "vllm.md"
    rows = re.findall(r"^\| `kvasir\.(\w+)` \| (\S+) \| (.+) \|$", page.read_text(), re.MULTILINE)
    defaults = {name: default.strip("`") for name, default, _ in rows}
    assert len(rows) == len(defaults)
    assert defaults == {
        field.name: {None: "none", False: "false"}.get(field.default, str(field.default))
        for field in fields(ConnectorOptions)
    }
    assert str(DEFAULT_CHUNK_TOKENS) in {name: text for name, _, text in rows}["chunk_tokens"]


def test_the_page_names_every_figure() -> None:
    text = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
    assert [name for name in SUMMED if f"`{name}" not in text] == []


@pytest.mark.parametrize(
    "options",
    [
        {"ttl_s": 0},
        {"ttl_s": 31_536_000},
        {"ttl_s": 2, "ttl_sliding": True},
        {"ttl_sliding": False},
    ],
)
def test_times_to_live_that_the_daemon_takes(options: dict[str, Any]) -> None:
    parsed = parse_options({f"kvasir.{name}": value for name, value in options.items()})
    assert parsed.ttl_s == options.get("ttl_s")


@pytest.mark.parametrize(
    "options",
    [{"ttl_s": 31_536_001}, {"ttl_s": 1, "ttl_sliding": True}, {"ttl_sliding": True}],
)
def test_times_to_live_that_it_does_not_take(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kvasir\.ttl"):
        parse_options({f"kvasir.{name}": value for name, value in options.items()})
