"""`vllm serve`, as users run it: over HTTP, with defaults, with clients that go away."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lab.corpus import passage
from lab.openai_client import ask, cache_counters
from lab.paths import TINY_KJV
from lab.processes import VllmServer
from lab.testing import Expected, Lab, stats, wait_for, whole_chunks


def disconnect(url: str, prompt: list[int], after_s: float) -> None:
    """Sends a request and goes away."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    body = {
        "prompt": prompt,
        "max_tokens": 200,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps(body),
        {"Content-Type": "application/json"},
    )
    time.sleep(after_s)
    connection.close()


@pytest.mark.timeout(600)
def test_clients_that_disconnect_while_their_prompts_load(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    server = lab.keep(
        VllmServer(
            TINY_KJV,
            Path(lab.logs / "server.log"),
            kvasir,
            # Room for one of the prompts only: the other one always has to be loaded.
            ["--max-model-len", "8448", "--block-size", "128", "--num-gpu-blocks-override", "70",
             "--distributed-executor-backend", "uni"],
        )
    )  # fmt: skip
    server.wait_ready()
    prompts = [passage(70, 8192), passage(71, 8100)]
    for prompt in prompts:
        assert ask(server.url, prompt=prompt, max_tokens=16).token_ids == expected(prompt)
    before = cache_counters(server.url).external
    for number, after_ms in enumerate((0, 1, 2, 4, 6, 8, 10, 15, 20, 30, 45, 60)):
        disconnect(server.url, prompts[number % 2], after_ms / 1000)
    for prompt in prompts:
        assert ask(server.url, prompt=prompt, max_tokens=16).token_ids == expected(prompt)
    reused = cache_counters(server.url).external - before
    assert reused >= whole_chunks(8100)

    # The same words under another tenant's salt have to be computed.
    before = cache_counters(server.url).external
    salted = ask(server.url, prompt=prompts[0], max_tokens=16, cache_salt="another tenant")
    assert salted.token_ids == expected(prompts[0])
    assert cache_counters(server.url).external == before
    wait_for(lambda: stats(kvasir)["holds"] == 0, "no hold is left", 10)
