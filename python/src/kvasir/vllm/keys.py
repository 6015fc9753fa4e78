"""The chunk keys of one vLLM request, and which requests have none.

Works on vLLM's `Request` by its attributes; vLLM itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvasir.identity import Extra, KeyChain, Space, encode_extras, root

KNOWN_KINDS = frozenset({"lora", "mm", "cache_salt", "prompt_embeds"})
"""What vLLM mixes into its block hashes, as far as this module knows what it means."""

UnknownKinds = Callable[[Any], set[str]]
"""Tells which kinds vLLM would mix into a request's block hashes."""


def why_not_cached(
    request: Any, kinds: UnknownKinds | None = None, *, content_named: bool = True
) -> str:
    """Why the request has no keys, or an empty string if it has.

    Wherever it isn't certain that equal keys mean equal KV, a request is left alone.
    `content_named` is false where vLLM names multi-modal inputs by a counter instead of their
    content: another process counts the same names for other images.
    """
    if request.prompt_embeds is not None:
        return "prompt embeddings"
    if request.prompt_token_ids is None or request.prompt_is_token_ids is not None:
        return "prompt embeddings"
    if getattr(request, "resumable", False):
        # A streaming session takes back tokens that it had: the last sampled one is replaced by
        # the next input, so keys over it would be keys of another sequence.
        return "a streaming session"
    previous = -1
    if request.mm_features and not content_named:
        return "multi-modal inputs that vLLM does not hash (mm_processor_cache_gb is 0)"
    for feature in request.mm_features or ():
        if not feature.identifier or not isinstance(feature.identifier, str):
            return "a multi-modal input without an identifier"
        if feature.mm_position.offset < previous:
            return "multi-modal inputs out of order"
        previous = feature.mm_position.offset
    if kinds is not None and (unknown := kinds(request) - KNOWN_KINDS):
        return f"block hashes with {', '.join(sorted(unknown))}"
    return ""


class RequestKeys:
    """The chain of chunk keys of one request."""

    def __init__(self, request: Any, space: Space, adapter: bytes) -> None:
        self._request = request
        self._chunk_tokens = space.chunk_tokens
        self.root = root(space.id, adapter=adapter, salt=request.cache_salt or "")
        self.space = space
        self._chain = KeyChain(self.root, space.chunk_tokens)
        self._extras = self._chunk_extras if request.mm_features else None

    def extend(self) -> int:
        """Hashes what is whole now; returns how many chunks have a key.

        Only `all_token_ids` counts: vLLM appends to it what it has accepted, never a placeholder
        of asynchronous scheduling and never a draft.
        """
        tokens = self._request.all_token_ids
        if len(tokens) // self._chunk_tokens > self._chain.count:
            self._chain.extend(tokens, self._extras)
        return self._chain.count

    @property
    def count(self) -> int:
        return self._chain.count

    def key(self, index: int) -> bytes:
        return self._chain.key(index)

    def slice(self, first: int, end: int) -> bytes:
        return self._chain.slice(first, end)

    def _chunk_extras(self, chunk: int) -> bytes:
        """The inputs that have tokens in the chunk, as vLLM does it for its blocks."""
        start = chunk * self._chunk_tokens
        end = start + self._chunk_tokens
        found = []
        for feature in self._request.mm_features:
            offset = feature.mm_position.offset
            length = feature.mm_position.length
            if offset >= end:
                break
            if offset + length > start:
                found.append(Extra("mm", feature.identifier, offset - start))
        return encode_extras(found)
