"""Two ranks save and load their parts; ranks that hold the same KV heads share one."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.corpus import passage
from lab.models import random_llama
from lab.testing import Lab, from_kvasir, requests, tokens, whole_chunks

TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
PROMPTS = [passage(40, 2048), passage(41, 1500)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kv_heads", [2, 1], ids=["a-head-for-each-rank", "one-head-for-both"])
def test_two_ranks_answer_from_kvasir_after_a_restart(lab: Lab, kv_heads: int) -> None:
    model: Path = random_llama(f"kv-heads-{kv_heads}", kv_heads=kv_heads)
    kvasir = lab.daemon()
    without = lab.engine(None, "without", model=model, engine=TWO_RANKS)
    wanted = tokens(without.generate(requests(PROMPTS), together=False))
    without.stop()

    first = lab.engine(kvasir, "first", model=model, engine=TWO_RANKS)
    assert tokens(first.generate(requests(PROMPTS), together=False)) == wanted
    first.stop()

    second = lab.engine(kvasir, "second", model=model, engine=TWO_RANKS)
    results, reused = from_kvasir(
        second, lambda: second.generate(requests(PROMPTS), together=False)
    )
    assert tokens(results) == wanted
    assert reused == sum(whole_chunks(len(prompt)) for prompt in PROMPTS)
