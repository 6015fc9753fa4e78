"""A streaming client of vLLM's OpenAI-compatible API that measures the time to the first token."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What one request gave."""

    ttft_ms: float
    total_ms: float
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    #: Prompt tokens that vLLM did not compute: from its own prefix cache or from a connector.
    cached_tokens: int


@dataclass(frozen=True)
class CacheCounters:
    """Tokens that vLLM took from its own prefix cache and from the connector, since its start."""

    own: int
    external: int
    #: Those of `external` that Kvasir had on disk.
    disk: int = 0


class RequestFailed(Exception):
    """vLLM answered with an error."""


def events(connection: http.client.HTTPConnection) -> Iterator[dict[str, Any]]:
    """The server-sent events of one answer."""
    response = connection.getresponse()
    if response.status != 200:
        raise RequestFailed(
            f"vLLM answered {response.status}: {response.read().decode(errors='replace')[:500]}"
        )
    for line in response:
        if not line.startswith(b"data: "):
            continue
        body = line[len(b"data: ") :].strip()
        if body == b"[DONE]":
            return
        event = json.loads(body)
        if "error" in event:
            raise RequestFailed(f"vLLM ended the answer with an error: {event['error']}")
        yield event


def post(url: str, path: str, body: dict[str, Any], timeout_s: float) -> http.client.HTTPConnection:
    """Sends a request and returns the connection on which the answer will come."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s
    )
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


def ask(
    url: str,
    *,
    prompt: str | list[int] | None = None,
    messages: list[dict[str, str]] | None = None,
    max_tokens: int = 32,
    cache_salt: str | None = None,
    timeout_s: float = 300,
) -> Answer:
    """One greedy request, completion (`prompt`) or chat (`messages`), streamed."""
    body: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    if messages is not None:
        path, body["messages"] = "/v1/chat/completions", messages
    else:
        path, body["prompt"] = "/v1/completions", prompt
    start = time.perf_counter()
    connection = post(url, path, body, timeout_s)
    first: float | None = None
    text: list[str] = []
    ids: list[int] = []
    usage: dict[str, Any] = {}
    try:
        for event in events(connection):
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                # The first event of a chat only names the role: a token is what counts.
                new = choice.get("token_ids") or []
                if first is None and (new or piece):
                    first = time.perf_counter()
                ids += new
                text.append(piece)
    finally:
        connection.close()
    end = time.perf_counter()
    details = usage.get("prompt_tokens_details") or {}
    return Answer(
        ttft_ms=((first or end) - start) * 1000,
        total_ms=(end - start) * 1000,
        text="".join(text),
        token_ids=tuple(ids),
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


_COUNTER = re.compile(
    r"^vllm:(external_)?prefix_cache_hits_total\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE
)
_FROM_DISK = re.compile(
    r'^vllm:prompt_tokens_cached_by_source_total\{[^}]*source="disk"[^}]*\} ([0-9.e+]+)$',
    re.MULTILINE,
)


def cache_counters(url: str) -> CacheCounters:
    """vLLM's own count of tokens by where they came from, its cache and the connector apart."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        page = answer.read().decode()
    own = external = 0.0
    for match in _COUNTER.finditer(page):
        if match[1]:
            external += float(match[2])
        else:
            own += float(match[2])
    disk = sum(float(match[1]) for match in _FROM_DISK.finditer(page))
    return CacheCounters(own=int(own), external=int(external), disk=int(disk))
