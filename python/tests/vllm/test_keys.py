"""Which requests have keys, and what is in them."""

from __future__ import annotations

import hashlib
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from connector_double import Request

from kvasir.identity import Space
from kvasir.vllm.keys import RequestKeys, why_not_cached

SPACE = Space(
    model="ab" * 32,
    dtype="bfloat16",
    kind="attention",
    layers=1,
    heads=1,
    head_size=2,
    order="planes/LBHNC",
    byte_order="little",
    block_tokens=4,
    chunk_tokens=8,
    stages=1,
    ranks=1,
    shard_bytes=(32,),
)


def image(identifier: Any, offset: int, length: int) -> Any:
    position = SimpleNamespace(offset=offset, length=length)
    return SimpleNamespace(identifier=identifier, mm_position=position, modality="image")


def lp(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def keys_of(request: Request, adapter: bytes = b"") -> list[bytes]:
    keys = RequestKeys(request, SPACE, adapter)
    return [keys.key(i) for i in range(keys.extend())]


def test_keys_are_those_of_the_formats_page() -> None:
    tokens = list(range(20))
    root = hashlib.sha256(b"kvasir.root.1\0" + SPACE.id + lp(b"") + lp(b"tenant")).digest()
    first = hashlib.sha256(root + struct.pack("<8I", *tokens[:8])).digest()
    second = hashlib.sha256(first + struct.pack("<8I", *tokens[8:16])).digest()
    assert keys_of(Request("a", tokens, 1, cache_salt="tenant")) == [first, second]


def test_images_are_named_with_their_place_in_the_chunk() -> None:
    tokens = [5] * 32
    request = Request("a", tokens, 1, mm_features=[image("cat", 3, 10), image("dog", 14, 2)])
    keys = RequestKeys(request, SPACE, b"")
    chunk = struct.pack("<8I", *[5] * 8)
    extras = [
        lp(b"mm") + lp(b"cat") + struct.pack("<q", 3),
        lp(b"mm")
        + lp(b"cat")
        + struct.pack("<q", -5)
        + lp(b"mm")
        + lp(b"dog")
        + struct.pack("<q", 6),
        b"",
        b"",
    ]
    expected = keys.root
    assert keys.extend() == 4
    for index, extra in enumerate(extras):
        expected = hashlib.sha256(expected + chunk + extra).digest()
        assert keys.key(index) == expected


def test_the_same_tokens_with_another_image_place_adapter_or_salt_have_other_keys() -> None:
    tokens = [5] * 16
    variants = [
        keys_of(Request("a", tokens, 1))[0],
        keys_of(Request("a", tokens, 1, cache_salt="x"))[0],
        keys_of(Request("a", tokens, 1), b"a" * 32)[0],
        keys_of(Request("a", tokens, 1, mm_features=[image("cat", 0, 4)]))[0],
        keys_of(Request("a", tokens, 1, mm_features=[image("cat", 1, 4)]))[0],
        keys_of(Request("a", tokens, 1, mm_features=[image("dog", 0, 4)]))[0],
    ]
    assert len(set(variants)) == len(variants)


def test_keys_grow_with_accepted_tokens_only() -> None:
    request = Request("a", list(range(7)), 10)
    keys = RequestKeys(request, SPACE, b"")
    assert keys.extend() == 0
    request.drafts = [-1, -1]
    assert keys.extend() == 0
    request.all_token_ids.append(7)
    assert keys.extend() == 1
    whole = Request("b", list(range(8)), 10)
    assert keys.key(0) == keys_of(whole)[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"prompt_embeds": object()}, "embeddings"),
        ({"prompt_token_ids": None}, "embeddings"),
        ({"prompt_is_token_ids": [True]}, "embeddings"),
        ({"resumable": True}, "streaming"),
        ({"mm_features": [image("", 0, 1)]}, "without an identifier"),
        ({"mm_features": [image(None, 0, 1)]}, "without an identifier"),
        ({"mm_features": [image("a", 5, 1), image("b", 2, 1)]}, "out of order"),
        ({"mm_features": [image("a", 2, 1), image("b", 5, 1)]}, ""),
    ],
)
def test_requests_that_are_not_understood_have_no_keys(change: Any, why: str) -> None:
    found = why_not_cached(Request("a", [1, 2], 1, **change))
    assert (why in found) if why else found == ""


def test_a_kind_that_vllm_hashes_and_we_do_not_know_is_left_alone() -> None:
    request = Request("a", [1, 2], 1)
    assert why_not_cached(request, lambda _: {"lora", "mm", "cache_salt"}) == ""
    assert "smell" in why_not_cached(request, lambda _: {"lora", "smell"})


def test_images_that_vllm_only_counts_are_left_alone() -> None:
    request = Request("a", [1, 2], 1, mm_features=[image("renderer0-mm-1-image-0", 0, 1)])
    assert "does not hash" in why_not_cached(request, content_named=False)
    assert why_not_cached(Request("a", [1, 2], 1), content_named=False) == ""
