"""What is on disk outlives everything: engine and daemon are killed, and new ones go on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.corpus import passage
from lab.engine import Engine
from lab.processes import Kvasir, has_disk_tier
from lab.testing import (
    Expected,
    Lab,
    from_kvasir,
    requests,
    stats,
    sync,
    tokens,
    wait_for,
    whole_chunks,
)

#: 3 KiB of KV a token: 108 MiB, and 9 MiB for each prompt.
PROMPTS = [passage(number, 3000) for number in range(400, 412)]
#: A third of that.
MEMORY = "36MiB"
#: What is tested is the way from disk, not whether it is quicker on a busy machine.
EVERYTHING = {"load_if_slower": True}


@pytest.fixture(autouse=True)
def _needs_a_disk_tier() -> None:
    if not has_disk_tier():
        pytest.skip("this daemon has no disk tier: its `kvasir serve` does not know --disk")


def kill_both(engine: Engine, kvasir: Kvasir) -> None:
    """As when the machine's power goes, but for what the kernel still writes."""
    engine.kill()
    kvasir.kill()


def test_engine_and_daemon_are_killed_and_new_ones_answer_from_disk(
    lab: Lab, expected: Expected, tmp_path: Path
) -> None:
    wanted = [expected(prompt) for prompt in PROMPTS]
    kvasir = lab.daemon(MEMORY, disk=tmp_path / "disk")
    first = lab.engine(kvasir, "first", connector_config=EVERYTHING)
    assert tokens(first.generate(requests(PROMPTS), together=False)) == wanted
    assert first.tokens_from("disk") == 0
    sync(kvasir)
    kill_both(first, kvasir)

    kvasir = lab.restart(kvasir)
    assert stats(kvasir)["holds"] == 0
    second = lab.engine(kvasir, "second", connector_config=EVERYTHING)
    results, reused = from_kvasir(
        second, lambda: second.generate(requests(PROMPTS), together=False)
    )
    assert tokens(results) == wanted
    whole = sum(whole_chunks(len(prompt)) for prompt in PROMPTS)
    assert reused == whole
    assert second.tokens_from("disk") == whole, "after the restart everything comes from disk"
    assert second.call("counters")["vllm:kvasir_hit_tokens disk"] == whole

    # Memory holds a third: this time some come from there, and the others from disk once more.
    second.forget()
    before = second.tokens_from("disk")
    results, reused = from_kvasir(
        second, lambda: second.generate(requests(PROMPTS[::-1]), together=False)
    )
    assert tokens(results) == wanted[::-1]
    assert reused == whole
    assert second.tokens_from("disk") > before
    assert second.tokens_from("host") > 0


def test_loads_from_disk_run_beside_each_other(
    lab: Lab, expected: Expected, tmp_path: Path
) -> None:
    prompts = PROMPTS[:6]
    wanted = [expected(prompt) for prompt in prompts]
    kvasir = lab.daemon("256MiB", disk=tmp_path / "disk")
    first = lab.engine(kvasir, "first", connector_config=EVERYTHING)
    first.generate(requests(prompts))
    sync(kvasir)
    kill_both(first, kvasir)

    kvasir = lab.restart(kvasir)
    second = lab.engine(kvasir, "second", connector_config=EVERYTHING)
    assert tokens(second.generate(requests(prompts))) == wanted
    assert second.tokens_from("disk") == sum(whole_chunks(len(prompt)) for prompt in prompts)
    second.call("idle_steps", seconds=0.2)
    assert stats(kvasir)["read_leases"] == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("after_chunks", [1, 30])
def test_killed_while_it_saves_and_writes_nothing_wrong_comes_back(
    lab: Lab, expected: Expected, tmp_path: Path, after_chunks: int
) -> None:
    wanted = [expected(prompt) for prompt in PROMPTS]
    kvasir = lab.daemon(MEMORY, disk=tmp_path / "disk")
    first = lab.engine(kvasir, "first", connector_config=EVERYTHING)
    first.generate(requests(PROMPTS[:4]), together=False)
    sync(kvasir)
    enough = stats(kvasir)["chunks_sealed"] + after_chunks
    # 88 chunks follow.
    first.send_generate(requests(PROMPTS[4:]))
    wait_for(lambda: stats(kvasir)["chunks_sealed"] >= enough, "chunks are saved", 120)
    kill_both(first, kvasir)

    kvasir = lab.restart(kvasir)
    # With what it learns by itself: whatever it decides, the answers are the same.
    second = lab.engine(kvasir, "second")
    assert tokens(second.generate(requests(PROMPTS), together=False)) == wanted
    counters = second.call("counters")
    left_out = counters["vllm:kvasir_skipped_load_tokens"]
    synced = sum(whole_chunks(len(prompt)) for prompt in PROMPTS[:4])
    assert second.tokens_from("disk") > 0
    # What is left out counts whole chunks, those that a trial of the disk leaves out included.
    assert second.tokens_from("disk") + left_out >= synced
